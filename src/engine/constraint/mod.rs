//! What limits the tokens that a request may choose: a grammar, the caller's filters, token healing.
//!
//! [`Constraint`] is the state of one sequence. Before a token is chosen it gives the mask of allowed ids, and each chosen token
//! moves it on; so it depends on the tokens alone, not on how they were computed. Masks take up to milliseconds, so
//! [`prepare_during`] computes them beside the forward pass whose logits they are for.

mod filter;
mod gbnf;
mod grammar;
mod grammar_matcher;

use std::sync::Arc;

use super::text::TokenTrie;
use super::token_mask::TokenMask;
use crate::error::{Error, ErrorCode, Result};
use crate::guard::catch_panic;
use grammar_matcher::GrammarMatcher;

pub use filter::{FilterTokens, Filters, TokenFilter};
pub use grammar::{Grammar, MAX_GRAMMAR_BYTES};

/// What limits the tokens of a sequence, and the tokens so far.
#[derive(Clone)]
pub struct Constraint {
    /// Number of logits.
    vocab: usize,
    /// The ids that end the text where the grammar or the filters allow it.
    eos_ids: Arc<[u32]>,
    /// Those that the first token is one of, if it continues the token that was cut off the prompt.
    healing: Option<Arc<TokenMask>>,
    grammar: Option<GrammarMatcher>,
    filters: Filters,
    /// Whether the filters know that the text begins.
    begun: bool,
    tokens: Vec<u32>,
    /// What the grammar allows next, once it is known.
    grammar_tokens: Option<Result<TokenMask>>,
    /// What each filter allows next, once it is known.
    filter_tokens: Vec<Option<Result<FilterTokens>>>,
}

impl Constraint {
    /// The constraint of a text that has not begun; `None` if nothing limits it. `trie` gives the request's vocabulary.
    ///
    /// # Errors
    /// `constraint_invalid` for the grammar, and those of `trie`.
    pub fn new(
        grammar: Option<&Grammar>,
        filters: &Filters,
        healed: Option<u32>,
        trie: impl FnOnce() -> Result<Arc<TokenTrie>>,
        eos_ids: &[u32],
        vocab: usize,
    ) -> Result<Option<Box<Self>>> {
        let trie = match (grammar, healed) {
            (None, None) if filters.filters.is_empty() => return Ok(None),
            (None, None) => None,
            _ => Some(trie()?),
        };
        let grammar = match (grammar, &trie) {
            (Some(grammar), Some(trie)) => Some(GrammarMatcher::new(grammar, Arc::clone(trie))?),
            _ => None,
        };
        let healing = healed.zip(trie).map(|(id, trie)| {
            let mut mask = TokenMask::none(vocab);
            trie.beginning_with(trie.bytes_of(id).unwrap_or_default()).for_each(|id| mask.allow(id));
            Arc::new(mask)
        });
        Ok(Some(Box::new(Self {
            vocab,
            eos_ids: eos_ids.into(),
            healing,
            grammar,
            filter_tokens: vec![None; filters.filters.len()],
            filters: filters.clone(),
            begun: false,
            tokens: Vec::new(),
            grammar_tokens: None,
        })))
    }

    /// Whether it calls functions of the caller.
    pub fn has_filters(&self) -> bool {
        !self.filters.filters.is_empty()
    }

    /// Whether the next token is the first and continues the prompt's last one, which neither grammar nor filters see.
    fn is_healing(&self) -> bool {
        self.healing.is_some() && self.tokens.is_empty()
    }

    /// Computes what [`Constraint::mask`] can know in advance. Errors are kept for it.
    fn prepare(&mut self) {
        if self.is_healing() {
            return;
        }
        if let (Some(grammar), None) = (&mut self.grammar, &self.grammar_tokens) {
            self.grammar_tokens = Some(grammar.tokens(self.vocab).map(|tokens| {
                let mut mask = tokens.mask;
                for &id in &*self.eos_ids {
                    if tokens.may_end { mask.allow(id) } else { mask.forbid(id) }
                }
                mask
            }));
        }
        self.ask_filters(|filter| filter.in_background());
    }

