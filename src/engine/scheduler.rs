//! Continuous batching: who takes part in the next step, with how many tokens, on which pages.
//!
//! Sequences stand in the order of their admission. Each step takes one token of every sequence that decodes, and prompt
//! tokens of the others until the step's budget is full. When pages run out the sequence admitted last gives its pages
//! back and starts over later: since rows are independent of their batch it arrives at the same tokens.

use std::collections::VecDeque;
use std::ops::Range;

use super::EngineOptions;
use super::request::FinishReason;
use super::sampler::Sampler;
use super::sequence::{Purpose, Sequence};
use crate::backend::StepRows;
use crate::error::{Error, ErrorCode, Result};
use crate::kv::{KvPool, PAGE_TOKENS, PrefixKey};
use crate::model::{ForwardBatch, KvStorage, Model};

/// The sequences of an engine and the pages they use.
pub(super) struct Scheduler {
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    pool: KvPool,
    kv: KvStorage,
    max_rows: usize,
    prefill_chunk: usize,
    sampler: Sampler,
    /// Tokens that each running sequence takes in this step.
    takes: Vec<usize>,
    /// The running sequences in the order of the step: those that walk the same stack of layers stand together.
    order: Vec<usize>,
    batch: ForwardBatch,
    logits: Vec<f32>,
    pub tokens_prompt: u64,
    pub tokens_generated: u64,
}

impl Scheduler {
    pub(super) fn new(kv: KvStorage, options: &EngineOptions) -> Self {
        Self {
            waiting: VecDeque::new(),
            running: Vec::new(),
            pool: KvPool::new(kv.shape().pages, options.prefix_cache),
            kv,
            max_rows: options.max_rows.max(1),
            prefill_chunk: options.prefill_chunk.max(1),
            sampler: Sampler::default(),
            takes: Vec::new(),
            order: Vec::new(),
            batch: ForwardBatch::default(),
            logits: Vec::new(),
            tokens_prompt: 0,
            tokens_generated: 0,
        }
    }

