//! tokenizer.json of a model folder: text to token ids and back.

use std::collections::BTreeMap;
use std::path::Path;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use serde_json::Value;

use super::chat_template::{ChatMessage, ChatTemplate};
use super::decoder_kind::DecoderKind;
use super::files::{read, read_object};
use super::tokenizer_json::{self, InnerTokenizer};
use crate::error::{Error, ErrorCode, Result};

/// Special tokens that a template may use. The first four also have getters for their ids.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"];

/// The tokenizer and chat template of a model folder. Thread-safe.
pub struct Tokenizer {
    /// Behind a lock because whether special tokens are recognized is state of the inner tokenizer.
    inner: RwLock<InnerTokenizer>,
    decoder_kind: DecoderKind,
    special: BTreeMap<String, String>,
    /// `add_bos_token` of tokenizer_config.json, if it is there.
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
        let inner = tokenizer_json::parse(&json).map_err(|error| error.with_path(&path))?;

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
            decoder_kind: DecoderKind::of(inner.get_decoder()),
            vocab_size: inner.get_vocab_size(true),
            inner: RwLock::new(inner),
            special,
            add_bos: config.get("add_bos_token").and_then(Value::as_bool),
            template,
        }))
    }

    /// Encodes a text. Special tokens written in the text are recognized if `parse_special`;
    /// the tokenizer's own post-processing (a BOS) is applied if `add_special`.
    ///
    /// `add_bos_token` in tokenizer_config.json, if present, decides about the BOS, as in transformers. A rendered chat
    /// template already contains its special tokens: encode it without `add_special`.
    ///
    /// # Errors
    /// `tokenizer_invalid`: the tokenizer failed on this text.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        let add_special = add_special && self.add_bos != Some(false);
        let mut ids = tokenizer_json::encode(&self.parsing(parse_special), text, add_special)?;
        if add_special
            && self.add_bos == Some(true)
            && let Some(bos) = self.bos_id()
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Decodes token ids. Bytes that are not valid UTF-8 become U+FFFD.
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
        tokenizer_json::decode(&inner, tokens)
    }

    /// Renders a chat with the model's own template.
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

    /// Id of a token, by its spelling in the vocabulary.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.read().token_to_id(token)
    }

    /// Spelling of an id in the vocabulary.
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

    /// How the decoder of this tokenizer turns tokens into text.
    pub(super) fn decoder_kind(&self) -> DecoderKind {
        self.decoder_kind
    }

    fn special_id(&self, name: &str) -> Option<u32> {
        self.id_of(self.special.get(name)?)
    }

    pub(super) fn is_special(&self, token: &str) -> bool {
        self.inner.read().get_added_vocabulary().is_special_token(token)
    }

    pub(super) fn unknown_id(&self, id: u32) -> Error {
        Error::new(ErrorCode::TokenOutOfRange, "the tokenizer has no such token id")
            .with_expected(format!("one of {} ids", self.vocab_size))
            .with_found(id)
    }

    /// The inner tokenizer, set to parse special tokens or not. Callers rarely mix the two, so the write lock is rarely
    /// taken; a second copy of the vocabulary would cost more.
    fn parsing(&self, special: bool) -> RwLockReadGuard<'_, InnerTokenizer> {
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

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use serde_json::{Map, json};

    use super::*;

    /// A tokenizer of single characters and some words, with the decoder under test.
    pub(in super::super) fn write_tokenizer(dir: &Path, decoder: Value, tokens: &[&str], config: Value) {
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

    pub(in super::super) fn tokenizer(decoder: Value, tokens: &[&str], config: Value) -> Arc<Tokenizer> {
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
