//! Which sequences verify how many drafted tokens in a step.
//!
//! Drafts take what the step's budget leaves when every sequence has its own tokens, and pages that nobody needs: they never
//! make another sequence wait or lose its pages. In a step whose budget is used up nothing is drafted.

use super::Scheduler;
use crate::engine::sequence::{Purpose, Sequence};

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
            budget -= limit * draft_cost(sequence);
            self.draft_limits.push(limit);
        }
        if let Some(draft_model) = &mut self.draft_model {
            draft_model.propose(&mut self.running, &mut self.draft_limits);
        }
        for sequence in self.running.iter_mut().filter(|sequence| !sequence.drafts.proposed.is_empty()) {
            let with_pages = sequence.allocate_drafts(&mut self.pool, sequence.drafts.proposed.len());
            sequence.drafts.proposed.truncate(with_pages);
        }
    }

    /// What the step's budget leaves for drafts, in rows of the base.
    fn draft_budget(&self) -> usize {
        let rows = self.running.iter().zip(&self.scheduled);
        let used: usize = rows.map(|(sequence, rows)| rows.total() * sequence.kv.plan.row_cost).sum();
        self.prefill_chunk.saturating_sub(used)
    }
}

/// Most tokens that a sequence may draft in this step.
fn draft_limit(sequence: &Sequence, budget: usize) -> usize {
    let Purpose::Generate(decode) = &sequence.purpose else { return 0 };
    if !sequence.is_decoding() {
        return 0;
    }
    // The step yields one token more than it accepts, and the last token of all is never computed.
    let left = decode.max_tokens.saturating_sub(sequence.tokens.len() + 1);
    // A token whose row would have another rotation is none that these rows can verify.
    let left = left.min(sequence.tokens_before_other_rope());
    sequence.drafts.wanted().min(left).min(budget / draft_cost(sequence))
}

/// What verifying one token costs, in rows of the base: with guidance it is computed after both prompts.
fn draft_cost(sequence: &Sequence) -> usize {
    sequence.kv.plan.row_cost * sequence.contexts()
}
