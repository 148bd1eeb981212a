//! Checkpoints: which files of a folder are read, and how hostile or damaged files are refused.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use exlora::checkpoint::Checkpoint;
use exlora::tensor::DType;
use exlora::{Error, ErrorCode};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use support::{Rng, StoredTensor, file_of, fixtures, safetensors};

const INDEX: &str = "model.safetensors.index.json";

fn tensor(name: &str, values: &[f32]) -> StoredTensor {
    StoredTensor::f32(name, &[values.len()], values)
}

fn file(names: &[&str]) -> Vec<u8> {
    safetensors(&names.iter().map(|name| tensor(name, &[1.0, 2.0])).collect::<Vec<_>>())
}

/// A folder with these files.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).expect("written");
    }
    dir
}

fn index(entries: &[(&str, &str)]) -> Vec<u8> {
    let map: serde_json::Map<_, _> = entries.iter().map(|&(tensor, file)| (tensor.into(), file.into())).collect();
    serde_json::json!({"metadata": {}, "weight_map": map}).to_string().into_bytes()
}

fn names(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.names().collect()
}

fn refused(dir: &tempfile::TempDir) -> Error {
    Checkpoint::open(dir.path()).expect_err("refused")
}

/// The error, which must be the same for every way of opening: mapped, read, from memory.
fn refusal(bytes: &[u8]) -> Error {
    let dir = folder(&[("model.safetensors", bytes)]);
    let path = dir.path().join("model.safetensors");
    let mapped = refused(&dir);
    assert_eq!(mapped.path(), Some(&*path));
    assert_eq!(Checkpoint::read_file(&path).expect_err("refused"), mapped);
    assert_eq!(Checkpoint::from_bytes(bytes.to_vec(), &path).expect_err("refused"), mapped);
    mapped
}

/// The error for a header over eight bytes of data.
fn header_refusal(header: &str) -> Error {
    let error = refusal(&file_of(header, &[0; 8]));
    assert_eq!(error.code(), ErrorCode::CheckpointHeaderInvalid, "{error}");
    error
}

// What is accepted.

#[test]
fn names_keep_the_order_of_the_header_and_values_their_bits() {
    let tensors = [
        tensor("b", &[1.5, -2.0]),
        StoredTensor::f16("a", &[2, 1], &[0.5, 0.25]),
        StoredTensor::bf16("c", &[1], &[3.0]),
        StoredTensor::i32("d", &[1], &[-7]),
        StoredTensor::new("e", "I16", &[1], vec![1, 2]),
        StoredTensor::new("f", "I64", &[1, 1, 1], vec![9; 8]),
        StoredTensor::new("g", "F32", &[0, 4], vec![]),
    ];
    let dir = folder(&[("model.safetensors", &safetensors(&tensors))]);
    let path = dir.path().join("model.safetensors");
    for checkpoint in [Checkpoint::open(dir.path()), Checkpoint::read_file(&path)] {
        let checkpoint = checkpoint.expect("readable");
        assert_eq!(names(&checkpoint), ["b", "a", "c", "d", "e", "f", "g"]);
        assert_eq!(checkpoint.tensor("b").expect("there").to_f32(), [1.5, -2.0]);
        assert_eq!(checkpoint.tensor("a").expect("there").to_f32(), [0.5, 0.25]);
        assert_eq!(checkpoint.tensor("a").expect("there").shape(), [2, 1]);
        assert_eq!(checkpoint.tensor("c").expect("there").to_f32(), [3.0]);
        assert_eq!(checkpoint.tensor("d").expect("there").i32_at(0), -7);
        assert_eq!(checkpoint.tensor("e").expect("there").dtype(), DType::I16);
        assert_eq!(checkpoint.tensor("f").expect("there").bytes(), [9; 8]);
        assert!(checkpoint.tensor("g").expect("there").is_empty());
        assert_eq!(checkpoint.path_of("g"), Some(&*path));
        assert_eq!(checkpoint.file_bytes(), fs::metadata(&path).expect("there").len());
    }
}

