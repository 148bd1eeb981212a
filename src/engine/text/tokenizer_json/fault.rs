//! What is wrong with a tokenizer, before it is an error with a code.

use std::fmt;

/// What is wrong with a tokenizer, or with what it does to a text: a clause.
#[derive(Clone, Debug)]
pub(crate) struct Fault(String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

impl From<String> for Fault {
    fn from(what: String) -> Self {
        Self(what)
    }
}

impl From<&str> for Fault {
    fn from(what: &str) -> Self {
        Self(what.to_owned())
    }
}

impl From<tokenizers::Error> for Fault {
    fn from(error: tokenizers::Error) -> Self {
        Self(error.to_string())
    }
}
