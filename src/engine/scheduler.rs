//! Continuous batching: who takes part in the next step, with how many tokens, on which pages.
//!
//! Sequences stand in the order of their admission. Each step takes one token of every sequence that decodes, and prompt
//! tokens of the others until the step's budget is full. When pages run out the sequence admitted last gives its pages
//! back and starts over later: since rows are independent of their batch it arrives at the same tokens.

use std::collections::VecDeque;

use super::EngineOptions;
use super::request::FinishReason;
use super::sampler::Sampler;
use super::sequence::{Purpose, Sequence};
use crate::error::{Error, Result};
use crate::kv::{KvPool, PAGE_TOKENS, pages_for};
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
        self.fill_batch();
        if let Err(error) = model.forward(&self.batch, &self.kv, &mut self.logits) {
            self.fail_all(&error);
            return Err(error);
        }
        self.advance(model.config().vocab_size);
        Ok(true)
    }

    /// Lets waiting sequences run while rows and pages suffice for their whole text so far.
    fn admit(&mut self) {
        while self.running.len() < self.max_rows {
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            // Logits of all positions need all positions computed.
            let (pages, key) = match sequence.purpose {
                Purpose::Generate(_) => self.pool.find_prefix(sequence.root, &sequence.tokens),
                Purpose::PromptLogits(_) => (Vec::new(), sequence.root),
            };
            // A page to spare for each sequence that runs, or the newcomer would soon have to leave again.
            let wanted = pages_for(sequence.tokens.len()) - pages.len() + self.running.len();
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
            if !self.give_pages(index, pages_for(end)) {
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

    fn fill_batch(&mut self) {
        let batch = &mut self.batch;
        batch.tokens.clear();
        batch.rows.positions.clear();
        batch.rows.sequences.clear();
        batch.rows.block_tables.resize_with(self.running.len(), Vec::new);
        batch.logit_rows.clear();
        for (index, (sequence, &take)) in self.running.iter().zip(&self.takes).enumerate() {
            let range = sequence.computed..sequence.computed + take;
            batch.tokens.extend_from_slice(&sequence.tokens[range.clone()]);
            batch.rows.positions.extend(range.clone().map(|position| position as u32));
            batch.rows.sequences.extend(range.clone().map(|_| index as u32));
            let table = &mut batch.rows.block_tables[index];
            table.clear();
            table.extend_from_slice(&sequence.pages);
            let wanted = logit_rows_of(sequence, take);
            let rows = batch.tokens.len();
            batch.logit_rows.extend((rows - wanted..rows).map(|row| row as u32));
        }
        let sequences = || self.running.iter().zip(&self.takes);
        batch.adapters.rebuild(sequences().flat_map(|(s, &take)| std::iter::repeat_n(&s.mixture[..], take)));
        batch
            .logit_adapters
            .rebuild(sequences().flat_map(|(s, &take)| std::iter::repeat_n(&s.mixture[..], logit_rows_of(s, take))));
    }

    /// Takes the step's results in: pages that became full are published, tokens chosen, ended sequences leave.
    fn advance(&mut self, vocab: usize) {
        let mut logits = &mut self.logits[..];
        let mut finished = Vec::new();
        for (index, (sequence, &take)) in self.running.iter_mut().zip(&self.takes).enumerate() {
            let rows = logit_rows_of(sequence, take);
            let (mine, rest) = logits.split_at_mut(rows * vocab);
            logits = rest;
            sequence.computed += take;
            sequence.report_progress();
            publish_full_pages(&mut self.pool, sequence);
            if rows == 0 {
                continue;
            }
            let ended = match &sequence.purpose {
                Purpose::PromptLogits(_) => sequence.accept_prompt_logits(mine),
                Purpose::Generate(_) => {
                    self.tokens_generated += 1;
                    choose(&mut self.sampler, sequence, mine).unwrap_or_else(|error| {
                        sequence.fail(error);
                        true
                    })
                }
            };
            if ended {
                finished.push(index);
            }
        }
        for index in finished.into_iter().rev() {
            let mut sequence = self.running.remove(index);
            self.pool.release(sequence.pages.drain(..));
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
    while (sequence.published + 1) * PAGE_TOKENS <= sequence.computed {
        let start = sequence.published * PAGE_TOKENS;
        sequence.key = sequence.key.extend(&sequence.tokens[start..start + PAGE_TOKENS]);
        pool.publish(sequence.pages[sequence.published], sequence.key);
        sequence.published += 1;
    }
}

fn choose(sampler: &mut Sampler, sequence: &mut Sequence, logits: &mut [f32]) -> Result<bool> {
    let Purpose::Generate(generation) = &sequence.purpose else { return Ok(true) };
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
