//! Jinja2's lexer, with `trim_blocks` and `lstrip_blocks`: a template's source to tokens.

use std::sync::Arc;

use super::chars::{is_alpha, is_decimal, is_space, is_word};
use super::error::{Result, TemplateError, fail};

/// One token and the line that it begins on.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub kind: Kind,
    pub line: u32,
}

/// What a token is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// Text outside of tags.
    Data(Arc<str>),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(Arc<str>),
    Str(Arc<str>),
    Int(i128),
    Float(f64),
    /// An operator or a bracket, as it is spelled.
    Op(&'static str),
    End,
}

/// Longer operators first.
const OPERATORS: [&str; 25] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",",
];

/// What a `{{`, `{%` or `{#` begins.
#[derive(Clone, Copy, PartialEq)]
enum Tag {
    Variable,
    Block,
    Comment,
}

/// The tokens of a source.
pub(super) fn tokens(source: &str) -> Result<Vec<Token>> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, at: 0, line: 1, counted: 0, line_starting: true, tokens: Vec::new() };
    let result = lexer.run();
    let line = lexer.line();
    result.map_err(|e| e.at(line))?;
    lexer.push(Kind::End);
    Ok(lexer.tokens)
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    /// The line of byte `counted`.
    line: u32,
    counted: usize,
    /// Whether the last tag took the end of its line with it.
    line_starting: bool,
    tokens: Vec<Token>,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn line(&mut self) -> u32 {
        let to = self.at.max(self.counted);
        self.line += self.source[self.counted..to].bytes().filter(|&b| b == b'\n').count() as u32;
        self.counted = to;
        self.line
    }

    fn push(&mut self, kind: Kind) {
        let line = self.line();
        self.tokens.push(Token { kind, line });
    }

    fn run(&mut self) -> Result<()> {
        while let Some((text, tag)) = self.next_tag() {
            let sign = self.sign();
            if tag == Tag::Block && self.raw(text, sign)? {
                continue;
            }
            self.data(text, sign, tag);
            match tag {
                Tag::Comment => self.comment()?,
                Tag::Variable => {
                    self.push(Kind::VariableBegin);
                    self.inside(tag)?;
                }
                Tag::Block => {
                    self.push(Kind::BlockBegin);
                    self.inside(tag)?;
                }
            }
        }
        let rest = self.rest();
        if !rest.is_empty() {
            self.push(Kind::Data(rest.into()));
            self.at = self.source.len();
        }
        Ok(())
    }

    /// The text before the next tag; the position moves behind the tag's two characters.
    fn next_tag(&mut self) -> Option<(&'s str, Tag)> {
        let rest = self.rest();
        let mut from = 0;
        while let Some(found) = rest[from..].find('{') {
            let brace = from + found;
            let tag = match rest.as_bytes().get(brace + 1) {
                Some(b'{') => Tag::Variable,
                Some(b'%') => Tag::Block,
                Some(b'#') => Tag::Comment,
                _ => {
                    from = brace + 1;
                    continue;
                }
            };
            self.at += brace + 2;
            return Some((&rest[..brace], tag));
        }
        None
    }

    /// The `-` or `+` behind the start of a tag.
    fn sign(&mut self) -> Option<char> {
        let sign = self.rest().chars().next().filter(|c| matches!(c, '-' | '+'));
        self.at += usize::from(sign.is_some());
        sign
    }

    /// Emits the text before a tag, without the whitespace that the tag's sign or `lstrip_blocks` takes away.
    fn data(&mut self, text: &'s str, sign: Option<char>, tag: Tag) {
        let mut text = text;
        if sign == Some('-') {
            text = text.trim_end_matches(is_space);
        } else if sign.is_none() && tag != Tag::Variable {
            let line = text.rfind('\n').map_or(0, |end| end + 1);
            if (line > 0 || self.line_starting) && text[line..].chars().all(is_space) {
                text = &text[..line];
            }
        }
        if !text.is_empty() {
            self.push(Kind::Data(text.into()));
        }
    }

    fn skip_spaces(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches(is_space).len();
    }

    /// Moves behind the end of a tag. Whitespace behind it goes with a `-`, a line break with `trim_blocks`.
    fn end_tag(&mut self, length: usize, stripped: bool, trims: bool) {
        self.at += length;
        let start = self.at;
        if stripped {
            self.skip_spaces();
        } else if trims && self.rest().starts_with('\n') {
            self.at += 1;
        }
        self.line_starting = self.source[start..self.at].ends_with('\n');
    }

    fn comment(&mut self) -> Result<()> {
        let rest = self.rest();
        let Some(end) = rest.find("#}") else { return fail("a comment has no end") };
        let (stripped, kept) = (rest[..end].ends_with('-'), rest[..end].ends_with('+'));
        self.end_tag(end + 2, stripped, !kept);
        Ok(())
    }

    /// Reads `{% raw %}…{% endraw %}`, if this is what begins here (behind `{%` and its sign).
    fn raw(&mut self, text: &'s str, sign: Option<char>) -> Result<bool> {
        let begin = self.rest();
        let Some(after) = begin.trim_start_matches(is_space).strip_prefix("raw") else { return Ok(false) };
        let after = after.trim_start_matches(is_space);
        let length = begin.len() - after.len();
        let stripped = after.starts_with("-%}");
        if !stripped && !after.starts_with("%}") {
            return Ok(false);
        }
        self.data(text, sign, Tag::Block);
        self.end_tag(length + if stripped { 3 } else { 2 }, stripped, false);
        let body = self.rest();
        let mut from = 0;
        while let Some(found) = body[from..].find("{%") {
            let start = from + found;
            from = start + 2;
            let mut tag = &body[from..];
            let sign = tag.chars().next().filter(|c| matches!(c, '-' | '+'));
            tag = &tag[usize::from(sign.is_some())..];
            let Some(tag) = tag.trim_start_matches(is_space).strip_prefix("endraw") else { continue };
            let tag = tag.trim_start_matches(is_space);
            let end_sign = tag.chars().next().filter(|c| matches!(c, '-' | '+'));
            if !tag[usize::from(end_sign.is_some())..].starts_with("%}") {
                continue;
            }
            let length = body.len() - tag.len() + usize::from(end_sign.is_some()) + 2;
            self.data(&body[..start], sign, Tag::Block);
            self.end_tag(length, end_sign == Some('-'), end_sign.is_none());
            return Ok(true);
        }
        fail("a raw block has no end")
    }

    /// The tokens of an expression or statement, up to its end.
    fn inside(&mut self, tag: Tag) -> Result<()> {
        let (end, kind) = match tag {
            Tag::Variable => ("}}", Kind::VariableEnd),
            Tag::Block | Tag::Comment => ("%}", Kind::BlockEnd),
        };
        let mut open: Vec<&'static str> = Vec::new();
        loop {
            self.skip_spaces();
            let rest = self.rest();
            if open.is_empty() {
                let sign = rest.chars().next().filter(|&c| c == '-' || (c == '+' && tag == Tag::Block));
                if rest[usize::from(sign.is_some())..].starts_with(end) {
                    self.push(kind);
                    let trims = tag == Tag::Block && sign.is_none();
                    self.end_tag(2 + usize::from(sign.is_some()), sign == Some('-'), trims);
                    return Ok(());
                }
            }
            let Some(first) = rest.chars().next() else { return fail("a tag has no end") };
            if first.is_ascii_digit() {
                self.number()?;
            } else if first == '"' || first == '\'' {
                self.string(first)?;
            } else if is_word(first) {
                self.name()?;
            } else {
                self.operator(&mut open)?;
            }
        }
    }

    fn name(&mut self) -> Result<()> {
        let rest = self.rest();
        let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let name = &rest[..length];
        if !name.chars().enumerate().all(|(i, c)| c == '_' || is_alpha(c) || (i > 0 && is_decimal(c))) {
            return fail("a name has an invalid character");
        }
        self.push(Kind::Name(name.into()));
        self.at += length;
        Ok(())
    }

    fn operator(&mut self, open: &mut Vec<&'static str>) -> Result<()> {
        let rest = self.rest();
        let Some(&operator) = OPERATORS.iter().find(|&&operator| rest.starts_with(operator)) else {
            return fail(format!("unexpected character {:?}", rest.chars().next().unwrap_or_default()));
        };
        match operator {
            "(" => open.push(")"),
            "[" => open.push("]"),
            "{" => open.push("}"),
            ")" | "]" | "}" if open.pop() != Some(operator) => return fail(format!("unexpected '{operator}'")),
            _ => {}
        }
        self.push(Kind::Op(operator));
        self.at += operator.len();
        Ok(())
    }

    fn number(&mut self) -> Result<()> {
        let rest = self.rest();
        let after_dot = self.source[..self.at].ends_with('.');
        let (kind, length) = match float_length(rest).filter(|_| !after_dot) {
            Some(length) => {
                let value = rest[..length].replace('_', "").parse();
                (Kind::Float(value.map_err(|_| TemplateError::new("a number cannot be read"))?), length)
            }
            None => {
                let (radix, start, length) = int_length(rest);
                let digits = rest[start..length].replace('_', "");
                let value = i128::from_str_radix(&digits, radix);
                (Kind::Int(value.map_err(|_| TemplateError::new("an integer is too large"))?), length)
            }
        };
        self.push(kind);
        self.at += length;
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<()> {
        let body = &self.rest()[1..];
        let mut escaped = false;
        let Some(length) = body.find(|c| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        }) else {
            return fail("a string has no end");
        };
        let text = unescape(&body[..length])?;
        self.push(Kind::Str(text.into()));
        self.at += length + 2;
        Ok(())
    }
}

