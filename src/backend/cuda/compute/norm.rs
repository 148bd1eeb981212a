//! Norms of rows whose adapters may replace their weight.

use super::{CudaCompute, unknown};
use crate::adapter::batch::AdapterBatch;
use crate::backend::cuda::buffers::NormRouting;
use crate::backend::cuda::step::Rows;
use crate::backend::cuda::tables::RoutedNorm;
use crate::error::Result;

impl CudaCompute {
    /// Finds out whether an adapter of the first rows replaces the weight of a norm.
    ///
    /// # Errors
    /// `internal` if there is no such norm or slot; `memory_exhausted`; the device failed.
    pub(super) fn route_norm(&mut self, norm: usize, rows: usize, batch: &AdapterBatch) -> Result<NormRouting> {
        if norm >= self.weights.norms.len() {
            return Err(unknown("a norm"));
        }
        let slot_norm = batch.repeat() as usize * self.weights.norms.len() + norm;
        let routing = self.step.routing(Rows::First(rows), batch, &self.adapters)?;
        let mut adapters =
            batch.segments().iter().filter_map(|segment| self.adapters.get(segment.slot.0 as usize)?.as_ref());
        let is_replaced = adapters.any(|adapter| adapter.replaces_norm(slot_norm));
        Ok(NormRouting { norm, slot_norm, routing: is_replaced.then_some(routing) })
    }

    /// As kernels read it, until another table is added to the step.
    pub(super) fn routed_norm(&self, norm: NormRouting) -> RoutedNorm {
        RoutedNorm {
            weight: self.weights.norms[norm.norm].memory.address(),
            step: norm.routing.map_or(0, |routing| self.step.address(routing.offset)),
            norm: norm.slot_norm as u32,
            padding: 0,
        }
    }
}