#[test]
fn names_are_in_the_order_of_their_data() {
    let header = r#"{"z":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let data = [1f32.to_le_bytes(), 2f32.to_le_bytes()].concat();
    let checkpoint = Checkpoint::from_bytes(file_of(header, &data), Path::new("memory")).expect("valid");
    assert_eq!(names(&checkpoint), ["a", "z"]);
    assert_eq!(checkpoint.tensor("z").expect("there").to_f32(), [2.0]);
}

#[test]
fn data_may_begin_at_any_alignment() {
    for padding in 0..8 {
        let header = format!(r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}{}"#, " ".repeat(padding));
        let data = [1f32.to_le_bytes(), 2f32.to_le_bytes()].concat();
        let checkpoint = Checkpoint::from_bytes(file_of(&header, &data), Path::new("memory")).expect("valid");
        assert_eq!(checkpoint.tensor("a").expect("there").to_f32(), [1.0, 2.0]);
    }
}

#[test]
fn a_file_without_tensors_is_valid() {
    let checkpoint = Checkpoint::from_bytes(file_of("{}", &[]), Path::new("memory")).expect("valid");
    assert_eq!(names(&checkpoint), [""; 0]);
    let error = checkpoint.tensor("a").expect_err("missing");
    assert_eq!(error.code(), ErrorCode::CheckpointTensorMissing);
    assert_eq!((error.tensor(), error.path()), (Some("a"), Some(Path::new("memory"))));
}

#[test]
fn shards_are_one_checkpoint() {
    let (first, second) = (file(&["b", "a"]), file(&["c"]));
    let map = index(&[("a", "x-1.safetensors"), ("b", "x-1.safetensors"), ("c", "x-2.safetensors")]);
    let dir = folder(&[("x-1.safetensors", &first), ("x-2.safetensors", &second), (INDEX, &map)]);
    let checkpoint = Checkpoint::open(dir.path()).expect("readable");
    assert_eq!(names(&checkpoint), ["b", "a", "c"]);
    assert_eq!(checkpoint.path_of("c"), Some(&*dir.path().join("x-2.safetensors")));
    assert_eq!(checkpoint.path_of("d"), None);
    assert_eq!(checkpoint.file_bytes(), (first.len() + second.len()) as u64);
}

#[test]
fn an_unsupported_type_is_an_error_only_when_its_tensor_is_read() {
    for dtype in ["F8_E4M3", "U8", "BOOL", "F64"] {
        let bytes = if dtype == "F64" { vec![0; 8] } else { vec![0; 1] };
        let tensors = [StoredTensor::new("strange", dtype, &[1], bytes), tensor("plain", &[1.0])];
        let checkpoint = Checkpoint::from_bytes(safetensors(&tensors), Path::new("memory")).expect("valid");
        assert!(checkpoint.contains("strange"));
        assert_eq!(checkpoint.tensor("plain").expect("there").to_f32(), [1.0]);
        let error = checkpoint.get("strange").expect_err("refused");
        assert_eq!((error.code(), error.found()), (ErrorCode::CheckpointDtypeUnsupported, Some(dtype)));
    }
}

#[test]
fn released_pages_come_back_with_the_same_bytes() {
    let checkpoint = Checkpoint::open(&fixtures().join("quill-4m")).expect("readable");
    let before = checkpoint.content_hash();
    checkpoint.release();
    assert_eq!(checkpoint.content_hash(), before);
}

#[test]
fn the_content_hash_is_over_the_hashes_of_the_parts() {
    const PART: usize = 4 << 20;
    // None, one, exactly two, and parts of which the last is short: more than a machine of two cores has threads.
    for bytes_of_weights in [4, PART / 2, 2 * PART - 4096, 5 * PART + 12] {
        let mut bytes = safetensors(&[StoredTensor::new("a", "U8", &[bytes_of_weights], vec![7; bytes_of_weights])]);
        let last = bytes.len() - 1;
        bytes[last] = 8;
        let mut hash = Sha256::new();
        bytes.chunks(PART).for_each(|part| hash.update(Sha256::digest(part)));
        let expected: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let content_hash = |bytes| Checkpoint::from_bytes(bytes, Path::new("memory")).expect("valid").content_hash();
        assert_eq!(content_hash(bytes.clone()), expected);
        bytes[last] = 9;
        assert_ne!(content_hash(bytes), expected);
    }
}