    fn ask_filters(&mut self, which: impl Fn(&dyn TokenFilter) -> bool) {
        for (filter, tokens) in self.filters.filters.iter().zip(&mut self.filter_tokens) {
            if tokens.is_none() && which(&**filter) {
                let begun = if self.begun { Ok(()) } else { filter.begin() };
                *tokens = Some(begun.and_then(|()| filter.next()));
            }
        }
    }

    /// The ids that may be chosen next.
    ///
    /// # Errors
    /// `constraint_failed`: there are none; and what a filter returned.
    pub fn mask(&mut self) -> Result<TokenMask> {
        if let Some(mask) = self.healing.as_ref().filter(|_| self.tokens.is_empty()) {
            return Ok(TokenMask::clone(mask));
        }
        self.prepare();
        self.ask_filters(|_| true);
        self.begun = true;
        let mut mask = match &self.grammar_tokens {
            Some(mask) => mask.clone()?,
            None => TokenMask::all(self.vocab),
        };
        for tokens in self.filter_tokens.iter().flatten() {
            let tokens = tokens.as_ref().map_err(Clone::clone)?;
            if let Some(ids) = &tokens.allowed {
                let mut allowed = TokenMask::none(self.vocab);
                ids.iter().for_each(|&id| allowed.allow(id));
                mask.intersect(&allowed);
            }
        }
        if self.filters.prefer_eos && self.eos_ids.iter().any(|&id| mask.allows(id)) {
            let mut ending = TokenMask::none(self.vocab);
            self.eos_ids.iter().for_each(|&id| ending.allow(id));
            mask.intersect(&ending);
        }
        if mask.count() == 0 {
            let what = "no token is allowed: a grammar and filters, or several filters, exclude each other";
            return Err(Error::new(ErrorCode::ConstraintFailed, what));
        }
        Ok(mask)
    }

    /// Moves on by a token that [`Constraint::mask`] allowed. Whether the text ends with it.
    ///
    /// # Errors
    /// `constraint_failed`, and what a filter returned.
    pub fn advance(&mut self, token: u32) -> Result<bool> {
        let was_healing = self.is_healing();
        self.tokens.push(token);
        self.grammar_tokens = None;
        let asked = std::mem::replace(&mut self.filter_tokens, vec![None; self.filters.filters.len()]);
        if was_healing {
            return Ok(false);
        }
        let mut ends = asked.iter().flatten().flatten().any(|tokens| tokens.ending.contains(&token));
        if let Some(grammar) = self.grammar.as_mut().filter(|_| !self.eos_ids.contains(&token)) {
            grammar.advance(token)?;
            ends |= grammar.is_complete();
        }
        for filter in &self.filters.filters {
            filter.feed(token)?;
        }
        Ok(ends)
    }

    /// Goes back to where it was before the last `tokens` tokens, for a text that is written anew from there.
    ///
    /// # Errors
    /// `constraint_failed`, and what a filter returned.
    pub fn rewind(&mut self, tokens: usize) -> Result<()> {
        let kept = self.tokens.len().saturating_sub(tokens);
        let first_seen = usize::from(self.healing.is_some());
        let seen = |tokens: usize| tokens.saturating_sub(first_seen);
        if let Some(grammar) = &mut self.grammar {
            grammar.rewind(seen(self.tokens.len()) - seen(kept))?;
        }
        self.tokens.truncate(kept);
        self.grammar_tokens = None;
        self.filter_tokens.fill(None);
        // Filters have no way back but from the beginning.
        for filter in self.filters.filters.iter().filter(|_| self.begun) {
            filter.begin()?;
            self.tokens.iter().skip(first_seen).try_for_each(|&token| filter.feed(token))?;
        }
        Ok(())
    }
}