/// Length of decimal digits with single underscores between them.
fn digits(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut length = 0;
    while bytes.get(length).is_some_and(u8::is_ascii_digit) {
        length += 1;
        if bytes.get(length) == Some(&b'_') && bytes.get(length + 1).is_some_and(u8::is_ascii_digit) {
            length += 1;
        }
    }
    length
}

/// Length of the float that a text begins with: digits, then a fraction or an exponent or both.
fn float_length(text: &str) -> Option<usize> {
    let mut length = digits(text);
    let whole = length;
    if text[length..].starts_with('.') {
        let fraction = digits(&text[length + 1..]);
        length += if fraction > 0 { 1 + fraction } else { 0 };
    }
    if text[length..].starts_with(['e', 'E']) {
        let sign = usize::from(text[length + 1..].starts_with(['+', '-']));
        let exponent = digits(&text[length + 1 + sign..]);
        length += if exponent > 0 { 1 + sign + exponent } else { 0 };
    }
    (length > whole).then_some(length)
}

/// Radix, start and end of the digits of the integer that a text begins with.
fn int_length(text: &str) -> (u32, usize, usize) {
    for (prefix, radix) in [("0b", 2), ("0o", 8), ("0x", 16)] {
        if text.get(..2).is_some_and(|start| start.eq_ignore_ascii_case(prefix)) {
            let length = text[2..].find(|c: char| c != '_' && !c.is_digit(radix)).map_or(text.len(), |end| end + 2);
            if length > 2 {
                return (radix, 2, length);
            }
        }
    }
    if text.starts_with('0') {
        let length = text.find(|c| c != '0' && c != '_').unwrap_or(text.len());
        return (10, 0, length.max(1));
    }
    (10, 0, digits(text))
}

