//! Sets of tokens by their text, which samplers need as defaults.

use std::sync::Arc;

/// What ends a sentence, a bracket or a line: it breaks a repetition.
const PUNCTUATION: &[char] = &['.', ',', '!', '?', '<', '>', '[', ']', '(', ')', '{', '}', '\n', '\t', '"'];

/// Ids of tokens that have some text, and of all special tokens; sorted.
pub(super) struct TokenSets {
    /// Those with punctuation, a line break or a tab.
    pub punctuation: Arc<[u32]>,
    /// Those with a line break.
    pub newline: Arc<[u32]>,
}

impl TokenSets {
    /// Looks at the text of each id; a special token has none.
    pub(super) fn of(ids: std::ops::Range<u32>, text: impl Fn(u32) -> Option<String>) -> Self {
        let (mut punctuation, mut newline) = (Vec::new(), Vec::new());
        for id in ids {
            let text = text(id);
            let has = |letters: &[char]| text.as_ref().is_none_or(|text| text.contains(letters));
            if has(PUNCTUATION) {
                punctuation.push(id);
            }
            if has(&['\n']) {
                newline.push(id);
            }
        }
        Self { punctuation: punctuation.into(), newline: newline.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::engine::text::Tokenizer;

    #[test]
    fn sets_have_the_tokens_whose_text_says_so() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quill-4m");
        let tokenizer = Tokenizer::open(&folder).expect("readable").expect("there is one");
        let (punctuation, newline) = (tokenizer.punctuation_and_special_ids(), tokenizer.newline_and_special_ids());
        for id in 0..tokenizer.vocab_size() as u32 {
            let text = tokenizer.decode(&[id], false).expect("decodes");
            let special = tokenizer.is_special(id);
            let has_newline = text.contains('\n');
            assert_eq!(newline.binary_search(&id).is_ok(), special || has_newline, "{text:?}");
            let breaks = special || has_newline || text.contains(['.', ',', '"', '(', '<', '\t', '?', '}']);
            assert!(punctuation.binary_search(&id).is_ok() || !breaks, "{text:?}");
            let is_word = text.chars().all(|letter| letter.is_alphanumeric() || letter == ' ');
            assert!(special || !is_word || punctuation.binary_search(&id).is_err(), "{text:?}");
        }
        assert!(newline.len() < punctuation.len() && punctuation.len() < tokenizer.vocab_size());
    }
}
