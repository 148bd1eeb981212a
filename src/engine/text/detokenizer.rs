//! Incremental detokenization: pieces of text that, joined, are exactly what decoding all ids at once gives.
//!
//! The two families of decoders need two methods. A byte-level decoder (GPT-2's alphabet) spells bytes, so bytes are held
//! until they form whole characters. Any other decoder depends on neighboring tokens (a leading space is stripped, words are
//! joined), so the new text is the difference between decoding a short window of ids with and without the newest one. A run
//! of byte tokens (`<0xE2>`) waits for its end, because SentencePiece's fallback decodes a run as a whole or not at all.

use std::sync::Arc;

use super::decoder_kind::DecoderKind;
use super::tokenizer::Tokenizer;
use crate::error::Result;

/// Turns a stream of token ids into text that never contains half a character.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    state: State,
}

enum State {
    /// Bytes of an incomplete character, at most three.
    Bytes(Vec<u8>),
    Window(Window),
}

#[derive(Default)]
struct Window {
    /// Ids whose text was emitted, kept as context, then ids whose text was not.
    ids: Vec<u32>,
    /// How many bytes of the ids' text were emitted.
    emitted: usize,
}

/// Most ids kept for context. One is enough unless its text is empty.
const MAX_CONTEXT: usize = 8;

/// Most ids that wait for an incomplete character at their end, for a decoder of an unknown kind.
const MAX_WAIT: usize = 16;

impl Detokenizer {
    /// A detokenizer at the beginning of a text; special tokens are left out if `skip_special`.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        let state = match tokenizer.decoder_kind() {
            DecoderKind::Bytes => State::Bytes(Vec::new()),
            DecoderKind::Window { .. } => State::Window(Window::default()),
        };
        Self { tokenizer, skip_special, state }
    }

    /// The text completed by this id; empty while a character is incomplete.
    ///
    /// # Errors
    /// `token_out_of_range`: the tokenizer has no such id; the id is skipped.
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
                let byte_fallback = tokenizer.decoder_kind() == DecoderKind::Window { byte_fallback: true };
                if byte_fallback && is_byte_token(&token) {
                    return Ok(String::new());
                }
                window.advance(|ids| tokenizer.decode(ids, self.skip_special))
            }
        }
    }

    /// The remaining text at the end, with incomplete bytes as U+FFFD. Resets the detokenizer.
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
    /// The text that is complete and not emitted yet.
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

    /// Drops all ids but the last one, or the last few if its text is empty: a decoder that strips a leading space needs
    /// a token with text before it.
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

/// Whether the token is a byte token of SentencePiece's byte fallback: `<0xE2>`.
fn is_byte_token(token: &str) -> bool {
    token.len() == 6
        && token.starts_with("<0x")
        && token.ends_with('>')
        && token.get(3..5).is_some_and(|digits| u8::from_str_radix(digits, 16).is_ok())
}

/// Appends the bytes that a byte-level token spells; a token outside the alphabet (an added one) spells itself.
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

/// The byte for a character of GPT-2's alphabet: printable Latin-1 characters are themselves, the other 68 bytes follow
/// in order from U+0100. Source: `bytes_to_unicode` in OpenAI's GPT-2 encoder.
fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// Takes whole characters off the front; invalid bytes become U+FFFD, as in `String::from_utf8_lossy`.
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
    use super::super::tokenizer::tests::tokenizer;
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
        let mut stream = Detokenizer::new(Arc::clone(t), skip_special);
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
    fn a_character_is_emitted_with_its_last_byte() {
        let t = byte_level();
        let mut stream = Detokenizer::new(Arc::clone(&t), true);
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
        let mut stream = Detokenizer::new(Arc::clone(&t), true);
        let ids = ids_of(&t, &["▁the", "<0xE2>", "<0x82>", "<0xAC>", "cat", "<0xE2>"]);
        let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).expect("known id")).collect();
        assert_eq!(pieces, ["the", "", "", "", "€cat", ""]);
        assert_eq!(stream.finish().expect("decodes"), "\u{fffd}");
    }

    #[test]
    fn words_are_emitted_one_by_one_with_their_spaces() {
        let t = llama2();
        let mut stream = Detokenizer::new(Arc::clone(&t), true);
        let ids = ids_of(&t, &["▁the", "▁the", "cat", "▁", "▁the"]);
        let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).expect("known id")).collect();
        assert_eq!(pieces, ["the", " the", "cat", " ", " the"]);
    }

    #[test]
    fn the_window_stays_small_in_a_long_text() {
        let t = llama2();
        let mut stream = Detokenizer::new(Arc::clone(&t), true);
        for id in ids_of(&t, &["▁the", "cat"]).into_iter().cycle().take(1000) {
            stream.push(id).expect("known id");
        }
        let State::Window(window) = &stream.state else { panic!("not a byte-level decoder") };
        assert_eq!(window.ids.len(), 1);
    }

    #[test]
    fn an_unknown_id_is_an_error_and_is_skipped() {
        let t = byte_level();
        let mut stream = Detokenizer::new(Arc::clone(&t), true);
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
