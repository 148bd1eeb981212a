//! Arguments that can have several Python types: each is a Rust type that reads itself from Python.

use std::collections::BTreeMap;

use exlora::engine::{AdapterRef, Prompt, PromptPart, Stop};
use exlora::error::{Error, ErrorCode};
use exlora::prompt_embeds::PromptEmbeds;
use numpy::{PyArrayDyn, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::type_hint_identifier;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList, PyMapping, PySet, PyString, PyTuple};

use crate::chat::Messages;
use crate::errors::{py_err, type_name};
use crate::exllamav2::ExLlamaV2Lora;
use crate::numbers::{float, overflow_as_invalid, token_id};

/// Token ids: a sequence of integers, or a one-dimensional array of any library with `tolist`.
pub(crate) struct TokenIds(pub Vec<u32>);

impl<'py> FromPyObject<'_, 'py> for TokenIds {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "TokenIds");

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if is_bytes_or_mapping(&value) || value.is_instance_of::<PySet>() {
            return Err(not_token_ids(&value));
        }
        let listed = match value.getattr_opt("tolist")? {
            Some(tolist) => tolist.call0()?,
            None => value.to_owned(),
        };
        let items = listed.try_iter().map_err(|_| not_token_ids(&value))?;
        let ids = items.map(|item| token_id(&item?));
        Ok(Self(ids.collect::<PyResult<_>>()?))
    }
}

fn not_token_ids(value: &Bound<'_, PyAny>) -> PyErr {
    PyTypeError::new_err(format!("token ids are a sequence or an array of integers, not {}", type_name(value)))
}

/// Whether iterating over it would give integers or keys that are no token ids.
fn is_bytes_or_mapping(value: &Bound<'_, PyAny>) -> bool {
    value.is_instance_of::<PyBytes>() || value.is_instance_of::<PyByteArray>() || value.cast::<PyMapping>().is_ok()
}

/// A prompt: text, token ids, chat messages as dicts, or a dict with vectors.
pub(crate) struct PromptArg(pub Prompt);

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
        if let Some(parts) = prompt_parts(&value)? {
            return Ok(Self(Prompt::Parts(parts)));
        }
        if is_bytes_or_mapping(&value) || value.try_iter().is_err() {
            let found = type_name(&value);
            let hint = if value.is_instance_of::<PyDict>() { " (a chat is a list of messages)" } else { "" };
            let what = format!("a prompt is text, token ids or chat messages, not {found}{hint}");
            return Err(PyTypeError::new_err(what));
        }
        Ok(Self(Prompt::Tokens(value.extract::<TokenIds>()?.0)))
    }
}

/// The parts of `{"prompt_embeds": value}`, where the value is an array `[tokens, hidden_size]` or a list of token ids and such
/// arrays; `None` of anything else.
fn prompt_parts(value: &Bound<'_, PyAny>) -> PyResult<Option<Vec<PromptPart>>> {
    let Ok(dict) = value.cast::<PyDict>() else { return Ok(None) };
    let Some(value) = dict.get_item("prompt_embeds")?.filter(|_| dict.len() == 1) else { return Ok(None) };
    let is_array = |item: &Bound<'_, PyAny>| item.hasattr("ndim").is_ok_and(|has_dimensions| has_dimensions);
    let is_id =
        |item: &Bound<'_, PyAny>| item.hasattr("__index__").is_ok_and(|is_integer| is_integer) && !is_array(item);
    let items = match value.cast::<PyList>() {
        Ok(items) if items.iter().any(|item| is_id(&item) || is_array(&item)) => items,
        _ => return Ok(Some(vec![PromptPart::Embeds(prompt_embeds(&value)?)])),
    };
    let mut parts = Vec::new();
    for item in items.iter() {
        if !is_id(&item) {
            parts.push(PromptPart::Embeds(prompt_embeds(&item)?));
            continue;
        }
        let id = token_id(&item)?;
        match parts.last_mut() {
            Some(PromptPart::Tokens(ids)) => ids.push(id),
            _ => parts.push(PromptPart::Tokens(vec![id])),
        }
    }
    Ok(Some(parts))
}

