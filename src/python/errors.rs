//! Errors as Python exceptions. The classes are defined in `exlora/errors.py`; their contents come from here.

use std::collections::BTreeMap;

use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::type_hint_identifier;
use pyo3::types::PyDict;

use crate::error::{Error, ErrorCode, ErrorKind};

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        Python::attach(|py| match exception(py, &error) {
            Ok(value) => PyErr::from_value(value),
            Err(raised) => raised,
        })
    }
}

/// The name of a value's type, for the message of a `TypeError`.
pub(super) fn type_name(value: &Bound<'_, PyAny>) -> String {
    value.get_type().name().map_or_else(|_| "an unknown type".to_owned(), |name| name.to_string())
}

/// The exception object of an error, with all its context as attributes.
fn exception<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyAny>> {
    let code = error.code().as_str();
    let class = py.import("exlora.errors")?.call_method1("class_of", (code, kind_name(error.code().kind())))?;
    let others = error.others().iter().map(|other| exception(py, other)).collect::<PyResult<Vec<_>>>()?;
    let context = PyDict::new(py);
    context.set_item("code", code)?;
    context.set_item("message", error.message())?;
    context.set_item("path", error.path().map(|path| path.to_string_lossy().into_owned()))?;
    context.set_item("tensor", error.tensor())?;
    context.set_item("expected", error.expected())?;
    context.set_item("found", error.found())?;
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
        ErrorKind::Io => "io",
        ErrorKind::Internal => "internal",
    }
}

/// The catalog of errors: a dict with `code`, `kind`, `remedy` and `summary` for each.
#[pyfunction]
pub(super) fn error_codes() -> Vec<BTreeMap<&'static str, &'static str>> {
    let entry = |code: &ErrorCode| {
        BTreeMap::from([
            ("code", code.as_str()),
            ("kind", kind_name(code.kind())),
            ("remedy", code.remedy()),
            ("summary", code.summary()),
        ])
    };
    ErrorCode::ALL.iter().map(entry).collect()
}

/// An exception object on its way to Python.
pub(super) struct Exception<'py>(Bound<'py, PyAny>);

impl<'py> Exception<'py> {
    pub(super) fn new(py: Python<'py>, error: &Error) -> PyResult<Self> {
        exception(py, error).map(Self)
    }
}

impl<'py> IntoPyObject<'py> for Exception<'py> {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = std::convert::Infallible;

    const OUTPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.errors", "ExloraError");

    fn into_pyobject(self, _py: Python<'py>) -> Result<Bound<'py, PyAny>, Self::Error> {
        Ok(self.0)
    }
}

/// An exception of that code, for the Python half to raise. An unknown code gives `internal`.
#[pyfunction]
#[pyo3(signature = (code, message, *, path=None, expected=None, found=None, hint=None))]
pub(super) fn error<'py>(
    py: Python<'py>,
    code: &str,
    message: String,
    path: Option<String>,
    expected: Option<String>,
    found: Option<String>,
    hint: Option<String>,
) -> PyResult<Exception<'py>> {
    let code = ErrorCode::ALL.iter().copied().find(|known| known.as_str() == code).unwrap_or(ErrorCode::Internal);
    let mut error = Error::new(code, message);
    if let Some(path) = path {
        error = error.with_path(path);
    }
    if let Some(expected) = expected {
        error = error.with_expected(expected);
    }
    if let Some(found) = found {
        error = error.with_found(found);
    }
    if let Some(hint) = hint {
        error = error.with_hint(hint);
    }
    exception(py, &error).map(Exception)
}
