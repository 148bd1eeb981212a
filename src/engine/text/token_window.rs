//! Incremental decoding where a token's text depends on its neighbors.
//!
//! The text that a token adds is the difference between decoding a short window of tokens with and without it.
//!
//! **Runs of byte tokens** (`<0xE2>`). SentencePiece's fallback decodes a run as a whole: it is the characters that its bytes
//! spell or, if they are not valid UTF-8 to the end, one U+FFFD for each byte. A run may grow without limit (line breaks are
//! byte tokens in Llama 2), so waiting for its end is no choice: a character goes out with its last byte. If the run turns out
//! to be invalid after that, what went out stays, and each byte since then is U+FFFD. That is the only text that differs from
//! decoding the whole; the texts of all pieces joined are what a request returns.

use super::decoder_kind::DecoderKind;
use crate::error::Result;

/// Most units kept for context. One is enough unless its text is empty.
const MAX_CONTEXT: usize = 8;

/// Most units that wait for an incomplete character at their end.
const MAX_WAIT: usize = 16;

/// The last tokens of a text.
#[derive(Clone, Default)]
pub(super) struct TokenWindow {
    /// Ids whose text was emitted, kept as context, then ids whose text was not.
    ids: Vec<u32>,
    /// Where its units start: tokens, or the byte tokens of one character.
    starts: Vec<usize>,
    /// How many bytes of the ids' text were emitted.
    emitted: usize,
    run: ByteRun,
}

/// A run of byte tokens at the end of the text.
#[derive(Clone, Default)]
struct ByteRun {
    /// Tokens of an incomplete character.
    ids: Vec<u32>,
    bytes: Vec<u8>,
    /// Whether it is known to be invalid: each further byte is U+FFFD.
    is_invalid: bool,
}

impl TokenWindow {
    /// The text that this token completes. `decode` decodes ids, and `token` is what the decoder sees for this one.
    pub fn push(
        &mut self,
        id: u32,
        token: &str,
        kind: DecoderKind,
        decode: impl Fn(&[u32]) -> Result<String>,
    ) -> Result<String> {
        let DecoderKind::Window { byte_fallback, splits_characters } = kind else { return Ok(String::new()) };
        if byte_fallback && let Some(byte) = Self::byte_of_token(token) {
            return self.push_byte(id, byte, decode);
        }
        let mut text = self.end_run(&decode)?;
        self.run.is_invalid = false;
        text += &self.push_unit(&[id], splits_characters, decode)?;
        Ok(text)
    }

    /// The text that the tokens so far would still have if none followed.
    pub fn tail(&self, decode: impl Fn(&[u32]) -> Result<String>) -> Result<String> {
        let text = decode(&self.ids)?;
        Ok(text.get(self.emitted..).unwrap_or_default().to_owned() + &replacements(self.run.bytes.len()))
    }

    /// The byte of a byte token such as `<0xE2>`, as the fallback of the tokenizers library recognizes it.
    pub fn byte_of_token(token: &str) -> Option<u8> {
        let is_byte_token = token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
        is_byte_token.then(|| u8::from_str_radix(token.get(3..5)?, 16).ok()).flatten()
    }

    /// Number of ids kept.
    #[cfg(test)]
    pub fn context_len(&self) -> usize {
        self.ids.len()
    }

    fn push_byte(&mut self, id: u32, byte: u8, decode: impl Fn(&[u32]) -> Result<String>) -> Result<String> {
        self.run.ids.push(id);
        self.run.bytes.push(byte);
        if !self.run.is_invalid {
            match std::str::from_utf8(&self.run.bytes) {
                Ok(_) => {
                    self.run.bytes.clear();
                    let ids = std::mem::take(&mut self.run.ids);
                    return self.push_unit(&ids, false, decode);
                }
                Err(error) if error.error_len().is_none() => return Ok(String::new()),
                Err(_) => self.run.is_invalid = true,
            }
        }
        self.end_run(&decode)
    }

    /// The text of an incomplete character that will not be completed. The window goes on with its last byte as context.
    fn end_run(&mut self, decode: &impl Fn(&[u32]) -> Result<String>) -> Result<String> {
        let Some(&last) = self.run.ids.last() else { return Ok(String::new()) };
        let text = replacements(self.run.bytes.len());
        self.run.ids.clear();
        self.run.bytes.clear();
        self.emitted = decode(&[last])?.len();
        self.ids = vec![last];
        self.starts = vec![0];
        Ok(text)
    }

    fn push_unit(
        &mut self,
        ids: &[u32],
        splits_characters: bool,
        decode: impl Fn(&[u32]) -> Result<String>,
    ) -> Result<String> {
        self.starts.push(self.ids.len());
        self.ids.extend_from_slice(ids);
        let text = decode(&self.ids)?;
        let waits = splits_characters && text.ends_with(char::REPLACEMENT_CHARACTER) && self.starts.len() < MAX_WAIT;
        let certain = if waits { text.trim_end_matches(char::REPLACEMENT_CHARACTER).len() } else { text.len() };
        let piece = text.get(self.emitted..certain).unwrap_or_default().to_owned();
        self.emitted += piece.len();
        if !waits && self.emitted == text.len() {
            self.drop_old(decode)?;
        }
        Ok(piece)
    }

    /// Drops all units but the last one, or the last few if its text is empty: a decoder that strips a leading space needs
    /// a token with text before it.
    fn drop_old(&mut self, decode: impl Fn(&[u32]) -> Result<String>) -> Result<()> {
        let units = self.starts.len();
        for unit in (units.saturating_sub(MAX_CONTEXT)..units).rev() {
            let start = self.starts[unit];
            let emitted = decode(&self.ids[start..])?.len();
            // Tokens without text are not kept for ever.
            if emitted > 0 || (unit + MAX_CONTEXT == units && units >= 2 * MAX_CONTEXT) {
                self.ids.drain(..start);
                self.starts = self.starts[unit..].iter().map(|other| other - start).collect();
                self.emitted = emitted;
                break;
            }
        }
        Ok(())
    }
}

/// U+FFFD for each of `bytes` bytes.
fn replacements(bytes: usize) -> String {
    std::iter::repeat_n(char::REPLACEMENT_CHARACTER, bytes).collect()
}
