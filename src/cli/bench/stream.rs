//! The sequences of a benchmark: fed with random tokens, straight through the model's forward pass.

use std::ops::Range;
use std::sync::Arc;

use crate::adapter::batch::SlotId;
use crate::adapter::mixture::Mixture;
use crate::backend::KvDType;
use crate::error::{Error, ErrorCode, Result};
use crate::kv_cache::pages_for;
use crate::model::batch::{SequenceRows, StepBatch};
use crate::model::{KvStorage, Model};
use crate::prompt_embeds::NO_EMBEDS;

/// Which mixture each sequence runs with: sequence i has mixture `i % mixtures.len()`.
pub(super) struct Assignment {
    mixtures: Vec<Mixture>,
    entries: Vec<Vec<(SlotId, f32)>>,
}

impl Assignment {
    /// # Errors
    /// `request_invalid` if the mixtures run different layers, which one step cannot do.
    pub(super) fn new(mixtures: Vec<Mixture>) -> Result<Self> {
        if mixtures.windows(2).any(|pair| pair[0].layers() != pair[1].layers()) {
            let what = "the adapters run different layers (layer_replication), so one step cannot serve them all";
            return Err(Error::new(ErrorCode::RequestInvalid, what));
        }
        let entries = mixtures.iter().map(Mixture::entries).collect();
        Ok(Self { mixtures, entries })
    }

    /// Every sequence runs the base model.
    pub(super) fn base() -> Self {
        Self { mixtures: vec![Mixture::default()], entries: vec![Vec::new()] }
    }

    fn layers(&self) -> Option<&Arc<[u32]>> {
        self.mixtures[0].layers()
    }

    pub(super) fn kv_groups(&self, model: &Model) -> usize {
        model.kv_groups_of(self.layers())
    }

    fn of_sequence(&self, sequence: usize) -> &[(SlotId, f32)] {
        &self.entries[sequence % self.entries.len()]
    }
}

/// What [`Stream::new`] makes.
pub(super) struct StreamOptions {
    pub sequences: usize,
    /// Largest number of tokens in each sequence.
    pub tokens: usize,
    pub kv_dtype: KvDType,
    /// Largest number of prompt tokens in one step.
    pub prefill_chunk: usize,
}

/// Sequences that advance together, each with KV pages of its own.
pub(super) struct Stream<'a> {
    model: &'a Arc<Model>,
    kv: KvStorage,
    sequences: usize,
    kv_groups: usize,
    /// Pages of one sequence in one KV group.
    pages: usize,
    /// Prompt tokens in one step.
    prefill_chunk: usize,
    batch: StepBatch,
    logits: Vec<f32>,
    /// Tokens and pages of one sequence in a step; kept, so that a step allocates nothing.
    step_tokens: Vec<u32>,
    step_pages: Vec<u32>,
    random: u32,
}

impl<'a> Stream<'a> {
    /// Storage for the sequences.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub(super) fn new(model: &'a Arc<Model>, kv_groups: usize, options: &StreamOptions) -> Result<Self> {
        let &StreamOptions { sequences, tokens, kv_dtype, prefill_chunk } = options;
        let pages = pages_for(tokens);
        let kv = model.create_kv(sequences * kv_groups * pages, kv_dtype)?;
        Ok(Self {
            model,
            kv,
            sequences,
            kv_groups,
            pages,
            prefill_chunk,
            batch: StepBatch::default(),
            logits: Vec::new(),
            step_tokens: Vec::new(),
            step_pages: Vec::new(),
            random: 1,
        })
    }

    /// Computes positions `0..tokens` of every sequence, in steps of as many rows as the engine's with the same chunk.
    pub(super) fn prefill(&mut self, adapters: &Assignment, tokens: usize) -> Result<()> {
        let chunk = self.prefill_chunk;
        let sequences_per_step = (chunk / tokens.max(1)).max(1);
        for first in (0..self.sequences).step_by(sequences_per_step) {
            let sequences = first..(first + sequences_per_step).min(self.sequences);
            for start in (0..tokens).step_by(chunk) {
                let positions = start..(start + chunk).min(tokens);
                let is_last = positions.end == tokens;
                self.feed(adapters, sequences.clone(), positions, is_last)?;
            }
        }
        Ok(())
    }

    /// Computes one position after another, in all sequences at once, with logits.
    pub(super) fn decode(&mut self, adapters: &Assignment, mut positions: Range<usize>) -> Result<()> {
        positions.try_for_each(|position| self.feed(adapters, 0..self.sequences, position..position + 1, true))
    }

    /// One step over the same positions of some sequences; if wanted, with the logits of each sequence's last row.
    fn feed(
        &mut self,
        adapters: &Assignment,
        sequences: Range<usize>,
        positions: Range<usize>,
        wants_logits: bool,
    ) -> Result<()> {
        let vocab = self.model.config().vocab_size;
        let kv_groups = adapters.kv_groups(self.model);
        let width = adapters.mixtures.iter().map(|mixture| mixture.head_rows(vocab)).max().unwrap_or(vocab);
        self.batch.begin(adapters.layers(), kv_groups, width);
        self.batch.has_long_rope = self.model.config().has_long_rope(positions.end);
        // As greedy requests do.
        self.batch.wants_largest_only = true;
        for sequence in sequences {
            self.step_tokens.clear();
            for _ in positions.clone() {
                // Numerical Recipes' linear congruential generator: any spread of ids will do.
                self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                self.step_tokens.push((self.random >> 8) % vocab as u32);
            }
            let first = sequence * self.kv_groups * self.pages;
            self.step_pages.clear();
            self.step_pages.extend((first..first + kv_groups * self.pages).map(|page| page as u32));
            let rows = SequenceRows {
                tokens: &self.step_tokens,
                embeds: &NO_EMBEDS,
                position: positions.start,
                pages: &self.step_pages,
                logits: usize::from(wants_logits),
            };
            self.batch.push_sequence(rows, std::iter::repeat_n(adapters.of_sequence(sequence), positions.len()));
        }
        self.batch.finish();
        self.model.forward(&mut self.batch, &[&self.kv], &mut self.logits)
    }
}
