//! Hostile files cost memory in proportion to the bytes that are really stored, and never crash the process.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use exlora::adapter::AdapterFiles;
use exlora::checkpoint::Checkpoint;
use exlora::{Error, ErrorCode};
use serde_json::{Value, json};
use support::adapters::{Adapter, Folder, HIDDEN, sites};
use support::allocator::with_peak;
use support::{StoredTensor, file_of, safetensors};

/// Parsed JSON is larger than its text, a list of empty lists most of all; compiled patterns have a cap of their own.
fn justified(file_bytes: u64) -> usize {
    32 * file_bytes as usize + (2 << 20)
}

/// Bytes on disk, without the holes of sparse files.
fn stored_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = fs::read_dir(dir).expect("a folder");
    entries.map(|entry| entry.expect("an entry").metadata().expect("there").blocks() * 512).sum()
}

fn load(dir: &Path) -> Result<usize, Error> {
    Ok(AdapterFiles::read(dir)?.check(&sites())?.deltas().len())
}

fn lengthen(path: &Path, bytes: u64) {
    OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(bytes)).expect("a sparse file");
}

const Q_A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const Q_B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";

/// An adapter folder whose weights are a header, and data that a sparse file claims to have.
fn claiming(header: &str, data_bytes: u64) -> Folder {
    let folder = Adapter::on_q_proj().write();
    folder.file("adapter_model.safetensors", file_of(header, &[]));
    lengthen(&folder.path().join("adapter_model.safetensors"), 8 + header.len() as u64 + data_bytes);
    folder
}

fn config_of(text: String) -> Folder {
    let folder = Adapter::on_q_proj().write();
    folder.file("adapter_config.json", text);
    folder
}