#[test]
fn links_are_followed() {
    let blobs = folder(&[("0123abcd", &file(&["a"]))]);
    let dir = folder(&[]);
    symlink(blobs.path().join("0123abcd"), dir.path().join("model.safetensors")).expect("linked");
    assert!(Checkpoint::open(dir.path()).expect("readable").contains("a"));
}

// Which files of a folder are used.

#[test]
fn a_single_file_may_have_any_name() {
    let dir = folder(&[("output.safetensors", &file(&["a"])), ("._output.safetensors", b"litter")]);
    assert_eq!(names(&Checkpoint::open(dir.path()).expect("readable")), ["a"]);
}

#[test]
fn shards_without_an_index_are_read_in_order_of_name() {
    let dir = folder(&[("m-2.safetensors", &file(&["b"])), ("m-1.safetensors", &file(&["c"]))]);
    assert_eq!(names(&Checkpoint::open(dir.path()).expect("readable")), ["c", "b"]);
}

#[test]
fn a_stale_index_is_ignored() {
    let stale = index(&[("old", "model-00001-of-00002.safetensors"), ("older", "model-00002-of-00002.safetensors")]);
    for name in ["output.safetensors", "model.safetensors"] {
        let dir = folder(&[(name, &file(&["new"])), (INDEX, &stale)]);
        assert_eq!(names(&Checkpoint::open(dir.path()).expect("readable")), ["new"]);
    }
}

#[test]
fn a_single_file_takes_precedence_over_an_index_that_does_not_name_it() {
    let map = index(&[("a", "x.safetensors")]);
    let dir = folder(&[("x.safetensors", &file(&["a"])), ("model.safetensors", &file(&["a", "b"])), (INDEX, &map)]);
    assert_eq!(names(&Checkpoint::open(dir.path()).expect("readable")), ["a", "b"]);
}

#[test]
fn a_missing_shard_is_named() {
    let map = index(&[("a", "x-1.safetensors"), ("b", "x-2.safetensors")]);
    let dir = folder(&[("x-1.safetensors", &file(&["a"])), (INDEX, &map)]);
    symlink("/nowhere/at/all", dir.path().join("x-2.safetensors")).expect("linked");
    let error = refused(&dir);
    assert_eq!(error.code(), ErrorCode::CheckpointNotFound);
    assert_eq!(error.path(), Some(&*dir.path().join("x-2.safetensors")));
    assert_eq!((error.expected(), error.found()), (Some("2 shards"), Some("1 of them")));
}

#[test]
fn an_index_alone_is_an_incomplete_download() {
    let dir = folder(&[(INDEX, &index(&[("a", "x-1.safetensors")]))]);
    assert_eq!(refused(&dir).code(), ErrorCode::CheckpointNotFound);
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let dir = folder(&[("m-1.safetensors", &file(&["a", "b"])), ("m-2.safetensors", &file(&["b"]))]);
    let error = refused(&dir);
    assert_eq!((error.code(), error.tensor()), (ErrorCode::CheckpointTensorDuplicate, Some("b")));
    let map = index(&[("a", "m-1.safetensors"), ("b", "m-2.safetensors")]);
    fs::write(dir.path().join(INDEX), map).expect("written");
    assert_eq!(refused(&dir).code(), ErrorCode::CheckpointTensorDuplicate);
}

#[test]
fn an_index_that_lists_a_tensor_its_shard_lacks_is_refused() {
    let shards: [(&str, &[u8]); 2] = [("x-1.safetensors", &file(&["a"])), ("x-2.safetensors", &file(&["b"]))];
    let absent = index(&[("a", "x-1.safetensors"), ("b", "x-2.safetensors"), ("ghost", "x-2.safetensors")]);
    let elsewhere = index(&[("a", "x-2.safetensors"), ("b", "x-1.safetensors")]);
    for (map, tensor) in [(absent, "ghost"), (elsewhere, "a")] {
        let dir = folder(&[shards[0], shards[1], (INDEX, &map)]);
        let error = refused(&dir);
        assert_eq!((error.code(), error.tensor()), (ErrorCode::CheckpointIndexInvalid, Some(tensor)));
        assert_eq!(error.path(), Some(&*dir.path().join(INDEX)));
    }
}

