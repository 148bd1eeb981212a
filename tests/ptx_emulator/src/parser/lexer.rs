//! PTX text to tokens.
use super::Result;

/// A token of PTX.
#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    /// A name, with the dots and modifiers that belong to it.
    Identifier(String),
    /// A word behind a dot.
    Directive(String),
    /// An integer.
    Integer(i128),
    /// Bits of an f32.
    Float32(u32),
    /// Bits of an f64.
    Float64(u64),
    /// A text in quotes.
    Text(String),
    /// Any other character.
    Punctuation(char),
    /// The end of the text.
    End,
}

/// Reads tokens one after another. A copy is a place to come back to.
#[derive(Clone, Copy)]
pub struct Lexer<'a> {
    text: &'a [u8],
    position: usize,
    line: u32,
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%')
}

impl<'a> Lexer<'a> {
    /// A lexer at the start of `text`.
    pub fn new(text: &'a str) -> Self {
        Self { text: text.as_bytes(), position: 0, line: 1 }
    }

    /// The line where the last token started.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// The next token.
    pub fn next(&mut self) -> Result<Token> {
        self.skip_blanks();
        let start = self.position;
        let Some(&first) = self.text.get(start) else { return Ok(Token::End) };
        match first {
            b'"' => {
                let length = self.text[start + 1..].iter().take_while(|byte| **byte != b'"').count();
                self.position = start + length + 2;
                Ok(Token::Text(self.slice(start + 1, start + 1 + length)))
            }
            b'.' => {
                self.position = self.end_of_word(start + 1, false);
                Ok(Token::Directive(self.slice(start + 1, self.position)))
            }
            _ if first.is_ascii_digit() => {
                self.position = start + self.text[start..].iter().take_while(|byte| is_word(**byte)).count();
                let digits = self.slice(start, self.position);
                number(&digits).map_err(|_| format!("PTX line {}: bad number '{digits}'", self.line))
            }
            _ if is_word(first) => {
                self.position = self.end_of_word(start, true);
                Ok(Token::Identifier(self.slice(start, self.position)))
            }
            _ => {
                self.position += 1;
                Ok(Token::Punctuation(first as char))
            }
        }
    }

    fn slice(&self, start: usize, end: usize) -> String {
        String::from_utf8_lossy(&self.text[start..end.min(self.text.len())]).into_owned()
    }

    /// The end of a word that may contain `::`, and dots if wanted.
    fn end_of_word(&self, mut position: usize, dots: bool) -> usize {
        while let Some(&byte) = self.text.get(position) {
            if self.text[position..].starts_with(b"::") {
                position += 2;
            } else if is_word(byte) || dots && byte == b'.' {
                position += 1;
            } else {
                break;
            }
        }
        position
    }

    /// Skips blanks and comments.
    fn skip_blanks(&mut self) {
        while let Some(&byte) = self.text.get(self.position) {
            let rest = &self.text[self.position..];
            let length = if byte.is_ascii_whitespace() || byte == 0 {
                1
            } else if rest.starts_with(b"//") {
                rest.iter().take_while(|byte| **byte != b'\n').count()
            } else if rest.starts_with(b"/*") {
                rest.windows(2).position(|pair| pair == b"*/").map_or(rest.len(), |end| end + 2)
            } else {
                return;
            };
            self.line += rest[..length].iter().filter(|byte| **byte == b'\n').count() as u32;
            self.position += length;
        }
    }
}

/// An integer, or a float written as `0f` or `0d` with its bits.
fn number(digits: &str) -> std::result::Result<Token, std::num::ParseIntError> {
    let lower = digits.to_ascii_lowercase();
    if let Some(bits) = lower.strip_prefix("0f") {
        return Ok(Token::Float32(u32::from_str_radix(bits, 16)?));
    }
    if let Some(bits) = lower.strip_prefix("0d") {
        return Ok(Token::Float64(u64::from_str_radix(bits, 16)?));
    }
    let integer = lower.trim_end_matches('u');
    let (digits, radix) = match integer.as_bytes() {
        [b'0', b'x', ..] => (&integer[2..], 16),
        [b'0', b'b', ..] => (&integer[2..], 2),
        [b'0', _, ..] => (&integer[1..], 8),
        _ => (integer, 10),
    };
    Ok(Token::Integer(i128::from_str_radix(digits, radix)?))
}