fn entry(shape: &str, bytes: u64) -> String {
    format!(r#"{{"{Q_A}":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{bytes}]}}}}"#)
}

#[test]
fn the_allocator_measures_a_valid_adapter() {
    let rank = 40_000;
    let folder = Adapter::empty().set("r", json!(rank)).pair("lm_head", rank, HIDDEN, 32).write();
    let file = fs::metadata(folder.path().join("adapter_model.safetensors")).expect("there").len() as usize;
    let (loaded, peak) = with_peak(|| load(folder.path()));
    assert_eq!(loaded, Ok(1));
    assert!((file..justified(file as u64)).contains(&peak), "{peak} bytes for a file of {file}");
}

/// Numbers that fit no model: refused as a feature, as a config, or for what the file lacks.
const ABSURD: &[ErrorCode] = &[
    ErrorCode::AdapterFeatureUnsupported,
    ErrorCode::AdapterConfigInvalid,
    ErrorCode::AdapterSiteNotFound,
    ErrorCode::AdapterTensorMissing,
    ErrorCode::AdapterShapeMismatch,
];

#[test]
fn an_adapter_costs_no_more_memory_than_its_bytes_justify() {
    use ErrorCode::*;
    let set = |field: &str, value: Value| Adapter::on_q_proj().set(field, value).write();
    let on_layer = |layer: u64| {
        let adapter = Adapter::on_q_proj().set("target_modules", json!(["q_proj"]));
        adapter.set("layers_to_transform", json!([layer])).write()
    };
    let many: Vec<String> = (0..20_000)
        .map(|i| format!(r#""{i}.lora_A.weight":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#))
        .collect();
    let patterns: serde_json::Map<_, _> = (0..64).map(|i| (format!(r"(?:\w{{{}}}x)+", 400 + i), json!(2))).collect();
    let heavy: serde_json::Map<_, _> = (0..65).map(|i| (format!("a{i}|b"), json!(2))).collect();
    let table: Vec<(&str, Folder, &[ErrorCode])> = vec![
        ("a header of 10 GB", Adapter::on_q_proj().write(), &[CheckpointTooLarge]),
        ("a header as large as the cap", claiming("{}", 0), &[CheckpointTruncated]),
        ("a tensor of 4 TB", claiming(&entry("[1099511627776]", 4 << 40), 0), &[CheckpointTruncated]),
        ("a sparse tensor of 4 TB", claiming(&entry("[1099511627776]", 4 << 40), 4 << 40), &[MemoryExhausted]),
        ("a shape that overflows", claiming(&entry("[4294967296,4294967296,4]", 8), 8), &[CheckpointHeaderInvalid]),
        ("many tensors", claiming(&format!("{{{}}}", many.join(",")), 0), &[AdapterTensorMissing, AdapterSiteNotFound]),
        ("a rank of a million", set("r", json!(1 << 20)), &[AdapterRankMismatch]),
        ("a rank of 2^63", set("r", json!(1u64 << 63)), &[AdapterConfigInvalid]),
        ("a rank pattern of a million", set("rank_pattern", json!({"q_proj": 1 << 20})), &[AdapterRankMismatch]),
        ("a layer of 2^64", on_layer(u64::MAX), &[AdapterSiteExcluded]),
        ("layers without end", set("layer_replication", json!([[0, 1u64 << 40]])), ABSURD),
        ("layers backwards", set("layer_replication", json!([[u64::MAX, 0]])), ABSURD),
        ("a token of 2^40", set("trainable_token_indices", json!([1u64 << 40])), ABSURD),
        ("a token below zero", set("trainable_token_indices", json!({"embed_tokens": [-1]})), ABSURD),
        ("an alpha of 1e308", set("lora_alpha", json!(1e308)), &[AdapterScaleInvalid]),
        ("a name of a megabyte", set("peft_type", json!("X".repeat(1 << 20))), &[AdapterTypeUnsupported]),
        ("nested 200 deep", set("eva_config", nested(200)), &[AdapterConfigInvalid]),
        ("a million empty lists", config_of(format!("[{}[]]", "[],".repeat(1_000_000))), &[AdapterConfigInvalid]),
        ("patterns that repeat", set("rank_pattern", Value::Object(patterns)), &[AdapterPatternInvalid]),
        ("too many patterns", set("alpha_pattern", Value::Object(heavy)), &[AdapterPatternInvalid]),
        (
            "a pattern that backtracks",
            set("target_modules", json!(r"(?:(?=(.*))(?:.|.)*)*Z\1")),
            &[AdapterPatternInvalid],
        ),
    ];
    for (what, folder, codes) in &table {
        let weights = folder.path().join("adapter_model.safetensors");
        match *what {
            "a header of 10 GB" => fs::write(&weights, (10u64 << 30).to_le_bytes()).expect("written"),
            "a header as large as the cap" => fs::write(&weights, 100_000_000u64.to_le_bytes()).expect("written"),
            _ => {}
        }
        let stored = stored_bytes(folder.path());
        let (outcome, peak) = with_peak(|| load(folder.path()));
        let error = outcome.expect_err(what);
        assert!(codes.contains(&error.code()), "{what}: {error}");
        assert!(peak <= justified(stored), "{what}: {peak} bytes for {stored} on disk");
    }
}

/// Names and Unicode classes make a small text a large automaton; each is capped, and so is their number.
#[test]
fn regular_expressions_cost_what_their_caps_allow() {
    let patterns: serde_json::Map<_, _> = (0..64).map(|i| (format!(r"(?:\w{{8}}|q_proj{i})"), json!(2))).collect();
    let folder = Adapter::on_q_proj().set("rank_pattern", Value::Object(patterns)).write();
    let (loaded, peak) = with_peak(|| load(folder.path()));
    assert_eq!(loaded, Ok(2));
    assert!(peak <= 64 << 20, "{peak} bytes");
}

fn nested(depth: usize) -> Value {
    (0..depth).fold(json!([]), |inner, _| json!([inner]))
}

#[test]
fn a_model_costs_no_more_memory_than_its_bytes_justify() {
    let tensor = safetensors(&[StoredTensor::f32("a", &[2], &[1.0, 2.0])]);
    let index = |map: String| format!(r#"{{"weight_map":{{{map}}}}}"#);
    let many: Vec<String> = (0..100_000).map(|i| format!(r#""t{i}":"a.safetensors""#)).collect();
    let twice = index(r#""a":"a.safetensors","a":"b.safetensors""#.into());
    let table: [(&str, Vec<u8>, String, ErrorCode); 6] = [
        ("a header of 10 GB", (10u64 << 30).to_le_bytes().into(), String::new(), ErrorCode::CheckpointTooLarge),
        (
            "a header as large as the cap",
            100_000_000u64.to_le_bytes().into(),
            String::new(),
            ErrorCode::CheckpointTruncated,
        ),
        (
            "a tensor of 4 TB",
            file_of(&entry("[1099511627776]", 4 << 40), &[]),
            String::new(),
            ErrorCode::CheckpointTruncated,
        ),
        ("an index of many", tensor.clone(), index(many.join(",")), ErrorCode::CheckpointIndexInvalid),
        ("an index that names one twice", tensor.clone(), twice, ErrorCode::CheckpointIndexInvalid),
        (
            "an index nested 200 deep",
            tensor,
            index(format!(r#""a":{}"#, nested(200))),
            ErrorCode::CheckpointIndexInvalid,
        ),
    ];
    for (what, file, index, code) in table {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("a.safetensors"), file).expect("written");
        if !index.is_empty() {
            fs::write(dir.path().join("model.safetensors.index.json"), index).expect("written");
        }
        let stored = stored_bytes(dir.path());
        let (outcome, peak) = with_peak(|| Checkpoint::open(dir.path()).map(|_| ()));
        let error = outcome.expect_err(what);
        assert_eq!(error.code(), code, "{what}: {error}");
        assert!(peak <= justified(stored), "{what}: {peak} bytes for {stored} on disk");
    }
}

#[test]
fn an_adapter_that_was_read_does_not_need_its_file() {
    let folder = Adapter::on_q_proj().write();
    let files = AdapterFiles::read(folder.path()).expect("right");
    let before: Vec<Vec<f32>> = values(&files);
    let weights = folder.path().join("adapter_model.safetensors");
    lengthen(&weights, 0);
    assert_eq!(values(&files), before);
    fs::remove_file(&weights).expect("there");
    assert_eq!(files.check(&sites()).expect("as before").deltas().len(), 2);
}

fn values(files: &AdapterFiles) -> Vec<Vec<f32>> {
    let weights = files.weights();
    weights.names().map(|name| weights.tensor(name).expect("readable").to_f32()).collect()
}

/// Another thread truncates and restores the file all the time: each load succeeds or fails with an error. A memory map would end
/// the process.
#[test]
fn an_adapter_truncated_while_it_is_read_loads_or_is_an_error() {
    let (rank, stop) = (20_000, AtomicBool::new(false));
    let adapter = Adapter::empty().set("r", json!(rank)).ones(Q_A, &[rank, HIDDEN]).ones(Q_B, &[HIDDEN, rank]);
    let folder = adapter.write();
    let path = folder.path().join("adapter_model.safetensors");
    let whole = adapter.safetensors();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                lengthen(&path, whole.len() as u64 / 2);
                fs::write(&path, &whole).expect("written");
            }
        });
        for _ in 0..300 {
            match load(folder.path()) {
                Ok(deltas) => assert_eq!(deltas, 1),
                Err(error) => assert!(error.code().as_str().starts_with("checkpoint_"), "{error}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(load(folder.path()), Ok(1));
}

/// Every file of a folder, in whose place there may be anything.
const MODEL_FILES: &[&str] = &[
    "config.json",
    "quantize_config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];
const ADAPTER_FILES: &[&str] = &["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"];

/// Puts a device, a FIFO, a folder, and a file of a terabyte without content in a file's place.
fn each_replacement(path: &Path, mut check: impl FnMut(&str)) {
    let kept = fs::read(path).ok();
    let remove = || match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => fs::remove_dir(path).expect("empty"),
        Ok(_) => fs::remove_file(path).expect("removed"),
        Err(_) => {}
    };
    let link = |target: &str| std::os::unix::fs::symlink(target, path).expect("linked");
    for what in ["/dev/zero", "/dev/full", "/proc/kmsg", "a FIFO", "a folder", "a terabyte", "a dangling link"] {
        remove();
        match what {
            "a FIFO" => {
                let made = std::process::Command::new("mkfifo").arg(path).status().expect("mkfifo runs");
                assert!(made.success());
            }
            "a folder" => fs::create_dir(path).expect("made"),
            "a terabyte" => {
                fs::File::create(path).expect("made");
                lengthen(path, 1 << 40);
            }
            "a dangling link" => link("nowhere"),
            device => link(device),
        }
        check(what);
    }
    remove();
    if let Some(bytes) = kept {
        fs::write(path, bytes).expect("restored");
    }
}

/// A test that hangs is killed by the runner.
#[test]
fn nothing_in_place_of_a_file_blocks_or_costs_memory() {
    let model = tempfile::tempdir().expect("a folder");
    support::model::TinyModel::default().write(model.path());
    let tokenizer = support::fixtures().join("quill-4m/tokenizer.json");
    fs::copy(tokenizer, model.path().join("tokenizer.json")).expect("copied");
    let adapter = Adapter::on_q_proj().write();
    for (dir, names) in [(model.path(), MODEL_FILES), (adapter.path(), ADAPTER_FILES)] {
        for name in names {
            each_replacement(&dir.join(name), |what| {
                let (_, peak) = with_peak(|| exlora::inspect::inspect(dir, None));
                assert!(peak < 64 << 20, "{peak} bytes for {what} as {name}");
            });
        }
    }
    exlora::inspect::inspect(model.path(), None).expect("as before");
}