#[test]
fn an_index_cannot_point_outside_its_folder() {
    let outside = folder(&[("secret.safetensors", &file(&["a"]))]);
    let absolute = outside.path().join("secret.safetensors").display().to_string();
    for name in ["../x.safetensors", &absolute, "sub/x.safetensors", "..", ".", "", "a\\b.safetensors", "c:x", "a\0b"] {
        let dir = folder(&[("x.safetensors", &file(&["a"])), (INDEX, &index(&[("a", name)]))]);
        let error = refused(&dir);
        assert_eq!((error.code(), error.tensor()), (ErrorCode::CheckpointIndexInvalid, Some("a")), "{name}");
    }
}

#[test]
fn a_malformed_index_is_refused() {
    for bytes in ["", "[]", "{}", r#"{"weight_map": {}}"#, r#"{"weight_map": {"a": 1}}"#, "\u{0}"] {
        let dir = folder(&[("x.safetensors", &file(&["a"])), (INDEX, bytes.as_bytes())]);
        let error = refused(&dir);
        assert_eq!(error.code(), ErrorCode::CheckpointIndexInvalid, "{bytes}");
        assert_eq!(error.path(), Some(&*dir.path().join(INDEX)));
    }
}

#[test]
fn an_index_of_many_gigabytes_is_not_read() {
    let dir = folder(&[("x.safetensors", &file(&["a"]))]);
    fs::File::create(dir.path().join(INDEX)).and_then(|file| file.set_len(10 << 30)).expect("a sparse file");
    assert_eq!(refused(&dir).code(), ErrorCode::CheckpointTooLarge);
}

#[test]
fn a_missing_folder_or_one_without_weights_is_not_found() {
    let dir = folder(&[]);
    let error = Checkpoint::open(&dir.path().join("nowhere")).expect_err("refused");
    assert_eq!(error.code(), ErrorCode::CheckpointNotFound);
    assert_eq!(refused(&dir).code(), ErrorCode::CheckpointNotFound);
    let error = Checkpoint::read_file(&dir.path().join("nothing.safetensors")).expect_err("refused");
    assert_eq!(error.code(), ErrorCode::CheckpointNotFound);
    let dir = folder(&[("pytorch_model.bin", b"")]);
    let error = refused(&dir);
    assert_eq!((error.code(), error.found()), (ErrorCode::CheckpointNotFound, Some("pytorch_model.bin")));
    let error = Checkpoint::open(&dir.path().join("pytorch_model.bin")).expect_err("a file is no folder");
    assert_eq!(error.code(), ErrorCode::CheckpointUnreadable);
}

#[test]
fn anything_but_a_regular_file_is_refused_without_blocking() {
    let fifo = folder(&[]);
    let path = fifo.path().join("model.safetensors");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a FIFO");
    let directory = folder(&[]);
    fs::create_dir(directory.path().join("model.safetensors")).expect("a folder");
    let device = folder(&[]);
    symlink("/dev/zero", device.path().join("model.safetensors")).expect("linked");
    for (dir, kind) in [(fifo, "a FIFO"), (directory, "a directory"), (device, "a device")] {
        let error = refused(&dir);
        assert_eq!((error.code(), error.found()), (ErrorCode::CheckpointUnreadable, Some(kind)));
        let error = Checkpoint::read_file(&dir.path().join("model.safetensors")).expect_err("refused");
        assert_eq!(error.code(), ErrorCode::CheckpointUnreadable);
    }
}

// Damaged and hostile files.

#[test]
fn a_truncated_file_is_reported_with_both_lengths() {
    let whole = file(&["a", "b"]);
    let error = refusal(&whole[..whole.len() - 3]);
    assert_eq!(error.code(), ErrorCode::CheckpointTruncated);
    assert_eq!(error.expected(), Some(&*format!("{} bytes", whole.len())));
    assert_eq!(error.found(), Some(&*format!("{} bytes", whole.len() - 3)));
}

#[test]
fn a_file_cut_at_any_length_is_truncated() {
    let whole = file(&["a", "b"]);
    for length in 0..whole.len() {
        assert_eq!(refusal(&whole[..length]).code(), ErrorCode::CheckpointTruncated, "{length} bytes");
    }
}

