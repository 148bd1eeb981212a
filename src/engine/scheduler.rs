//! Continuous batching: which sequences are in the next step, with how many tokens, on which pages.
//!
//! Sequences are kept in the order of admission. Each step computes one token of every decoding sequence, and prompt tokens
//! of the others until the step's budget is used up (chunked prefill). When pages run out, the sequence admitted last is
//! preempted: it releases its pages and starts over later, and because of batch invariance it arrives at the same tokens.

use std::collections::VecDeque;
use std::ops::Range;

use super::options::EngineOptions;
use super::output::{FinishReason, no_memory_for_logits};
use super::sampler::Sampler;
use super::sequence::{Purpose, Sequence};
use super::stats::SchedulerStats;
use crate::error::{Error, ErrorCode, Result};
use crate::kv_cache::{PAGE_TOKENS, PagePool, PrefixKey};
use crate::model::batch::{SequenceRows, StepBatch};
use crate::model::{KvStorage, Model};

/// The sequences of an engine and the pages they use.
pub(super) struct Scheduler {
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    pool: PagePool,
    kv: KvStorage,
    max_rows: usize,
    prefill_chunk: usize,
    sampler: Sampler,
    /// Number of tokens of each running sequence in this step.
    scheduled_tokens: Vec<usize>,
    /// Indices of the running sequences, those with the same layer map together.
    order: Vec<usize>,
    batch: StepBatch,
    logits: Vec<f32>,
    tokens_prompt: u64,
    tokens_generated: u64,
}

impl Scheduler {
    pub(super) fn new(kv: KvStorage, options: &EngineOptions) -> Self {
        Self {
            waiting: VecDeque::new(),
            running: Vec::new(),
            pool: PagePool::new(kv.shape().pages, options.prefix_cache),
            kv,
            max_rows: options.max_rows.max(1),
            prefill_chunk: options.prefill_chunk.max(1),
            sampler: Sampler::default(),
            scheduled_tokens: Vec::new(),
            order: Vec::new(),
            batch: StepBatch::default(),
            logits: Vec::new(),
            tokens_prompt: 0,
            tokens_generated: 0,
        }
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
        self.waiting.push_back(sequence);
    }

    /// Forgets every cached prefix.
    pub(super) fn clear_prefixes(&mut self) {
        self.pool.clear_prefixes();
    }

    /// Ends the sequences of cancelled jobs.
    pub(super) fn remove_cancelled(&mut self) {
        let pool = &mut self.pool;
        let mut keep = |sequence: &mut Sequence| {
            if !sequence.job.is_cancelled() {
                return true;
            }
            pool.release(sequence.pages.drain(..));
            sequence.end(FinishReason::Cancelled);
            false
        };
        self.waiting.retain_mut(&mut keep);
        self.running.retain_mut(&mut keep);
    }

    /// Computes one step; `false` if there was nothing to do.
    pub(super) fn step(&mut self, model: &Model) -> Result<bool> {
        self.remove_cancelled();
        self.admit();
        self.schedule();
        if self.running.is_empty() {
            return Ok(false);
        }
        self.order_by_layer_map();
        let mut finished = Vec::new();
        let outcome = self.forward_passes(model, &mut finished);
        finished.sort_unstable();
        for index in finished.into_iter().rev() {
            let mut sequence = self.running.remove(index);
            self.pool.release(sequence.pages.drain(..));
        }
        outcome.map(|()| true).inspect_err(|error| self.fail_all(error))
    }

    /// Runs one forward pass for each layer map; adds the indices of sequences that ended to `finished`.
    fn forward_passes(&mut self, model: &Model, finished: &mut Vec<usize>) -> Result<()> {
        let mut start = 0;
        while start < self.order.len() {
            let end = start + self.same_layer_map(start);
            self.fill_batch(start..end);
            model.forward(&mut self.batch, &[&self.kv], &mut self.logits)?;
            self.advance(start..end, finished);
            start = end;
        }
        Ok(())
    }

    /// Groups sequences by layer map. Nearly always there is one group, those that run the base's own layers.
    fn order_by_layer_map(&mut self) {
        self.order.clear();
        self.order.extend(0..self.running.len());
        // No two keys are equal, so the unstable sort, which needs no buffer, keeps the order of admission.
        let key = |&index: &usize| (&self.running[index].plan.layer_map, index);
        self.order.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
    }

    /// Number of sequences in `order` from `start` on with the same layer map.
    fn same_layer_map(&self, start: usize) -> usize {
        let layer_map = |index: usize| &self.running[index].plan.layer_map;
        let first = layer_map(self.order[start]);
        self.order[start..].iter().take_while(|&&index| layer_map(index) == first).count()
    }

