//! Chat messages and the choices of their rendering, read from Python.

use exlora::engine::{ChatMessage, ChatOptions};
use exlora::error::{Error, ErrorCode};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::type_hint_identifier;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyMapping, PyString, PyTuple, PyType};
use serde_json::{Map, Number, Value as Json};

use crate::errors::py_err;

/// Deepest nesting of what is converted. Templates take less.
const MAX_NESTING: usize = 200;

/// A value as JSON, as transformers rebuilds what it gives to a template out of plain types.
fn json(value: &Bound<'_, PyAny>, nesting: usize) -> PyResult<Json> {
    if nesting > MAX_NESTING {
        let what = format!("the messages or other variables are nested more than {MAX_NESTING} deep");
        return Err(py_err(Error::new(ErrorCode::ChatTemplateFailed, what)));
    }
    if value.is_none() {
        return Ok(Json::Null);
    }
    if let Ok(value) = value.cast::<PyBool>() {
        return Ok(Json::Bool(value.is_true()));
    }
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(Json::String(text.to_cow()?.into_owned()));
    }
    if value.is_instance_of::<PyInt>() {
        let number = value.extract::<i64>().map(Number::from).or_else(|_| value.extract::<u64>().map(Number::from));
        return number.map(Json::Number).map_err(|_| PyValueError::new_err("an integer is too large for a template"));
    }
    if value.is_instance_of::<PyFloat>() {
        let number = Number::from_f64(value.extract()?);
        return number.map(Json::Number).ok_or_else(|| PyValueError::new_err("a float for a template is not finite"));
    }
    if value.is_instance_of::<PyList>() || value.is_instance_of::<PyTuple>() {
        let items = value.try_iter()?.map(|item| json(&item?, nesting + 1));
        return items.collect::<PyResult<_>>().map(Json::Array);
    }
    if let Ok(mapping) = value.cast::<PyMapping>() {
        return object(mapping, nesting).map(Json::Object);
    }
    if !value.is_instance_of::<PyType>() {
        if let Some(model_dump) = value.getattr_opt("model_dump")? {
            return json(&model_dump.call0()?, nesting + 1);
        }
        if let Some(fields) = value.getattr_opt("__dataclass_fields__")? {
            let fields = fields.try_iter()?.map(|name| {
                let name: String = name?.extract()?;
                let field = json(&value.getattr(name.as_str())?, nesting + 1)?;
                Ok((name, field))
            });
            return fields.collect::<PyResult<_>>().map(Json::Object);
        }
        if value.hasattr("dtype")? && value.getattr_opt("shape")?.is_some_and(|shape| shape.len().is_ok_and(|n| n == 0))
        {
            return json(&value.call_method0("item")?, nesting + 1);
        }
    }
    // Images and arrays: a template only asks whether they are there.
    Ok(Json::String(format!("<{}>", value.get_type().name()?)))
}

fn object(mapping: &Bound<'_, PyMapping>, nesting: usize) -> PyResult<Map<String, Json>> {
    let mut object = Map::new();
    for item in mapping.items()?.iter() {
        let (key, value) = (item.get_item(0)?, item.get_item(1)?);
        let Ok(key) = key.cast::<PyString>() else {
            return Err(PyTypeError::new_err(format!(
                "the keys of chat messages are text, not {}",
                key.get_type().name()?
            )));
        };
        object.insert(key.to_cow()?.into_owned(), json(&value, nesting + 1)?);
    }
    Ok(object)
}

/// Chat messages: a sequence of mappings, with any values that templates read.
pub(crate) struct Messages(pub Vec<ChatMessage>);

impl<'py> FromPyObject<'_, 'py> for Messages {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "Messages");

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let not_a_chat = |found: String| {
            let error = Error::new(ErrorCode::ChatTemplateFailed, "the messages are not a chat");
            py_err(error.with_expected("a list of dicts, usually with 'role' and 'content'").with_found(found))
        };
        if value.is_instance_of::<PyString>() || value.is_instance_of::<PyMapping>() || value.try_iter().is_err() {
            return Err(not_a_chat(value.get_type().name()?.to_string()));
        }
        let message = |(i, message): (usize, PyResult<Bound<'py, PyAny>>)| match json(&message?, 1)? {
            Json::Object(fields) => Ok(ChatMessage::from(fields)),
            _ => Err(not_a_chat(format!("message {i} is not a dict"))),
        };
        value.try_iter()?.enumerate().map(message).collect::<PyResult<_>>().map(Self)
    }
}

