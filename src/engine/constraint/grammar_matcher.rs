//! Where a text is in its grammar: a guarded llguidance matcher.

use std::sync::Arc;

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

use super::grammar::Grammar;
use crate::engine::text::TokenTrie;
use crate::engine::token_mask::TokenMask;
use crate::error::{Error, ErrorCode, Result};
use crate::guard::guarded;

/// The tokens that a grammar allows next.
pub(super) struct GrammarTokens {
    pub mask: TokenMask,
    /// Whether the text may end here.
    pub may_end: bool,
}

/// A grammar, and what of it the tokens so far have matched.
pub(super) struct GrammarMatcher {
    matcher: Matcher,
    trie: Arc<TokenTrie>,
}

impl Clone for GrammarMatcher {
    /// Shares nothing: limits are counted for each, so whether one is reached does not depend on the other.
    fn clone(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), trie: Arc::clone(&self.trie) }
    }
}

impl GrammarMatcher {
    /// Compiles a grammar over a vocabulary.
    ///
    /// # Errors
    /// `constraint_invalid`: it cannot be understood, is too expensive, or matches nothing but the empty text.
    pub fn new(grammar: &Grammar, trie: Arc<TokenTrie>) -> Result<Self> {
        let grammar_error = |message: &str| grammar.invalid(&format!("cannot be used: {}", one_line(message)));
        let matcher = guarded(grammar_error, || {
            let parser = trie.factory().create_parser(grammar.to_llguidance()?);
            let matcher = Matcher::new(parser);
            match matcher.get_error() {
                Some(message) => Err(grammar_error(&message)),
                None => Ok(matcher),
            }
        })?;
        let mut this = Self { matcher, trie };
        this.matcher.consume_tokens(&[]).map_err(|error| grammar_error(&error.to_string()))?;
        if this.is_complete() {
            return Err(grammar.invalid("matches only the empty text"));
        }
        Ok(this)
    }

    /// The tokens that may follow, of `vocab` ids.
    ///
    /// # Errors
    /// `constraint_failed`: none may, or finding them takes too much.
    pub fn tokens(&mut self, vocab: usize) -> Result<GrammarTokens> {
        let allowed: SimpleVob =
            guarded(failed, || self.matcher.compute_mask().map_err(|error| failed(&error.to_string())))?;
        let end = self.trie.end_of_text();
        let may_end = allowed.is_allowed(end);
        let mut mask = TokenMask::from_words(allowed.as_slice(), vocab);
        mask.forbid(end);
        Ok(GrammarTokens { mask, may_end })
    }

    /// Moves on by a token that was allowed.
    ///
    /// # Errors
    /// `constraint_failed`: it was not.
    pub fn advance(&mut self, token: u32) -> Result<()> {
        guarded(failed, || self.matcher.consume_token(token).map_err(|error| failed(&error.to_string())))
    }

    /// Goes back by so many tokens.
    ///
    /// # Errors
    /// `constraint_failed`.
    pub fn rewind(&mut self, tokens: usize) -> Result<()> {
        guarded(failed, || self.matcher.rollback(tokens).map_err(|error| failed(&error.to_string())))
    }

    /// Whether the text matches and nothing may follow.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }
}

fn failed(message: &str) -> Error {
    let what = format!("the grammar allows no token: {}", one_line(message));
    Error::new(ErrorCode::ConstraintFailed, what).with_hint(
        "the vocabulary may have no token for a character that the grammar asks for, or the grammar is too ambiguous",
    )
}

/// Longest message of llguidance that is repeated, in characters: it may contain all of a grammar.
const MAX_MESSAGE: usize = 300;

/// The message on one line, without the stack trace and the state of the parser that llguidance appends.
fn one_line(message: &str) -> String {
    let text = message.split("\n<").next().unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_without_a_stack_trace() {
        assert_eq!(
            one_line("regex parse error:\n    (a\n    ^\nerror: unclosed group"),
            "regex parse error: (a ^ error: unclosed group"
        );
        assert_eq!(one_line("panic: no\n<backtrace>\n   0: f\n</backtrace>"), "panic: no");
        assert_eq!(one_line(&"é".repeat(400)).chars().count(), MAX_MESSAGE + 1);
    }
}
