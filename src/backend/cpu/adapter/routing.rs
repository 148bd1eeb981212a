//! Routing: which resident adapters act on which rows of a step.

use std::ops::Range;

use super::resident::Adapter;
use crate::adapter::batch::AdapterBatch;
use crate::backend::NormSpec;
use crate::backend::cpu::kernels::rowwise::RowNorm;
use crate::error::{Error, ErrorCode, Result};

/// Which resident adapters act on which rows.
#[derive(Clone, Copy)]
pub(crate) struct Routing<'a> {
    batch: &'a AdapterBatch,
    adapters: &'a [Option<Adapter>],
}

impl<'a> Routing<'a> {
    /// The routing of a step of that many rows.
    ///
    /// # Errors
    /// `internal` if it names an empty slot, which is never computed as the base, or a row beyond the step's.
    pub(crate) fn new(batch: &'a AdapterBatch, adapters: &'a [Option<Adapter>], rows: usize) -> Result<Self> {
        let resident = |slot: usize| adapters.get(slot).is_some_and(Option::is_some);
        if let Some(segment) = batch.segments().iter().find(|s| !resident(s.slot.0 as usize)) {
            return Err(Error::new(ErrorCode::Internal, format!("slot {} holds no adapter", segment.slot.0)));
        }
        match batch.entries().iter().find(|entry| entry.row as usize >= rows) {
            Some(entry) => Err(Error::new(ErrorCode::Internal, "the routing names a row that the step does not have")
                .with_expected(format!("below {rows}"))
                .with_found(entry.row)),
            None => Ok(Self { batch, adapters }),
        }
    }

    /// Whether no row has an adapter.
    pub(crate) fn is_base_only(&self) -> bool {
        self.batch.is_base_only()
    }

    /// Which repeat of its layer the step is in.
    pub(crate) fn repeat(&self) -> u32 {
        self.batch.repeat()
    }

    /// Those of a segment's entries that act on some of the rows.
    pub(crate) fn entries_of_rows(&self, segment: Range<usize>, rows: &Range<usize>) -> Range<usize> {
        // The entries of a slot are sorted by row.
        let below = |row: usize| {
            let entries = &self.batch.entries()[segment.clone()];
            segment.start + entries.partition_point(|entry| (entry.row as usize) < row)
        };
        below(rows.start)..below(rows.end)
    }

    /// The row of an entry.
    pub(crate) fn row_of(&self, entry: usize) -> usize {
        self.batch.entries()[entry].row as usize
    }

    /// The slot of an entry's adapter.
    pub(crate) fn slot_of(&self, entry: usize) -> usize {
        self.batch.entries()[entry].slot.0 as usize
    }

    /// The adapter in a slot.
    pub(crate) fn adapter(&self, slot: usize) -> Option<&'a Adapter> {
        self.adapters.get(slot)?.as_ref()
    }

    /// Entry, weight and adapter of each adapter of a row, in the order of its request.
    pub(crate) fn of_row(
        &self,
        row: usize,
    ) -> impl DoubleEndedIterator<Item = (usize, f32, &'a Adapter)> + Clone + use<'a> {
        let Self { batch, adapters } = *self;
        let entries = if batch.is_base_only() { &[] } else { batch.of_row(row) };
        entries.iter().filter_map(move |&index| {
            let entry = batch.entries()[index];
            Some((index, entry.weight, adapters.get(entry.slot.0 as usize)?.as_ref()?))
        })
    }

    /// Number of distinct adapters.
    pub(crate) fn segment_count(&self) -> usize {
        self.batch.segments().len()
    }

    /// Slot, adapter and entries of each distinct adapter.
    pub(crate) fn segments(&self) -> impl Iterator<Item = (usize, &'a Adapter, Range<usize>)> + use<'a> {
        let Self { batch, adapters } = *self;
        batch.segments().iter().filter_map(move |segment| {
            let slot = segment.slot.0 as usize;
            Some((slot, adapters.get(slot)?.as_ref()?, segment.entries.clone()))
        })
    }
}

/// A norm, with what adapters replace of it.
#[derive(Clone, Copy)]
pub(crate) struct RoutedNorm<'a> {
    spec: NormSpec,
    /// Channels that it has weights for.
    pub(crate) width: usize,
    base: &'a [f32],
    norm: usize,
    routing: Routing<'a>,
    is_replaced: bool,
}

impl<'a> RoutedNorm<'a> {
    /// A norm over `width` channels, whose packed values are `base`.
    pub(crate) fn new(routing: Routing<'a>, spec: NormSpec, width: usize, base: &'a [f32]) -> Self {
        let (norm, repeat) = (spec.id.0 as usize, routing.repeat());
        let is_replaced = routing.segments().any(|(_, adapter, _)| adapter.norm(norm, repeat).is_some());
        Self { spec, width, base, norm, routing, is_replaced }
    }

    /// As it acts on a row.
    pub(crate) fn of_row(&self, row: usize) -> RowNorm<'a> {
        let (weight, bias) = self.values_of_row(row).split_at(self.width);
        RowNorm { kind: self.spec.kind, eps: self.spec.eps, weight, bias }
    }

    /// Its packed values for a row, `[weights, biases]` or weights alone.
    fn values_of_row(&self, row: usize) -> &'a [f32] {
        if !self.is_replaced {
            return self.base;
        }
        let repeat = self.routing.repeat();
        let replaced = self.routing.of_row(row).rev().find_map(|(.., adapter)| adapter.norm(self.norm, repeat));
        replaced.unwrap_or(self.base)
    }
}