/// An array of floats `[tokens, hidden_size]`, of numpy, torch or anything that numpy makes one of.
fn prompt_embeds(value: &Bound<'_, PyAny>) -> PyResult<PromptEmbeds> {
    let py = value.py();
    let invalid = |what: &str, found: String| {
        let error = Error::new(ErrorCode::PromptEmbedsInvalid, what);
        py_err(error.with_expected("an array of floats [tokens, hidden_size]").with_found(found))
    };
    let array = py.import("exlora._arrays")?.call_method1("as_numpy", (value,))?;
    let dtype = array.getattr("dtype")?;
    if dtype.getattr("kind")?.extract::<String>()? != "f" {
        return Err(invalid("prompt embeds are no floats", dtype.str()?.to_string()));
    }
    let array = array.extract::<FloatArrayArg<'_>>()?.0;
    let shape = array.shape().to_vec();
    let &[_, hidden_size] = &shape[..] else {
        return Err(invalid("prompt embeds have another shape", format!("{shape:?}")));
    };
    let values = array.try_readonly()?.as_array().iter().copied().collect();
    PromptEmbeds::new(values, hidden_size).map_err(py_err)
}

/// An ordered mixture: `None`, a name, an adapter object, a mapping of name to weight, or a list of names, objects and pairs.
#[derive(Default)]
pub(crate) struct MixtureArg(pub Vec<(AdapterRef, f32)>);

impl<'py> FromPyObject<'_, 'py> for MixtureArg {
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
    Ok((adapter, own * float(&pair.get_item(1)?)? as f32))
}

fn not_an_adapter(value: &Bound<'_, PyAny>) -> PyErr {
    PyTypeError::new_err(format!(
        "an adapter is None, a name, an ExLlamaV2Lora, a mapping of name to weight, or pairs (adapter, weight), not {}",
        type_name(value)
    ))
}

/// What ends a text: `None`, a token id, a string, or a list of these.
#[derive(Default)]
pub(crate) struct StopsArg(pub Vec<Stop>);

impl<'py> FromPyObject<'_, 'py> for StopsArg {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "Stop");

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if value.is_none() {
            return Ok(Self::default());
        }
        if is_bytes_or_mapping(&value) {
            let found = type_name(&value);
            return Err(PyTypeError::new_err(format!(
                "what ends a text is a string, a token id or a list of these, not {found}"
            )));
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

/// Texts: one, or a list of them.
pub(crate) struct TextsArg(pub Vec<String>);

impl<'py> FromPyObject<'_, 'py> for TextsArg {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "Texts");

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let wrong = |what: String| PyTypeError::new_err(format!("must be a string or a list of strings, not {what}"));
        let text = |item: &Bound<'_, PyAny>| match item.cast::<PyString>() {
            Ok(text) => Ok(Some(text.to_cow()?.into_owned())),
            Err(_) => Ok::<_, PyErr>(None),
        };
        if let Some(one) = text(&value)? {
            return Ok(Self(vec![one]));
        }
        let items = match is_bytes_or_mapping(&value) || value.is_instance_of::<PySet>() {
            true => return Err(wrong(type_name(&value))),
            false => value.try_iter().map_err(|_| wrong(type_name(&value)))?,
        };
        let texts = items.map(|item| {
            let item = item?;
            text(&item)?.ok_or_else(|| wrong(format!("a list with {}", type_name(&item))))
        });
        texts.collect::<PyResult<_>>().map(Self)
    }
}

/// A mapping of token id to the value added to its logit.
#[derive(Default)]
pub(crate) struct LogitBiasArg(pub BTreeMap<u32, f64>);

impl<'py> FromPyObject<'_, 'py> for LogitBiasArg {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "LogitBias");

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if value.is_none() {
            return Ok(Self::default());
        }
        let items = value.cast::<PyMapping>()?.items()?;
        let pairs = items.iter().map(|pair| Ok((token_id(&pair.get_item(0)?)?, float(&pair.get_item(1)?)?)));
        pairs.collect::<PyResult<_>>().map(Self)
    }
}

/// A float32 array, or whatever numpy makes one of.
pub(crate) struct FloatArrayArg<'py>(pub Bound<'py, PyArrayDyn<f32>>);

impl<'py> FromPyObject<'_, 'py> for FloatArrayArg<'py> {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "FloatArray");

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let numpy = value.py().import("numpy")?;
        let array = numpy.call_method1("asarray", (value, numpy.getattr("float32")?));
        Ok(Self(array.map_err(|error| overflow_as_invalid(error, value.py()))?.cast_into()?))
    }
}
