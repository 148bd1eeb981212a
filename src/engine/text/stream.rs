//! Incremental detokenizing: pieces of text that joined are exactly what decoding all ids at once gives.
//!
//! Two families of decoder need two ways. A byte-level one (GPT-2's alphabet) spells bytes, so bytes are kept until they
//! are whole characters. Any other one looks at its neighbors (a first space is stripped, words are joined), so the
//! difference is taken between decoding a short window of ids with and without its newest; a run of byte tokens
//! (`<0xE2>`) waits for its end, since SentencePiece's fallback decodes a run as a whole, all of it or none.

use std::sync::Arc;

use tokenizers::DecoderWrapper;

use super::Tokenizer;
use crate::error::Result;

/// How the tokenizer's decoder has to be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenText {
    /// Tokens spell bytes.
    Bytes,
    /// Tokens spell text; byte tokens are decoded by runs if there is a fallback.
    Window { byte_fallback: bool },
}

impl TokenText {
    pub(super) fn of(decoder: Option<&DecoderWrapper>) -> Self {
        let parts = match decoder {
            None => &[],
            Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders(),
            Some(one) => std::slice::from_ref(one),
        };
        match parts {
            [DecoderWrapper::ByteLevel(_)] | [DecoderWrapper::ByteLevel(_), DecoderWrapper::Fuse(_)] => {
                TokenText::Bytes
            }
            parts => {
                let byte_fallback = parts.iter().any(|part| matches!(part, DecoderWrapper::ByteFallback(_)));
                TokenText::Window { byte_fallback }
            }
        }
    }
}

/// Turns a stream of ids into text that never holds half a character.
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    state: State,
}

enum State {
    /// Bytes that do not make a character yet, at most three.
    Bytes(Vec<u8>),
    Window(Window),
}

#[derive(Default)]
struct Window {
    /// Ids whose text is out, for context, then those whose text is not.
    ids: Vec<u32>,
    /// How many bytes of the ids' text are out.
    emitted: usize,
}

/// Most ids kept for context. One is enough unless its text is empty.
const MAX_CONTEXT: usize = 8;

/// Most ids that wait for an incomplete character at their end, where the decoder is none that is known here.
const MAX_WAIT: usize = 16;

impl TextStream {
    pub(super) fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        let state = match tokenizer.token_text {
            TokenText::Bytes => State::Bytes(Vec::new()),
            TokenText::Window { .. } => State::Window(Window::default()),
        };
        Self { tokenizer, skip_special, state }
    }

    /// The text that became certain with this id; empty while a character is incomplete.
    ///
    /// # Errors
    /// `token_out_of_range`: the tokenizer has no such id; the stream goes on without it.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let tokenizer = &self.tokenizer;
        let token = tokenizer.token_of(id).ok_or_else(|| tokenizer.unknown_id(id))?;
        if self.skip_special && tokenizer.is_special(&token) {
            return Ok(String::new());
        }
        match &mut self.state {
            State::Bytes(pending) => {
                push_bytes(&token, pending);
                Ok(take_characters(pending))
            }
            State::Window(window) => {
                window.ids.push(id);
                let byte_fallback = tokenizer.token_text == TokenText::Window { byte_fallback: true };
                if byte_fallback && is_byte_token(&token) {
                    return Ok(String::new());
                }
                window.advance(|ids| tokenizer.decode(ids, self.skip_special))
            }
        }
    }

    /// What is left at the end, incomplete bytes as U+FFFD. The stream can begin anew.
    ///
    /// # Errors
    /// `tokenizer_invalid`: the tokenizer failed on the ids.
    pub fn finish(&mut self) -> Result<String> {
        match &mut self.state {
            State::Bytes(pending) => Ok(String::from_utf8_lossy(&std::mem::take(pending)).into_owned()),
            State::Window(window) => {
                let Window { ids, emitted } = std::mem::take(window);
                let text = self.tokenizer.decode(&ids, self.skip_special)?;
                Ok(text.get(emitted..).unwrap_or_default().to_owned())
            }
        }
    }
}

