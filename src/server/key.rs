//! Keys of clients.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::{Error, ErrorCode, Result};

/// A key that a client may show. Only its hash is kept, and nothing prints it.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    /// A key.
    ///
    /// # Errors
    /// `request_invalid`: it is empty, or has what no header can carry: spaces, or characters that are not ASCII.
    pub fn new(key: &str) -> Result<Self> {
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::new(ErrorCode::RequestInvalid, "a key is one that no client can show")
                .with_expected("printable ASCII characters without spaces"));
        }
        Ok(Self::of_text(key))
    }

    fn of_text(key: &str) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// Whether a client showed this key. Takes the same time whether it did or not.
    pub fn matches(&self, shown: &str) -> bool {
        Self::of_text(shown).0.ct_eq(&self.0).into()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_matches_itself_and_is_never_printed() {
        let key = Key::new("sk-1").expect("a key");
        assert!(key.matches("sk-1"));
        for other in ["", "sk-", "sk-11", "SK-1"] {
            assert!(!key.matches(other), "{other}");
        }
        assert!(!format!("{key:?}").contains("sk"));
    }

    #[test]
    fn a_key_that_no_client_can_show_is_refused() {
        for key in ["", " ", " k", "k k", "schl\u{fc}ssel", "k\n"] {
            assert!(Key::new(key).is_err(), "{key:?}");
        }
    }
}
