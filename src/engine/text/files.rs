//! Small text and JSON files of a model folder, with a cap on their size.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, ErrorCode, Result};

/// No real tokenizer file is larger; a larger one is damaged or hostile.
const MAX_FILE_BYTES: u64 = 512 << 20;

pub(super) fn invalid(message: impl Into<String>, path: &Path) -> Error {
    Error::new(ErrorCode::TokenizerInvalid, message).with_path(path)
}

/// The text of a file, `None` where there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<String>> {
    let unreadable = |e: std::io::Error| invalid(format!("the file cannot be read: {e}"), path);
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(e)),
    };
    if !metadata.is_file() {
        return Err(invalid("not a regular file", path));
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(invalid("the file is too large", path)
            .with_expected(format!("at most {MAX_FILE_BYTES} bytes"))
            .with_found(format!("{} bytes", metadata.len())));
    }
    std::fs::read_to_string(path).map(Some).map_err(unreadable)
}

/// The JSON object of a file, empty where there is no such file.
pub(super) fn read_object(path: &Path) -> Result<Map<String, Value>> {
    match read(path)? {
        None => Ok(Map::new()),
        Some(text) => serde_json::from_str(&text).map_err(|e| invalid(format!("not a JSON object: {e}"), path)),
    }
}
