//! The rows of one step, collected sequence by sequence.
//!
//! The scheduler, [`SequenceCache`](crate::SequenceCache) and the benchmark all build their steps here:
//!
//! ```text
//! batch.begin(layer_map, kv_groups, logit_width)
//! batch.push_sequence(rows, adapters)       once for each sequence
//! batch.finish()
//! model.forward(&mut batch, …)
//! ```
//!
//! Buffers are kept, so a step no larger than an earlier one allocates nothing.

use std::ops::Range;
use std::sync::Arc;

use half::f16;

use crate::adapter::batch::{AdapterBatch, SlotId};
use crate::backend::{LargestLogit, LogitRows, StepRows};
use crate::error::{Error, ErrorCode, Result};
use crate::kv_cache::pages_for;
use crate::prompt_embeds::{EMBEDS_TOKEN, NO_EMBEDS, SequenceEmbeds};

/// Consecutive tokens of one sequence that a step computes.
#[derive(Clone, Copy, Debug)]
pub struct SequenceRows<'a> {
    /// The tokens; [`EMBEDS_TOKEN`] where there is a vector instead.
    pub tokens: &'a [u32],
    /// The vectors of the sequence in place of tokens.
    pub embeds: &'a SequenceEmbeds,
    /// Position of the first of them in the sequence.
    pub position: usize,
    /// The pages of the sequence in order of position, those of all KV groups interleaved: page `i` of group `g` is
    /// `pages[i * kv_groups + g]`.
    pub pages: &'a [u32],
    /// Number of rows, counted from the last one, whose logits are needed.
    pub logits: usize,
}

/// How large the steps of an engine become.
#[derive(Clone, Copy, Debug)]
pub struct StepLimits {
    /// Sequences of a step, each of which wants the logits of one row.
    pub sequences: usize,
    /// Prompt tokens of a step, beside one token of each sequence.
    pub prompt_tokens: usize,
    /// Positions of a sequence.
    pub max_seq_len: usize,
}

/// The rows of one step. All of them run the base's layers in the same order, with the same rotation.
#[derive(Clone, Debug, Default)]
pub struct StepBatch {
    /// Token of each row.
    pub(super) tokens: Vec<u32>,
    /// The rows whose residual stream begins with vectors: for each stretch the first row, and where its values end in
    /// `embeds`.
    pub(super) embeds_rows: Vec<(usize, usize)>,
    /// Those vectors, one stretch after another.
    pub(super) embeds: Vec<f32>,
    /// The base layer that each layer to run is; `None` runs the base's layers once each.
    pub(super) layer_map: Option<Arc<[u32]>>,
    /// Whether the rows are of sequences that are rotated as long ones; set after `begin`.
    pub(crate) has_long_rope: bool,
    /// Positions and pages of each row, by KV group.
    pub(super) kv_groups: Vec<StepRows>,
    /// Adapters of each row.
    pub(super) adapters: AdapterBatch,
    /// Rows whose logits are needed.
    pub(super) logit_rows: Vec<u32>,
    /// Adapters of each of those rows.
    pub(super) logit_adapters: AdapterBatch,
    /// Whether sequences that are added want, of each row whose logits are needed, the largest one alone; changes between them.
    pub(crate) wants_largest_only: bool,
    /// Whether that is so of each row with logits.
    pub(super) is_greedy: Vec<bool>,
    /// Once computed: what the device tells of each row with logits in place of them; empty if of none.
    pub(super) largest_logits: Vec<Option<LargestLogit>>,
    /// Largest number of logits of a row.
    pub(super) logit_width: usize,
    /// Whether the residual stream behind the last layer is wanted too.
    pub(crate) wants_last_states: bool,
    /// Once computed, if it is: that of every row, `[rows, hidden_size]`.
    pub(crate) last_states: Vec<f32>,
    /// Once computed: the rows that had keys or values beyond the range of the KV cache's element type.
    pub(super) kv_overflows: Vec<u32>,
    /// Once computed: the rows that had activations beyond the range of the type in which the device computes.
    pub(super) activation_overflows: Vec<u32>,
    /// The (slot, weight) lists of all rows, joined, and where each row's list ends.
    entries: Vec<(SlotId, f32)>,
    entry_ends: Vec<usize>,
}

