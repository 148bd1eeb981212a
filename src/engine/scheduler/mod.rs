//! Continuous batching: which sequences are in the next step, with how many tokens, on which pages.
//!
//! Running sequences are kept in the order of admission. Each step computes one token of every decoding sequence, and prompt
//! tokens of the others until the step's budget is used up (chunked prefill, `prefill.rs`). When pages run out, the sequence
//! admitted last is preempted: it releases its pages and starts over later, and because of batch invariance it arrives at the
//! same tokens.
//!
//! **A sequence fails alone.** What is computed for one of them (choosing a token, text, stops, logits) can only end that one,
//! also by a panic. If a forward pass fails, its sequences are tried in halves, down to the one that cannot be computed: the
//! others get the same bits.

mod prefill;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;

use super::constraint::prepare_during;
use super::options::EngineOptions;
use super::output::{FinishReason, no_memory_for_logits};
use super::sampler::{Context, Sampler};
use super::sequence::{Purpose, Sequence};
use super::stats::SchedulerStats;
use crate::error::{Error, ErrorCode, Result};
use crate::guard::catch_panic;
use crate::kv_cache::{PAGE_TOKENS, PagePool, PrefixKey};
use crate::model::batch::{SequenceRows, StepBatch};
use crate::model::{KvStorage, Model};
use prefill::Prefill;

/// The sequences of an engine and the pages they use.
pub(super) struct Scheduler {
    /// By the number of their job, so in the order of submission.
    waiting: BTreeMap<u64, Sequence>,
    running: Vec<Sequence>,
    pool: PagePool,
    kv: KvStorage,
    max_rows: usize,
    prefill_chunk: usize,
    sampler: Sampler,
    /// Number of tokens of each running sequence in this step.
    scheduled_tokens: Vec<usize>,
    prefills: Vec<Prefill>,
    /// Indices of the running sequences that are in this step, those with the same layer map together.
    order: Vec<usize>,
    batch: StepBatch,
    logits: Vec<f32>,
    tokens_prompt: u64,
    tokens_generated: u64,
}

impl Scheduler {
    /// # Errors
    /// `memory_exhausted`.
    pub(super) fn new(kv: KvStorage, options: &EngineOptions) -> Result<Self> {
        Ok(Self {
            waiting: BTreeMap::new(),
            running: Vec::new(),
            pool: PagePool::new(kv.shape().pages, options.prefix_cache)?,
            kv,
            max_rows: options.max_rows.max(1),
            prefill_chunk: options.prefill_chunk.max(1),
            sampler: Sampler::default(),
            scheduled_tokens: Vec::new(),
            prefills: Vec::new(),
            order: Vec::new(),
            batch: StepBatch::default(),
            logits: Vec::new(),
            tokens_prompt: 0,
            tokens_generated: 0,
        })
    }

