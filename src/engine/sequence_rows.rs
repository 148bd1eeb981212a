//! What a sequence needs of a step: rows, and pages for their keys and values.
//!
//! With guidance (`guidance.rs`) a sequence has two contexts, its own and the negative one. What is said here of tokens and pages
//! is said of both: they are admitted, computed, preempted and sent back together. The last token of one is computed in the same
//! step as that of the other, so that their logits meet.

use super::guidance::Guidance;
use super::sequence::Sequence;
use super::sequence_kv::SequenceKv;
use crate::kv_cache::PagePool;

/// Rows of a sequence in a step, without its drafts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RowCounts {
    /// Of its own tokens.
    pub own: usize,
    /// Of the negative prompt and what follows it.
    pub negative: usize,
}

impl RowCounts {
    pub(super) fn total(self) -> usize {
        self.own + self.negative
    }
}

impl Sequence {
    /// Tokens to compute before the next one can be chosen.
    pub(super) fn pending(&self) -> RowCounts {
        let pending = |tokens: &[u32], kv: &SequenceKv| tokens.len() - kv.computed;
        let negative = self.guidance.as_ref().map_or(0, |guidance| pending(&guidance.tokens, &guidance.kv));
        RowCounts { own: pending(&self.tokens, &self.kv), negative }
    }

    /// Number of its contexts: the rows of a step that it takes while it decodes, without drafts.
    pub(super) fn contexts(&self) -> usize {
        1 + usize::from(self.guidance.is_some())
    }

    /// Whether the next step chooses a token, and computes no other one before it.
    pub(super) fn is_decoding(&self) -> bool {
        self.pending().total() == self.contexts()
    }

    /// Which of its pending tokens are computed if a step has `rows` rows for it. The last ones are computed together.
    pub(super) fn rows_within(&self, rows: usize) -> RowCounts {
        let pending = self.pending();
        if rows >= pending.total() {
            return pending;
        }
        if self.guidance.is_none() {
            return RowCounts { own: rows, negative: 0 };
        }
        let own = rows.min(pending.own.saturating_sub(1));
        RowCounts { own, negative: (rows - own).min(pending.negative.saturating_sub(1)) }
    }

    /// Keys and values of each context that has some of these rows, its tokens, and the number of its rows.
    pub(super) fn contexts_with(&self, rows: RowCounts) -> impl Iterator<Item = (&SequenceKv, &[u32], usize)> {
        let with_rows = self.each_kv().zip([rows.own, rows.negative]).filter(|&(_, rows)| rows > 0);
        with_rows.map(|((kv, tokens), rows)| (kv, tokens, rows))
    }

    /// Keys and values of each context, and its tokens.
    fn each_kv(&self) -> impl Iterator<Item = (&SequenceKv, &[u32])> {
        let negative = self.guidance.as_ref().map(|guidance| (&guidance.kv, &guidance.tokens[..]));
        std::iter::once((&self.kv, &self.tokens[..])).chain(negative)
    }

    fn each_kv_mut(&mut self) -> impl Iterator<Item = (&mut SequenceKv, &[u32])> {
        let negative = self.guidance.as_deref_mut().map(|guidance| (&mut guidance.kv, &guidance.tokens[..]));
        std::iter::once((&mut self.kv, &self.tokens[..])).chain(negative)
    }

    /// Tokens of its longest context, which decides how the positions of both are rotated.
    fn longest_context(&self) -> usize {
        self.each_kv().map(|(_, tokens)| tokens.len()).max().unwrap_or(0)
    }

    /// Chooses the rotation for its length. If it is another one than before, nothing is computed then.
    pub(super) fn choose_rope(&mut self, pool: &mut PagePool) {
        let tokens = self.longest_context();
        self.each_kv_mut().for_each(|(kv, _)| kv.choose_rope(pool, tokens));
    }

