//! Writing to stdout and stderr.

use std::io::{ErrorKind, Write};

use serde::Serialize;
use serde_json::json;

use crate::error::{Error, ErrorCode, Result};

/// Writes text to stdout and flushes it, so streamed text appears immediately.
pub(super) fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|e| match e.kind() {
        ErrorKind::BrokenPipe => Error::new(ErrorCode::Interrupted, "the reader of stdout is gone"),
        _ => Error::new(ErrorCode::IoFailed, format!("cannot write to stdout: {e}")),
    })
}

/// A value as one line of JSON, with its newline.
pub(super) fn to_line(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map(|line| line + "\n")
        .map_err(|e| Error::new(ErrorCode::Internal, format!("cannot write a result as JSON: {e}")))
}

/// Writes a value to stdout as one line of JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    print(&to_line(value)?)
}

/// Writes a line to stderr; if that fails, there is nowhere to report it.
pub(super) fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Reports an error on stderr and, with `--json`, as a line on stdout.
pub(super) fn report(error: &Error, json: bool) {
    if error.code() == ErrorCode::Interrupted {
        return;
    }
    note(&format!("exlora: {error}"));
    if json {
        let _ = print_json(&json!({ "error": error }));
    }
}