impl StepBatch {
    /// Starts a step without rows. `layer_map` is the base layer of each layer to run (`None`: the base's own layers),
    /// `kv_groups` the number of KV groups whose pages sequences bring, `logit_width` the largest number of logits of a row.
    pub fn begin(&mut self, layer_map: Option<&Arc<[u32]>>, kv_groups: usize, logit_width: usize) {
        self.tokens.clear();
        self.embeds_rows.clear();
        self.embeds.clear();
        self.layer_map = layer_map.cloned();
        self.has_long_rope = false;
        self.kv_groups.resize_with(kv_groups, StepRows::default);
        self.kv_groups.iter_mut().for_each(StepRows::clear);
        self.logit_rows.clear();
        self.wants_largest_only = false;
        self.is_greedy.clear();
        self.largest_logits.clear();
        self.logit_width = logit_width;
        self.wants_last_states = false;
        self.last_states.clear();
        self.kv_overflows.clear();
        self.activation_overflows.clear();
        self.entries.clear();
        self.entry_ends.clear();
    }

    /// Adds the rows of one sequence; `adapters` has the (slot, weight) list of each.
    pub fn push_sequence<'a>(
        &mut self,
        rows: SequenceRows<'_>,
        adapters: impl IntoIterator<Item = &'a [(SlotId, f32)]>,
    ) {
        let positions = rows.position..rows.position + rows.tokens.len();
        let first_row = self.tokens.len();
        self.tokens.extend_from_slice(rows.tokens);
        for (position, values) in rows.embeds.over(positions.clone()) {
            let row = first_row + position - rows.position;
            // A row of the table is read for them too, and then overwritten. Any other such id is refused there.
            let tokens = self.tokens[row..].iter_mut().take_while(|token| **token == EMBEDS_TOKEN);
            tokens.for_each(|token| *token = 0);
            self.embeds.extend_from_slice(values);
            self.embeds_rows.push((row, self.embeds.len()));
        }
        let groups = self.kv_groups.len();
        for (group, step_rows) in self.kv_groups.iter_mut().enumerate() {
            step_rows.push(positions.clone(), rows.pages.iter().copied().skip(group).step_by(groups));
        }
        for list in adapters {
            self.entries.extend_from_slice(list);
            self.entry_ends.push(self.entries.len());
        }
        debug_assert_eq!(self.entry_ends.len(), self.tokens.len(), "each row has one list of adapters");
        let end = self.tokens.len();
        self.logit_rows.extend((end - rows.logits..end).map(|row| row as u32));
        self.is_greedy.resize(self.logit_rows.len(), self.wants_largest_only);
    }

    /// The largest step of the base within some limits. Its rows are the last ones of their sequences, and all pages are page 0.
    pub(super) fn largest(limits: &StepLimits, vocab: usize) -> Self {
        let positions = limits.max_seq_len.max(1);
        let pages = vec![0; pages_for(positions)];
        let mut batch = Self::default();
        batch.begin(None, 1, vocab);
        let mut prompt_tokens = limits.prompt_tokens;
        for _ in 0..limits.sequences.max(1) {
            let rows = (1 + prompt_tokens).min(positions);
            prompt_tokens -= rows - 1;
            let tokens = vec![0; rows];
            let rows_of_sequence = SequenceRows {
                tokens: &tokens,
                embeds: &NO_EMBEDS,
                position: positions - rows,
                pages: &pages,
                logits: 1,
            };
            batch.push_sequence(rows_of_sequence, std::iter::repeat_n(&[][..], rows));
        }
        batch.finish();
        batch
    }

    /// Groups the rows by adapter. Required after the last sequence, before the step is computed.
    pub fn finish(&mut self) {
        let (entries, ends) = (&self.entries, &self.entry_ends);
        let of_row = |row: usize| &entries[row.checked_sub(1).map_or(0, |before| ends[before])..ends[row]];
        self.adapters.rebuild((0..ends.len()).map(of_row));
        self.logit_adapters.rebuild(self.logit_rows.iter().map(|&row| of_row(row as usize)));
    }

    /// That the activations of some rows of the computed step fitted the type in which they were computed, and their keys and
    /// values the KV cache. Those that did not must not be used: they are infinite or NaN.
    ///
    /// # Errors
    /// `activation_overflow` or `kv_overflow`, with the position of the first that did not.
    pub(crate) fn check_overflows(&self, rows: Range<usize>) -> Result<()> {
        let first = |overflows: &[u32]| overflows.iter().copied().find(|&row| rows.contains(&(row as usize)));
        let (code, what, row) = if let Some(row) = first(&self.activation_overflows) {
            (ErrorCode::ActivationOverflow, "an activation is too large for the device's float16", row)
        } else if let Some(row) = first(&self.kv_overflows) {
            (ErrorCode::KvOverflow, "a key or value is too large for the KV cache's float16", row)
        } else {
            return Ok(());
        };
        let position = self.kv_groups.first().and_then(|rows| rows.positions.get(row as usize).copied());
        Err(Error::new(code, what)
            .with_expected(format!("at most {}", f16::MAX))
            .with_found(format!("more at position {}", position.unwrap_or_default())))
    }

    /// The rows whose logits are needed.
    pub(super) fn rows_with_logits(&self) -> LogitRows<'_> {
        LogitRows { rows: &self.logit_rows, adapters: &self.logit_adapters, is_greedy: &self.is_greedy }
    }

    /// Whether the row with logits of that index wants its largest one alone.
    pub(crate) fn is_greedy(&self, logit_row: usize) -> bool {
        self.is_greedy.get(logit_row).copied().unwrap_or(false)
    }

    /// Once computed: the largest logit of the row with logits of that index; `None` if its logits are there instead.
    pub(crate) fn largest_logit(&self, logit_row: usize) -> Option<LargestLogit> {
        self.largest_logits.get(logit_row).copied().flatten()
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether the step has no rows.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Number of logits in a row of the result.
    pub fn logit_width(&self) -> usize {
        self.logit_width
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt_embeds::PromptEmbeds;

    const SQL: &[(SlotId, f32)] = &[(SlotId(3), 1.0)];
    const MIX: &[(SlotId, f32)] = &[(SlotId(7), 0.5), (SlotId(3), 0.25)];

    fn rows<'a>(tokens: &'a [u32], position: usize, pages: &'a [u32], logits: usize) -> SequenceRows<'a> {
        SequenceRows { tokens, embeds: &NO_EMBEDS, position, pages, logits }
    }

    fn weights(batch: &AdapterBatch, row: usize) -> Vec<(SlotId, f32)> {
        batch.of_row(row).iter().map(|&i| (batch.entries()[i].slot, batch.entries()[i].weight)).collect()
    }

    /// Two sequences: a chunk of a prompt whose last row needs logits, and a decoding row.
    fn fill(batch: &mut StepBatch) {
        batch.begin(None, 1, 100);
        batch.push_sequence(rows(&[5, 6, 7], 0, &[4], 1), [&[], SQL, SQL]);
        batch.push_sequence(rows(&[8], 40, &[2, 9], 1), [MIX]);
        batch.finish();
    }

    #[test]
    fn rows_keep_token_position_pages_and_adapters() {
        let mut batch = StepBatch::default();
        fill(&mut batch);
        assert_eq!((batch.len(), batch.is_empty(), batch.logit_width()), (4, false, 100));
        assert_eq!(batch.tokens, [5, 6, 7, 8]);
        let places = &batch.kv_groups[0];
        assert_eq!((&places.positions[..], &places.sequences[..]), (&[0, 1, 2, 40][..], &[0, 0, 0, 1][..]));
        assert_eq!(places.block_tables, [vec![4], vec![2, 9]]);
        assert_eq!([0, 1, 3].map(|row| weights(&batch.adapters, row)), [vec![], SQL.to_vec(), MIX.to_vec()]);
        assert_eq!(batch.logit_rows, [2, 3]);
        assert_eq!([0, 1].map(|row| weights(&batch.logit_adapters, row)), [SQL.to_vec(), MIX.to_vec()]);
    }

    #[test]
    fn rows_of_greedy_sequences_want_their_largest_logit_alone() {
        let mut batch = StepBatch::default();
        for _ in 0..2 {
            batch.begin(None, 1, 100);
            batch.push_sequence(rows(&[5, 6], 0, &[4], 1), [&[][..]; 2]);
            batch.wants_largest_only = true;
            batch.push_sequence(rows(&[7, 8, 9], 0, &[2], 2), [&[][..]; 3]);
            batch.push_sequence(rows(&[7], 0, &[3], 0), [&[][..]]);
            batch.wants_largest_only = false;
            batch.push_sequence(rows(&[7], 0, &[5], 1), [&[][..]]);
            batch.finish();
            let LogitRows { rows, is_greedy, .. } = batch.rows_with_logits();
            assert_eq!((rows, is_greedy), (&[1, 3, 4, 6][..], &[false, true, true, false][..]));
            // Until a device tells more, the logits of all are there.
            assert_eq!(
                [0, 1, 4].map(|row| (batch.is_greedy(row), batch.largest_logit(row))),
                [(false, None), (true, None), (false, None)]
            );
        }
    }

    #[test]
    fn rows_whose_token_is_a_vector_are_overwritten_stretch_by_stretch() {
        let vectors = |values: &[f32]| PromptEmbeds::new(values.to_vec(), 2).expect("whole vectors");
        let mut embeds = SequenceEmbeds::default();
        embeds.push(40, vectors(&[1.0, 2.0, 3.0, 4.0]));
        embeds.push(43, vectors(&[5.0, 6.0]));
        let tokens = [EMBEDS_TOKEN, 9, EMBEDS_TOKEN, 8];
        let of_embeds = SequenceRows { embeds: &embeds, ..rows(&tokens, 41, &[0, 1], 0) };
        let mut batch = StepBatch::default();
        for _ in 0..2 {
            batch.begin(None, 1, 8);
            batch.push_sequence(rows(&[7], 0, &[2], 0), [&[][..]]);
            batch.push_sequence(of_embeds, [&[][..]; 4]);
            assert_eq!(batch.tokens, [7, 0, 9, 0, 8]);
            assert_eq!((&batch.embeds_rows[..], &batch.embeds[..]), (&[(1, 2), (3, 4)][..], &[3.0, 4.0, 5.0, 6.0][..]));
        }
    }

    #[test]
    fn pages_of_several_kv_groups_are_interleaved() {
        let mut batch = StepBatch::default();
        batch.begin(Some(&[0, 0, 1].into()), 2, 8);
        batch.push_sequence(rows(&[1], 33, &[10, 20, 11, 21], 0), [&[][..]]);
        batch.finish();
        assert_eq!(batch.layer_map.as_deref(), Some(&[0, 0, 1][..]));
        let tables: Vec<_> = batch.kv_groups.iter().map(|group| group.block_tables[0].clone()).collect();
        assert_eq!(tables, [[10, 11], [20, 21]]);
        assert!(batch.logit_rows.is_empty());
    }

    #[test]
    fn the_largest_step_has_the_last_rows_of_as_many_sequences_as_its_prompt_tokens_need() {
        let batch = StepBatch::largest(&StepLimits { sequences: 3, prompt_tokens: 60, max_seq_len: 40 }, 100);
        let places = &batch.kv_groups[0];
        assert_eq!((batch.len(), batch.logit_width()), (63, 100));
        assert_eq!([0, 39, 40, 61, 62].map(|row| places.positions[row]), [0, 39, 18, 39, 39]);
        assert_eq!([39, 40, 62].map(|row| places.sequences[row]), [0, 1, 2]);
        assert_eq!(places.block_tables, [vec![0; 2], vec![0; 2], vec![0; 2]]);
        assert_eq!(batch.logit_rows, [39, 61, 62]);
        // No more than the sequences can have.
        let batch = StepBatch::largest(&StepLimits { sequences: 1, prompt_tokens: 60, max_seq_len: 40 }, 100);
        assert_eq!(batch.len(), 40);
    }

    #[test]
    fn a_batch_is_reused_without_allocating() {
        let mut batch = StepBatch::default();
        fill(&mut batch);
        let buffers = |b: &StepBatch| {
            let rows = &b.kv_groups[0];
            let indices = [b.tokens.as_ptr(), b.logit_rows.as_ptr(), rows.positions.as_ptr(), rows.sequences.as_ptr()];
            (indices, b.entries.as_ptr(), b.entry_ends.as_ptr())
        };
        let before = buffers(&batch);
        fill(&mut batch);
        assert_eq!(buffers(&batch), before);
        assert_eq!(batch.tokens, [5, 6, 7, 8]);
    }
}