/// Python's `unicode-escape`.
fn unescape(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(backslash) = rest.find('\\') {
        out.push_str(&rest[..backslash]);
        rest = &rest[backslash + 1..];
        let Some(kind) = rest.chars().next() else { return fail("a string ends with a backslash") };
        rest = &rest[kind.len_utf8()..];
        let hex = |length: usize| -> Result<(char, usize)> {
            let code = rest.get(..length).and_then(|digits| u32::from_str_radix(digits, 16).ok());
            match code.and_then(char::from_u32) {
                Some(c) => Ok((c, length)),
                None => fail("a string has an escape that is not a character"),
            }
        };
        let (c, used) = match kind {
            '\n' => continue,
            '\\' | '\'' | '"' => (kind, 0),
            'a' => ('\u{7}', 0),
            'b' => ('\u{8}', 0),
            'f' => ('\u{c}', 0),
            'n' => ('\n', 0),
            'r' => ('\r', 0),
            't' => ('\t', 0),
            'v' => ('\u{b}', 0),
            'x' => hex(2)?,
            'u' => hex(4)?,
            'U' => hex(8)?,
            'N' => return fail("a string has an escape by name, which is not supported"),
            '0'..='7' => {
                let more = rest.bytes().take(2).take_while(|b| (b'0'..=b'7').contains(b)).count();
                let digits = format!("{kind}{}", &rest[..more]);
                let code = u32::from_str_radix(&digits, 8).ok().and_then(char::from_u32);
                (code.unwrap_or_default(), more)
            }
            _ => {
                out.push('\\');
                (kind, 0)
            }
        };
        out.push(c);
        rest = &rest[used..];
    }
    out.push_str(rest);
    Ok(out)
}
