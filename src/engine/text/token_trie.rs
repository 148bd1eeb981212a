//! The bytes of every token of a vocabulary, and llguidance's trie of them.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

use crate::error::{Error, ErrorCode, Result};
use crate::guard::guarded;

/// Expensive regular expressions are abandoned by these limits, not by time, so that a grammar is refused or not whatever else
/// the machine does. Units are llguidance's; its speeds are about 50 000 of `initial_lexer_fuel`, 14 000 of `step_lexer_fuel`
/// and 20 000 items a millisecond, and a state of the lexer has up to 2 kB.
mod limits {
    pub const INITIAL_LEXER_FUEL: u64 = 1_000_000;
    pub const STEP_LEXER_FUEL: u64 = 200_000;
    pub const STEP_MAX_ITEMS: usize = 50_000;
    pub const MAX_LEXER_STATES: usize = 50_000;
    pub const MAX_GRAMMAR_SIZE: usize = 200_000;
}

/// The text of a token, as bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum TokenText {
    /// Never part of a text: the tokenizer has no such id, or it has no text.
    #[default]
    None,
    /// What it adds in the middle of a text: any bytes, also parts of a character.
    Bytes(Vec<u8>),
    /// The spelling of a special token, which is no text.
    Special(String),
}

/// The tokens of a vocabulary by their bytes.
pub struct TokenTrie {
    texts: Vec<TokenText>,
    /// Its vocabulary has one token more, which stands for the end of a text.
    factory: ParserFactory,
}

impl TokenTrie {
    /// A trie of the texts of all ids.
    ///
    /// # Errors
    /// `internal`: llguidance failed.
    pub(super) fn new(texts: Vec<TokenText>) -> Result<Arc<Self>> {
        let failed =
            |message: &str| Error::new(ErrorCode::Internal, format!("indexing the vocabulary failed: {message}"));
        guarded(failed, || {
            let mut words: Vec<Vec<u8>> = texts.iter().map(word_of).collect();
            let end = words.len() as u32;
            words.push(special_word("<|end of the text|>"));
            let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, end), &words);
            let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            let slices = llguidance::earley::SlicedBiasComputer::general_slices();
            let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
                .map_err(|error| failed(&error.to_string()))?;
            factory.quiet();
            let limits = factory.limits_mut();
            limits.initial_lexer_fuel = limits::INITIAL_LEXER_FUEL;
            limits.step_lexer_fuel = limits::STEP_LEXER_FUEL;
            limits.step_max_items = limits::STEP_MAX_ITEMS;
            limits.max_lexer_states = limits::MAX_LEXER_STATES;
            limits.max_grammar_size = limits::MAX_GRAMMAR_SIZE;
            limits.verbose_errors = false;
            Ok(Arc::new(Self { texts, factory }))
        })
    }

    /// What makes parsers of grammars over this vocabulary.
    pub(in crate::engine) fn factory(&self) -> &ParserFactory {
        &self.factory
    }

    /// The token that stands for the end of a text in masks of [`TokenTrie::factory`]: the number of ids.
    pub(in crate::engine) fn end_of_text(&self) -> u32 {
        self.texts.len() as u32
    }

    /// The bytes that a token adds in the middle of a text; `None` if it is never part of one.
    pub(in crate::engine) fn bytes_of(&self, id: u32) -> Option<&[u8]> {
        match self.texts.get(id as usize)? {
            TokenText::Bytes(bytes) => Some(bytes),
            TokenText::None | TokenText::Special(_) => None,
        }
    }

    /// The ids whose text begins with these bytes, ascending.
    pub(in crate::engine) fn beginning_with(&self, prefix: &[u8]) -> impl Iterator<Item = u32> {
        (0..self.end_of_text()).filter(move |&id| self.bytes_of(id).is_some_and(|bytes| bytes.starts_with(prefix)))
    }
}

/// A token as llguidance's trie has it; an empty word is in no text.
fn word_of(text: &TokenText) -> Vec<u8> {
    match text {
        TokenText::None => Vec::new(),
        TokenText::Bytes(bytes) => bytes.clone(),
        TokenText::Special(spelling) => special_word(spelling),
    }
}

fn special_word(spelling: &str) -> Vec<u8> {
    let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
    word.extend_from_slice(spelling.as_bytes());
    word
}
