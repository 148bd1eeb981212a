//! Incremental detokenization: pieces of text that, joined, are what decoding all ids at once adds to the prompt's text.
//!
//! A completion is no beginning of a text: its first token keeps its space, and a character that the prompt left incomplete is
//! completed. So detokenization begins with the last tokens of the prompt.
//!
//! The two families of decoders need two methods. A byte-level decoder (GPT-2's alphabet) spells bytes, so bytes are held
//! until they form whole characters. Any other decoder depends on neighboring tokens, for which there is [`TokenWindow`].

use std::sync::Arc;

use super::byte_alphabet::push_bytes;
use super::clean_up::CleanUp;
use super::decoder_kind::DecoderKind;
use super::token_window::TokenWindow;
use super::tokenizer::Tokenizer;
use crate::error::Result;

/// Turns a stream of token ids into text that never contains half a character.
#[derive(Clone)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    state: State,
    clean_up: Option<CleanUp>,
    /// What the text of the prompt ends with because its tokens end there (U+FFFD for half a character), as far as the text
    /// that follows may still begin with it.
    prompt_tail: String,
}

#[derive(Clone)]
enum State {
    /// Bytes of an incomplete character, at most three.
    Bytes(Vec<u8>),
    Window(TokenWindow),
}

/// What one token adds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// The text that it completed; empty while a character is incomplete.
    pub text: String,
    /// The spelling of a special token, which is left out of the text.
    pub special: String,
}

/// Number of tokens with text at the end of the prompt that decoding continues from.
const PROMPT_TOKENS: usize = 4;

/// Number of tokens at the end of the prompt that are searched first for where clean-up starts anew.
const CLEANED_UP_TOKENS: usize = 8;

