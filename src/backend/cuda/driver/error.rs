//! The driver's errors as this crate's.

use std::ffi::CStr;

use cudarc::driver::DriverError;

use crate::error::{Error, ErrorCode, Result};

/// The error of a driver call that failed while doing `what`: a clause such as `launching kernel 'linear'`.
pub(super) fn failed(what: impl std::fmt::Display, error: DriverError) -> Error {
    Error::new(ErrorCode::CudaDriverFailed, format!("{what} failed: {}", describe(error)))
}

/// The result of a driver call, with what it did.
pub(super) trait During<T> {
    /// Says what failed.
    fn during(self, what: impl std::fmt::Display) -> Result<T>;
}

impl<T> During<T> for std::result::Result<T, DriverError> {
    fn during(self, what: impl std::fmt::Display) -> Result<T> {
        self.map_err(|error| failed(what, error))
    }
}

/// `CUDA_ERROR_NO_DEVICE (no CUDA-capable device is detected)`, on one line.
pub(super) fn describe(error: DriverError) -> String {
    let name = error.error_name().map_or_else(|_| format!("CUDA error {}", error.0 as u32), text);
    match error.error_string().map(text) {
        Ok(meaning) => format!("{name} ({})", meaning.lines().map(str::trim).collect::<Vec<_>>().join("; ")),
        Err(_) => name,
    }
}

fn text(text: &CStr) -> String {
    text.to_string_lossy().into_owned()
}
