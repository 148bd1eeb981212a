//! The tokenizer of a folder: text to token ids and back.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use tokenizers::{Model as _, ModelWrapper};

use super::byte_alphabet::push_bytes;
use super::chat_template::{ChatMessage, ChatOptions, ChatTemplates};
use super::clean_up::CleanUp;
use super::decoder_kind::DecoderKind;
use super::files::{invalid, read, read_object};
use super::infilling::Infilling;
use super::special_tokens::SpecialTokens;
use super::token_sets::TokenSets;
use super::token_trie::{TokenText, TokenTrie};
use super::token_window::TokenWindow;
use super::tokenizer_class::TokenizerClass;
use super::tokenizer_file::TokenizerFile;
use super::tokenizer_json::{self, InnerTokenizer};
use crate::error::{Error, Result};
use crate::model::config::read_json;

/// The tokenizer and chat template of a folder, as transformers' AutoTokenizer reads them. Thread-safe.
pub struct Tokenizer {
    path: PathBuf,
    vocabulary: Arc<Vocabulary>,
    decoder_kind: DecoderKind,
    /// Texts of the named special tokens (`bos_token`, …).
    named: BTreeMap<String, String>,
    /// `split_special_tokens` of tokenizer_config.json.
    splits_special: bool,
    /// Whether spaces before punctuation are removed from a decoded text.
    cleans_up: bool,
    /// Of a class that knows texts with a gap.
    infilling: Option<Infilling>,
    templates: ChatTemplates,
    vocab_size: usize,
}

/// Vocabulary, merges and the steps around them: nearly all of a tokenizer's memory, so that equal ones are shared.
struct Vocabulary {
    /// Behind a lock because whether special tokens are recognized is state of the inner tokenizer.
    inner: RwLock<InnerTokenizer>,
    hash: OnceLock<[u8; 32]>,
    token_sets: OnceLock<TokenSets>,
    trie: OnceLock<Arc<TokenTrie>>,
}

impl Tokenizer {
    /// Reads a model folder; `None` where there is no tokenizer.json.
    ///
    /// # Errors
    /// `tokenizer_invalid`: a file is unreadable or malformed.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("tokenizer.json");
        let Some(json) = read(&path)? else { return Ok(None) };
        let config = read_object(&dir.join("tokenizer_config.json"))?;
        let class = class_of(dir, &config, &json);
        let (inner, named) = assemble(dir, class, &config, &json)?;