/// Tools or documents: a sequence of mappings.
pub(crate) struct JsonObjects(pub Vec<Json>);

impl<'py> FromPyObject<'_, 'py> for JsonObjects {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "JsonObjects");

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let wrong = |what: &str| PyTypeError::new_err(format!("tools and documents are a list of dicts, not {what}"));
        if value.is_instance_of::<PyString>() || value.is_instance_of::<PyMapping>() {
            return Err(wrong(&value.get_type().name()?.to_string()));
        }
        let item = |item: PyResult<Bound<'py, PyAny>>| {
            let item = item?;
            if item.is_callable() {
                return Err(PyTypeError::new_err(
                    "a tool is a dict with a JSON schema, not a function; transformers.utils.get_json_schema makes one",
                ));
            }
            match json(&item, 1)? {
                object @ Json::Object(_) => Ok(object),
                _ => Err(wrong("of other items")),
            }
        };
        value.try_iter()?.map(item).collect::<PyResult<_>>().map(Self)
    }
}

/// Variables of a template by name.
#[derive(Default)]
pub(crate) struct TemplateKwargs(pub Map<String, Json>);

impl<'py> FromPyObject<'_, 'py> for TemplateKwargs {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "TemplateKwargs");

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        object(&value.cast::<PyMapping>()?.to_owned(), 0).map(Self)
    }
}

/// `False`, `True` for the content, or the name of a field.
#[derive(Default)]
pub(crate) struct ContinueFinalMessage(pub Option<String>);

impl<'py> FromPyObject<'_, 'py> for ContinueFinalMessage {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("exlora.types", "ContinueFinalMessage");

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(field) = value.cast::<PyString>() {
            return Ok(Self(Some(field.to_cow()?.into_owned()).filter(|field| !field.is_empty())));
        }
        Ok(Self(value.extract::<bool>()?.then(|| "content".to_owned())))
    }
}

/// How a chat is rendered, from the arguments that say it.
pub(crate) fn chat_options(
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<ContinueFinalMessage>,
    tools: Option<JsonObjects>,
    documents: Option<JsonObjects>,
    chat_template: Option<String>,
    chat_template_kwargs: Option<TemplateKwargs>,
) -> ChatOptions {
    ChatOptions {
        add_generation_prompt,
        continue_final_message: continue_final_message.unwrap_or_default().0,
        tools: tools.map(|tools| tools.0),
        documents: documents.map(|documents| documents.0),
        chat_template,
        chat_template_kwargs: chat_template_kwargs.unwrap_or_default().0,
    }
}

/// Arguments of transformers' `apply_chat_template` that are not variables of the template.
const NOT_VARIABLES: [&str; 9] = [
    "max_length",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "sanitize_control_tokens",
    "tokenize",
    "tokenizer_kwargs",
    "truncation",
];

/// Adds keyword arguments as variables of the template.
pub(crate) fn add_keywords(options: &mut ChatOptions, keywords: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
    let Some(keywords) = keywords else { return Ok(()) };
    for (name, value) in object(keywords.as_mapping(), 0)? {
        if NOT_VARIABLES.contains(&name.as_str()) {
            if matches!(value, Json::Null | Json::Bool(false)) {
                continue;
            }
            return Err(PyTypeError::new_err(format!("apply_chat_template returns text; '{name}' is not supported")));
        }
        options.chat_template_kwargs.insert(name, value);
    }
    Ok(())
}

/// JSON as Python's plain objects.
pub(crate) fn to_python<'py>(py: Python<'py>, value: &impl serde::Serialize) -> PyResult<Bound<'py, PyAny>> {
    let json = serde_json::to_string(value).map_err(|e| PyValueError::new_err(e.to_string()))?;
    py.import("json")?.call_method1("loads", (json,))
}