/// Runs `work` while another thread computes what constraints allow next.
pub(super) fn prepare_during<T>(constraints: &mut [&mut Constraint], work: impl FnOnce() -> T) -> T {
    if constraints.is_empty() {
        return work();
    }
    std::thread::scope(|scope| {
        let prepare = move || {
            for constraint in constraints.iter_mut() {
                // What panics here panics again where the token is chosen, which ends the request alone.
                let _ = catch_panic(
                    |what| Error::new(ErrorCode::Internal, what),
                    || {
                        constraint.prepare();
                        Ok(())
                    },
                );
            }
        };
        // Without a thread, the masks are computed when they are needed.
        let _ = std::thread::Builder::new().name("exlora-masks".to_owned()).spawn_scoped(scope, prepare);
        work()
    })
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::engine::Tokenizer;

    fn tokenizer() -> Tokenizer {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quill-4m");
        Tokenizer::open(&folder).expect("opens").expect("has a tokenizer")
    }

    fn constraint(grammar: &Grammar, filters: &Filters, healed: Option<u32>) -> Box<Constraint> {
        let tokenizer = tokenizer();
        let made = Constraint::new(Some(grammar), filters, healed, || tokenizer.trie(), &[2], 2048);
        made.expect("compiles").expect("it limits something")
    }

    fn pattern(pattern: &str) -> Grammar {
        Grammar::Regex(pattern.to_owned())
    }

    /// Forbids one token more with each token.
    #[derive(Default)]
    struct Counting(Mutex<u32>);

    impl TokenFilter for Counting {
        fn begin(&self) -> Result<()> {
            *self.0.lock() = 0;
            Ok(())
        }

        fn next(&self) -> Result<FilterTokens> {
            Ok(FilterTokens { allowed: Some((0..2048 - *self.0.lock()).collect()), ending: Vec::new() })
        }

        fn feed(&self, _token: u32) -> Result<()> {
            *self.0.lock() += 1;
            Ok(())
        }
    }

    #[test]
    fn going_back_and_preparing_give_the_masks_of_a_text_written_once() {
        let filters = Filters { filters: vec![Arc::new(Counting::default())], prefer_eos: false };
        let grammar = pattern("[a-z ]{60,90}(x|yz)?[0-9]{3}");
        let mut once = constraint(&grammar, &filters, None);
        let mut tokens = Vec::new();
        let mut masks = Vec::new();
        for step in 0..4 {
            let mask = once.mask().expect("some token fits");
            let allowed: Vec<u32> = mask.allowed().collect();
            tokens.push(allowed[(7 * step + 3) % allowed.len()]);
            masks.push(mask);
            assert!(!once.advance(tokens[step]).expect("it was allowed"));
        }
        for back in 1..=3 {
            once.rewind(back).expect("goes back");
            for step in 4 - back..4 {
                prepare_during(&mut [&mut once], || {});
                assert_eq!(once.mask().expect("some token fits"), masks[step], "{step} after going back {back}");
                once.advance(tokens[step]).expect("it was allowed");
            }
        }
    }

    #[test]
    fn copies_move_on_independently() {
        let mut one = constraint(&pattern("(ab|cd)+"), &Filters::default(), None);
        let a = tokenizer().id_of("a").expect("a token");
        one.mask().expect("some token fits");
        let mut other = one.clone();
        one.advance(a).expect("allowed");
        assert!(one.mask().expect("some token fits") != other.mask().expect("some token fits"));
        assert_eq!(
            other.mask().expect("fits"),
            constraint(&pattern("(ab|cd)+"), &Filters::default(), None).mask().expect("fits")
        );
    }

    #[test]
    fn the_end_is_allowed_where_the_grammar_may_end_and_known_where_it_must() {
        let tokenizer = tokenizer();
        let [a, b] = ["a", "b"].map(|token| tokenizer.id_of(token).expect("a token"));
        let mut constraint = constraint(&pattern("ab?"), &Filters::default(), None);
        assert!(!constraint.mask().expect("fits").allows(2));
        assert!(!constraint.advance(a).expect("allowed"));
        let mask = constraint.mask().expect("fits");
        assert_eq!(mask.allowed().collect::<Vec<_>>(), [2, b]);
        assert!(constraint.advance(b).expect("allowed"), "nothing may follow");
    }

    #[test]
    fn a_healed_token_is_seen_by_neither_grammar_nor_filters() {
        let a = tokenizer().id_of("a").expect("a token");
        let mut constraint = constraint(&pattern("bb"), &Filters::default(), Some(a));
        let mask = constraint.mask().expect("fits");
        let trie = tokenizer().trie().expect("indexes");
        assert_eq!(mask.allowed().collect::<Vec<_>>(), trie.beginning_with(b"a").collect::<Vec<_>>());
        constraint.advance(a).expect("allowed");
        let first = constraint.mask().expect("fits");
        assert!(!first.allows(a));
        constraint.rewind(1).expect("goes back");
        assert_eq!(constraint.mask().expect("fits"), mask);
    }
}
