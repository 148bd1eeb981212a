//! Grammars and filters of a request, read from Python.

use std::sync::Arc;

use exlora::engine::{FilterTokens, Filters, Grammar, TokenFilter};
use exlora::error::{Error, ErrorCode, Result};
use pyo3::exceptions::PyTypeError;
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::type_hint_identifier;
use pyo3::types::{PyDict, PyMapping, PyString};

use crate::args::TokenIds;
use crate::errors::{py_err, type_name};
use crate::gil::callback_error;

/// A JSON schema: a mapping, its text, or a class with pydantic's `model_json_schema`.
pub(crate) struct JsonSchemaArg(String);

impl<'py> FromPyObject<'_, 'py> for JsonSchemaArg {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "JsonSchema");

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(text) = value.cast::<PyString>() {
            return Ok(Self(text.to_cow()?.into_owned()));
        }
        let schema = match value.getattr_opt("model_json_schema")? {
            Some(method) => method.call0()?,
            None => value.to_owned(),
        };
        if schema.cast::<PyMapping>().is_err() {
            let found = type_name(&value);
            return Err(PyTypeError::new_err(format!("a JSON schema is a dict or its text, not {found}")));
        }
        Ok(Self(value.py().import("json")?.call_method1("dumps", (schema,))?.extract()?))
    }
}

/// The grammar that one of these arguments gives; several are an error.
pub(crate) fn grammar(
    json_schema: Option<JsonSchemaArg>,
    json_object: bool,
    regex: Option<String>,
    lark: Option<String>,
    gbnf: Option<String>,
    choices: Option<Vec<String>>,
) -> PyResult<Option<Grammar>> {
    let given = [
        json_schema.map(|schema| Grammar::JsonSchema(schema.0)),
        json_object.then_some(Grammar::JsonObject),
        regex.map(Grammar::Regex),
        lark.map(Grammar::Lark),
        gbnf.map(Grammar::Gbnf),
        choices.map(Grammar::Choices),
    ];
    Grammar::only(given.into_iter().flatten()).map_err(py_err)
}

/// The arguments that give a grammar, by name.
pub(crate) fn set_keywords(dict: &Bound<'_, PyDict>, grammar: Option<&Grammar>) -> PyResult<()> {
    for name in ["json_schema", "regex", "grammar", "gbnf", "choices"] {
        dict.set_item(name, dict.py().None())?;
    }
    dict.set_item("json_object", false)?;
    match grammar {
        None => Ok(()),
        Some(Grammar::JsonObject) => dict.set_item("json_object", true),
        Some(Grammar::JsonSchema(text) | Grammar::Regex(text) | Grammar::Lark(text) | Grammar::Gbnf(text)) => {
            dict.set_item(grammar.map_or("", Grammar::name), text)
        }
        Some(Grammar::Choices(choices)) => dict.set_item("choices", choices),
    }
}

/// A filter object: `begin(prefix)`, `next()`, `feed(token)` and, if it has one, `use_background_worker()`.
pub(crate) struct PyFilter {
    object: Py<PyAny>,
    in_background: bool,
}

impl PyFilter {
    /// Calls Python from a thread that does not hold the interpreter's lock.
    fn call<T>(&self, f: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T>) -> Result<T> {
        let ended = || Error::new(ErrorCode::Interrupted, "the interpreter has ended");
        let outcome = Python::try_attach(|py| {
            let object = self.object.bind(py);
            f(object).map_err(|raised| {
                let filter = format!("the filter {}", type_name(object));
                callback_error(py, ErrorCode::ConstraintFailed, &filter, raised)
                    .with_hint("the exception is the filter's own")
            })
        });
        outcome.unwrap_or_else(|| Err(ended()))
    }
}

impl TokenFilter for PyFilter {
    fn begin(&self) -> Result<()> {
        self.call(|object| object.call_method1("begin", ("",)).map(drop))
    }

    fn next(&self) -> Result<FilterTokens> {
        self.call(|object| {
            let (allowed, ending): (Bound<'_, PyAny>, Bound<'_, PyAny>) = object.call_method0("next")?.extract()?;
            let ids = |ids: Bound<'_, PyAny>| -> PyResult<Option<Vec<u32>>> {
                if ids.is_none() {
                    return Ok(None);
                }
                // Sets too, which have no order.
                let listed = ids.py().import("builtins")?.call_method1("list", (ids,))?;
                listed.extract::<TokenIds>().map(|ids| Some(ids.0))
            };
            Ok(FilterTokens { allowed: ids(allowed)?, ending: ids(ending)?.unwrap_or_default() })
        })
    }

    fn feed(&self, token: u32) -> Result<()> {
        self.call(|object| object.call_method1("feed", (token,)).map(drop))
    }

    fn in_background(&self) -> bool {
        self.in_background
    }
}

/// The filters of a request, and the objects that they are.
#[derive(Clone, Default)]
pub(crate) struct FilterObjects(Vec<Arc<PyFilter>>);

impl PartialEq for FilterObjects {
    /// Filters are equal if they are the same objects.
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(one, other)| one.object.is(&other.object))
    }
}

impl FilterObjects {
    /// Reads filters, for the engine to call.
    pub(crate) fn new(py: Python<'_>, objects: Vec<Py<PyAny>>) -> PyResult<Self> {
        let filter = |object: Py<PyAny>| -> PyResult<Arc<PyFilter>> {
            let bound = object.bind(py);
            for method in ["begin", "next", "feed"] {
                if !bound.hasattr(method)? {
                    let what = format!("a filter has the method {method}, which {} has not", type_name(bound));
                    return Err(PyTypeError::new_err(what));
                }
            }
            let in_background = match bound.getattr_opt("use_background_worker")? {
                Some(method) => method.call0()?.is_truthy()?,
                None => false,
            };
            Ok(Arc::new(PyFilter { object, in_background }))
        };
        objects.into_iter().map(filter).collect::<PyResult<_>>().map(Self)
    }

    /// As the engine takes them.
    pub(crate) fn filters(&self, prefer_eos: bool) -> Filters {
        let filters = self.0.iter().map(|filter| Arc::clone(filter) as Arc<dyn TokenFilter>).collect();
        Filters { filters, prefer_eos }
    }

    /// The objects.
    pub(crate) fn objects(&self, py: Python<'_>) -> Vec<Py<PyAny>> {
        self.0.iter().map(|filter| filter.object.clone_ref(py)).collect()
    }
}
