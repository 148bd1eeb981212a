//! Counts as arguments.

use pyo3::prelude::*;

use crate::error::{Error, ErrorCode};

/// A count; a negative one is an error that names the argument.
pub(super) fn count(name: &str, value: i64) -> PyResult<usize> {
    usize::try_from(value).map_err(|_| {
        Error::new(ErrorCode::RequestInvalid, format!("{name} is negative"))
            .with_expected("at least 0")
            .with_found(value)
            .into()
    })
}
