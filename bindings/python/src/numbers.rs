//! Numbers from Python, of any size: what no Rust number can hold is an error of its range, not an `OverflowError`.

use exlora::error::{Error, ErrorCode};
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;

use crate::errors::py_err;

/// An integer; one beyond 64 bits is the nearest that has 64.
pub(crate) fn integer(value: &Bound<'_, PyAny>) -> PyResult<i64> {
    match value.extract() {
        Err(error) if is_overflow(&error, value.py()) => {
            let is_negative = value.call_method0("__index__")?.lt(0)?;
            Ok(if is_negative { i64::MIN } else { i64::MAX })
        }
        result => result,
    }
}

/// An integer or `None`.
pub(crate) fn optional_integer(value: &Bound<'_, PyAny>) -> PyResult<Option<i64>> {
    if value.is_none() { Ok(None) } else { integer(value).map(Some) }
}

/// A float; an integer too large for one is infinite.
pub(crate) fn float(value: &Bound<'_, PyAny>) -> PyResult<f64> {
    match value.extract() {
        Err(error) if is_overflow(&error, value.py()) => {
            Ok(if value.lt(0)? { f64::NEG_INFINITY } else { f64::INFINITY })
        }
        result => result,
    }
}

/// A float or `None`.
pub(crate) fn optional_float(value: &Bound<'_, PyAny>) -> PyResult<Option<f64>> {
    if value.is_none() { Ok(None) } else { float(value).map(Some) }
}

/// A seed or `None`: an integer of 64 bits, signed or unsigned.
pub(crate) fn optional_seed(value: &Bound<'_, PyAny>) -> PyResult<Option<i128>> {
    if value.is_none() {
        return Ok(None);
    }
    let seed = match value.extract::<i128>() {
        Err(error) if is_overflow(&error, value.py()) => i128::MAX,
        result => result?,
    };
    if (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(&seed) {
        return Ok(Some(seed));
    }
    let error = Error::new(ErrorCode::SamplingInvalid, "seed is out of range");
    Err(py_err(error.with_expected("an integer of 64 bits")))
}

/// The 64 bits of a seed; a negative one is that with the same bit pattern.
pub(crate) fn seed_bits(seed: i128) -> u64 {
    seed as u64
}

/// Anything made of numbers, with an error of this crate if one of them is out of its type's range.
pub(crate) fn in_range<'py, T: for<'a> FromPyObject<'a, 'py, Error = PyErr>>(value: &Bound<'py, PyAny>) -> PyResult<T> {
    value.extract().map_err(|error| overflow_as_invalid(error, value.py()))
}

/// An `OverflowError` as an error of this crate; another error as it is.
pub(crate) fn overflow_as_invalid(error: PyErr, py: Python<'_>) -> PyErr {
    if is_overflow(&error, py) {
        py_err(Error::new(ErrorCode::RequestInvalid, "a number is out of range"))
    } else {
        error
    }
}

/// A count; a negative one is an error that names the argument.
pub(crate) fn count(name: &str, value: i64) -> PyResult<usize> {
    usize::try_from(value).map_err(|_| {
        let error = Error::new(ErrorCode::RequestInvalid, format!("{name} is negative"));
        py_err(error.with_expected("at least 0").with_found(value))
    })
}

/// An integer that can be a token id; the engine checks it against the vocabulary.
pub(crate) fn token_id(value: &Bound<'_, PyAny>) -> PyResult<u32> {
    let id = integer(value)?;
    u32::try_from(id).map_err(|_| {
        py_err(Error::new(ErrorCode::TokenOutOfRange, "a token id is outside the vocabulary").with_found(id))
    })
}

fn is_overflow(error: &PyErr, py: Python<'_>) -> bool {
    error.is_instance_of::<PyOverflowError>(py)
}
