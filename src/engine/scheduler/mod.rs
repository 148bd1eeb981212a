//! Continuous batching: which sequences are in the next step, with how many tokens, on which pages.
//!
//! Running sequences are kept in the order of admission. Each step computes one token of every decoding sequence, and prompt
//! tokens of the others until the step's budget is used up (chunked prefill, `prefill.rs`); what is left of it verifies drafted
//! tokens (`speculation.rs`). When pages run out, the sequence admitted last is preempted: it releases its pages and starts over
//! later, and because of batch invariance it arrives at the same tokens. One that has passed a length beyond which the model
//! rotates all positions otherwise starts over too. Those that wait start in turns of their adapters (`waiting.rs`).
//!
//! **A sequence fails alone.** What is computed for one of them (choosing a token, text, stops, logits) can only end that one,
//! also by a panic. If a forward pass fails, its sequences are tried in halves, down to the one that cannot be computed: the
//! others get the same bits.

mod accept;
mod draft_model;
mod parallel;
mod prefill;
mod speculation;
#[cfg(test)]
mod tests;
mod waiting;

use std::ops::Range;

use parking_lot::Mutex;

use super::constraint::prepare_during;
use super::options::EngineOptions;
use super::output::FinishReason;
use super::sampler::Sampler;
use super::sequence::{Purpose, Sequence};
use super::sequence_rows::RowCounts;
use super::stats::{SchedulerStats, StepStats};
use crate::adapter::forward_plan::ForwardPlan;
use crate::error::{Error, ErrorCode, Result};
use crate::guard::catch_panic;
use crate::kv_cache::PagePool;
use crate::model::batch::{SequenceRows, StepBatch};
use crate::model::{KvStorage, Model};
use accept::{StepResults, accept, is_greedy};
use prefill::Prefill;
use waiting::WaitingList;

pub(super) use draft_model::DraftModel;

/// The sequences of an engine and the pages they use.
pub(super) struct Scheduler {
    waiting: WaitingList,
    running: Vec<Sequence>,
    pool: PagePool,
    kv: KvStorage,
    draft_model: Option<DraftModel>,
    max_rows: usize,
    prefill_chunk: usize,
    /// One for each thread that chose tokens so far.
    samplers: Vec<Sampler>,
    /// Most threads that choose tokens.
    threads: usize,
    /// Rows of each running sequence in this step, without its drafts.
    scheduled: Vec<RowCounts>,
    prefills: Vec<Prefill>,
    /// Rows that each running sequence in prefill may compute in this step.
    granted: Vec<usize>,
    /// Most tokens that each running sequence may draft in this step.
    draft_limits: Vec<usize>,
    /// Indices of the running sequences that are in this step, those of one forward pass together.
    order: Vec<usize>,
    batch: StepBatch,
    /// The tokens of a sequence's rows that end with drafted ones.
    drafted_rows: Vec<u32>,
    logits: Vec<f32>,
    stats: StepStats,
}

impl Scheduler {
    /// # Errors
    /// `memory_exhausted`.
    pub(super) fn new(kv: KvStorage, draft_model: Option<DraftModel>, options: &EngineOptions) -> Result<Self> {
        Ok(Self {
            waiting: WaitingList::default(),
            running: Vec::new(),
            pool: PagePool::new(kv.shape().pages, options.prefix_cache)?,
            kv,
            draft_model,
            max_rows: options.max_rows.max(1),
            prefill_chunk: options.prefill_chunk.max(1),
            samplers: Vec::new(),
            threads: parallel::most_threads(options.threads),
            scheduled: Vec::new(),
            prefills: Vec::new(),
            granted: Vec::new(),
            draft_limits: Vec::new(),
            order: Vec::new(),
            batch: StepBatch::default(),
            drafted_rows: Vec::new(),
            logits: Vec::new(),
            stats: StepStats::default(),
        })
    }