    pub(super) fn pool(&self) -> &KvPool {
        &self.pool
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn queue(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// Forgets every cached prefix.
    pub(super) fn clear_prefixes(&mut self) {
        self.pool.clear_prefixes();
    }

    /// Ends sequences whose jobs were cancelled.
    pub(super) fn sweep_cancelled(&mut self) {
        let pool = &mut self.pool;
        let mut keep = |sequence: &mut Sequence| {
            if !sequence.shared.is_cancelled() {
                return true;
            }
            pool.release(sequence.pages.drain(..));
            sequence.end(FinishReason::Cancelled);
            false
        };
        self.waiting.retain_mut(&mut keep);
        self.running.retain_mut(&mut keep);
    }

    /// Computes one step; `false` if no sequence has anything to do.
    pub(super) fn step(&mut self, model: &Model) -> Result<bool> {
        self.sweep_cancelled();
        self.admit();
        self.plan();
        if self.running.is_empty() {
            return Ok(false);
        }
        self.order_by_stack();
        let mut finished = Vec::new();
        let outcome = self.walk_stacks(model, &mut finished);
        finished.sort_unstable();
        for index in finished.into_iter().rev() {
            let mut sequence = self.running.remove(index);
            self.pool.release(sequence.pages.drain(..));
        }
        outcome.map(|()| true).inspect_err(|error| self.fail_all(error))
    }

    /// A pass for each stack of layers; the sequences that ended in it are `finished`.
    fn walk_stacks(&mut self, model: &Model, finished: &mut Vec<usize>) -> Result<()> {
        let mut start = 0;
        while start < self.order.len() {
            let end = start + self.same_stack(start);
            self.fill_batch(start..end);
            model.forward(&mut self.batch, &[&self.kv], &mut self.logits)?;
            self.advance(start..end, finished);
            start = end;
        }
        Ok(())
    }

    /// Nearly always all sequences walk the base's own layers, in one pass; each further stack is a pass of its own.
    fn order_by_stack(&mut self) {
        self.order.clear();
        self.order.extend(0..self.running.len());
        // No two keys are equal, so the sort that needs no buffer keeps the order of admission.
        let key = |&index: &usize| (&self.running[index].walk.layers, index);
        self.order.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
    }

    /// How many sequences from that place in the order on walk the same layers.
    fn same_stack(&self, start: usize) -> usize {
        let layers = |place: &usize| &self.running[*place].walk.layers;
        self.order[start..].iter().take_while(|place| layers(place) == layers(&self.order[start])).count()
    }

    /// Lets waiting sequences run while rows and pages suffice for their whole text so far.
    fn admit(&mut self) {
        while self.running.len() < self.max_rows {
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            // Logits of all positions need all positions computed.
            let (pages, key) = match sequence.purpose {
                Purpose::Generate(_) if sequence.shares_prefixes() => {
                    self.pool.find_prefix(sequence.tokens.len(), |key, page| sequence.extend_key(key, page))
                }
                _ => (Vec::new(), PrefixKey::EMPTY),
            };
            // A page to spare for each sequence that runs, or the newcomer would soon have to leave again.
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

    /// Decides how many tokens each running sequence takes in, and gives it the pages for them.
    fn plan(&mut self) {
        self.takes.clear();
        let mut budget = self.prefill_chunk;
        while self.takes.len() < self.running.len() {
            let index = self.takes.len();
            let pending = self.running[index].pending();
            let take = if pending == 1 { 1 } else { pending.min(budget) };
            let end = self.running[index].computed + take;
            if !self.give_pages(index, self.running[index].pages_for(end)) {
                continue; // the last sequence left: perhaps this one
            }
            if pending > 1 {
                budget -= take;
            }
            self.takes.push(take);
        }
    }

    /// Brings a sequence to that many pages; `false` if another one, or it itself, had to leave first.
    fn give_pages(&mut self, index: usize, pages: usize) -> bool {
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
        tracing::debug!(tokens = sequence.tokens.len(), "out of pages: a sequence starts over later");
        self.pool.release(sequence.pages.drain(..));
        sequence.computed = 0;
        if let Purpose::PromptLogits(collected) = &mut sequence.purpose {
            collected.clear();
        }
        if self.running.is_empty() {
            // It had the whole cache: nothing will ever make room.
            sequence.end(FinishReason::Length);
        } else {
            self.waiting.push_front(sequence);
        }
    }

    /// The rows of the sequences at those places of the order, which walk the same layers.
    fn fill_batch(&mut self, places: Range<usize>) {
        let sequences = || self.order[places.clone()].iter().map(|&index| (&self.running[index], self.takes[index]));
        let batch = &mut self.batch;
        batch.clear();
        let Some((first, _)) = sequences().next() else { return };
        batch.layers = first.walk.layers.clone();
        batch.kv_groups.resize_with(first.walk.kv_groups, StepRows::default);
        batch.logit_width = sequences().map(|(sequence, _)| sequence.walk.vocab).max().unwrap_or(0);
        for (sequence, take) in sequences() {
            let range = sequence.computed..sequence.computed + take;
            batch.tokens.extend_from_slice(&sequence.tokens[range.clone()]);
            for (kv_group, rows) in batch.kv_groups.iter_mut().enumerate() {
                rows.push(
                    range.clone(),
                    sequence.pages.iter().copied().skip(kv_group).step_by(sequence.walk.kv_groups),
                );
            }
            let wanted = logit_rows_of(sequence, take);
            let rows = batch.tokens.len();
            batch.logit_rows.extend((rows - wanted..rows).map(|row| row as u32));
        }
        batch.adapters.rebuild(sequences().flat_map(|(s, take)| s.walk.spans.over(s.computed..s.computed + take)));
        batch.logit_adapters.rebuild(sequences().flat_map(|(s, take)| {
            let end = s.computed + take;
            s.walk.spans.over(end - logit_rows_of(s, take)..end)
        }));
    }

    /// Takes the results of those places in: pages that became full are published, tokens chosen, ended sequences told.
    fn advance(&mut self, places: Range<usize>, finished: &mut Vec<usize>) {
        let mut logits = self.logits.chunks_exact_mut(self.batch.logit_width);
        for &index in &self.order[places] {
            let (sequence, take) = (&mut self.running[index], self.takes[index]);
            let rows = logit_rows_of(sequence, take);
            sequence.computed += take;
            sequence.report_progress();
            publish_full_pages(&mut self.pool, sequence);
            if rows == 0 {
                continue;
            }
            let mut ended = false;
            for row in logits.by_ref().take(rows) {
                let row = &mut row[..sequence.walk.vocab];
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

/// Rows of a step whose logits a sequence wants: all, or the last if it completes what is pending.
fn logit_rows_of(sequence: &Sequence, take: usize) -> usize {
    match sequence.purpose {
        Purpose::PromptLogits(_) => take,
        Purpose::Generate(_) => usize::from(take > 0 && take == sequence.pending()),
    }
}

fn publish_full_pages(pool: &mut KvPool, sequence: &mut Sequence) {
    while sequence.shares_prefixes() && (sequence.published + 1) * PAGE_TOKENS <= sequence.computed {
        sequence.key = sequence.extend_key(&sequence.key, sequence.published);
        pool.publish(sequence.pages[sequence.published], sequence.key);
        sequence.published += 1;
    }
}

fn choose(sampler: &mut Sampler, sequence: &mut Sequence, logits: &mut [f32]) -> Result<bool> {
    let Purpose::Generate(generation) = &sequence.purpose else { return Ok(true) };
    if let Some(id) = logits.iter().position(|logit| !logit.is_finite()) {
        let what = "the logits are not finite, so that no token can be chosen";
        return Err(Error::new(ErrorCode::LogitsNotFinite, what)
            .with_expected("finite numbers")
            .with_found(format!("{} for token {id}", logits[id])));
    }
    let new_tokens = sequence.tokens.len() - sequence.prompt_len;
    let returned = if generation.returns_logits { logits.to_vec() } else { Vec::new() };
    if new_tokens < generation.min_new_tokens {
        for &id in &generation.stop_ids {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    let sampled =
        sampler.sample(logits, &generation.sampling, &sequence.tokens, sequence.prompt_len, generation.logprobs);
    sequence.accept(sampled, returned)
}
