//! How much is measured: never nothing.

use crate::error::{Error, ErrorCode, Result};

/// Checks that options, by their names, are not 0.
///
/// # Errors
/// `request_invalid`: one is.
pub(super) fn check_counts(counts: &[(&str, usize)]) -> Result<()> {
    match counts.iter().find(|(_, count)| *count == 0) {
        Some((name, _)) => Err(Error::new(ErrorCode::RequestInvalid, format!("{name} must be at least 1"))),
        None => Ok(()),
    }
}