    pub(super) fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            kv_pages_total: self.pool.total(),
            kv_pages_free: self.pool.free(),
            prefix_pages: self.pool.prefix_pages(),
            rows_running: self.running.len(),
            rows_waiting: self.waiting.len(),
            steps: self.stats,
        }
    }

    pub(super) fn queue(&mut self, sequence: Sequence) {
        self.waiting.push(sequence);
    }

    /// Forgets every cached prefix.
    pub(super) fn clear_prefixes(&mut self) {
        self.pool.clear_prefixes();
        if let Some(draft_model) = &mut self.draft_model {
            draft_model.clear_prefixes();
        }
    }

    /// Ends the sequence of a cancelled job, if it has not ended yet.
    pub(super) fn cancel(&mut self, job: u64) {
        let running = |sequences: &[Sequence]| sequences.iter().position(|sequence| sequence.job.number() == job);
        let sequence = self.waiting.remove(job);
        if let Some(mut sequence) = sequence.or_else(|| Some(self.running.remove(running(&self.running)?))) {
            self.release(&mut sequence);
            end(&mut sequence, FinishReason::Cancelled);
        }
    }

    /// Ends every sequence with an error and begins anew, with an empty cache.
    pub(super) fn reset(&mut self, error: &Error) {
        for sequence in self.waiting.take_all().chain(std::mem::take(&mut self.running)) {
            sequence.fail(error.clone());
        }
        self.pool.reset();
        if let Some(draft_model) = &mut self.draft_model {
            draft_model.reset();
        }
        self.samplers.clear();
    }

    /// Returns all pages of a sequence, which starts over if it runs again.
    fn release(&mut self, sequence: &mut Sequence) {
        sequence.release(&mut self.pool);
        if let Some(draft_model) = &mut self.draft_model {
            draft_model.release(&mut sequence.drafts);
        }
    }

    /// Computes one step; `false` if there was nothing to do.
    pub(super) fn step(&mut self, model: &Model) -> bool {
        self.admit();
        self.schedule();
        if self.running.is_empty() {
            return false;
        }
        self.draft();
        self.order_by_pass();
        let mut start = 0;
        while start < self.order.len() {
            let end = start + self.same_pass(start);
            self.compute(model, start..end);
            start = end;
        }
        let mut running = std::mem::take(&mut self.running);
        running.retain_mut(|sequence| {
            let runs = !sequence.job.has_ended();
            if runs {
                sequence.release_unneeded(&mut self.pool);
            } else {
                self.release(sequence);
            }
            runs
        });
        self.running = running;
        while let Some(index) = self.running.iter().position(Sequence::needs_other_rope) {
            let sequence = self.running.remove(index);
            self.start_over(sequence);
        }
        true
    }

    /// Computes `order[range]`, sequences of one forward pass. Fails those that cannot be computed on their own.
    fn compute(&mut self, model: &Model, range: Range<usize>) {
        self.fill_batch(range.clone());
        let (order, scheduled) = (&self.order[range.clone()], &self.scheduled);
        let sequences = self.running.iter_mut().enumerate();
        // Few sequences have a constraint, so the search through the order is rare.
        let constrained = sequences.filter_map(|(index, sequence)| {
            let chooses = logit_rows_of(sequence, scheduled[index]) > 0;
            sequence.constraint_mut().filter(|_| chooses && order.contains(&index))
        });
        let mut constraints: Vec<_> = constrained.collect();
        let (kv, batch, logits) = (&self.kv, &mut self.batch, &mut self.logits);
        let outcome = prepare_during(&mut constraints, || model.forward(batch, &[kv], logits));
        let Err(error) = outcome else {
            self.stats.steps += 1;
            return self.advance(range);
        };
        let first = self.order[range.start];
        let smaller = self.running[first].rows_within(self.scheduled[first].total() / 2);
        let drafted = &mut self.running[first].drafts.proposed;
        if range.len() > 1 {
            tracing::debug!(sequences = range.len(), %error, "a step failed: its sequences are tried in halves");
            let middle = range.start + range.len() / 2;
            self.compute(model, range.start..middle);
            self.compute(model, middle..range.end);
        } else if !drafted.is_empty() {
            // Whatever it is: a sequence does not fail for what it only may continue with.
            drafted.clear();
            self.compute(model, range);
        } else if error.code() == ErrorCode::MemoryExhausted && smaller.total() > 0 {
            self.scheduled[first] = smaller;
            self.compute(model, range);
        } else {
            self.running[first].fail(error);
        }
    }

    /// Groups the sequences of the step by forward pass. Nearly always there is one: those that run the base's own layers,
    /// rotated alike.
    fn order_by_pass(&mut self) {
        self.order.clear();
        self.order.extend((0..self.running.len()).filter(|&index| self.scheduled[index].total() > 0));
        // No two keys are equal, so the unstable sort, which needs no buffer, keeps the order of admission.
        let key = |&index: &usize| (self.running[index].kv.plan.forward.pass(), index);
        self.order.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
    }

    /// Number of sequences in `order` from `start` on that are computed in one forward pass.
    fn same_pass(&self, start: usize) -> usize {
        let pass = |index: usize| self.running[index].kv.plan.forward.pass();
        let first = pass(self.order[start]);
        self.order[start..].iter().take_while(|&&index| pass(index) == first).count()
    }

    /// Starts waiting sequences while there are free rows, and free pages for all their tokens so far.
    fn admit(&mut self) {
        let mut rows: usize = self.running.iter().map(Sequence::contexts).sum();
        while let Some(sequence) = self.waiting.next_mut() {
            rows += sequence.contexts();
            // A sequence with two contexts runs alone where there is one row.
            if rows > self.max_rows && !self.running.is_empty() {
                return;
            }
            sequence.choose_rope(&mut self.pool);
            // The logits of all positions need all positions computed.
            if matches!(sequence.purpose, Purpose::Generate(_)) {
                sequence.find_prefix(&mut self.pool);
            }
            // One spare page for each running sequence, or the new one would soon be preempted.
            if sequence.missing_pages() + self.running.len() > self.pool.free() && !self.running.is_empty() {
                sequence.release(&mut self.pool);
                return;
            }
            if sequence.cached_tokens.is_none() {
                sequence.cached_tokens = Some(sequence.kv.computed);
                self.stats.tokens_prompt += sequence.prompt_tokens() as u64;
            }
            sequence.job.set_started();
            sequence.report_progress();
            self.running.extend(self.waiting.pop());
        }
    }

    /// Decides how many tokens of each running sequence are computed, and allocates their pages.
    fn schedule(&mut self) {
        // Each round ends with one sequence less.
        loop {
            self.share_prefill();
            if self.allocate_pages() {
                return;
            }
            self.preempt_last();
        }
    }

    /// One token of each decoding sequence, and for the others a share of the budget.
    fn share_prefill(&mut self) {
        self.scheduled.clear();
        self.scheduled.extend(self.running.iter().map(Sequence::pending));
        self.prefills.clear();
        for (index, sequence) in self.running.iter().enumerate().filter(|(_, sequence)| !sequence.is_decoding()) {
            let (pending, row_cost) = (sequence.pending().total(), sequence.kv.plan.row_cost);
            self.prefills.push(Prefill { index, pending, row_cost });
        }
        self.granted.clear();
        self.granted.resize(self.running.len(), 0);
        prefill::share(self.prefill_chunk, &mut self.prefills, |index, rows| self.granted[index] += rows);
        for prefill in &self.prefills {
            self.scheduled[prefill.index] = self.running[prefill.index].rows_within(self.granted[prefill.index]);
        }
    }

    /// Allocates the pages of the scheduled tokens; `false` if there are not enough.
    fn allocate_pages(&mut self) -> bool {
        let pool = &mut self.pool;
        self.running.iter_mut().zip(&self.scheduled).all(|(sequence, &rows)| sequence.allocate(pool, rows))
    }

    fn preempt_last(&mut self) {
        let Some(mut sequence) = self.running.pop() else { return };
        tracing::debug!(tokens = sequence.tokens.len(), "out of KV pages: a sequence is preempted");
        self.release(&mut sequence);
        if let Purpose::PromptLogits(collected) = &mut sequence.purpose {
            collected.clear();
        }
        if self.running.is_empty() {
            // It had the whole cache: there will never be room for it.
            end(&mut sequence, FinishReason::Length);
        } else {
            self.waiting.push_preempted(sequence);
        }
    }

    /// Sends a sequence that is rotated otherwise from now on back to those that wait. What it has generated stays.
    fn start_over(&mut self, mut sequence: Sequence) {
        tracing::debug!(tokens = sequence.tokens.len(), "a sequence is computed again with the rotation of its length");
        self.release(&mut sequence);
        self.waiting.push_preempted(sequence);
    }

    /// Collects the rows of `order[range]`, sequences of one forward pass.
    fn fill_batch(&mut self, range: Range<usize>) {
        let scheduled = &self.scheduled;
        let sequences = || self.order[range.clone()].iter().map(|&index| (&self.running[index], scheduled[index]));
        let Some((first, _)) = sequences().next() else { return };
        let logit_width = sequences().map(|(sequence, _)| sequence.kv.plan.vocab).max().unwrap_or(0);
        let (layer_map, has_long_rope) = first.kv.plan.forward.pass();
        self.batch.begin(layer_map.as_ref(), first.kv.plan.kv_groups, logit_width);
        self.batch.has_long_rope = has_long_rope;
        for (sequence, scheduled) in sequences() {
            let logits = logit_rows_of(sequence, scheduled);
            self.batch.wants_largest_only = is_greedy(sequence);
            for (kv, tokens, rows) in sequence.contexts_with(scheduled) {
                let (start, drafted) = (kv.computed, &sequence.drafts.proposed);
                let mut tokens = &tokens[start..start + rows];
                if !drafted.is_empty() {
                    self.drafted_rows.clear();
                    self.drafted_rows.extend(tokens.iter().chain(drafted));
                    tokens = &self.drafted_rows;
                }
                let ForwardPlan { spans, embeds, .. } = &kv.plan.forward;
                let rows = SequenceRows { tokens, embeds, position: start, pages: &kv.pages, logits };
                self.batch.push_sequence(rows, spans.over(start..start + tokens.len()));
            }
        }
        self.batch.finish();
    }

    /// Processes the results of `order[range]`: publishes full pages, chooses tokens, collects logits.
    fn advance(&mut self, range: Range<usize>) {
        let threads = self.sampling_threads(range.clone());
        self.samplers.resize_with(threads.max(self.samplers.len()), Sampler::default);
        let (mut own_tasks, mut tasks) = (Vec::new(), Vec::new());
        let width = self.batch.logit_width();
        let mut logits = &mut self.logits[..];
        let (mut end, mut first_logit_row) = (0, 0);
        // Those of one pass are in the order of the running sequences.
        let mut indices = self.order[range].iter().peekable();
        for (index, sequence) in self.running.iter_mut().enumerate() {
            if indices.next_if_eq(&&index).is_none() {
                continue;
            }
            let (scheduled, drafted) = (self.scheduled[index], sequence.drafts.proposed.len());
            let logit_rows = logit_rows_of(sequence, scheduled) * sequence.contexts();
            let (own, rest) = std::mem::take(&mut logits).split_at_mut(logit_rows * width);
            logits = rest;
            let first_rows = RowCounts { own: end, negative: end + scheduled.own + drafted };
            end += scheduled.total() + drafted * sequence.contexts();
            let results = StepResults { batch: &self.batch, first_rows, rows: scheduled, logits: own, first_logit_row };
            first_logit_row += logit_rows;
            let list = if calls_the_caller(sequence) { &mut own_tasks } else { &mut tasks };
            list.push((sequence, results));
        }
        let shared = Mutex::new((&mut self.pool, &mut self.stats));
        parallel::for_each(own_tasks, tasks, &mut self.samplers[..threads], |sampler, (sequence, results)| {
            let on_panic = |message: &str| {
                Error::new(ErrorCode::Internal, format!("choosing a token or decoding its text panicked: {message}"))
            };
            let mut stats = StepStats::default();
            let accepted = catch_panic(on_panic, || accept(sampler, sequence, results, &mut stats));
            if let Err(error) = accepted {
                *sampler = Sampler::default();
                sequence.fail(error);
            }
            let (pool, all) = &mut *shared.lock();
            if goes_back(sequence) {
                sequence.compute_last_again(pool);
            }
            sequence.publish(pool);
            all.add(stats);
        });
    }

    /// Number of threads that the tokens of `order[range]` are worth.
    fn sampling_threads(&self, range: Range<usize>) -> usize {
        let most = self.threads.min(range.len());
        let mut first_logit_row = 0;
        let nanoseconds = self.order[range].iter().map(|&index| {
            let sequence = &self.running[index];
            let rows = logit_rows_of(sequence, self.scheduled[index]);
            let is_told = self.batch.largest_logit(first_logit_row).is_some();
            first_logit_row += rows * sequence.contexts();
            match &sequence.purpose {
                Purpose::Generate(decode) if !is_told && !calls_the_caller(sequence) => {
                    sequence.kv.plan.vocab * rows * if decode.sampling.is_greedy() { 1 } else { 4 }
                }
                _ => 0,
            }
        });
        parallel::threads_for(nanoseconds.sum(), most)
    }
}