    /// Whether its length has passed one beyond which, or up to which, all positions are rotated otherwise.
    pub(super) fn needs_other_rope(&self) -> bool {
        self.kv.plan.needs_other_rope(self.longest_context())
    }

    /// Tokens that may follow before it is rotated otherwise.
    pub(super) fn tokens_before_other_rope(&self) -> usize {
        let original = self.kv.plan.original_positions.filter(|_| !self.kv.plan.forward.has_long_rope);
        original.map_or(usize::MAX, |original| original.saturating_sub(self.longest_context()))
    }

    /// Takes over the pages that already hold a prefix of its tokens.
    pub(super) fn find_prefix(&mut self, pool: &mut PagePool) {
        self.each_kv_mut().for_each(|(kv, tokens)| kv.find_prefix(pool, tokens));
    }

    /// Number of pages that its tokens need beyond those there are.
    pub(super) fn missing_pages(&self) -> usize {
        self.each_kv().map(|(kv, tokens)| kv.pages_for(tokens.len()) - kv.pages.len()).sum()
    }

    /// Allocates the pages of the next `rows`; `false` if the pool has not enough.
    pub(super) fn allocate(&mut self, pool: &mut PagePool, rows: RowCounts) -> bool {
        let each = [rows.own, rows.negative];
        self.each_kv_mut().zip(each).all(|((kv, _), rows)| kv.allocate(pool, kv.computed + rows))
    }

    /// Allocates the pages of `drafts` tokens after the last one. Returns for how many of them there are pages.
    pub(super) fn allocate_drafts(&mut self, pool: &mut PagePool, drafts: usize) -> usize {
        let with_pages = self.each_kv_mut().map(|(kv, _)| {
            let first = kv.computed + 1;
            if kv.allocate(pool, first + drafts) { drafts } else { kv.positions().saturating_sub(first) }
        });
        with_pages.min().unwrap_or(0)
    }

    /// Counts rows as computed.
    pub(super) fn add_computed(&mut self, rows: RowCounts) {
        let each = [rows.own, rows.negative];
        self.each_kv_mut().zip(each).for_each(|((kv, _), rows)| kv.computed += rows);
    }

    /// Makes the full pages of computed tokens available to other sequences.
    pub(super) fn publish(&mut self, pool: &mut PagePool) {
        self.each_kv_mut().for_each(|(kv, tokens)| kv.publish(pool, tokens));
    }

    /// Whether it has lost tokens that were computed: the one that it continues with must be chosen again.
    pub(super) fn has_gone_back(&self) -> bool {
        self.each_kv().any(|(kv, tokens)| tokens.len() <= kv.computed)
    }

    /// Counts its last token as not computed, and what was computed after it.
    pub(super) fn compute_last_again(&mut self, pool: &mut PagePool) {
        self.each_kv_mut().for_each(|(kv, tokens)| kv.go_back(pool, tokens, tokens.len() - 1));
    }

    /// Returns the pages that its tokens do not need.
    pub(super) fn release_unneeded(&mut self, pool: &mut PagePool) {
        self.each_kv_mut().for_each(|(kv, tokens)| kv.release_beyond(pool, tokens.len()));
    }

    /// Returns all pages. Nothing is computed then.
    pub(super) fn release(&mut self, pool: &mut PagePool) {
        self.each_kv_mut().for_each(|(kv, _)| kv.release(pool));
    }

    /// Tokens of its prompts.
    pub(super) fn prompt_tokens(&self) -> usize {
        self.prompt_len + self.guidance.as_ref().map_or(0, |guidance| guidance.prompt_len)
    }

    /// Reports to the job how much of its prompts is in the cache.
    pub(super) fn report_progress(&self) {
        let negative = |guidance: &Guidance| guidance.kv.computed.min(guidance.prompt_len);
        let own = self.kv.computed.min(self.prompt_len);
        self.job.set_prefilled(own + self.guidance.as_deref().map_or(0, negative));
    }
}