        let is_set = |name: &str| config.get(name).and_then(Value::as_bool) == Some(true);
        let is_bpe = matches!(inner.get_model(), ModelWrapper::BPE(_));
        Ok(Some(Self {
            path: dir.to_path_buf(),
            decoder_kind: DecoderKind::of(inner.get_decoder()),
            templates: ChatTemplates::find(dir, &config, &named)?,
            splits_special: is_set("split_special_tokens"),
            cleans_up: is_set("clean_up_tokenization_spaces")
                && (!is_bpe || is_set("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")),
            vocab_size: inner.get_vocab_size(true),
            infilling: if class.fills_in() { Infilling::find(&inner, &named) } else { None },
            named,
            vocabulary: Arc::new(Vocabulary {
                inner: RwLock::new(inner),
                hash: OnceLock::new(),
                token_sets: OnceLock::new(),
                trie: OnceLock::new(),
            }),
        }))
    }

    /// Encodes a text. Special tokens written in the text are recognized if `parse_special`; the tokenizer's own
    /// post-processing (a BOS) is applied if `add_special`.
    ///
    /// The post-processor of tokenizer.json alone decides about BOS and EOS, as in transformers: `add_bos_token` and
    /// `add_eos_token` of tokenizer_config.json count only where there is no tokenizer.json. A rendered chat template
    /// already contains its special tokens: encode it without `add_special`. A CodeLlama's `<FILL_ME>` marks what is to be
    /// filled in.
    ///
    /// # Errors
    /// `tokenizer_invalid`: the tokenizer failed on this text. `request_invalid`: it has several `<FILL_ME>`.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        let inner = self.vocabulary.parsing(parse_special);
        match &self.infilling {
            Some(infilling) if parse_special => infilling.encode(&inner, text, add_special),
            _ => tokenizer_json::encode(&inner, text, add_special),
        }
    }

    /// Whether special tokens written in a text are recognized if nobody says otherwise: not with `split_special_tokens`.
    pub fn parses_special(&self) -> bool {
        !self.splits_special
    }

    /// Decodes token ids. Bytes that are not valid UTF-8 become U+FFFD; an id that the tokenizer does not have has no text.
    ///
    /// # Errors
    /// `tokenizer_invalid`: its decoder failed.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let text = self.decode_uncleaned(ids, skip_special)?;
        Ok(if self.cleans_up { CleanUp::whole(&text) } else { text })
    }

    /// Decodes token ids without the removal of spaces before punctuation, which looks at neighboring characters.
    pub(super) fn decode_uncleaned(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let inner = self.vocabulary.inner.read();
        let mut tokens = Vec::with_capacity(ids.len());
        for &id in ids {
            let Some(token) = spelling(&inner, id) else { continue };
            if !skip_special || !inner.get_added_vocabulary().is_special_token(&token) {
                tokens.push(token);
            }
        }
        tokenizer_json::decode(&inner, tokens)
    }

    /// The text that a token adds in the middle of a text.
    ///
    /// # Errors
    /// `tokenizer_invalid`: its decoder failed.
    pub fn piece(&self, id: u32) -> Result<String> {
        let inner = self.vocabulary.inner.read();
        match spelling(&inner, id) {
            Some(token) => piece(&inner, token, &text_before(&inner)?),
            None => Ok(String::new()),
        }
    }

    /// The bytes that a token adds in the middle of a text, which may be a part of a character; `None` for special tokens.
    ///
    /// # Errors
    /// `tokenizer_invalid`: its decoder failed.
    pub fn piece_bytes(&self, id: u32) -> Result<Option<Vec<u8>>> {
        Ok(self.trie()?.bytes_of(id).map(<[u8]>::to_vec))
    }

    /// The tokens by their bytes. Made at the first call, once for a vocabulary.
    ///
    /// # Errors
    /// `tokenizer_invalid`: its decoder failed.
    pub(in crate::engine) fn trie(&self) -> Result<Arc<TokenTrie>> {
        if let Some(trie) = self.vocabulary.trie.get() {
            return Ok(Arc::clone(trie));
        }
        let trie = TokenTrie::new(self.token_texts()?)?;
        Ok(Arc::clone(self.vocabulary.trie.get_or_init(|| trie)))
    }

    /// The text of every id. Ids far beyond the number of tokens have none, so that no file decides about memory.
    fn token_texts(&self) -> Result<Vec<TokenText>> {
        let inner = self.vocabulary.inner.read();
        let before = text_before(&inner)?;
        let ids = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let text_of = |id: u32| {
            let Some(token) = spelling(&inner, id).filter(|token| !token.is_empty()) else { return TokenText::None };
            if inner.get_added_vocabulary().is_special_token(&token) {
                return TokenText::Special(token);
            }
            match self.decoder_kind {
                DecoderKind::Bytes => {
                    let mut bytes = Vec::new();
                    push_bytes(&token, &mut bytes);
                    TokenText::Bytes(bytes)
                }
                DecoderKind::Window { byte_fallback, .. } => {
                    let byte = TokenWindow::byte_of_token(&token).filter(|_| byte_fallback);
                    let bytes =
                        byte.map_or_else(|| piece(&inner, token, &before).map(Vec::from), |byte| Ok(vec![byte]));
                    bytes.map_or(TokenText::None, TokenText::Bytes)
                }
            }
        };
        Ok((0..ids.min(4 * self.vocab_size + 1024) as u32).map(text_of).collect())
    }

    /// Renders a chat with one of the model's templates, or with the one that `options` contain.
    ///
    /// # Errors
    /// `chat_template_not_found`, `chat_template_failed`.
    pub fn apply_chat_template(&self, messages: &[ChatMessage], options: &ChatOptions) -> Result<String> {
        self.templates.render(messages, options)
    }

    /// The source of the chat template that [`Tokenizer::apply_chat_template`] renders with these options, if there is one.
    pub fn chat_template<'a>(&'a self, options: &'a ChatOptions) -> Option<&'a str> {
        self.templates.source(options)
    }

    /// Whether the model has a chat template.
    pub fn has_chat_template(&self) -> bool {
        !self.templates.is_empty()
    }

    /// Why a chat template of the model was refused, if one was. It fails when it is used.
    pub fn chat_template_error(&self) -> Option<&Error> {
        self.templates.refused()
    }

    /// The folder that it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of ids the tokenizer knows.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Id of a token, by its spelling in the vocabulary.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.vocabulary.inner.read().token_to_id(token)
    }

    /// Spelling of an id in the vocabulary.
    pub fn token_of(&self, id: u32) -> Option<String> {
        self.vocabulary.inner.read().id_to_token(id)
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

    /// Uses the vocabulary of `other` if it is the same, so that one copy is resident.
    pub(super) fn share_vocabulary(&mut self, other: &Tokenizer) {
        if !Arc::ptr_eq(&self.vocabulary, &other.vocabulary) && self.vocabulary.hash() == other.vocabulary.hash() {
            self.vocabulary = Arc::clone(&other.vocabulary);
        }
    }

    /// Whether both encode, decode and render alike: whether their files say the same.
    pub(super) fn equals(&self, other: &Tokenizer) -> bool {
        let settings = |t: &Self| (t.splits_special, t.cleans_up);
        self.named == other.named
            && settings(self) == settings(other)
            && self.infilling == other.infilling
            && self.templates.equals(&other.templates)
            && (Arc::ptr_eq(&self.vocabulary, &other.vocabulary) || self.vocabulary.hash() == other.vocabulary.hash())
    }

    /// The lowest id that means another token in `other`, or is missing in one of them.
    pub(in crate::engine) fn first_difference(&self, other: &Tokenizer) -> Option<u32> {
        if Arc::ptr_eq(&self.vocabulary, &other.vocabulary) {
            return None;
        }
        let ids = |t: &Self| t.vocabulary.inner.read().get_vocab(true);
        let (own, others) = (ids(self), ids(other));
        let differs = |(token, id): (&String, &u32), vocabulary: &HashMap<String, u32>| {
            (vocabulary.get(token) != Some(id)).then_some(*id)
        };
        let missing_there = own.iter().filter_map(|entry| differs(entry, &others));
        missing_there.chain(others.iter().filter_map(|entry| differs(entry, &own))).min()
    }

    /// Whether an id is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.spelling(id).is_some_and(|(_, is_special)| is_special)
    }

    /// Ids of tokens with punctuation, a line break or a tab, and of special tokens; sorted. The first call looks at every token.
    pub(in crate::engine) fn punctuation_and_special_ids(&self) -> Arc<[u32]> {
        Arc::clone(&self.token_sets().punctuation)
    }

    /// Ids of tokens with a line break, and of special tokens; sorted. The first call looks at every token.
    pub(in crate::engine) fn newline_and_special_ids(&self) -> Arc<[u32]> {
        Arc::clone(&self.token_sets().newline)
    }

    fn token_sets(&self) -> &TokenSets {
        let text = |id| (!self.is_special(id)).then(|| self.piece(id).unwrap_or_default());
        self.vocabulary.token_sets.get_or_init(|| TokenSets::of(0..self.vocab_size as u32, text))
    }

    /// How the decoder of this tokenizer turns tokens into text.
    pub(super) fn decoder_kind(&self) -> DecoderKind {
        self.decoder_kind
    }

    /// Whether spaces before punctuation are removed from a decoded text.
    pub(super) fn cleans_up(&self) -> bool {
        self.cleans_up
    }

    /// The token that the decoder sees for an id, and whether it is a special one.
    pub(super) fn spelling(&self, id: u32) -> Option<(String, bool)> {
        let inner = self.vocabulary.inner.read();
        let token = spelling(&inner, id)?;
        let is_special = inner.get_added_vocabulary().is_special_token(&token);
        Some((token, is_special))
    }

    /// Id of a special token with this text.
    pub(in crate::engine) fn special_id_of(&self, text: &str) -> Option<u32> {
        let inner = self.vocabulary.inner.read();
        inner.get_added_vocabulary().is_special_token(text).then(|| inner.token_to_id(text)).flatten()
    }

    fn special_id(&self, name: &str) -> Option<u32> {
        self.id_of(self.named.get(name)?)
    }
}