#[test]
fn a_header_of_10_gigabytes_is_not_read() {
    let mut bytes = (10u64 << 30).to_le_bytes().to_vec();
    bytes.extend_from_slice(b"{}");
    let error = refusal(&bytes);
    assert_eq!(error.code(), ErrorCode::CheckpointTooLarge);
    assert_eq!(error.found(), Some("10737418240 bytes"));
    assert_eq!(refusal(&[0xff; 64]).code(), ErrorCode::CheckpointTooLarge);
}

#[test]
fn a_header_of_10_gigabytes_in_a_file_that_long_is_not_read() {
    let dir = folder(&[]);
    let path = dir.path().join("model.safetensors");
    fs::write(&path, (10u64 << 30).to_le_bytes()).expect("written");
    fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(11 << 30)).expect("a sparse file");
    assert_eq!(refused(&dir).code(), ErrorCode::CheckpointTooLarge);
    assert_eq!(Checkpoint::read_file(&path).expect_err("refused").code(), ErrorCode::CheckpointTooLarge);
}

#[test]
fn a_sparse_file_of_a_terabyte_is_not_read_past_its_header() {
    let dir = folder(&[]);
    let path = dir.path().join("model.safetensors");
    fs::write(&path, file(&["a"])).expect("written");
    fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(1 << 40)).expect("a sparse file");
    assert_eq!(Checkpoint::read_file(&path).expect_err("refused").code(), ErrorCode::CheckpointHeaderInvalid);
}

#[test]
fn more_tensors_than_the_cap_are_refused() {
    let header = |count: usize| {
        let mut header = String::from("{");
        for i in 0..count {
            let comma = if i == 0 { "" } else { "," };
            write!(header, r#"{comma}"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#).expect("grows");
        }
        header + "}"
    };
    assert!(Checkpoint::from_bytes(file_of(&header(200_000), &[]), Path::new("memory")).is_ok());
    assert_eq!(refusal(&file_of(&header(200_001), &[])).code(), ErrorCode::CheckpointTooLarge);
    let half = header(150_000).replace("{\"dtype", " {\"dtype");
    let other = half
        .replace("\":", "x\":")
        .replace("dtypex", "dtype")
        .replace("shapex", "shape")
        .replace("offsetsx", "offsets");
    let dir = folder(&[("m-1.safetensors", &file_of(&half, &[])), ("m-2.safetensors", &file_of(&other, &[]))]);
    assert_eq!(refused(&dir).code(), ErrorCode::CheckpointTooLarge);
}

#[test]
fn tensors_that_share_bytes_are_refused() {
    let error = header_refusal(
        r#"{"a":{"dtype":"F16","shape":[3],"data_offsets":[0,6]},"b":{"dtype":"F16","shape":[2],"data_offsets":[4,8]}}"#,
    );
    assert!(error.message().contains("`b`"), "{error}");
}

#[test]
fn bytes_outside_any_tensor_are_refused() {
    let error = header_refusal(
        r#"{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},"b":{"dtype":"F16","shape":[2],"data_offsets":[4,8]}}"#,
    );
    assert!(error.message().contains("`b`"), "{error}");
    header_refusal(r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}"#);
    header_refusal(r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[4,8]}}"#);
    header_refusal("{}");
}

#[test]
fn a_duplicate_name_is_refused() {
    header_refusal(
        r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"a":{"dtype":"F16","shape":[2],"data_offsets":[4,8]}}"#,
    );
}