impl Window {
    /// The text that is certain and not out yet.
    fn advance(&mut self, decode: impl Fn(&[u32]) -> Result<String>) -> Result<String> {
        let text = decode(&self.ids)?;
        let waits = text.ends_with(char::REPLACEMENT_CHARACTER) && self.ids.len() < MAX_WAIT;
        let certain = if waits { text.trim_end_matches(char::REPLACEMENT_CHARACTER).len() } else { text.len() };
        let piece = text.get(self.emitted..certain).unwrap_or_default().to_owned();
        self.emitted += piece.len();
        if !waits && self.emitted == text.len() {
            self.keep_context(decode)?;
        }
        Ok(piece)
    }

    /// Forgets all ids but the last one, or the last few where its text is empty: a decoder that strips the first space
    /// must find another character to begin with.
    fn keep_context(&mut self, decode: impl Fn(&[u32]) -> Result<String>) -> Result<()> {
        for start in (self.ids.len().saturating_sub(MAX_CONTEXT)..self.ids.len()).rev() {
            let emitted = decode(&self.ids[start..])?.len();
            if emitted > 0 {
                self.ids.drain(..start);
                self.emitted = emitted;
                break;
            }
        }
        Ok(())
    }
}

/// Whether SentencePiece's byte fallback reads the token as a byte: `<0xE2>`.
fn is_byte_token(token: &str) -> bool {
    token.len() == 6
        && token.starts_with("<0x")
        && token.ends_with('>')
        && token.get(3..5).is_some_and(|digits| u8::from_str_radix(digits, 16).is_ok())
}

