//! The keys and values that one model has of a sequence: of which of its tokens, and on which pages.

use std::sync::Arc;

use crate::adapter::batch::SlotId;
use crate::adapter::forward_plan::ForwardPlan;
use crate::kv_cache::{PAGE_TOKENS, PagePool, PrefixKey, pages_for};

/// What the adapters of a request decide.
#[derive(Clone)]
pub(super) struct SequencePlan {
    /// The slots of the adapters, sorted, each once: sequences with the same ones wait in one queue.
    pub adapters: Arc<[SlotId]>,
    /// Everything that its keys and values depend on, besides its tokens.
    pub forward: ForwardPlan,
    /// Most tokens of a sequence that is not rotated as a long one; `None` if all are rotated alike.
    pub original_positions: Option<usize>,
    /// Number of KV groups: more than one if the layer map is longer than the base.
    pub kv_groups: usize,
    /// What a row costs, in rows of the base; grows with its adapters.
    pub row_cost: usize,
    /// Number of logits.
    pub vocab: usize,
}

impl SequencePlan {
    /// Whether what is computed of a sequence that now has `tokens` tokens has the rotation of another length.
    pub(super) fn needs_other_rope(&self, tokens: usize) -> bool {
        self.forward.has_long_rope != self.original_positions.is_some_and(|original| tokens > original)
    }
}

/// Keys and values of a sequence's first tokens.
pub(super) struct SequenceKv {
    pub plan: SequencePlan,
    /// Tokens whose keys and values are in `pages`.
    pub computed: usize,
    /// In order of position, those of all KV groups interleaved.
    pub pages: Vec<u32>,
    /// Number of leading pages (of each KV group) that were published or reused, and the key of their prefix.
    published: usize,
    key: PrefixKey,
}

impl SequenceKv {
    /// Nothing is computed yet.
    pub(super) fn new(plan: SequencePlan) -> Self {
        Self { plan, computed: 0, pages: Vec::new(), published: 0, key: PrefixKey::EMPTY }
    }

    /// Number of pages that `tokens` tokens need.
    pub(super) fn pages_for(&self, tokens: usize) -> usize {
        pages_for(tokens) * self.plan.kv_groups
    }

    /// Number of positions that the pages hold.
    pub(super) fn positions(&self) -> usize {
        self.pages.len() / self.plan.kv_groups * PAGE_TOKENS
    }

    /// Chooses the rotation of a sequence of `tokens` tokens. If it is another one than before, all pages are returned.
    pub(super) fn choose_rope(&mut self, pool: &mut PagePool, tokens: usize) {
        if self.plan.needs_other_rope(tokens) {
            self.release(pool);
            self.plan.forward.has_long_rope = !self.plan.forward.has_long_rope;
        }
    }

    /// Takes over the pages that already hold a prefix of `tokens`, the last of which is left to compute. There must be no
    /// pages yet.
    pub(super) fn find_prefix(&mut self, pool: &mut PagePool, tokens: &[u32]) {
        let extend = |key: &PrefixKey, page| self.extend_key(key, tokens, page);
        (self.pages, self.key) = pool.find_prefix(tokens.len(), self.plan.kv_groups, extend);
        self.published = self.pages.len() / self.plan.kv_groups;
        self.computed = self.published * PAGE_TOKENS;
    }

    /// Allocates what `tokens` tokens need beyond the pages there are; `false` if the pool has not enough.
    pub(super) fn allocate(&mut self, pool: &mut PagePool, tokens: usize) -> bool {
        let pages = self.pages_for(tokens);
        while self.pages.len() < pages {
            let Some(page) = pool.allocate() else { return false };
            self.pages.push(page);
        }
        true
    }

    /// Makes the full pages of computed tokens available to other sequences. `tokens` are those of the sequence.
    pub(super) fn publish(&mut self, pool: &mut PagePool, tokens: &[u32]) {
        let kv_groups = self.plan.kv_groups;
        while (self.published + 1) * PAGE_TOKENS <= self.computed {
            self.key = self.extend_key(&self.key, tokens, self.published);
            let first = self.published * kv_groups;
            for (group, &page) in self.pages[first..first + kv_groups].iter().enumerate() {
                pool.publish(page, self.key, group);
            }
            self.published += 1;
        }
    }

    /// Goes back to the first `computed` tokens at most. Pages that others may read are not written again, so tokens of the page
    /// where it goes back to may have to be computed once more. `tokens` are those of the sequence.
    pub(super) fn go_back(&mut self, pool: &mut PagePool, tokens: &[u32], computed: usize) {
        if computed >= self.computed {
            return;
        }
        let full_pages = computed / PAGE_TOKENS;
        if full_pages < self.published {
            self.release_beyond(pool, full_pages * PAGE_TOKENS);
            self.published = full_pages;
            self.key = (0..full_pages).fold(PrefixKey::EMPTY, |key, page| self.extend_key(&key, tokens, page));
            self.computed = full_pages * PAGE_TOKENS;
        } else {
            self.computed = computed;
        }
    }

    /// Returns the pages beyond those that `tokens` tokens need.
    pub(super) fn release_beyond(&mut self, pool: &mut PagePool, tokens: usize) {
        let needed = self.pages_for(tokens).min(self.pages.len());
        pool.release(self.pages.drain(needed..));
    }

    /// Returns all pages. Nothing is computed then.
    pub(super) fn release(&mut self, pool: &mut PagePool) {
        pool.release(self.pages.drain(..));
        (self.computed, self.published, self.key) = (0, 0, PrefixKey::EMPTY);
    }

    /// The key of the prefix that ends with a page, given the key before it.
    fn extend_key(&self, key: &PrefixKey, tokens: &[u32], page: usize) -> PrefixKey {
        let first = page * PAGE_TOKENS;
        key.extend(&self.plan.forward.page(&tokens[first..first + PAGE_TOKENS], first))
    }
}