#[test]
fn invalid_headers_are_refused() {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let cases = [
        String::new(),
        "null".into(),
        "[]".into(),
        "{".into(),
        "{} {}".into(),
        "not json".into(),
        r#"{"a":1}"#.into(),
        r#"{"a":{}}"#.into(),
        one(r#""F32""#, "[3]", "[0,8]"),
        one(r#""F32""#, "[2]", "[8,0]"),
        one(r#""F32""#, "[2]", "[0]"),
        one(r#""F32""#, "[2]", "[0,8,8]"),
        one(r#""F32""#, "[-2]", "[0,8]"),
        one(r#""F32""#, "[2.0]", "[0,8]"),
        one(r#""F32""#, "2", "[0,8]"),
        one(r#""F16_OF_NEXT_YEAR""#, "[1]", "[0,2]"),
        one(r#""F32""#, "[18446744073709551615,2]", "[0,8]"),
        one(r#""F32""#, "[4611686018427387906]", "[0,8]"),
        one(r#""F32""#, "[18446744073709551616]", "[0,8]"),
        one(r#""F32""#, "[2]", "[18446744073709551608,18446744073709551615]"),
        one(r#""F4""#, "[1]", "[0,8]"),
        one("32", "[2]", "[0,8]"),
        format!(r#"{{"__metadata__":{}"#, "[".repeat(100_000)),
        "{\"\u{1}\":{}}".into(),
    ];
    for case in cases {
        header_refusal(&case);
    }
    let error =
        refusal(&file_of("{\"a\":1}", &[]).into_iter().map(|b| if b == b'a' { 0xff } else { b }).collect::<Vec<_>>());
    assert_eq!(error.code(), ErrorCode::CheckpointHeaderInvalid);
}

#[test]
fn a_tensor_larger_than_memory_is_reported_as_a_truncated_file() {
    let header = r#"{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}"#;
    assert_eq!(refusal(&file_of(header, &[0; 8])).code(), ErrorCode::CheckpointTruncated);
}

#[test]
fn a_git_lfs_pointer_is_recognized() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    let error = refusal(pointer);
    assert_eq!(error.code(), ErrorCode::CheckpointHeaderInvalid);
    assert!(error.to_string().contains("git lfs pull"), "{error}");
}

/// A few tensors, then perhaps one number of the header changed.
fn perturbed() -> impl Strategy<Value = Vec<u8>> {
    let tensor =
        (prop::sample::select(vec!["F32", "F16", "BF16", "I64", "U8", "F4"]), prop::collection::vec(0usize..5, 0..4));
    (prop::collection::vec(tensor, 0..5), any::<Option<u64>>(), 0usize..4).prop_map(|(tensors, seed, grow)| {
        let (mut parts, mut end) = (Vec::new(), 0);
        for (i, (dtype, shape)) in tensors.iter().enumerate() {
            let bits = match *dtype {
                "F32" => 32,
                "I64" => 64,
                "U8" => 8,
                "F4" => 4,
                _ => 16,
            };
            let begin = end;
            end += (shape.iter().product::<usize>() * bits).div_ceil(8);
            parts.push((format!("t{i}"), *dtype, shape.clone(), [begin, end]));
        }
        let mut length = end;
        if let Some(seed) = seed {
            let mut random = Rng(seed);
            if !parts.is_empty() {
                let at = random.below(parts.len());
                match random.below(4) {
                    0 => parts[at].3[0] = random.below(end + 3),
                    1 => parts[at].3[1] = random.below(end + 3),
                    2 => parts[at].2.push(random.below(3)),
                    _ => parts.swap(0, at),
                }
            }
            length += grow;
        }
        let entries: Vec<String> = parts
            .iter()
            .map(|(name, dtype, shape, offsets)| {
                format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":{offsets:?}}}"#)
            })
            .collect();
        file_of(&format!("{{{}}}", entries.join(",")), &vec![7; length])
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..support::cases(2000) })]

    /// The format's own crate is the oracle: both accept and refuse the same files, and return the same bytes.
    #[test]
    fn the_safetensors_crate_accepts_and_refuses_the_same_files(bytes in perturbed()) {
        let ours = Checkpoint::from_bytes(bytes.clone(), Path::new("memory"));
        match ::safetensors::SafeTensors::deserialize(&bytes) {
            Err(error) => prop_assert!(ours.is_err(), "a file is accepted that the crate refuses: {error}"),
            Ok(theirs) => {
                let ours = ours.expect("accepted by the oracle");
                prop_assert_eq!(ours.names().count(), theirs.len());
                for name in ours.names() {
                    let theirs = theirs.tensor(name).expect("the same names");
                    if let Ok(view) = ours.tensor(name) {
                        prop_assert_eq!(view.bytes(), theirs.data());
                        prop_assert_eq!(view.shape(), theirs.shape());
                    }
                }
            }
        }
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), json in any::<bool>()) {
        let file = if json { file_of(&String::from_utf8_lossy(&bytes), &[]) } else { bytes };
        let _ = Checkpoint::from_bytes(file, Path::new("memory"));
    }
}