impl Vocabulary {
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

    /// SHA-256 of the tokenizer as a file, however it was formatted where it was read. Computed once.
    fn hash(&self) -> [u8; 32] {
        *self.hash.get_or_init(|| {
            let mut hasher = Sha256::new();
            // Writing to a hasher cannot fail, and every tokenizer that was read can be written.
            let _ = serde_json::to_writer(&mut hasher, &*self.inner.read());
            hasher.finalize().into()
        })
    }
}

/// The inner tokenizer with all tokens that the folder declares, and the texts of its named special tokens.
fn assemble(
    dir: &Path,
    class: TokenizerClass,
    config: &Map<String, Value>,
    json: &str,
) -> Result<(InnerTokenizer, BTreeMap<String, String>)> {
    let path = dir.join("tokenizer.json");
    let not_understood = |error| invalid(format!("tokenizer.json cannot be understood: {error}"), &path);
    let file = TokenizerFile::parse(json).map_err(not_understood)?;
    let in_file = file.added_tokens().map_err(not_understood)?;
    let mut inner = match class.rebuild(&file, config) {
        None => tokenizer_json::from_file(&file),
        Some(rebuilt) => tokenizer_json::from_file(&TokenizerFile::parse(&rebuilt).map_err(not_understood)?),
    }
    .map_err(|error| error.with_path(&path))?;
    let mut defaults = class.default_tokens().to_vec();
    let padding_token = file.padding_token().filter(|_| class.pads_as_in_file());
    defaults.extend(padding_token.as_deref().map(|token| ("pad_token", token)));
    let special = SpecialTokens::read(dir, config, in_file, &defaults)?;
    let present = inner.get_added_vocabulary().get_vocab().keys().cloned().collect();
    tokenizer_json::add_tokens(&mut inner, special.to_add(&present)).map_err(|error| error.with_path(&path))?;
    if class.resets_special_tokens() {
        tokenizer_json::add_tokens(&mut inner, special.all()).map_err(|error| error.with_path(&path))?;
    }
    let named = special.names();
    if class.adds_bos()
        && let Some(bos) = named.get("bos_token")
    {
        tokenizer_json::begin_texts_with(&mut inner, bos).map_err(|error| error.with_path(&path))?;
    }
    Ok((inner, named))
}

