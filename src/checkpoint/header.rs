//! The header of a safetensors file, read with suspicion.
//!
//! ```text
//! n: u64, little-endian | n bytes of JSON: {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...} | data
//! ```
//!
//! Offsets count from the first byte of the data. The rules are those of the `safetensors` crate 0.8: the tensors cover the
//! data without overlap, hole or rest, and each has the bytes that its shape and type need. That crate isn't used here because
//! it forgets the order of the names, doesn't tell a file cut short from a damaged one, and refuses a whole file for one
//! data type it doesn't know; it is the oracle of the tests instead.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, ErrorCode, Result};
use crate::tensor::DType;

/// Bytes of the length field that a file begins with.
pub(super) const LENGTH_BYTES: usize = 8;

/// Most bytes of JSON read from one file or index; the `safetensors` crate has the same cap.
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Most tensors of one checkpoint, all files together. The largest released mixtures of experts have about 90 000.
pub(super) const MAX_TENSORS: usize = 200_000;

/// Most dimensions of a tensor.
const MAX_RANK: usize = 8;

/// What a header says of one tensor, checked.
#[derive(Debug)]
pub(super) struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: StoredType,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its bytes within the file.
    pub range: Range<usize>,
}

/// The element type of a stored tensor, whether or not it can be read here.
#[derive(Debug)]
pub(super) enum StoredType {
    /// One that is read.
    Readable(DType),
    /// The spelling of one that isn't.
    Foreign(String),
}

impl StoredType {
    fn new(name: String) -> Self {
        StoredType::Readable(match name.as_str() {
            "F16" => DType::F16,
            "BF16" => DType::BF16,
            "F32" => DType::F32,
            "I32" => DType::I32,
            "I16" => DType::I16,
            "I64" => DType::I64,
            _ => return StoredType::Foreign(name),
        })
    }

    /// Bits of one element, or `None` for a spelling that nobody knows yet.
    fn bits(&self) -> Option<usize> {
        match self {
            StoredType::Readable(dtype) => Some(dtype.bytes() * 8),
            StoredType::Foreign(name) => match name.as_str() {
                "F4" => Some(4),
                "F6_E2M3" | "F6_E3M2" => Some(6),
                "BOOL" | "U8" | "I8" => Some(8),
                "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => Some(8),
                "U16" => Some(16),
                "U32" => Some(32),
                "F64" | "U64" | "C64" => Some(64),
                _ => None,
            },
        }
    }
}

/// Length of the JSON of a file that begins with `first`, checked against cap and file size before anything is allocated.
///
/// # Errors
/// `checkpoint_truncated`, `checkpoint_too_large`, `checkpoint_header_invalid`.
pub(super) fn json_length(first: &[u8], file_bytes: u64, path: &Path) -> Result<usize> {
    let too_short = |needed: u64| {
        Error::new(ErrorCode::CheckpointTruncated, "the file ends within its header")
            .path(path)
            .expected(format!("at least {needed} bytes"))
            .found(format!("{file_bytes} bytes"))
    };
    let Some(length) = first.first_chunk::<LENGTH_BYTES>() else { return Err(too_short(LENGTH_BYTES as u64)) };
    if length == b"version " {
        return Err(Error::new(ErrorCode::CheckpointHeaderInvalid, "the file is a Git LFS pointer, not the weights")
            .path(path)
            .hint("fetch the real file: git lfs pull"));
    }
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(Error::new(ErrorCode::CheckpointTooLarge, "the header is too long")
            .path(path)
            .expected(format!("at most {MAX_HEADER_BYTES} bytes"))
            .found(format!("{length} bytes")));
    }
    if LENGTH_BYTES as u64 + length > file_bytes {
        return Err(too_short(LENGTH_BYTES as u64 + length));
    }
    Ok(length as usize)
}

/// Reads the JSON of a header into its tensors, in its order.
///
/// # Errors
/// `checkpoint_header_invalid`, `checkpoint_truncated`, `checkpoint_too_large`.
pub(super) fn read(json: &[u8], file_bytes: u64, path: &Path) -> Result<Vec<TensorInfo>> {
    let data_start = LENGTH_BYTES + json.len();
    let mut tensors = Vec::new();
    for (name, raw) in read_json(json, path)? {
        let info = TensorInfo { name, dtype: StoredType::new(raw.dtype), shape: raw.shape.0, range: 0..0 };
        let (begin, end) = raw.data_offsets;
        check_bytes(&info, begin, end).map_err(|error| error.tensor(&info.name).path(path))?;
        tensors.push((info, begin, end));
    }
    check_cover(&tensors, data_start, file_bytes).map_err(|error| error.path(path))?;
    // The cover ends within the file, so these sums fit.
    let place = |(info, begin, end)| TensorInfo { range: data_start + begin..data_start + end, ..info };
    Ok(tensors.into_iter().map(place).collect())
}

