//! Text in and out: tokenizer, chat template, incremental detokenizing.
//!
//! Everything is read from the model's own folder, so that a prompt is cut into the tokens the model was trained on:
//! tokenizer.json by the `tokenizers` crate, the names of special tokens from tokenizer_config.json, the chat template
//! from chat_template.jinja or tokenizer_config.json. [`TextStream`] turns tokens back into text as they come,
//! [`StopStrings`] watches that text for its end.

mod chat;
mod stops;
mod stream;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use serde_json::{Map, Value};
use tokenizers::Decoder as _;

use crate::error::{Error, ErrorCode, Result};

pub use stops::{StopStep, StopStrings};
pub use stream::TextStream;

use chat::ChatTemplate;
use stream::TokenText;

/// No tokenizer file is larger; a bigger one is damaged or hostile.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// Special tokens a template may name. The first four also have ids here.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"];

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// Its text.
    pub content: String,
    /// Whatever else the template may read (tool calls, names).
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ChatMessage {
    /// A message that is a role and a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), extra: Map::new() }
    }
}

/// tokenizer.json and the chat template of a model folder. Any thread may call anything.
pub struct Tokenizer {
    /// Behind a lock, since whether special tokens are recognized is a state of the inner tokenizer.
    inner: RwLock<tokenizers::Tokenizer>,
    token_text: TokenText,
    special: BTreeMap<String, String>,
    /// `add_bos_token`, where tokenizer_config.json says it.
    add_bos: Option<bool>,
    template: Option<ChatTemplate>,
    vocab_size: usize,
}

impl Tokenizer {
    /// Reads a model folder; `None` where there is no tokenizer.json.
    ///
    /// # Errors
    /// `tokenizer_invalid`: a file is unreadable or malformed.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("tokenizer.json");
        let Some(json) = read(&path)? else { return Ok(None) };
        let mut inner = tokenizers::Tokenizer::from_bytes(json.as_bytes())
            .map_err(|e| invalid(format!("tokenizer.json cannot be understood: {e}"), &path))?;
        // A prompt is never cut or filled up behind the caller's back.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| invalid(format!("tokenizer.json has settings that do not fit: {e}"), &path))?;