/// The class that transformers would read the folder's tokenizer.json with.
fn class_of(dir: &Path, config: &Map<String, Value>, json: &str) -> TokenizerClass {
    // A config.json that cannot be read is reported where the model is loaded; the folder of an adapter has none.
    let model = read_json(&dir.join("config.json")).ok().flatten().unwrap_or_default();
    let in_model = |name: &str| model.get(name).and_then(Value::as_str);
    let declared = config.get("tokenizer_class").and_then(Value::as_str).or_else(|| in_model("tokenizer_class"));
    TokenizerClass::of(in_model("model_type").unwrap_or_default(), declared, config, json)
}

/// What a piece of a text is decoded behind, so that it is not at the beginning.
const BEFORE: &str = "a";

fn text_before(inner: &InnerTokenizer) -> Result<String> {
    tokenizer_json::decode(inner, vec![BEFORE.to_owned()])
}

/// The text that a token adds behind [`BEFORE`], whose text is `before`.
fn piece(inner: &InnerTokenizer, token: String, before: &str) -> Result<String> {
    let both = tokenizer_json::decode(inner, vec![BEFORE.to_owned(), token])?;
    Ok(both.strip_prefix(before).map_or_else(|| both.clone(), str::to_owned))
}

/// The token that the decoder sees for an id.
fn spelling(inner: &InnerTokenizer, id: u32) -> Option<String> {
    inner.get_added_vocabulary().simple_id_to_token(id).or_else(|| inner.get_model().id_to_token(id))
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use serde_json::{Map, json};

    use super::*;
    use crate::error::ErrorCode;

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
    fn flags_about_bos_and_eos_do_not_count_beside_a_tokenizer_json() {
        for flag in [true, false] {
            let t =
                letters(json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": flag, "add_eos_token": flag}));
            assert_eq!(t.encode("ab", true, true).expect("encodes"), [0, 1]);
        }
    }

    #[test]
    fn equal_tokenizers_share_a_vocabulary() {
        let config = json!({"bos_token": "<s>"});
        let (base, other) = (letters(config.clone()), letters(json!({"bos_token": "</s>"})));
        assert!(base.equals(&letters(config)));
        assert!(!base.equals(&other));
        let mut other = Arc::into_inner(other).expect("the only reference");
        other.share_vocabulary(&base);
        assert!(Arc::ptr_eq(&base.vocabulary, &other.vocabulary));
        let mut unlike =
            Arc::into_inner(tokenizer(json!({"type": "Fuse"}), &["a", "c"], json!({}))).expect("the only one");
        unlike.share_vocabulary(&base);
        assert!(!Arc::ptr_eq(&base.vocabulary, &unlike.vocabulary));
    }

    #[test]
    fn a_piece_is_what_a_token_adds_within_a_text() {
        let decoder = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
        let t = tokenizer(decoder, &["▁of", "of"], json!({}));
        let pieces = [0, 1, 9].map(|id| t.piece(id).expect("decodes"));
        assert_eq!(pieces, [" of", "of", ""]);
    }

    #[test]
    fn the_trie_has_the_bytes_of_every_token_also_of_parts_of_characters() {
        let tokens = ["▁", "▁the", "cat", "<0xE2>", "<0x20>", "<0xZZ>", "", "日"];
        let llama2 = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let bytes = |t: &Tokenizer| {
            let trie = t.trie().expect("indexes");
            (0..trie.end_of_text()).map(|id| trie.bytes_of(id).map(<[u8]>::to_vec)).collect::<Vec<_>>()
        };
        let some = |text: &[u8]| Some(text.to_vec());
        let t = tokenizer(llama2, &tokens, json!({}));
        let expected = [
            some(b" "),
            some(b" the"),
            some(b"cat"),
            some(b"\xE2"),
            some(b" "),
            some(b"<0xZZ>"),
            None,
            some("日".as_bytes()),
            None,
            None,
        ];
        assert_eq!(bytes(&t), expected);
        assert_eq!(t.trie().expect("indexes").beginning_with(b" ").collect::<Vec<_>>(), [0, 1, 4]);
        assert!(Arc::ptr_eq(&t.trie().expect("indexes"), &t.trie().expect("indexes")));
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let t = tokenizer(byte_level, &["Ġthe", "âĤ", "¬Ġ", "Ċ", "日"], json!({}));
        let expected =
            [some(b" the"), some(b"\xE2\x82"), some(b"\xAC "), some(b"\n"), some("日".as_bytes()), None, None];
        assert_eq!(bytes(&t), expected);
    }

    #[test]
    fn an_unknown_id_has_no_text() {
        assert_eq!(letters(json!({})).decode(&[0, 99, 1], true).expect("decodes"), "ab");
    }

    #[test]
    fn special_tokens_are_left_out_of_the_text_when_asked() {
        let t = letters(json!({}));
        assert_eq!(t.decode(&[0, 6, 1], true).expect("decodes"), "ab");
        assert_eq!(t.decode(&[0, 6, 1], false).expect("decodes"), "a<s>b");
    }
}