    pub(super) fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            kv_pages_total: self.pool.total(),
            kv_pages_free: self.pool.free(),
            prefix_pages: self.pool.prefix_pages(),
            rows_running: self.running.len(),
            rows_waiting: self.waiting.len(),
            tokens_prompt: self.tokens_prompt,
            tokens_generated: self.tokens_generated,
        }
    }

    pub(super) fn queue(&mut self, sequence: Sequence) {
        self.waiting.insert(sequence.job.number(), sequence);
    }

    /// Forgets every cached prefix.
    pub(super) fn clear_prefixes(&mut self) {
        self.pool.clear_prefixes();
    }

    /// Ends the sequence of a cancelled job, if it has not ended yet.
    pub(super) fn cancel(&mut self, job: u64) {
        let running = |sequences: &[Sequence]| sequences.iter().position(|sequence| sequence.job.number() == job);
        let sequence = self.waiting.remove(&job);
        if let Some(mut sequence) = sequence.or_else(|| Some(self.running.remove(running(&self.running)?))) {
            self.pool.release(sequence.pages.drain(..));
            end(&mut sequence, FinishReason::Cancelled);
        }
    }

    /// Ends every sequence with an error and begins anew, with an empty cache.
    pub(super) fn reset(&mut self, error: &Error) {
        let waiting = std::mem::take(&mut self.waiting).into_values();
        for sequence in waiting.chain(std::mem::take(&mut self.running)) {
            sequence.fail(error.clone());
        }
        self.pool.reset();
        self.sampler = Sampler::default();
    }

    /// Computes one step; `false` if there was nothing to do.
    pub(super) fn step(&mut self, model: &Model) -> bool {
        self.admit();
        self.schedule();
        if self.running.is_empty() {
            return false;
        }
        self.order_by_layer_map();
        let mut start = 0;
        while start < self.order.len() {
            let end = start + self.same_layer_map(start);
            self.compute(model, start..end);
            start = end;
        }
        let pool = &mut self.pool;
        self.running.retain_mut(|sequence| {
            let runs = !sequence.job.has_ended();
            if !runs {
                pool.release(sequence.pages.drain(..));
            }
            runs
        });
        true
    }

    /// Computes `order[range]`, sequences with the same layer map. Fails those that cannot be computed on their own.
    fn compute(&mut self, model: &Model, range: Range<usize>) {
        self.fill_batch(range.clone());
        let (order, scheduled) = (&self.order[range.clone()], &self.scheduled_tokens);
        let chooses =
            |index: usize, sequence: &Sequence| order.contains(&index) && logit_rows_of(sequence, scheduled[index]) > 0;
        let chosen_for = self.running.iter_mut().enumerate().filter(|(index, sequence)| chooses(*index, sequence));
        let mut constraints: Vec<_> = chosen_for.filter_map(|(_, sequence)| sequence.constraint_mut()).collect();
        let (kv, batch, logits) = (&self.kv, &mut self.batch, &mut self.logits);
        let outcome = prepare_during(&mut constraints, || model.forward(batch, &[kv], logits));
        let Err(error) = outcome else { return self.advance(range) };
        let first = self.order[range.start];
        let tokens = &mut self.scheduled_tokens[first];
        if range.len() > 1 {
            tracing::debug!(sequences = range.len(), %error, "a step failed: its sequences are tried in halves");
            let middle = range.start + range.len() / 2;
            self.compute(model, range.start..middle);
            self.compute(model, middle..range.end);
        } else if error.code() == ErrorCode::MemoryExhausted && *tokens > 1 {
            *tokens /= 2;
            self.compute(model, range);
        } else {
            self.running[first].fail(error);
        }
    }

    /// Groups the sequences of the step by layer map. Nearly always there is one group, those that run the base's own layers.
    fn order_by_layer_map(&mut self) {
        self.order.clear();
        self.order.extend((0..self.running.len()).filter(|&index| self.scheduled_tokens[index] > 0));
        // No two keys are equal, so the unstable sort, which needs no buffer, keeps the order of admission.
        let key = |&index: &usize| (&self.running[index].plan.forward.layer_map, index);
        self.order.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
    }

    /// Number of sequences in `order` from `start` on with the same layer map.
    fn same_layer_map(&self, start: usize) -> usize {
        let layer_map = |index: usize| &self.running[index].plan.forward.layer_map;
        let first = layer_map(self.order[start]);
        self.order[start..].iter().take_while(|&&index| layer_map(index) == first).count()
    }

    /// Starts waiting sequences while there are free rows, and free pages for all their tokens so far.
    fn admit(&mut self) {
        while self.running.len() < self.max_rows {
            let Some((_, mut sequence)) = self.waiting.pop_first() else { return };
            let (tokens, kv_groups) = (sequence.tokens.len(), sequence.plan.kv_groups);
            // The logits of all positions need all positions computed.
            let (pages, key) = match sequence.purpose {
                Purpose::Generate(_) => {
                    self.pool.find_prefix(tokens, kv_groups, |key, page| sequence.extend_key(key, page))
                }
                Purpose::PromptLogits(_) => (Vec::new(), PrefixKey::EMPTY),
            };
            // One spare page for each running sequence, or the new one would soon be preempted.
            let wanted = sequence.pages_for(tokens) - pages.len() + self.running.len();
            if wanted > self.pool.free() && !self.running.is_empty() {
                self.pool.release(pages);
                return self.queue(sequence);
            }
            sequence.published = pages.len() / kv_groups;
            sequence.computed = sequence.published * PAGE_TOKENS;
            (sequence.pages, sequence.key) = (pages, key);
            if sequence.cached_tokens.is_none() {
                sequence.cached_tokens = Some(sequence.computed);
                self.tokens_prompt += sequence.prompt_len as u64;
            }
            sequence.report_progress();
            self.running.push(sequence);
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
        self.scheduled_tokens.clear();
        self.scheduled_tokens.resize(self.running.len(), 1);
        self.prefills.clear();
        for (index, sequence) in self.running.iter().enumerate().filter(|(_, sequence)| sequence.pending() > 1) {
            self.scheduled_tokens[index] = 0;
            let (pending, row_cost) = (sequence.pending(), sequence.plan.row_cost);
            self.prefills.push(Prefill { index, pending, row_cost });
        }
        prefill::share(self.prefill_chunk, &mut self.prefills, |index, tokens| self.scheduled_tokens[index] += tokens);
    }

    /// Allocates the pages of the scheduled tokens; `false` if there are not enough.
    fn allocate_pages(&mut self) -> bool {
        for (sequence, &tokens) in self.running.iter_mut().zip(&self.scheduled_tokens) {
            let pages = sequence.pages_for(sequence.computed + tokens);
            while sequence.pages.len() < pages {
                let Some(page) = self.pool.allocate() else { return false };
                sequence.pages.push(page);
            }
        }
        true
    }

    fn preempt_last(&mut self) {
        let Some(mut sequence) = self.running.pop() else { return };
        tracing::debug!(tokens = sequence.tokens.len(), "out of KV pages: a sequence is preempted");
        self.pool.release(sequence.pages.drain(..));
        sequence.computed = 0;
        if let Purpose::PromptLogits(collected) = &mut sequence.purpose {
            collected.clear();
        }
        if self.running.is_empty() {
            // It had the whole cache: there will never be room for it.
            end(&mut sequence, FinishReason::Length);
        } else {
            self.queue(sequence);
        }
    }

    /// Collects the rows of `order[range]`, sequences with the same layer map.
    fn fill_batch(&mut self, range: Range<usize>) {
        let scheduled = &self.scheduled_tokens;
        let sequences = || self.order[range.clone()].iter().map(|&index| (&self.running[index], scheduled[index]));
        let Some((first, _)) = sequences().next() else { return };
        let logit_width = sequences().map(|(sequence, _)| sequence.plan.vocab).max().unwrap_or(0);
        self.batch.begin(first.plan.forward.layer_map.as_ref(), first.plan.kv_groups, logit_width);
        for (sequence, tokens) in sequences() {
            let positions = sequence.computed..sequence.computed + tokens;
            let rows = SequenceRows {
                tokens: &sequence.tokens[positions.clone()],
                position: positions.start,
                pages: &sequence.pages,
                logits: logit_rows_of(sequence, tokens),
            };
            self.batch.push_sequence(rows, sequence.plan.forward.spans.over(positions));
        }
        self.batch.finish();
    }

    /// Processes the results of `order[range]`: publishes full pages, chooses tokens, collects logits.
    fn advance(&mut self, range: Range<usize>) {
        let width = self.batch.logit_width();
        let mut logits = &mut self.logits[..];
        let mut end = 0;
        for &index in &self.order[range] {
            let (sequence, tokens) = (&mut self.running[index], self.scheduled_tokens[index]);
            let (own, rest) = std::mem::take(&mut logits).split_at_mut(logit_rows_of(sequence, tokens) * width);
            logits = rest;
            let rows = end..end + tokens;
            end = rows.end;
            if let Err(error) = self.batch.check_overflows(rows) {
                sequence.fail(error);
                continue;
            }
            sequence.computed += tokens;
            sequence.report_progress();
            publish_full_pages(&mut self.pool, sequence);
            let on_panic = |message: &str| {
                Error::new(ErrorCode::Internal, format!("choosing a token or decoding its text panicked: {message}"))
            };
            let accepted = catch_panic(on_panic, || accept(&mut self.sampler, sequence, own, width));
            match accepted {
                Ok(chosen) => self.tokens_generated += u64::from(chosen),
                Err(error) => {
                    self.sampler = Sampler::default();
                    sequence.fail(error);
                }
            }
        }
    }
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

/// Number of rows whose logits a sequence needs: all of its `tokens` scheduled rows, or the last one if it is the last
/// pending token.
fn logit_rows_of(sequence: &Sequence, tokens: usize) -> usize {
    match sequence.purpose {
        Purpose::PromptLogits(_) => tokens,
        Purpose::Generate(_) => usize::from(tokens > 0 && tokens == sequence.pending()),
    }
}

fn publish_full_pages(pool: &mut PagePool, sequence: &mut Sequence) {
    let kv_groups = sequence.plan.kv_groups;
    while (sequence.published + 1) * PAGE_TOKENS <= sequence.computed {
        sequence.key = sequence.extend_key(&sequence.key, sequence.published);
        let first = sequence.published * kv_groups;
        for (group, &page) in sequence.pages[first..first + kv_groups].iter().enumerate() {
            pool.publish(page, sequence.key, group);
        }
        sequence.published += 1;
    }
}

/// Processes the rows of logits of one sequence, `width` apart; whether a token was chosen.
fn accept(sampler: &mut Sampler, sequence: &mut Sequence, logits: &mut [f32], width: usize) -> Result<bool> {
    let vocab = sequence.plan.vocab;
    for row in logits.chunks_exact_mut(width).map(|row| &mut row[..vocab]) {
        match sequence.purpose {
            Purpose::PromptLogits(_) => sequence.accept_prompt_logits(row),
            Purpose::Generate(_) => {
                choose(sampler, sequence, row)?;
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Chooses the next token and sends its chunk.
fn choose(sampler: &mut Sampler, sequence: &mut Sequence, logits: &mut [f32]) -> Result<()> {
    let Purpose::Generate(decode) = &mut sequence.purpose else { return Ok(()) };
    if let Some(id) = logits.iter().position(|logit| !logit.is_finite()) {
        let what = "the logits are not finite, so that no token can be chosen";
        return Err(Error::new(ErrorCode::LogitsNotFinite, what)
            .with_expected("finite numbers")
            .with_found(format!("{} for token {id}", logits[id])));
    }
    let new_tokens = sequence.tokens.len() - sequence.prompt_len;
    let mut returned = Vec::new();
    if decode.returns_logits {
        returned.try_reserve_exact(logits.len()).map_err(|_| no_memory_for_logits())?;
        returned.extend_from_slice(logits);
    }
    if new_tokens < decode.min_new_tokens {
        for &id in decode.stop_ids.iter().chain(&decode.stop_string_ids) {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    let mask = decode.constraint.as_mut().map(|constraint| constraint.mask()).transpose()?;
    let (tokens, prompt_len) = (&sequence.tokens, sequence.prompt_len);
    let context = Context { tokens, prompt_len, mask: mask.as_ref(), random: None };
    let sampled = sampler.sample(logits, &decode.sampling, context, &mut decode.sampler_state, decode.top)?;
    sequence.accept(sampled, returned)
}
