//! The tokenizer as a Python object.

use std::path::PathBuf;
use std::sync::Arc;

use exlora::engine::Tokenizer;
use exlora::error::{Error, ErrorCode};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::args::TokenIds;
use crate::chat::{ContinueFinalMessage, JsonObjects, Messages, TemplateKwargs, add_keywords, chat_options};
use crate::errors::Result;

/// The tokenizer and chat template of a model folder.
#[pyclass(frozen, name = "Tokenizer", module = "exlora._exlora")]
pub(crate) struct PyTokenizer {
    tokenizer: Arc<Tokenizer>,
}

impl PyTokenizer {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer }
    }

    pub(crate) fn tokenizer(&self) -> Arc<Tokenizer> {
        Arc::clone(&self.tokenizer)
    }
}

#[pymethods]
impl PyTokenizer {
    /// Reads a model folder.
    #[new]
    fn open(py: Python<'_>, path: PathBuf) -> Result<Self> {
        let tokenizer = py.detach(|| Tokenizer::open(&path))?.ok_or_else(|| {
            Error::new(ErrorCode::TokenizerNotFound, "the model folder has no tokenizer.json").with_path(&path)
        })?;
        Ok(Self { tokenizer: Arc::new(tokenizer) })
    }

    /// Encodes a text. The tokenizer's own BOS is added if `add_special_tokens`; special tokens written in the text
    /// are recognized if `parse_special_tokens`, by default unless tokenizer_config.json has `split_special_tokens`.
    #[pyo3(signature = (text, add_special_tokens=true, parse_special_tokens=None))]
    fn encode(
        &self,
        py: Python<'_>,
        text: &str,
        add_special_tokens: bool,
        parse_special_tokens: Option<bool>,
    ) -> Result<Vec<u32>> {
        let parse_special = parse_special_tokens.unwrap_or_else(|| self.tokenizer.parses_special());
        Ok(py.detach(|| self.tokenizer.encode(text, add_special_tokens, parse_special))?)
    }

    /// Decodes token ids; bytes that are not valid UTF-8 become U+FFFD, an unknown id has no text.
    #[pyo3(signature = (ids, skip_special_tokens=false))]
    fn decode(&self, py: Python<'_>, ids: TokenIds, skip_special_tokens: bool) -> Result<String> {
        Ok(py.detach(|| self.tokenizer.decode(&ids.0, skip_special_tokens))?)
    }

    /// The text that a token adds in the middle of a text.
    fn piece(&self, id: u32) -> Result<String> {
        Ok(self.tokenizer.piece(id)?)
    }

    /// The bytes that a token adds in the middle of a text, which may be a part of a character; `None` for special tokens.
    fn piece_bytes(&self, py: Python<'_>, id: u32) -> Result<Option<Vec<u8>>> {
        Ok(py.detach(|| self.tokenizer.piece_bytes(id))?)
    }

    /// Whether an id is a special token.
    fn is_special(&self, id: u32) -> bool {
        self.tokenizer.is_special(id)
    }

    /// Renders a chat with a template of the model, or with `chat_template`, its text. Other keywords are variables of the
    /// template.
    #[pyo3(signature = (messages, add_generation_prompt=None, *, continue_final_message=None, tools=None, documents=None,
                        chat_template=None, chat_template_kwargs=None, **keywords: "Any"))]
    #[allow(clippy::too_many_arguments)]
    fn apply_chat_template(
        &self,
        py: Python<'_>,
        messages: Messages,
        add_generation_prompt: Option<bool>,
        continue_final_message: Option<ContinueFinalMessage>,
        tools: Option<JsonObjects>,
        documents: Option<JsonObjects>,
        chat_template: Option<String>,
        chat_template_kwargs: Option<TemplateKwargs>,
        keywords: Option<&Bound<'_, PyDict>>,
    ) -> Result<String> {
        let mut options = chat_options(
            add_generation_prompt,
            continue_final_message,
            tools,
            documents,
            chat_template,
            chat_template_kwargs,
        );
        add_keywords(&mut options, keywords)?;
        Ok(py.detach(|| self.tokenizer.apply_chat_template(&messages.0, &options))?)
    }

    /// Number of token ids.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }

    /// Id of a token, by its spelling in the vocabulary.
    fn id_of(&self, token: &str) -> Option<u32> {
        self.tokenizer.id_of(token)
    }

    /// Spelling of an id in the vocabulary.
    fn token_of(&self, id: u32) -> Option<String> {
        self.tokenizer.token_of(id)
    }

    /// Beginning-of-sequence id.
    #[getter]
    fn bos_token_id(&self) -> Option<u32> {
        self.tokenizer.bos_id()
    }

    /// End-of-sequence id.
    #[getter]
    fn eos_token_id(&self) -> Option<u32> {
        self.tokenizer.eos_id()
    }

    /// Padding id.
    #[getter]
    fn pad_token_id(&self) -> Option<u32> {
        self.tokenizer.pad_id()
    }

    /// Unknown-token id.
    #[getter]
    fn unk_token_id(&self) -> Option<u32> {
        self.tokenizer.unk_id()
    }

    /// Whether the model has a chat template.
    #[getter]
    fn has_chat_template(&self) -> bool {
        self.tokenizer.has_chat_template()
    }

    #[pyo3(signature = () -> "tuple[type[Tokenizer], tuple[str]]")]
    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (String,))> {
        Ok((slf.get_type().into_any(), (slf.get().tokenizer.path().to_string_lossy().into_owned(),)))
    }

    fn __repr__(&self) -> String {
        format!("Tokenizer({:?})", self.tokenizer.path().display().to_string())
    }
}
