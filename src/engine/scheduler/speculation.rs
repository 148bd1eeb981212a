//! Which sequences verify how many drafted tokens in a step.
//!
//! Drafts take what the step's budget leaves when every sequence has its own tokens, and pages that nobody needs: they never
//! make another sequence wait or lose its pages. In a step whose budget is used up nothing is drafted.

use super::Scheduler;
use crate::engine::sequence::{Purpose, Sequence};
use crate::kv_cache::{PAGE_TOKENS, PagePool};

impl Scheduler {
    /// Proposes tokens for the decoding sequences, oldest first, and allocates their pages.
    pub(super) fn draft(&mut self) {
        let mut budget = self.draft_budget();
        self.draft_limits.clear();
        for sequence in self.running.iter_mut() {
            let mut limit = draft_limit(sequence, budget);
            if sequence.drafts.propose_from(&sequence.tokens, limit) {
                limit = sequence.drafts.proposed.len();
            }
            budget -= limit * sequence.kv.plan.row_cost;
            self.draft_limits.push(limit);
        }
        if let Some(draft_model) = &mut self.draft_model {
            draft_model.propose(&mut self.running, &mut self.draft_limits);
        }
        for sequence in self.running.iter_mut().filter(|sequence| !sequence.drafts.proposed.is_empty()) {
            allocate_drafts(sequence, &mut self.pool);
        }
    }

    /// What the step's budget leaves for drafts, in rows of the base.
    fn draft_budget(&self) -> usize {
        let rows = self.running.iter().zip(&self.scheduled_tokens);
        let used: usize = rows.map(|(sequence, tokens)| tokens * sequence.kv.plan.row_cost).sum();
        self.prefill_chunk.saturating_sub(used)
    }
}

/// Most tokens that a sequence may draft in this step.
fn draft_limit(sequence: &Sequence, budget: usize) -> usize {
    let Purpose::Generate(decode) = &sequence.purpose else { return 0 };
    if sequence.pending() != 1 {
        return 0;
    }
    // The step yields one token more than it accepts, and the last token of all is never computed.
    let left = decode.max_tokens.saturating_sub(sequence.tokens.len() + 1);
    sequence.drafts.wanted().min(left).min(budget / sequence.kv.plan.row_cost)
}

/// Allocates the pages of a sequence's drafts, which are cut to the pages there are.
fn allocate_drafts(sequence: &mut Sequence, pool: &mut PagePool) {
    let first = sequence.kv.computed + 1;
    if !sequence.kv.allocate(pool, first + sequence.drafts.proposed.len()) {
        let positions = sequence.kv.pages.len() / sequence.kv.plan.kv_groups * PAGE_TOKENS;
        sequence.drafts.proposed.truncate(positions.saturating_sub(first));
    }
}
