//! Keys of clients.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// A key that a client may show. Only its hash is kept, and nothing prints it.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    /// A key.
    pub fn new(key: &str) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// Whether a client showed this key. Takes the same time whether it did or not.
    pub fn matches(&self, shown: &str) -> bool {
        Self::new(shown).0.ct_eq(&self.0).into()
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
        let key = Key::new("sk-1");
        assert!(key.matches("sk-1"));
        for other in ["", "sk-", "sk-11", "SK-1"] {
            assert!(!key.matches(other), "{other}");
        }
        assert!(!format!("{key:?}").contains("sk"));
    }
}
