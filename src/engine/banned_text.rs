//! Tokens that are not final yet because a banned string may be beginning in their text, and the way back from one.
//!
//! When a banned string is complete, generation goes back to the token where it begins and forbids that token at its position.
//! Should another banned string begin there, one more token is forbidden; what was forbidden further on belongs to the text that
//! is given up. This is exllamav2's rule: other texts that begin with a forbidden token there are given up with it.

use std::collections::{BTreeMap, VecDeque};

use super::output::{Chunk, StopMatch};
use super::text::{BannedScan, BannedStrings, Detokenizer, Piece, StopStrings};
use crate::error::{Error, ErrorCode, Result};

/// Times to go back before one more token is final. Then nearly everything that is likely is banned.
const MOST_RETURNS: usize = 1024;

/// What turns tokens into text.
pub(super) type TextState = Option<(Detokenizer, StopStrings)>;

/// The tokens of a request with banned strings that are not final yet.
#[derive(Clone)]
pub(super) struct BannedText {
    strings: BannedStrings,
    /// After the last token.
    scan: BannedScan,
    held: VecDeque<HeldToken>,
    /// Tokens that are forbidden at a position.
    forbidden: BTreeMap<usize, Vec<u32>>,
    /// How often generation went back since a token became final.
    returns: usize,
}

#[derive(Clone)]
struct HeldToken {
    position: usize,
    chunk: Chunk,
    /// All it adds to the text, also what `chunk` holds back.
    text: String,
    /// As it was before the token.
    text_state: TextState,
    strings: BannedStrings,
}

impl BannedText {
    /// Bans these strings, which are not empty.
    pub(super) fn new(strings: &[String]) -> Self {
        Self {
            strings: BannedStrings::new(strings),
            scan: BannedScan::default(),
            held: VecDeque::new(),
            forbidden: BTreeMap::new(),
            returns: 0,
        }
    }

    /// Tokens that must not be chosen at a position.
    pub(super) fn forbidden_at(&self, position: usize) -> &[u32] {
        self.forbidden.get(&position).map_or(&[], Vec::as_slice)
    }

    /// Begins to hold the token at a position, before anything was done with it.
    pub(super) fn hold(&mut self, position: usize, text_state: &TextState) {
        self.held.push_back(HeldToken {
            position,
            chunk: Chunk::default(),
            text: String::new(),
            text_state: text_state.clone(),
            strings: self.strings.clone(),
        });
    }

    /// Reads the text of the token that was held last.
    pub(super) fn read(&mut self, piece: &Piece) {
        let Some(token) = self.held.back_mut() else { return };
        token.text.clone_from(&piece.text);
        self.scan = self.strings.push(token.position, &piece.text, !piece.special.is_empty());
    }

    /// Takes over the chunk of the token that was held last. If the text now contains a banned string, the position of the
    /// token where it begins.
    pub(super) fn complete(&mut self, chunk: Chunk) -> Option<usize> {
        let first = self.held.front()?.position;
        let finish = chunk.finish.clone();
        if let Some(token) = self.held.back_mut() {
            token.chunk = chunk;
        }
        let Some(finish) = finish else { return self.scan.found };
        // The end may have cut off what was banned, or have completed a string.
        let visible: String = self.held.iter().map(|token| token.chunk.text.as_str()).collect();
        let is_cut = matches!(finish.matched, Some(StopMatch::Text(_)));
        let found = if is_cut { None } else { self.scan.found };
        found.or_else(|| self.strings.is_in(&visible).then(|| self.scan.found.unwrap_or(first)))
    }

    /// Takes the chunks of the tokens that are final.
    pub(super) fn take_final(&mut self) -> Vec<Chunk> {
        let is_end = self.held.back().is_some_and(|token| token.chunk.finish.is_some());
        let end = self.scan.beginning.filter(|_| !is_end).unwrap_or(usize::MAX);
        let count = self.held.iter().take_while(|token| token.position < end).count();
        if count > 0 {
            self.returns = 0;
            let last = self.held[count - 1].position;
            self.forbidden.retain(|&position, _| position > last);
        }
        self.held.drain(..count).map(|token| token.chunk).collect()
    }

    /// Takes the chunks of all tokens, since the text has ended.
    pub(super) fn take_all(&mut self) -> Vec<Chunk> {
        self.held.drain(..).map(|token| token.chunk).collect()
    }

    /// Goes back to a position and forbids the token there. Returns the text that is given up, and how text was decoded before.
    ///
    /// # Errors
    /// `sampling_invalid`: it has gone back too often.
    pub(super) fn go_back(&mut self, position: usize, token: u32) -> Result<(String, TextState)> {
        let from = self.held.iter().position(|token| token.position == position);
        let given_up = self.held.split_off(from.unwrap_or(self.held.len()));
        self.returns += 1;
        let Some(first) = given_up.front().filter(|_| self.returns <= MOST_RETURNS) else {
            return Err(Error::new(ErrorCode::SamplingInvalid, "every likely continuation contains a banned string")
                .with_expected(format!("one without within {MOST_RETURNS} attempts"))
                .with_hint("ban fewer or longer strings"));
        };
        self.forbidden.retain(|&other, _| other <= position);
        self.forbidden.entry(position).or_default().push(token);
        self.strings = first.strings.clone();
        let beginning = first.strings.beginning();
        self.scan = BannedScan { found: None, beginning: beginning.or(Some(position)) };
        Ok((given_up.iter().map(|token| token.text.as_str()).collect(), first.text_state.clone()))
    }
}