/// One tensor's offsets against its shape and type.
fn check_bytes(info: &TensorInfo, begin: usize, end: usize) -> Result<()> {
    let invalid = |what: &str| Error::new(ErrorCode::CheckpointHeaderInvalid, what);
    let Some(bytes) = end.checked_sub(begin) else {
        return Err(invalid("a tensor ends before it begins").found(format!("[{begin}, {end}]")));
    };
    let Some(elements) = info.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) else {
        return Err(invalid("a shape overflows").found(format!("{:?}", info.shape)));
    };
    let Some(bits) = info.dtype.bits() else { return Ok(()) };
    match elements.checked_mul(bits) {
        Some(needed) if needed % 8 == 0 && needed / 8 == bytes => Ok(()),
        needed => Err(invalid("a tensor's bytes contradict its shape and type")
            .expected(
                needed.map_or("less".into(), |needed| format!("{} bytes for {:?}", needed.div_ceil(8), info.shape)),
            )
            .found(format!("{bytes} bytes"))),
    }
}

/// All tensors together: no overlap, no hole, and the file ends where the last one does.
fn check_cover(tensors: &[(TensorInfo, usize, usize)], data_start: usize, file_bytes: u64) -> Result<()> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_unstable_by_key(|&i| (tensors[i].1, tensors[i].2));
    let mut covered = 0;
    for (info, begin, end) in order.into_iter().map(|i| &tensors[i]) {
        if *begin != covered {
            let what = if *begin < covered { "two tensors share bytes" } else { "bytes belong to no tensor" };
            return Err(Error::new(ErrorCode::CheckpointHeaderInvalid, what)
                .tensor(&info.name)
                .expected(format!("offset {covered}"))
                .found(format!("offset {begin}")));
        }
        covered = *end;
    }
    let announced = data_start as u64 + covered as u64;
    if announced > file_bytes {
        return Err(Error::new(ErrorCode::CheckpointTruncated, "the file is cut short")
            .expected(format!("{announced} bytes"))
            .found(format!("{file_bytes} bytes")));
    }
    if announced < file_bytes {
        return Err(Error::new(ErrorCode::CheckpointHeaderInvalid, "bytes after the last tensor")
            .expected(format!("{announced} bytes"))
            .found(format!("{file_bytes} bytes")));
    }
    Ok(())
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: RawShape,
    data_offsets: (usize, usize),
}

struct RawShape(Vec<usize>);

impl<'de> Deserialize<'de> for RawShape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = RawShape;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<RawShape, A::Error> {
                let mut shape = Vec::new();
                while let Some(dimension) = seq.next_element()? {
                    if shape.len() == MAX_RANK {
                        return Err(A::Error::custom(format!("a shape has more than {MAX_RANK} dimensions")));
                    }
                    shape.push(dimension);
                }
                Ok(RawShape(shape))
            }
        }
        deserializer.deserialize_seq(Shape)
    }
}

/// Reads the map in file order, and stops at the cap rather than after it.
struct Header<'a> {
    too_many: &'a mut bool,
}

impl<'de> Visitor<'de> for Header<'_> {
    type Value = Vec<(String, RawTensor)>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if tensors.len() == MAX_TENSORS {
                *self.too_many = true;
                return Err(A::Error::custom("too many tensors"));
            }
            tensors.push((name, map.next_value()?));
        }
        Ok(tensors)
    }
}

fn read_json(json: &[u8], path: &Path) -> Result<Vec<(String, RawTensor)>> {
    let mut too_many = false;
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let tensors = deserializer
        .deserialize_map(Header { too_many: &mut too_many })
        .and_then(|tensors| deserializer.end().map(|()| tensors));
    match tensors {
        Ok(tensors) => Ok(tensors),
        Err(_) if too_many => Err(too_many_tensors().path(path)),
        Err(error) => {
            Err(Error::new(ErrorCode::CheckpointHeaderInvalid, format!("the header is not valid: {error}")).path(path))
        }
    }
}

/// The error of a checkpoint with more than [`MAX_TENSORS`].
pub(super) fn too_many_tensors() -> Error {
    Error::new(ErrorCode::CheckpointTooLarge, "too many tensors").expected(format!("at most {MAX_TENSORS}"))
}
