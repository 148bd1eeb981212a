//! Norms of rows whose adapters may replace their weight.

use super::{CudaCompute, uncomputed, unknown};
use crate::adapter::batch::AdapterBatch;
use crate::backend::cuda::buffers::{Content, NormRouting, PendingNorm};
use crate::backend::cuda::ops::expand::{ExpandResidual, Projection};
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
        if norm.kind != NormKind::Rms {
            return Err(uncomputed("a layer norm"));
        }
        if x == out {
            return Err(unknown("one buffer for input and output,"));
        }
        self.expect(x, width, rows)?;
        self.expect(out, width, rows)?;
        let pending =
            PendingNorm { source: x, norm: self.route_norm(norm.id.0 as usize, rows, batch)?, eps: norm.eps, rows };
        self.rows_with_squares(x, rows)?;
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
        let PendingNorm { source, norm, eps, rows } = pending;
        let width = self.buffers[out].width;
        let hidden = self.plain_rows(out)?;
        self.finish_pending()?;
        // The rows as if they were finished products, of rows without adapters.
        let routing = self.step.routing(Rows::First(rows), &AdapterBatch::default(), &self.adapters)?;
        let normed = self.scratch.projected.reserve(&self.device, rows * width * size_of::<f32>())?;
        let norm = self.routed_norm(norm);
        let source = &mut self.buffers[source];
        let (x, sum_squares) = (source.rows(&self.device)?, source.squares(&self.device)?);
        let (row_count, columns) = (rows as u32, width as u32);
        let arguments =
            NormRows { x, sum_squares, norm, out: normed, rows: row_count, width: columns, eps, padding: 0 };
        self.kernels.rows.norm(&arguments)?;
        let expand = ExpandResidual {
            projection: Projection { projected: normed, ..Projection::of_outputs([width]) },
            step: self.step.address(routing.offset),
            hidden,
            sum_squares: self.buffers[out].squares(&self.device)?,
            hidden_size: columns,
            factor,
        };
        self.kernels.expand(KvDType::F16)?.residual(&expand, rows)?;
        self.set_content(out, Content::Rows { has_squares: true });
        Ok(())
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