/// Appends the bytes a byte-level token spells; a token outside the alphabet (an added one) spells its own text.
fn push_bytes(token: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for c in token.chars() {
        match byte_of(c) {
            Some(byte) => bytes.push(byte),
            None => {
                bytes.truncate(start);
                bytes.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// The byte a character of GPT-2's alphabet stands for: printable Latin-1 stands for itself, the other 68 bytes follow
/// from U+0100 in their order. Source: `bytes_to_unicode` in OpenAI's GPT-2 encoder.
fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// Takes whole characters off the front; bytes that can begin none become U+FFFD, as `String::from_utf8_lossy` does it.
fn take_characters(pending: &mut Vec<u8>) -> String {
    let mut out = String::new();
    let mut taken = 0;
    for chunk in pending.utf8_chunks() {
        out.push_str(chunk.valid());
        taken += chunk.valid().len();
        let bytes = chunk.invalid();
        let at_end = taken + bytes.len() == pending.len();
        if bytes.is_empty() || (at_end && std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())) {
            break;
        }
        out.push(char::REPLACEMENT_CHARACTER);
        taken += bytes.len();
    }
    pending.drain(..taken);
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::tokenizer;
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn byte_level() -> Arc<Tokenizer> {
        let characters: Vec<String> = (0u32..0x144)
            .filter_map(char::from_u32)
            .filter(|&c| byte_of(c).is_some())
            .map(String::from)
            .chain(["Ġthe", "âĤ", "¬Ġ", "  ", "日"].map(String::from))
            .collect();
        let tokens: Vec<&str> = characters.iter().map(String::as_str).collect();
        tokenizer(
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}),
            &tokens,
            json!({}),
        )
    }

    fn sentencepiece(decoder: Value) -> Arc<Tokenizer> {
        let tokens = [
            "▁", "▁▁", "▁the", "cat", "▁日", "<0xE2>", "<0x82>", "<0xAC>", "<0x20>", "<0x61>", "<0xZZ>", "", "�", "##s",
        ];
        tokenizer(decoder, &tokens, json!({}))
    }

    fn llama2() -> Arc<Tokenizer> {
        sentencepiece(json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}))
    }

    fn streamed(t: &Arc<Tokenizer>, ids: &[u32], skip_special: bool) -> String {
        let mut stream = t.stream(skip_special);
        let mut out: String = ids.iter().map(|&id| stream.push(id).expect("known id")).collect();
        out.push_str(&stream.finish().expect("decodes"));
        out
    }

    fn check(t: &Arc<Tokenizer>, ids: &[u32]) -> Result<(), TestCaseError> {
        for skip_special in [true, false] {
            prop_assert_eq!(streamed(t, ids, skip_special), t.decode(ids, skip_special).expect("decodes"));
        }
        Ok(())
    }

    fn ids_of(t: &Tokenizer, tokens: &[&str]) -> Vec<u32> {
        tokens.iter().map(|token| t.id_of(token).expect("in the vocabulary")).collect()
    }

    #[test]
    fn a_character_is_shown_when_its_last_byte_has_come() {
        let t = byte_level();
        let mut stream = t.stream(true);
        let pieces: Vec<String> = ids_of(&t, &["a", "â", "Ĥ", "¬", "âĤ", "Ġthe"])
            .into_iter()
            .map(|id| stream.push(id).expect("known id"))
            .collect();
        assert_eq!(pieces, ["a", "", "", "€", "", "\u{fffd} the"]);
    }

    #[test]
    fn the_alphabet_is_a_bijection_of_all_bytes() {
        let mut bytes: Vec<u8> = (0..0x1000).filter_map(char::from_u32).filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
    }

    #[test]
    fn a_run_of_byte_tokens_waits_for_its_end() {
        let t = llama2();
        let mut stream = t.stream(true);
        let ids = ids_of(&t, &["▁the", "<0xE2>", "<0x82>", "<0xAC>", "cat", "<0xE2>"]);
        let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).expect("known id")).collect();
        assert_eq!(pieces, ["the", "", "", "", "€cat", ""]);
        assert_eq!(stream.finish().expect("decodes"), "\u{fffd}");
    }

    #[test]
    fn words_come_one_by_one_with_their_spaces() {
        let t = llama2();
        let mut stream = t.stream(true);
        let ids = ids_of(&t, &["▁the", "▁the", "cat", "▁", "▁the"]);
        let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).expect("known id")).collect();
        assert_eq!(pieces, ["the", " the", "cat", " ", " the"]);
    }

    #[test]
    fn the_window_stays_small_however_long_the_text() {
        let t = llama2();
        let mut stream = t.stream(true);
        for id in ids_of(&t, &["▁the", "cat"]).into_iter().cycle().take(1000) {
            stream.push(id).expect("known id");
        }
        let State::Window(window) = &stream.state else { panic!("not a byte-level decoder") };
        assert_eq!(window.ids.len(), 1);
    }

    #[test]
    fn an_unknown_id_is_an_error_and_the_stream_goes_on() {
        let t = byte_level();
        let mut stream = t.stream(true);
        assert!(stream.push(100_000).is_err());
        assert_eq!(stream.push(t.id_of("a").expect("a letter")).expect("known id"), "a");
    }

    proptest! {
        #[test]
        fn byte_level_pieces_join_to_the_whole(ids in prop::collection::vec(0u32..263, 0..40)) {
            check(&byte_level(), &ids)?;
        }

        #[test]
        fn multibyte_pieces_join_to_the_whole(text in "\\PC{0,12}") {
            let t = byte_level();
            let ids = t.encode(&text, false, false).expect("encodes");
            check(&t, &ids)?;
        }

        #[test]
        fn sentencepiece_pieces_join_to_the_whole(ids in prop::collection::vec(0u32..16, 0..40)) {
            check(&llama2(), &ids)?;
        }

        #[test]
        fn metaspace_pieces_join_to_the_whole(ids in prop::collection::vec(0u32..16, 0..40)) {
            for scheme in ["always", "never"] {
                let decoder = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
                check(&sentencepiece(decoder), &ids)?;
            }
        }

        #[test]
        fn other_decoders_join_to_the_whole(ids in prop::collection::vec(0u32..16, 0..40)) {
            check(&sentencepiece(json!({"type": "WordPiece", "prefix": "##", "cleanup": true})), &ids)?;
            check(&sentencepiece(json!({"type": "BPEDecoder", "suffix": "</w>"})), &ids)?;
            check(&sentencepiece(Value::Null), &ids)?;
        }
    }
}