/// Whether choosing its tokens calls functions of the caller, which the thread that computes the step does.
fn calls_the_caller(sequence: &Sequence) -> bool {
    let Purpose::Generate(decode) = &sequence.purpose else { return false };
    !decode.post_sampling_hooks.is_empty()
        || decode.constraint.as_ref().is_some_and(|constraint| constraint.has_filters())
}

/// Ends a sequence early. Should that panic, it ends with an error.
fn end(sequence: &mut Sequence, reason: FinishReason) {
    let on_panic =
        |message: &str| Error::new(ErrorCode::Internal, format!("decoding the last text panicked: {message}"));
    let ended = catch_panic(on_panic, || {
        sequence.end(reason);
        Ok(())
    });
    if let Err(error) = ended {
        sequence.fail(error);
    }
}

/// Number of rows whose logits a sequence needs after each of its prompts: all of its `scheduled` rows, or from that of the last
/// pending token on.
fn logit_rows_of(sequence: &Sequence, scheduled: RowCounts) -> usize {
    match sequence.purpose {
        Purpose::PromptLogits(_) => scheduled.own,
        Purpose::Generate(_) if scheduled.total() > 0 && scheduled == sequence.pending() => {
            1 + sequence.drafts.proposed.len()
        }
        Purpose::Generate(_) => 0,
    }
}

/// Whether a sequence that generates has lost tokens that were computed.
fn goes_back(sequence: &Sequence) -> bool {
    matches!(sequence.purpose, Purpose::Generate(_)) && sequence.has_gone_back()
}
