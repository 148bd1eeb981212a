//! Keys and values that a [`SequenceCache`] holds, read as floats.

use std::ops::Range;

use super::sequence_cache::SequenceCache;
use crate::backend::KvStates;
use crate::error::{Error, ErrorCode, Result};

impl SequenceCache {
    /// Layers that have keys and values here, in the order in which they run: those of the model, or more where a layer map has
    /// more.
    pub fn layers(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.layers).fold(self.shape.layers, usize::max)
    }

    /// Number of leading tokens of a sequence whose keys and values in a layer are here; 0 where there is no such sequence or
    /// layer.
    pub fn computed_tokens(&self, sequence: usize, layer: usize) -> usize {
        let sequence = self.sequences.get(sequence).filter(|sequence| layer < sequence.layers);
        sequence.map_or(0, |sequence| sequence.computed)
    }

    /// Copies of the keys and values of a layer at some positions of a sequence, as attention reads them.
    ///
    /// # Errors
    /// `request_invalid`: they are not computed; `memory_exhausted`; the device failed.
    pub fn read_states(&self, sequence: usize, layer: usize, positions: Range<usize>) -> Result<KvStates> {
        let computed = self.computed_tokens(sequence, layer);
        if positions.is_empty() || positions.end > computed {
            return Err(not_computed(computed, format!("positions {positions:?} of layer {layer}")));
        }
        let (group, layer) = (layer / self.shape.layers, layer % self.shape.layers);
        self.kv_groups[group].read(layer, &self.sequences[sequence].pages, positions)
    }
}

pub(super) fn no_such_sequence() -> Error {
    Error::new(ErrorCode::RequestInvalid, "there is no such sequence in the cache")
}

pub(super) fn not_computed(computed: usize, found: String) -> Error {
    Error::new(ErrorCode::RequestInvalid, "the keys and values are not computed")
        .with_expected(format!("some of the first {computed} positions"))
        .with_found(found)
}
