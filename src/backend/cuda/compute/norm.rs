//! Norms of rows whose adapters may replace their weight.

use super::{CudaCompute, unknown};
use crate::adapter::batch::AdapterBatch;
use crate::backend::cuda::buffers::{Content, NormRouting, PendingNorm};
use crate::backend::cuda::ops::expand::{ExpandResidual, Projection};
use crate::backend::cuda::ops::norms::NormSegments;
use crate::backend::cuda::ops::rows::NormRows;
use crate::backend::cuda::step::Rows;
use crate::backend::cuda::tables::RoutedNorm;
use crate::backend::{KvDType, NormKind, NormSpec, Write};
use crate::error::Result;

impl CudaCompute {
    /// See [`Compute::norm`](crate::backend::Compute::norm). What replaces is left to who reads it; what is added is computed
    /// by two launches.
    pub(super) fn run_norm(
        &mut self,
        norm: &NormSpec,
        x: usize,
        rows: usize,
        batch: &AdapterBatch,
        out: usize,
        write: Write,
    ) -> Result<()> {
        let width = self.weights.norms.get(norm.id.0 as usize).ok_or_else(|| unknown("a norm"))?.width();
        if x == out {
            return Err(unknown("one buffer for input and output,"));
        }
        self.expect(x, width, rows)?;
        self.expect(out, width, rows)?;
        let routing = self.route_norm(norm.id.0 as usize, rows, batch)?;
        let pending = PendingNorm { source: x, norm: routing, kind: norm.kind, eps: norm.eps, rows };
        match self.is_applied_by_linears(&pending) {
            true => self.rows_with_squares(x, rows)?,
            false => drop(self.plain_rows(x)?),
        }
        match write {
            Write::Replace => {
                self.set_content(out, Content::Normed(pending));
                Ok(())
            }
            Write::Add { .. } if rows == 0 => Ok(()),
            Write::Add { factor } => self.add_norm(pending, out, factor),
        }
    }

    /// Adds the norm of a buffer's rows to those of another.
    fn add_norm(&mut self, pending: PendingNorm, out: usize, factor: f32) -> Result<()> {
        let rows = pending.rows;
        let width = self.buffers[out].width;
        let hidden = self.plain_rows(out)?;
        self.finish_pending()?;
        // The rows as if they were finished products, of rows without adapters.
        let routing = self.step.routing(Rows::First(rows), &AdapterBatch::default(), &self.adapters)?;
        let normed = self.scratch.projected.reserve(&self.device, rows * width * size_of::<f32>())?;
        self.write_normed(pending, normed)?;
        let expand = ExpandResidual {
            projection: Projection { projected: normed, ..Projection::of_outputs([width]) },
            step: self.step.address(routing.offset),
            hidden,
            sum_squares: self.buffers[out].squares(&self.device)?,
            hidden_size: width as u32,
            factor,
        };
        self.kernels.expand(KvDType::F16)?.residual(&expand, rows)?;
        self.set_content(out, Content::Rows { has_squares: true });
        Ok(())
    }

    /// Whether linears apply a norm while they read: an RMS norm without a bias.
    pub(super) fn is_applied_by_linears(&self, pending: &PendingNorm) -> bool {
        pending.kind == NormKind::Rms && !self.weights.norms[pending.norm.norm].form.has_bias()
    }

    /// Writes the norm of a buffer's rows to `out`, `[rows, width]` f32.
    ///
    /// # Errors
    /// `memory_exhausted`; the device failed; as [`Device::module`](crate::backend::cuda::driver::Device::module).
    pub(super) fn write_normed(&mut self, pending: PendingNorm, out: u64) -> Result<()> {
        let PendingNorm { source, norm, kind, eps, rows } = pending;
        if rows == 0 {
            return Ok(());
        }
        let (routed, is_plain) = (self.routed_norm(norm), self.is_applied_by_linears(&pending));
        let source = &mut self.buffers[source];
        let (x, width, row_count) = (source.rows(&self.device)?, source.width as u32, rows as u32);
        if is_plain {
            let sum_squares = source.squares(&self.device)?;
            let norm = NormRows { x, sum_squares, norm: routed, out, rows: row_count, width, eps, padding: 0 };
            return self.kernels.rows.norm(&norm);
        }
        let segments = NormSegments {
            x,
            out,
            norm: routed,
            rows: row_count,
            stride: width,
            first: 0,
            width,
            weight_stride: 0,
            bias_offset: self.bias_offset(norm),
            subtracts_mean: u32::from(kind == NormKind::Layer),
            eps,
        };
        self.kernels.norms()?.segments(&segments, 1, rows)
    }

    /// Values from a norm's weight to its bias, or 0 if it has none.
    pub(super) fn bias_offset(&self, norm: NormRouting) -> u32 {
        let norm = &self.weights.norms[norm.norm];
        if norm.form.has_bias() { norm.width() as u32 } else { 0 }
    }

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
