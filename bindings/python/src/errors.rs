//! Errors as Python exceptions. The classes are defined in `exlora/errors.py`; their contents come from here.

use std::collections::BTreeMap;

use exlora::{Error, ErrorCode};
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::type_hint_identifier;
use pyo3::types::PyDict;

/// An exception that a function of this module ends with: one that Python raised, or an error of the engine. Neither of the two
/// types is this crate's, so that a conversion from one to the other needs a third.
pub(crate) struct PyError(PyErr);

/// What functions return in which both kinds of error occur.
pub(crate) type Result<T, E = PyError> = std::result::Result<T, E>;

impl From<Error> for PyError {
    fn from(error: Error) -> Self {
        Self(Python::attach(|py| match exception(py, &error) {
            Ok(value) => PyErr::from_value(value),
            Err(raised) => raised,
        }))
    }
}

impl From<PyErr> for PyError {
    fn from(raised: PyErr) -> Self {
        Self(raised)
    }
}

impl From<PyError> for PyErr {
    fn from(error: PyError) -> Self {
        error.0
    }
}

/// An error of the engine as an exception.
pub(crate) fn py_err(error: Error) -> PyErr {
    PyError::from(error).into()
}

/// The name of a value's type, for the message of a `TypeError`.
pub(crate) fn type_name(value: &Bound<'_, PyAny>) -> String {
    value.get_type().name().map_or_else(|_| "an unknown type".to_owned(), |name| name.to_string())
}

/// The exception object of an error, with all its context as attributes.
fn exception<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyAny>> {
    let code = error.code().as_str();
    let class = py.import("exlora.errors")?.call_method1("class_of", (code, error.code().kind().as_str()))?;
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

/// The catalog of errors: a dict with `code`, `kind`, `remedy` and `summary` for each.
#[pyfunction]
pub(crate) fn error_codes() -> Vec<BTreeMap<&'static str, &'static str>> {
    let entry = |code: &ErrorCode| {
        BTreeMap::from([
            ("code", code.as_str()),
            ("kind", code.kind().as_str()),
            ("remedy", code.remedy()),
            ("summary", code.summary()),
        ])
    };
    ErrorCode::ALL.iter().map(entry).collect()
}

/// An exception object on its way to Python.
pub(crate) struct Exception<'py>(Bound<'py, PyAny>);

impl<'py> Exception<'py> {
    pub(crate) fn new(py: Python<'py>, error: &Error) -> PyResult<Self> {
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
pub(crate) fn error<'py>(
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
