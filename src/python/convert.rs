//! Arguments that may have several shapes, each a type that reads itself from Python.

use numpy::{PyArray1, PyArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyMapping, PyString, PyTuple};
use pyo3::{type_hint_identifier, type_hint_subscript};

use super::lora::ExLlamaV2Lora;
use crate::engine::request::{AdapterRef, Prompt, Stop};
use crate::engine::text::ChatMessage;
use crate::error::{Error, ErrorCode};

/// Token ids: a sequence of integers, or a one-dimensional array of any library that has `tolist`.
pub(super) struct TokenIds(pub Vec<u32>);

impl<'py> FromPyObject<'_, 'py> for TokenIds {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "TokenIds");

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let listed = match value.getattr_opt("tolist")? {
            Some(tolist) => tolist.call0()?,
            None => value.to_owned(),
        };
        let items = listed.try_iter().map_err(|_| {
            PyTypeError::new_err(format!("token ids are a sequence or an array of integers, not {}", type_name(&value)))
        })?;
        let ids = items.map(|item| token_id(&item?));
        Ok(Self(ids.collect::<PyResult<_>>()?))
    }
}

/// An integer that can be an id in any vocabulary; which ids a model has is the engine's to say.
pub(super) fn token_id(value: &Bound<'_, PyAny>) -> PyResult<u32> {
    let id: i64 = value.extract()?;
    u32::try_from(id).map_err(|_| {
        Error::new(ErrorCode::TokenOutOfRange, "a token id is outside the vocabulary").with_found(id).into()
    })
}

/// A count of something; a negative one is refused by the name of its argument.
pub(super) fn count(name: &str, value: i64) -> PyResult<usize> {
    usize::try_from(value).map_err(|_| {
        Error::new(ErrorCode::RequestInvalid, format!("{name} is negative"))
            .with_expected("at least 0")
            .with_found(value)
            .into()
    })
}

/// What to continue: text, token ids, or chat messages as dicts.
pub(super) struct PromptArg(pub Prompt);

impl<'py> FromPyObject<'_, 'py> for PromptArg {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "Prompt");

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(text) = value.cast::<PyString>() {
            return Ok(Self(Prompt::Text(text.to_cow()?.into_owned())));
        }
        if let Ok(messages) = value.cast::<PyList>()
            && !messages.is_empty()
            && messages.iter().all(|message| message.is_instance_of::<PyDict>())
        {
            return Ok(Self(Prompt::Chat(messages.extract::<Messages>()?.0)));
        }
        if value.try_iter().is_err() {
            let found = type_name(&value);
            return Err(PyTypeError::new_err(format!("a prompt is text, token ids or chat messages, not {found}")));
        }
        Ok(Self(Prompt::Tokens(value.extract::<TokenIds>()?.0)))
    }
}

/// Chat messages from a list of dicts; whatever JSON can say may stand in them.
pub(super) struct Messages(pub Vec<ChatMessage>);

impl<'py> FromPyObject<'_, 'py> for Messages {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "Messages");

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let json: String = value.py().import("json")?.call_method1("dumps", (value,))?.extract()?;
        serde_json::from_str(&json).map(Self).map_err(|e| {
            Error::new(ErrorCode::ChatTemplateFailed, format!("the messages are not a chat: {e}"))
                .with_expected("a list of dicts with 'role' and 'content', both text")
                .into()
        })
    }
}

/// An ordered mixture: nothing, a name, an adapter, a mapping name to weight, or a list of such with or without weights.
#[derive(Default)]
pub(super) struct Mixture(pub Vec<(AdapterRef, f32)>);

impl<'py> FromPyObject<'_, 'py> for Mixture {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "Adapter");

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if value.is_none() {
            return Ok(Self::default());
        }
        if let Some(adapter) = one_adapter(&value)? {
            return Ok(Self(vec![adapter]));
        }
        if let Ok(mapping) = value.cast::<PyMapping>() {
            return mapping.items()?.iter().map(|item| weighted(&item)).collect::<PyResult<_>>().map(Self);
        }
        let items = value.try_iter().map_err(|_| not_an_adapter(&value))?;
        let adapters = items.map(|item| {
            let item = item?;
            one_adapter(&item)?.map_or_else(|| weighted(&item), Ok)
        });
        adapters.collect::<PyResult<_>>().map(Self)
    }
}

