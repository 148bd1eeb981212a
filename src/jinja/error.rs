//! Why a template was refused or failed.

use std::fmt;

/// Bytes of a template's or a message's text that an error repeats.
const MAX_QUOTED: usize = 400;

/// Bytes of a whole error message.
const MAX_MESSAGE: usize = 2000;

/// Why a template was refused or failed, and the line it happened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TemplateError {
    message: String,
    line: Option<u32>,
}

pub(super) type Result<T> = std::result::Result<T, TemplateError>;

impl TemplateError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MAX_MESSAGE {
            message.truncate(message.floor_char_boundary(MAX_MESSAGE));
            message.push('…');
        }
        Self { message, line: None }
    }

    /// The error with the line it happened on, if it has none.
    pub(super) fn at(mut self, line: u32) -> Self {
        self.line.get_or_insert(line);
        self
    }
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.line {
            Some(line) => write!(f, " (line {line} of the template)"),
            None => Ok(()),
        }
    }
}

/// An error, for use as the last expression of a function.
pub(super) fn fail<T>(message: impl Into<String>) -> Result<T> {
    Err(TemplateError::new(message))
}

/// The error of using an undefined value.
pub(super) fn undefined<T>(name: &str) -> Result<T> {
    fail(format!("'{}' is undefined", quoted(name)))
}

/// The start of a text that may be long, for an error message.
pub(super) fn quoted(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_QUOTED)]
}
