//! Values on their way to Python: dicts with typed values, and arrays.

use exlora::engine::{Prompt, PromptPart, Stop, StopMatch};
use numpy::{PyArray1, PyArrayDyn, PyArrayMethods};
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use pyo3::{type_hint_identifier, type_hint_subscript};

use serde_json::{Map, Value as Json};

use crate::chat::to_python;

macro_rules! dicts_by_name {
    ($(#[doc = $doc:literal] $name:ident = $value:expr;)+) => {
        $(
            #[doc = $doc]
            pub(crate) struct $name<'py>(pub Bound<'py, PyDict>);

            impl<'py> IntoPyObject<'py> for $name<'py> {
                type Target = PyDict;
                type Output = Bound<'py, PyDict>;
                type Error = std::convert::Infallible;

                const OUTPUT_TYPE: PyStaticExpr = type_hint_subscript!(
                    type_hint_identifier!("builtins", "dict"), type_hint_identifier!("builtins", "str"), $value
                );

                fn into_pyobject(self, _py: Python<'py>) -> Result<Bound<'py, PyDict>, Self::Error> {
                    Ok(self.0)
                }
            }
        )+
    };
}

dicts_by_name! {
    /// A dict of integers by name.
    NamedInts = type_hint_identifier!("builtins", "int");
    /// A dict of floats by name.
    NamedFloats = type_hint_identifier!("builtins", "float");
    /// A dict of any values by name.
    NamedValues = type_hint_identifier!("typing", "Any");
}

/// Float32 values that become a numpy array `[rows, columns]`, or `[rows]` if `columns` is `None`.
pub(crate) struct Floats {
    pub values: Vec<f32>,
    pub columns: Option<usize>,
}

impl<'py> IntoPyObject<'py> for Floats {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    const OUTPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "FloatArray");

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let rows = self.values.len();
        let flat = PyArray1::from_vec(py, self.values);
        match self.columns {
            None => Ok(flat.into_any()),
            Some(columns) => Ok(flat.reshape([rows / columns.max(1), columns])?.into_any()),
        }
    }
}

/// An array that a Python object keeps and returns.
pub(crate) struct FloatArray(Py<PyAny>);

impl FloatArray {
    pub(crate) fn new(py: Python<'_>, floats: Floats) -> PyResult<Self> {
        Ok(Self(floats.into_pyobject(py)?.unbind()))
    }

    /// The values as (nested) lists of Python floats.
    pub(crate) fn to_list<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.0.bind(py).call_method0("tolist")
    }

    pub(crate) fn clone_ref(&self, py: Python<'_>) -> Self {
        Self(self.0.clone_ref(py))
    }
}

impl From<Bound<'_, PyArrayDyn<f32>>> for FloatArray {
    fn from(array: Bound<'_, PyArrayDyn<f32>>) -> Self {
        Self(array.into_any().unbind())
    }
}

impl<'py> IntoPyObject<'py> for FloatArray {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    const OUTPUT_TYPE: PyStaticExpr = Floats::OUTPUT_TYPE;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.0.into_bound(py))
    }
}

/// A float with the digits its user wrote: 0.3, not the 0.30000001192092896 that an f32 becomes.
pub(crate) fn as_written(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// A mixture as its request named it.
#[derive(IntoPyObject)]
pub(crate) enum NamedMixture<'py> {
    Name(String),
    Weights(NamedFloats<'py>),
    Pairs(Vec<(String, f64)>),
}

impl<'py> NamedMixture<'py> {
    /// `None` for the base, a name for one adapter of weight 1, else a dict of name to weight (a list of pairs if a name
    /// appears twice).
    pub(crate) fn new(py: Python<'py>, mixture: &[(String, f32)]) -> PyResult<Option<Self>> {
        match mixture {
            [] => Ok(None),
            [(name, 1.0)] => Ok(Some(Self::Name(name.clone()))),
            mixture => {
                let weights = PyDict::new(py);
                for (name, weight) in mixture {
                    weights.set_item(name, as_written(*weight))?;
                }
                let is_repeated = weights.len() < mixture.len();
                Ok(Some(if is_repeated {
                    Self::Pairs(mixture.iter().map(|(name, weight)| (name.clone(), as_written(*weight))).collect())
                } else {
                    Self::Weights(NamedFloats(weights))
                }))
            }
        }
    }
}

/// A stop: a token id or a string.
#[derive(Clone, IntoPyObject)]
pub(crate) enum StopOut {
    Token(u32),
    Text(String),
}

impl From<&Stop> for StopOut {
    fn from(stop: &Stop) -> Self {
        match stop {
            Stop::Token(id) => StopOut::Token(*id),
            Stop::Text(text) => StopOut::Text(text.clone()),
        }
    }
}

impl From<&StopMatch> for StopOut {
    fn from(matched: &StopMatch) -> Self {
        match matched {
            StopMatch::Token(id) => StopOut::Token(*id),
            StopMatch::Text(text) => StopOut::Text(text.clone()),
        }
    }
}

/// A prompt: text, token ids, or chat messages as dicts.
pub(crate) struct PromptOut<'a>(pub &'a Prompt);

impl<'py> IntoPyObject<'py> for PromptOut<'_> {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    const OUTPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "Prompt");

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.0 {
            Prompt::Text(text) => Ok(text.into_pyobject(py)?.into_any()),
            Prompt::Tokens(ids) => ids.into_pyobject(py),
            Prompt::Chat(messages) => to_python(py, messages),
            Prompt::Parts(parts) => parts_to_python(py, parts),
        }
    }
}

/// Parts of a prompt as the dict that they are read from, with a list of ids and arrays `[tokens, hidden_size]`.
fn parts_to_python<'py>(py: Python<'py>, parts: &[PromptPart]) -> PyResult<Bound<'py, PyAny>> {
    let list = PyList::empty(py);
    for part in parts {
        match part {
            PromptPart::Tokens(ids) => ids.iter().try_for_each(|id| list.append(id))?,
            PromptPart::Embeds(embeds) => {
                list.append(Floats { values: embeds.values().to_vec(), columns: Some(embeds.hidden_size()) })?;
            }
        }
    }
    let dict = PyDict::new(py);
    dict.set_item("prompt_embeds", list)?;
    Ok(dict.into_any())
}

/// Tools or documents, as dicts.
pub(crate) struct JsonObjectsOut<'a>(pub &'a [Json]);

impl<'py> IntoPyObject<'py> for JsonObjectsOut<'_> {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    const OUTPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "JsonObjects");

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        to_python(py, &self.0)
    }
}

/// Variables of a template by name.
pub(crate) struct TemplateKwargsOut<'a>(pub &'a Map<String, Json>);

impl<'py> IntoPyObject<'py> for TemplateKwargsOut<'_> {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    const OUTPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "TemplateKwargs");

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        to_python(py, &self.0)
    }
}