        let config = read_object(&dir.join("tokenizer_config.json"))?;
        let map = read_object(&dir.join("special_tokens_map.json"))?;
        let special: BTreeMap<_, _> = SPECIAL_TOKENS
            .iter()
            .filter_map(|&name| {
                let value = config.get(name).or_else(|| map.get(name))?;
                Some((name.to_owned(), token_content(value)?.to_owned()))
            })
            .collect();
        let template = ChatTemplate::find(dir, &config, &special)?;
        Ok(Some(Self {
            token_text: TokenText::of(inner.get_decoder()),
            vocab_size: inner.get_vocab_size(true),
            inner: RwLock::new(inner),
            special,
            add_bos: config.get("add_bos_token").and_then(Value::as_bool),
            template,
        }))
    }

    /// Token ids of a text. Special tokens written in the text are recognized if `parse_special`;
    /// the tokenizer's own post-processing (a BOS) is applied if `add_special`.
    ///
    /// `add_bos_token` in tokenizer_config.json, where it stands, has the last word on the BOS, as in transformers. The
    /// text of a chat template has its special tokens written out already: encode it without `add_special`.
    ///
    /// # Errors
    /// `tokenizer_invalid`: the tokenizer failed on this text.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        let add_special = add_special && self.add_bos != Some(false);
        let encoding = self
            .parsing(parse_special)
            .encode_fast(text, add_special)
            .map_err(|e| Error::new(ErrorCode::TokenizerInvalid, format!("the tokenizer failed on a text: {e}")))?;
        let mut ids = encoding.get_ids().to_vec();
        if add_special
            && self.add_bos == Some(true)
            && let Some(bos) = self.bos_id()
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Text of token ids. Bytes that are no character become U+FFFD.
    ///
    /// # Errors
    /// `token_out_of_range`: the tokenizer has no such id; `tokenizer_invalid`: its decoder failed.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let inner = self.inner.read();
        let mut tokens = Vec::with_capacity(ids.len());
        for &id in ids {
            let token = inner.id_to_token(id).ok_or_else(|| self.unknown_id(id))?;
            if !skip_special || !inner.get_added_vocabulary().is_special_token(&token) {
                tokens.push(token);
            }
        }
        // Some decoders cannot take an empty list.
        let text = match inner.get_decoder() {
            _ if tokens.is_empty() => Ok(String::new()),
            Some(decoder) => decoder.decode(tokens),
            None => Ok(tokens.join(" ")),
        };
        text.map_err(|e| Error::new(ErrorCode::TokenizerInvalid, format!("the tokenizer failed on token ids: {e}")))
    }

    /// The prompt of a chat, by the model's own template.
    ///
    /// # Errors
    /// `chat_template_not_found`, `chat_template_failed`.
    pub fn apply_chat_template(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        match &self.template {
            Some(template) => template.render(messages, add_generation_prompt),
            None => Err(Error::new(ErrorCode::ChatTemplateNotFound, "the model has no chat template")),
        }
    }

    /// Whether the model has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// Number of ids the tokenizer knows.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Id of a token's exact text.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.read().token_to_id(token)
    }

    /// Raw text of an id as the vocabulary spells it.
    pub fn token_of(&self, id: u32) -> Option<String> {
        self.inner.read().id_to_token(id)
    }

    /// Beginning-of-sequence id, if the config names one.
    pub fn bos_id(&self) -> Option<u32> {
        self.special_id("bos_token")
    }

    /// End-of-sequence id, if the config names one.
    pub fn eos_id(&self) -> Option<u32> {
        self.special_id("eos_token")
    }

    /// Padding id, if the config names one.
    pub fn pad_id(&self) -> Option<u32> {
        self.special_id("pad_token")
    }

    /// Unknown-token id, if the config names one.
    pub fn unk_id(&self) -> Option<u32> {
        self.special_id("unk_token")
    }

    /// Starts turning ids into text, piece by piece.
    pub fn stream(self: &Arc<Self>, skip_special: bool) -> TextStream {
        TextStream::new(Arc::clone(self), skip_special)
    }

    fn special_id(&self, name: &str) -> Option<u32> {
        self.id_of(self.special.get(name)?)
    }

    fn is_special(&self, token: &str) -> bool {
        self.inner.read().get_added_vocabulary().is_special_token(token)
    }

    fn unknown_id(&self, id: u32) -> Error {
        Error::new(ErrorCode::TokenOutOfRange, "the tokenizer has no such token id")
            .with_expected(format!("one of {} ids", self.vocab_size))
            .with_found(id)
    }

    /// The inner tokenizer with its parsing of special tokens set. Callers rarely mix both ways, so the writer's lock is
    /// rarely taken; a second copy of the vocabulary would cost more.
    fn parsing(&self, special: bool) -> RwLockReadGuard<'_, tokenizers::Tokenizer> {
        let inner = self.inner.read();
        if inner.get_encode_special_tokens() != special {
            return inner;
        }
        drop(inner);
        let mut inner = self.inner.write();
        inner.set_encode_special_tokens(!special);
        RwLockWriteGuard::downgrade(inner)
    }
}

/// A special token is a string, or an object with its `content` (a serialized `AddedToken`).
fn token_content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

fn invalid(message: impl Into<String>, path: &Path) -> Error {
    Error::new(ErrorCode::TokenizerInvalid, message).with_path(path)
}

/// The text of a file, `None` where there is no such file.
fn read(path: &Path) -> Result<Option<String>> {
    let unreadable = |e: std::io::Error| invalid(format!("the file cannot be read: {e}"), path);
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(e)),
    };
    if !metadata.is_file() {
        return Err(invalid("not a regular file", path));
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(invalid("the file is too large", path)
            .with_expected(format!("at most {MAX_FILE_BYTES} bytes"))
            .with_found(format!("{} bytes", metadata.len())));
    }
    std::fs::read_to_string(path).map(Some).map_err(unreadable)
}