    /// Starts waiting sequences while there are free rows, and free pages for all their tokens so far.
    fn admit(&mut self) {
        while self.running.len() < self.max_rows {
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            // The logits of all positions need all positions computed.
            let (pages, key) = match sequence.purpose {
                Purpose::Generate(_) if sequence.shares_prefixes() => {
                    self.pool.find_prefix(sequence.tokens.len(), |key, page| sequence.extend_key(key, page))
                }
                _ => (Vec::new(), PrefixKey::EMPTY),
            };
            // One spare page for each running sequence, or the new one would soon be preempted.
            let wanted = sequence.pages_for(sequence.tokens.len()) - pages.len() + self.running.len();
            if wanted > self.pool.free() && !self.running.is_empty() {
                self.pool.release(pages);
                self.waiting.push_front(sequence);
                return;
            }
            sequence.computed = pages.len() * PAGE_TOKENS;
            sequence.published = pages.len();
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
        self.scheduled_tokens.clear();
        let mut budget = self.prefill_chunk;
        while self.scheduled_tokens.len() < self.running.len() {
            let index = self.scheduled_tokens.len();
            let pending = self.running[index].pending();
            let tokens = if pending == 1 { 1 } else { pending.min(budget) };
            let end = self.running[index].computed + tokens;
            if !self.allocate_pages(index, self.running[index].pages_for(end)) {
                continue; // the last sequence, perhaps this one, was preempted
            }
            if pending > 1 {
                budget -= tokens;
            }
            self.scheduled_tokens.push(tokens);
        }
    }

    /// Allocates pages until a sequence has `pages`; `false` if a sequence had to be preempted first.
    fn allocate_pages(&mut self, index: usize, pages: usize) -> bool {
        while self.running[index].pages.len() < pages {
            match self.pool.allocate() {
                Some(page) => self.running[index].pages.push(page),
                None => {
                    self.preempt_last();
                    return false;
                }
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
            sequence.end(FinishReason::Length);
        } else {
            self.waiting.push_front(sequence);
        }
    }

    /// Collects the rows of `order[range]`, sequences with the same layer map.
    fn fill_batch(&mut self, range: Range<usize>) {
        let scheduled = &self.scheduled_tokens;
        let sequences = || self.order[range.clone()].iter().map(|&index| (&self.running[index], scheduled[index]));
        let Some((first, _)) = sequences().next() else { return };
        let logit_width = sequences().map(|(sequence, _)| sequence.plan.vocab).max().unwrap_or(0);
        self.batch.begin(first.plan.layer_map.as_ref(), first.plan.kv_groups, logit_width);
        for (sequence, tokens) in sequences() {
            let positions = sequence.computed..sequence.computed + tokens;
            let rows = SequenceRows {
                tokens: &sequence.tokens[positions.clone()],
                position: positions.start,
                pages: &sequence.pages,
                logits: logit_rows_of(sequence, tokens),
            };
            self.batch.push_sequence(rows, sequence.plan.spans.over(positions));
        }
        self.batch.finish();
    }

    /// Processes the results of `order[range]`: publishes full pages, chooses tokens, collects the sequences that ended.
    fn advance(&mut self, range: Range<usize>, finished: &mut Vec<usize>) {
        let mut logits = self.logits.chunks_exact_mut(self.batch.logit_width());
        for &index in &self.order[range] {
            let (sequence, tokens) = (&mut self.running[index], self.scheduled_tokens[index]);
            let rows = logit_rows_of(sequence, tokens);
            sequence.computed += tokens;
            sequence.report_progress();
            publish_full_pages(&mut self.pool, sequence);
            if rows == 0 {
                continue;
            }
            let mut ended = false;
            for row in logits.by_ref().take(rows) {
                let row = &mut row[..sequence.plan.vocab];
                ended = match &sequence.purpose {
                    Purpose::PromptLogits(_) => sequence.accept_prompt_logits(row),
                    Purpose::Generate(_) => {
                        self.tokens_generated += 1;
                        choose(&mut self.sampler, sequence, row).unwrap_or_else(|error| {
                            sequence.fail(error);
                            true
                        })
                    }
                };
            }
            if ended {
                finished.push(index);
            }
        }
    }

    fn fail_all(&mut self, error: &Error) {
        for mut sequence in self.running.drain(..) {
            self.pool.release(sequence.pages.drain(..));
            sequence.fail(error.clone());
        }
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
    while sequence.shares_prefixes() && (sequence.published + 1) * PAGE_TOKENS <= sequence.computed {
        sequence.key = sequence.extend_key(&sequence.key, sequence.published);
        pool.publish(sequence.pages[sequence.published], sequence.key);
        sequence.published += 1;
    }
}

/// Chooses the next token; whether the text ended with it.
fn choose(sampler: &mut Sampler, sequence: &mut Sequence, logits: &mut [f32]) -> Result<bool> {
    let Purpose::Generate(decode) = &sequence.purpose else { return Ok(true) };
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
    let sampled = sampler.sample(logits, &decode.sampling, &sequence.tokens, sequence.prompt_len, decode.logprobs)?;
    sequence.accept(sampled, returned)
}
