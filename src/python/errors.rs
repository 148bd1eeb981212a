//! Errors on their way to Python: the classes are written in `exlora/errors.py`, everything in them comes from here.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::error::{Error, ErrorCode, ErrorKind};

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        Python::attach(|py| match exception(py, &error) {
            Ok(value) => PyErr::from_value(value),
            Err(raised) => raised,
        })
    }
}

/// The exception object of an error, with all its context as attributes.
fn exception<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyAny>> {
    let code = error.code().as_str();
    let class = py.import("exlora.errors")?.call_method1("class_of", (code, kind_name(error.code().kind())))?;
    let others = error.others().iter().map(|other| exception(py, other)).collect::<PyResult<Vec<_>>>()?;
    let context = PyDict::new(py);
    context.set_item("code", code)?;
    context.set_item("message", error.message())?;
    context.set_item("path", error.path_ref().map(|path| path.to_string_lossy().into_owned()))?;
    context.set_item("tensor", error.tensor_name())?;
    context.set_item("expected", error.expected_value())?;
    context.set_item("found", error.found_value())?;
    context.set_item("hint", error.remedy())?;
    context.set_item("others", others)?;
    class.call((error.to_string(),), Some(&context))
}

fn kind_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "not_found",
        ErrorKind::Invalid => "invalid",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::Memory => "memory",
        ErrorKind::Cancelled => "cancelled",
        ErrorKind::Internal => "internal",
    }
}

/// The catalogue of errors: a dict with `code`, `kind`, `summary` and `remedy` for each.
#[pyfunction]
#[pyo3(signature = () -> "list[dict[str, str]]")]
pub(super) fn error_codes(py: Python<'_>) -> PyResult<Bound<'_, PyList>> {
    let entries = ErrorCode::ALL.iter().map(|code| {
        let entry = PyDict::new(py);
        entry.set_item("code", code.as_str())?;
        entry.set_item("kind", kind_name(code.kind()))?;
        entry.set_item("summary", code.summary())?;
        entry.set_item("remedy", code.remedy())?;
        Ok(entry)
    });
    PyList::new(py, entries.collect::<PyResult<Vec<_>>>()?)
}

/// An exception of that code, for the Python half to raise. An unknown code gives `internal`.
#[pyfunction]
#[pyo3(signature = (code, message, *, path=None, expected=None, found=None, hint=None) -> "exlora.errors.ExloraError")]
pub(super) fn error<'py>(
    py: Python<'py>,
    code: &str,
    message: String,
    path: Option<String>,
    expected: Option<String>,
    found: Option<String>,
    hint: Option<String>,
) -> PyResult<Bound<'py, PyAny>> {
    let code = ErrorCode::ALL.iter().copied().find(|known| known.as_str() == code).unwrap_or(ErrorCode::Internal);
    let mut error = Error::new(code, message);
    if let Some(path) = path {
        error = error.path(path);
    }
    if let Some(expected) = expected {
        error = error.expected(expected);
    }
    if let Some(found) = found {
        error = error.found(found);
    }
    if let Some(hint) = hint {
        error = error.hint(hint);
    }
    exception(py, &error)
}