impl Detokenizer {
    /// A detokenizer for what follows `prompt`; special tokens are left out of the text if `skip_special`.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool, prompt: &[u32]) -> Self {
        let state = match tokenizer.decoder_kind() {
            DecoderKind::Bytes => State::Bytes(Vec::new()),
            DecoderKind::Window { .. } => State::Window(TokenWindow::default()),
        };
        let clean_up = tokenizer.cleans_up().then(CleanUp::default);
        let beginning = Self { tokenizer, skip_special, state, clean_up, prompt_tail: String::new() };
        let mut this = beginning.after(prompt);
        this.prompt_tail = this.tail().unwrap_or_default();
        this
    }

    /// This one, at the beginning of a text, after a prompt, of which it reads the end.
    ///
    /// Where text is cleaned up, that is from before a character that decides for what follows whatever came before it: of quotes
    /// between spaces, the first decides for the rest. It is looked for ever further back.
    fn after(self, prompt: &[u32]) -> Self {
        let mut tokens = if self.clean_up.is_some() { CLEANED_UP_TOKENS } else { 0 };
        loop {
            // The text of `end` is right, since what comes before it is read from a good start.
            let (before, end) = prompt.split_at(prompt.len().saturating_sub(tokens));
            let mut this = self.clone();
            this.read(self.end_of(before));
            let starts_anew = this.read(end);
            if starts_anew || before.is_empty() || this.clean_up.is_none() {
                return this;
            }
            tokens *= 2;
        }
    }

    /// Reads tokens of a prompt. Returns whether a character of them starts the clean-up anew.
    fn read(&mut self, ids: &[u32]) -> bool {
        let mut starts_anew = false;
        for &id in ids {
            // What the tokenizer cannot decode has no text.
            let text = self.push_uncleaned(id).unwrap_or_default().text;
            if let Some(clean_up) = &mut self.clean_up {
                clean_up.push(&text);
                starts_anew |= CleanUp::starts_anew_in(&text);
            }
        }
        starts_anew
    }

    /// The same for a prompt whose text ended with one more token, `healed`, before its tokens were cut: the text that follows
    /// repeats the token's, which is not emitted again.
    ///
    /// # Errors
    /// `tokenizer_invalid`: the tokenizer failed on the id.
    pub fn healing(mut self, healed: u32) -> Result<Self> {
        let mut ahead = self.clone();
        ahead.prompt_tail.clear();
        self.prompt_tail = ahead.push(healed)?.text + &ahead.finish()?;
        Ok(self)
    }

    /// What this id adds to the text: nothing if the tokenizer does not have it, for vocabularies are padded.
    ///
    /// # Errors
    /// `tokenizer_invalid`: the tokenizer failed on the ids.
    pub fn push(&mut self, id: u32) -> Result<Piece> {
        let Piece { text, special } = self.push_uncleaned(id)?;
        let text = match &mut self.clean_up {
            Some(clean_up) => clean_up.push(&text),
            None => text,
        };
        Ok(Piece { text: self.without_prompt_tail(text), special })
    }

    /// What this id adds to the text before it is cleaned up.
    fn push_uncleaned(&mut self, id: u32) -> Result<Piece> {
        let tokenizer = &self.tokenizer;
        let Some((token, is_special)) = tokenizer.spelling(id) else { return Ok(Piece::default()) };
        if self.skip_special && is_special {
            return Ok(Piece { special: token, ..Piece::default() });
        }
        let text = match &mut self.state {
            State::Bytes(pending) => {
                push_bytes(&token, pending);
                take_characters(pending)
            }
            State::Window(window) => {
                let decode = |ids: &[u32]| tokenizer.decode_uncleaned(ids, self.skip_special);
                window.push(id, &token, tokenizer.decoder_kind(), decode)?
            }
        };
        Ok(Piece { text, ..Piece::default() })
    }

    /// The remaining text at the end, with incomplete bytes as U+FFFD. Resets the detokenizer to the beginning of a text.
    ///
    /// # Errors
    /// `tokenizer_invalid`: the tokenizer failed on the ids.
    pub fn finish(&mut self) -> Result<String> {
        let tail = self.tail();
        self.clean_up = self.clean_up.take().map(|_| CleanUp::default());
        self.state = match &self.state {
            State::Bytes(_) => State::Bytes(Vec::new()),
            State::Window(_) => State::Window(TokenWindow::default()),
        };
        let tail = tail?;
        let text = self.without_prompt_tail(tail);
        self.prompt_tail.clear();
        Ok(text)
    }

    /// The text that the tokens so far would still have if none followed.
    fn tail(&self) -> Result<String> {
        let tail = match &self.state {
            State::Bytes(pending) => String::from_utf8_lossy(pending).into_owned(),
            State::Window(window) => window.tail(|ids| self.tokenizer.decode_uncleaned(ids, self.skip_special))?,
        };
        Ok(match &self.clean_up {
            Some(clean_up) => {
                let mut clean_up = clean_up.clone();
                clean_up.push(&tail) + &clean_up.finish()
            }
            None => tail,
        })
    }

    /// Takes off what the prompt's text already ended with.
    fn without_prompt_tail(&mut self, mut text: String) -> String {
        if !self.prompt_tail.is_empty() && !text.is_empty() {
            let both = self.prompt_tail.chars().zip(text.chars()).take_while(|(tail, c)| tail == c);
            let common: usize = both.map(|(_, c)| c.len_utf8()).sum();
            let differs = common < text.len();
            text.drain(..common);
            self.prompt_tail.drain(..if differs { self.prompt_tail.len() } else { common });
        }
        text
    }

    /// The last tokens of a prompt that decoding can continue from: some with a text of their own, none from the middle of a
    /// run of byte tokens.
    fn end_of<'a>(&self, prompt: &'a [u32]) -> &'a [u32] {
        let has_text = |id: u32| {
            let Some((token, is_special)) = self.tokenizer.spelling(id) else { return false };
            let is_left_out = token.is_empty() || (self.skip_special && is_special);
            !is_left_out && TokenWindow::byte_of_token(&token).is_none()
        };
        let mut with_text = 0;
        let is_start = |&id: &u32| {
            with_text += usize::from(has_text(id));
            with_text == PROMPT_TOKENS
        };
        &prompt[prompt.iter().rposition(is_start).unwrap_or(0)..]
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
    use super::super::byte_alphabet::byte_of;
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
        streamed_after(t, &[], ids, skip_special)
    }

    fn streamed_after(t: &Arc<Tokenizer>, prompt: &[u32], ids: &[u32], skip_special: bool) -> String {
        let mut stream = Detokenizer::new(Arc::clone(t), skip_special, prompt);
        let mut out: String = ids.iter().map(|&id| stream.push(id).expect("decodes").text).collect();
        out.push_str(&stream.finish().expect("decodes"));
        out
    }

    /// Pieces join to the decoded whole, and after a prompt to what the whole has beyond the prompt's text.
    fn check(t: &Arc<Tokenizer>, ids: &[u32]) -> Result<(), TestCaseError> {
        for skip_special in [true, false] {
            let whole = t.decode(ids, skip_special).expect("decodes");
            prop_assert_eq!(&streamed(t, ids, skip_special), &whole);
            // A prompt that ends within a run of bytes may have text that the whole has not, or has otherwise.
            let ends_well = |split: &usize| !has_a_run_that_becomes_invalid(t, &ids[..*split]);
            for split in (0..=ids.len()).step_by(7).filter(ends_well) {
                check_split(t, ids, split, &whole, skip_special)?;
            }
        }
        Ok(())
    }

    /// What is streamed after a prompt is what the whole, which the ids decode to, has beyond the prompt's text.
    fn check_split(
        t: &Arc<Tokenizer>,
        ids: &[u32],
        split: usize,
        whole: &str,
        skip_special: bool,
    ) -> Result<(), TestCaseError> {
        let prompt = t.decode(&ids[..split], skip_special).expect("decodes");
        let both = prompt.chars().zip(whole.chars()).take_while(|(a, b)| a == b);
        let common: usize = both.map(|(c, _)| c.len_utf8()).sum();
        let streamed = streamed_after(t, &ids[..split], &ids[split..], skip_special);
        prop_assert_eq!(&streamed, &whole[common..], "after {} ids", split);
        Ok(())
    }

    /// Whether a run of byte tokens begins with whole characters and is invalid after them: the one case in which pieces join to
    /// another text than that of the whole.
    fn has_a_run_that_becomes_invalid(t: &Tokenizer, ids: &[u32]) -> bool {
        let is_special = |token: &str| token == "<s>" || token == "</s>";
        [true, false].into_iter().any(|skip_special| {
            let tokens = ids.iter().map(|&id| t.token_of(id).unwrap_or_default());
            let mut runs = vec![Vec::new()];
            for token in tokens.filter(|token| !skip_special || !is_special(token)) {
                match TokenWindow::byte_of_token(&token) {
                    Some(byte) => runs.last_mut().expect("one run at least").push(byte),
                    None => runs.push(Vec::new()),
                }
            }
            runs.iter().any(|run| std::str::from_utf8(run).is_err_and(|error| error.valid_up_to() > 0))
        })
    }

    fn ids_of(t: &Tokenizer, tokens: &[&str]) -> Vec<u32> {
        tokens.iter().map(|token| t.id_of(token).expect("in the vocabulary")).collect()
    }

    #[test]
    fn a_character_is_emitted_with_its_last_byte() {
        let t = byte_level();
        let mut stream = Detokenizer::new(Arc::clone(&t), true, &[]);
        let pieces: Vec<String> = ids_of(&t, &["a", "â", "Ĥ", "¬", "âĤ", "Ġthe"])
            .into_iter()
            .map(|id| stream.push(id).expect("decodes").text)
            .collect();
        assert_eq!(pieces, ["a", "", "", "€", "", "\u{fffd} the"]);
    }

    #[test]
    fn a_character_of_byte_tokens_is_emitted_with_its_last_byte() {
        let t = llama2();
        let mut stream = Detokenizer::new(Arc::clone(&t), true, &[]);
        let ids = ids_of(&t, &["▁the", "<0x61>", "<0xE2>", "<0x82>", "<0xAC>", "<0x20>", "cat", "<0xE2>"]);
        let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).expect("decodes").text).collect();
        assert_eq!(pieces, ["the", "a", "", "", "€", " ", "cat", ""]);
        assert_eq!(stream.finish().expect("decodes"), "\u{fffd}");
    }

    #[test]
    fn an_invalid_run_of_byte_tokens_is_a_replacement_character_for_each_byte_not_emitted_before() {
        let t = llama2();
        for (tokens, pieces) in [
            (&["<0xE2>", "<0x61>", "<0x61>", "cat", "<0x61>"][..], &["", "��", "�", "cat", "a"][..]),
            (&["<0x61>", "<0xE2>", "<0x82>", "cat", "<0xE2>"], &["a", "", "", "��cat", ""]),
            (&["<0x61>", "<0xE2>", "<0xE2>", "<0x82>", "▁the"], &["a", "", "��", "�", " the"]),
        ] {
            let mut stream = Detokenizer::new(Arc::clone(&t), true, &[]);
            let emitted: Vec<String> =
                ids_of(&t, tokens).into_iter().map(|id| stream.push(id).expect("decodes").text).collect();
            assert_eq!(emitted, pieces);
        }
    }

    #[test]
    fn a_completion_continues_the_text_of_the_prompt() {
        let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
        for t in [llama2(), sentencepiece(metaspace)] {
            assert_eq!(streamed_after(&t, &ids_of(&t, &["▁the"]), &ids_of(&t, &["▁the"]), true), " the");
            assert_eq!(streamed_after(&t, &ids_of(&t, &["▁the", "<s>"]), &ids_of(&t, &["▁the"]), true), " the");
            assert_eq!(streamed_after(&t, &ids_of(&t, &["<s>"]), &ids_of(&t, &["▁the"]), true), "the");
            assert_eq!(streamed_after(&t, &ids_of(&t, &["<s>"]), &ids_of(&t, &["▁the"]), false), " the");
        }
        let t = llama2();
        assert_eq!(streamed_after(&t, &ids_of(&t, &["<0xE2>"]), &ids_of(&t, &["<0x82>", "<0xAC>"]), true), "€");
        assert_eq!(streamed_after(&t, &ids_of(&t, &["<0xE2>"]), &ids_of(&t, &["cat"]), true), "cat");
        let t = byte_level();
        assert_eq!(streamed_after(&t, &ids_of(&t, &["â"]), &ids_of(&t, &["Ĥ", "¬"]), true), "€");
        assert_eq!(streamed_after(&t, &ids_of(&t, &["â"]), &ids_of(&t, &["a"]), true), "a");
    }

    #[test]
    fn a_special_token_left_out_of_the_text_is_reported() {
        let t = llama2();
        let mut stream = Detokenizer::new(Arc::clone(&t), true, &[]);
        let piece = stream.push(t.id_of("</s>").expect("in the vocabulary")).expect("decodes");
        assert_eq!(piece, Piece { text: String::new(), special: "</s>".into() });
    }

    #[test]
    fn words_are_emitted_one_by_one_with_their_spaces() {
        let t = llama2();
        let mut stream = Detokenizer::new(Arc::clone(&t), true, &[]);
        let ids = ids_of(&t, &["▁the", "▁the", "cat", "▁", "▁the"]);
        let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).expect("decodes").text).collect();
        assert_eq!(pieces, ["the", " the", "cat", " ", " the"]);
    }

    #[test]
    fn the_window_stays_small_in_a_long_text() {
        let t = llama2();
        let mut stream = Detokenizer::new(Arc::clone(&t), true, &[]);
        for id in ids_of(&t, &["▁the", "cat"]).into_iter().cycle().take(1000) {
            stream.push(id).expect("decodes");
        }
        let State::Window(window) = &stream.state else { panic!("not a byte-level decoder") };
        assert_eq!(window.context_len(), 1);
    }

    #[test]
    fn an_unknown_id_has_no_text() {
        let t = byte_level();
        let mut stream = Detokenizer::new(Arc::clone(&t), true, &[]);
        assert_eq!(stream.push(100_000).expect("no error"), Piece::default());
        assert_eq!(stream.push(t.id_of("a").expect("a letter")).expect("decodes").text, "a");
    }

    fn cleaned_up() -> Arc<Tokenizer> {
        let tokens = ["a", ".", " ", "'", "n't", " n", "'s", "é"];
        let config = json!({"clean_up_tokenization_spaces": true,
                            "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": true});
        tokenizer(json!({"type": "Fuse"}), &tokens, config)
    }

    fn cleaned_up_words() -> Arc<Tokenizer> {
        let tokens = ["a", ".", "'", "##'", "n", "##n", "##'t", "##s", "?", "v", "##é", ","];
        let config = json!({"clean_up_tokenization_spaces": true});
        tokenizer(json!({"type": "WordPiece", "prefix": "##", "cleanup": false}), &tokens, config)
    }

    #[test]
    fn quotes_long_before_the_end_of_the_prompt_decide_what_is_cleaned_up() {
        let t = cleaned_up();
        for quotes in 1..30 {
            let ids = ids_of(&t, &[&["a"], [" ", "'"].repeat(quotes).as_slice(), &[" ", "."]].concat());
            let whole = t.decode(&ids, true).expect("decodes");
            for split in 0..=ids.len() {
                check_split(&t, &ids, split, &whole, true).expect("the rest of the whole");
            }
        }
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
            let t = llama2();
            if !has_a_run_that_becomes_invalid(&t, &ids) {
                check(&t, &ids)?;
            }
        }

        #[test]
        fn cleaned_up_pieces_join_to_the_whole(ids in prop::collection::vec(0u32..8, 0..40)) {
            check(&cleaned_up(), &ids)?;
        }

        #[test]
        fn pieces_after_long_chains_join_to_the_whole(
            chain in prop::collection::vec(2u32..6, 0..40),
            ids in prop::collection::vec(0u32..8, 0..12),
            rest in prop::collection::vec(0u32..8, 0..12),
        ) {
            check(&cleaned_up(), &[ids, chain, rest].concat())?;
        }

        #[test]
        fn cleaned_up_words_join_to_the_whole(ids in prop::collection::vec(0u32..12, 0..60)) {
            check(&cleaned_up_words(), &ids)?;
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
