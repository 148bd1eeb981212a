//! The header of a safetensors file, validated.
//!
//! ```text
//! n: u64, little-endian | n bytes of JSON: {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...} | data
//! ```
//!
//! Offsets count from the first byte of the data. The `safetensors` crate checks that the tensors cover the data without
//! overlaps or holes and that each has as many bytes as its shape and type need. This file adds the caps, which must hold
//! before that crate is called, and tells a truncated file from a damaged one.

use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::error::{Error, ErrorCode, Result};
use crate::tensor::DType;

/// Bytes of the length field at the start of a file.
pub(super) const LENGTH_BYTES: usize = 8;

/// Cap on the JSON of one file or index, in bytes; the same as the `safetensors` crate's.
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Cap on the tensors of one checkpoint, over all files. The largest released mixture-of-experts models have about 90 000.
pub(super) const MAX_TENSORS: usize = 200_000;

/// A tensor as the header describes it, validated.
#[derive(Debug)]
pub(super) struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type, supported or not.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its bytes within the file.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// Its element type, if it is supported.
    pub(super) fn readable_dtype(&self) -> Option<DType> {
        Some(match self.dtype {
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F32 => DType::F32,
            Dtype::I32 => DType::I32,
            Dtype::I16 => DType::I16,
            Dtype::I64 => DType::I64,
            _ => return None,
        })
    }
}

/// Length of the JSON of a file that begins with `first`, checked against the cap and the file's size before any allocation.
///
/// # Errors
/// `checkpoint_truncated`, `checkpoint_too_large`, `checkpoint_header_invalid`.
pub(super) fn json_length(first: &[u8], file_bytes: u64, path: &Path) -> Result<usize> {
    let too_short = |needed: u64| {
        Error::new(ErrorCode::CheckpointTruncated, "the file ends within its header")
            .with_path(path)
            .with_expected(format!("at least {needed} bytes"))
            .with_found(format!("{file_bytes} bytes"))
    };
    let Some(length) = first.first_chunk::<LENGTH_BYTES>() else { return Err(too_short(LENGTH_BYTES as u64)) };
    if length == b"version " {
        return Err(Error::new(ErrorCode::CheckpointHeaderInvalid, "the file is a Git LFS pointer, not the weights")
            .with_path(path)
            .with_hint("fetch the real file: git lfs pull"));
    }
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(Error::new(ErrorCode::CheckpointTooLarge, "the header is too long")
            .with_path(path)
            .with_expected(format!("at most {MAX_HEADER_BYTES} bytes"))
            .with_found(format!("{length} bytes")));
    }
    if LENGTH_BYTES as u64 + length > file_bytes {
        return Err(too_short(LENGTH_BYTES as u64 + length));
    }
    Ok(length as usize)
}

/// Parses a header's JSON into its tensors, in the order of their data.
///
/// # Errors
/// `checkpoint_header_invalid`, `checkpoint_truncated`, `checkpoint_too_large`.
pub(super) fn read(json: &[u8], file_bytes: u64, path: &Path) -> Result<Vec<TensorInfo>> {
    let invalid = |what: String| Error::new(ErrorCode::CheckpointHeaderInvalid, what).with_path(path);
    let metadata: Metadata =
        serde_json::from_slice(json).map_err(|error| invalid(format!("the header is not valid: {error}")))?;
    let names = metadata.offset_keys();
    if names.len() > MAX_TENSORS {
        return Err(too_many_tensors().with_path(path));
    }

    let data_start = LENGTH_BYTES + json.len();
    let expected = (data_start as u64).saturating_add(metadata.data_len() as u64);
    let sizes = |error: Error| {
        error.with_path(path).with_expected(format!("{expected} bytes")).with_found(format!("{file_bytes} bytes"))
    };
    if expected > file_bytes {
        return Err(sizes(Error::new(ErrorCode::CheckpointTruncated, "the file is cut short")));
    }
    if expected < file_bytes {
        return Err(sizes(Error::new(ErrorCode::CheckpointHeaderInvalid, "bytes after the last tensor")));
    }
    let entry = |name: String| {
        let info = metadata.info(&name)?;
        let (begin, end) = info.data_offsets;
        Some(TensorInfo {
            dtype: info.dtype,
            shape: info.shape.clone(),
            range: data_start + begin..data_start + end,
            name,
        })
    };
    Ok(names.into_iter().filter_map(entry).collect())
}

/// The error for a checkpoint with more than [`MAX_TENSORS`].
pub(super) fn too_many_tensors() -> Error {
    Error::new(ErrorCode::CheckpointTooLarge, "too many tensors").with_expected(format!("at most {MAX_TENSORS}"))
}