fn one_adapter(value: &Bound<'_, PyAny>) -> PyResult<Option<(AdapterRef, f32)>> {
    if let Ok(name) = value.cast::<PyString>() {
        return Ok(Some((AdapterRef::Name(name.to_cow()?.into_owned()), 1.0)));
    }
    match value.cast::<ExLlamaV2Lora>() {
        Ok(lora) => lora.get().leased().map(Some),
        Err(_) => Ok(None),
    }
}

/// A pair (adapter, weight).
fn weighted(pair: &Bound<'_, PyAny>) -> PyResult<(AdapterRef, f32)> {
    let pair = pair.cast::<PyTuple>().ok().filter(|pair| pair.len() == 2).ok_or_else(|| not_an_adapter(pair))?;
    let adapter = pair.get_item(0)?;
    let (adapter, own) = one_adapter(&adapter)?.ok_or_else(|| not_an_adapter(&adapter))?;
    Ok((adapter, own * pair.get_item(1)?.extract::<f32>()?))
}

fn not_an_adapter(value: &Bound<'_, PyAny>) -> PyErr {
    PyTypeError::new_err(format!(
        "an adapter is None, a name, an ExLlamaV2Lora, a mapping of name to weight, or pairs (adapter, weight), not {}",
        type_name(value)
    ))
}

fn type_name(value: &Bound<'_, PyAny>) -> String {
    value.get_type().name().map_or_else(|_| "something else".to_owned(), |name| name.to_string())
}

/// What ends a text: nothing, an id, a string, or a list of these.
#[derive(Default)]
pub(super) struct Stops(pub Vec<Stop>);

impl<'py> FromPyObject<'_, 'py> for Stops {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "Stop");

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if value.is_none() {
            return Ok(Self::default());
        }
        let one = |value: &Bound<'_, PyAny>| match value.cast::<PyString>() {
            Ok(text) => Ok(Stop::Text(text.to_cow()?.into_owned())),
            Err(_) => Ok(Stop::Token(token_id(value)?)),
        };
        if value.is_instance_of::<PyString>() || value.try_iter().is_err() {
            return Ok(Self(vec![one(&value)?]));
        }
        value.try_iter()?.map(|item| one(&item?)).collect::<PyResult<_>>().map(Self)
    }
}

/// A mapping of token id to what is added to its logit.
#[derive(Default)]
pub(super) struct LogitBias(pub Vec<(u32, f32)>);

impl<'py> FromPyObject<'_, 'py> for LogitBias {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "LogitBias");

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if value.is_none() {
            return Ok(Self::default());
        }
        let items = value.cast::<PyMapping>()?.items()?;
        let pairs = items.iter().map(|pair| Ok((token_id(&pair.get_item(0)?)?, pair.get_item(1)?.extract()?)));
        pairs.collect::<PyResult<_>>().map(Self)
    }
}

macro_rules! named {
    ($(#[doc = $doc:literal] $name:ident = $value:expr;)+) => {
        $(
            #[doc = $doc]
            pub(super) struct $name<'py>(pub Bound<'py, PyDict>);

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

named! {
    /// A dict of integers by name, in the order it was filled.
    NamedInts = type_hint_identifier!("builtins", "int");
    /// A dict of floats by name, in the order it was filled.
    NamedFloats = type_hint_identifier!("builtins", "float");
    /// A dict of anything by name, in the order it was filled.
    NamedValues = type_hint_identifier!("typing", "Any");
}

/// Float32 values on their way to a numpy array `[rows, columns]`, or `[rows]` where `columns` is `None`.
pub(super) struct Floats {
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

/// An array that a Python object keeps and hands out.
pub(super) struct FloatsOf(Py<PyAny>);

impl FloatsOf {
    pub(super) fn new(py: Python<'_>, floats: Floats) -> PyResult<Self> {
        Ok(Self(floats.into_pyobject(py)?.unbind()))
    }

    pub(super) fn clone_ref(&self, py: Python<'_>) -> Self {
        Self(self.0.clone_ref(py))
    }
}

impl<'py> IntoPyObject<'py> for FloatsOf {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    const OUTPUT_TYPE: PyStaticExpr = Floats::OUTPUT_TYPE;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.0.into_bound(py))
    }
}