/// The JSON object of a file, empty where there is no such file.
fn read_object(path: &Path) -> Result<Map<String, Value>> {
    match read(path)? {
        None => Ok(Map::new()),
        Some(text) => serde_json::from_str(&text).map_err(|e| invalid(format!("not a JSON object: {e}"), path)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// A tokenizer of single characters and some words, with the decoder under test.
    pub(crate) fn write_tokenizer(dir: &Path, decoder: Value, tokens: &[&str], config: Value) {
        let vocab: Map<String, Value> =
            tokens.iter().enumerate().map(|(id, token)| (token.to_string(), id.into())).collect();
        let special = ["<s>", "</s>"];
        let added: Vec<Value> = special
            .iter()
            .enumerate()
            .map(|(i, token)| {
                json!({"id": tokens.len() + i, "content": token, "single_word": false, "lstrip": false,
                       "rstrip": false, "normalized": false, "special": true})
            })
            .collect();
        let json = json!({
            "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
                      "merges": []}
        });
        std::fs::write(dir.join("tokenizer.json"), json.to_string()).expect("writes");
        std::fs::write(dir.join("tokenizer_config.json"), config.to_string()).expect("writes");
    }

    pub(crate) fn tokenizer(decoder: Value, tokens: &[&str], config: Value) -> Arc<Tokenizer> {
        let dir = tempfile::tempdir().expect("a folder");
        write_tokenizer(dir.path(), decoder, tokens, config);
        Arc::new(Tokenizer::open(dir.path()).expect("opens").expect("is there"))
    }

    fn letters(config: Value) -> Arc<Tokenizer> {
        tokenizer(json!({"type": "Fuse"}), &["a", "b", "<", "/", "s", ">"], config)
    }

    #[test]
    fn a_folder_without_tokenizer_has_none() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(Tokenizer::open(dir.path()).expect("no error").is_none());
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("tokenizer.json"), "{").expect("writes");
        let error = Tokenizer::open(dir.path()).err().expect("an error");
        assert_eq!(error.code(), ErrorCode::TokenizerInvalid);
        assert_eq!(error.path(), Some(dir.path().join("tokenizer.json").as_path()));

        write_tokenizer(dir.path(), json!({"type": "Fuse"}), &["a"], json!([1]));
        let error = Tokenizer::open(dir.path()).err().expect("an error");
        assert_eq!(error.path(), Some(dir.path().join("tokenizer_config.json").as_path()));
    }

    #[test]
    fn special_tokens_are_strings_or_objects() {
        let t =
            letters(json!({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "pad_token": null}));
        assert_eq!((t.bos_id(), t.eos_id(), t.pad_id()), (Some(6), Some(7), None));
        assert_eq!(t.vocab_size(), 8);
        assert_eq!(t.token_of(7).as_deref(), Some("</s>"));
    }

    #[test]
    fn special_tokens_in_a_text_are_parsed_only_when_asked() {
        let t = letters(json!({}));
        assert_eq!(t.encode("a<s>b", false, true).expect("encodes"), [0, 6, 1]);
        assert_eq!(t.encode("a<s>b", false, false).expect("encodes"), [0, 2, 4, 5, 1]);
        assert_eq!(t.encode("a<s>b", false, true).expect("encodes"), [0, 6, 1]);
    }

    #[test]
    fn a_long_prompt_is_not_cut_by_the_files_truncation() {
        assert_eq!(letters(json!({})).encode("abababab", true, true).expect("encodes").len(), 8);
    }

    #[test]
    fn the_config_decides_on_the_bos() {
        let with = letters(json!({"bos_token": "<s>", "add_bos_token": true}));
        assert_eq!(with.encode("ab", true, true).expect("encodes"), [6, 0, 1]);
        assert_eq!(with.encode("<s>ab", true, true).expect("encodes"), [6, 0, 1]);
        assert_eq!(with.encode("ab", false, true).expect("encodes"), [0, 1]);
        let without = letters(json!({"bos_token": "<s>", "add_bos_token": false}));
        assert_eq!(without.encode("ab", true, true).expect("encodes"), [0, 1]);
    }

    #[test]
    fn an_unknown_id_is_an_error() {
        let error = letters(json!({})).decode(&[0, 99], true).expect_err("an error");
        assert_eq!(error.code(), ErrorCode::TokenOutOfRange);
        assert_eq!(error.found(), Some("99"));
    }

    #[test]
    fn special_tokens_are_left_out_of_the_text_when_asked() {
        let t = letters(json!({}));
        assert_eq!(t.decode(&[0, 6, 1], true).expect("decodes"), "ab");
        assert_eq!(t.decode(&[0, 6, 1], false).expect("decodes"), "a<s>b");
    }
}
