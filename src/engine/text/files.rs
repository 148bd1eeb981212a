//! Small text and JSON files of a model folder, with a cap on their size.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, ErrorCode, Result};
use crate::files::read_bounded;

/// The largest tokenizer.json of public models has 40 MB.
const MAX_TEXT_BYTES: u64 = 256 << 20;

/// Objects are kept parsed, which takes many times their bytes.
const MAX_OBJECT_BYTES: u64 = 64 << 20;

pub(super) fn invalid(message: impl Into<String>, path: &Path) -> Error {
    Error::new(ErrorCode::TokenizerInvalid, message).with_path(path)
}

/// The text of a file, `None` where there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<String>> {
    read_up_to(path, MAX_TEXT_BYTES)
}

/// The JSON object of a file, empty where there is no such file.
pub(super) fn read_object(path: &Path) -> Result<Map<String, Value>> {
    match read_up_to(path, MAX_OBJECT_BYTES)? {
        None => Ok(Map::new()),
        Some(text) => serde_json::from_str(&text).map_err(|e| invalid(format!("not a JSON object: {e}"), path)),
    }
}

fn read_up_to(path: &Path, max_bytes: u64) -> Result<Option<String>> {
    match read_bounded(path, max_bytes) {
        Ok(bytes) => {
            String::from_utf8(bytes).map(Some).map_err(|e| invalid(format!("not UTF-8: {}", e.utf8_error()), path))
        }
        Err(error) => match error.code() {
            ErrorCode::CheckpointNotFound => Ok(None),
            ErrorCode::MemoryExhausted => Err(error),
            _ => Err(error.with_code(ErrorCode::TokenizerInvalid)),
        },
    }
}
