//! The head: logits, or of a greedy row the largest one alone.
//!
//! A kernel finds the largest logit of each row where it finishes them. It is reported beside what overflowed, which every step
//! reads once, so the logits of greedy rows stay on the device.

use super::{CudaCompute, unknown};
use crate::adapter::batch::AdapterBatch;
use crate::backend::cuda::ops::expand::{ExpandLogits, LargestKey};
use crate::backend::cuda::ops::rows::ExpandRows;
use crate::backend::cuda::step::Rows;
use crate::backend::cuda::weights::Group;
use crate::backend::{HeadSpec, KvDType, LargestLogit, LogitRows};
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::zeros;

impl CudaCompute {
    /// See [`Compute::head`](crate::backend::Compute::head).
    pub(super) fn run_head(
        &mut self,
        head: &HeadSpec,
        x: usize,
        rows: LogitRows<'_>,
        logits: &mut [f32],
        stride: usize,
    ) -> Result<()> {
        let LogitRows { rows: picked, adapters: batch, is_greedy } = rows;
        let group = head.group.0 as usize;
        let shape = self.weights.groups.get(group).ok_or_else(|| unknown("a group"))?;
        let (in_features, out_features, linears) = (shape.in_features, shape.out_features, shape.linears.len());
        if linears > 1 && *head != HeadSpec::of(head.group) {
            return Err(Error::new(ErrorCode::Internal, "the logits of several linears are not scaled"));
        }
        self.expect(x, in_features, picked.iter().max().map_or(0, |&row| row as usize + 1))?;
        let outputs_of_rows: Vec<usize> = (0..picked.len()).map(|row| self.outputs_of_row(group, batch, row)).collect();
        let columns = outputs_of_rows.iter().copied().max().unwrap_or(out_features);
        check(&rows, columns, logits.len(), stride)?;
        // Of several linears no largest logit is found.
        let argmax = self.row_reports.largest_logits(&self.device, if linears == 1 { is_greedy } else { &[] })?;
        self.head_columns = columns;
        if picked.is_empty() {
            return Ok(());
        }
        let input = self.linear_input(x)?;
        self.finish_pending()?;
        let bytes = picked.len() * columns * size_of::<f32>();
        let projected = self.scratch.projected.reserve(&self.device, bytes)?;
        let pending = self.project(group, input, Rows::Picked(picked), batch, projected, columns)?;
        let (mut projection, step) = (self.projection(&pending, projected)?, self.step.address(pending.routing.offset));
        // Each thread reads its product and writes its logit in its place.
        if linears == 1 {
            projection.starts[1..].fill(columns as u32);
            let expand = ExpandLogits {
                projection,
                step,
                logits: projected,
                argmax,
                stride: columns as u32,
                columns: columns as u32,
                multiplier: head.multiplier,
                cap: head.cap.unwrap_or(0.0),
            };
            self.kernels.expand(KvDType::F16)?.logits(&expand, picked.len())?;
        } else {
            let expand = ExpandRows { projection, step, y: projected, ..ExpandRows::default() };
            self.kernels.rows.expand(&expand, picked.len())?;
        }
        if self.device.is_dry_run() {
            return Ok(());
        }
        self.download_logits(&outputs_of_rows, columns, logits, stride)
    }

    /// See [`Compute::take_largest_logits`](crate::backend::Compute::take_largest_logits).
    pub(super) fn read_largest_logits(&mut self) -> Result<Vec<Option<LargestLogit>>> {
        let keys = self.row_reports.take_keys();
        keys.into_iter().enumerate().map(|(row, key)| key.map(|key| self.largest_logit(row, key)).transpose()).collect()
    }

    /// What a key says of a row of the last head. A key does not tell which number a logit is that is not finite.
    fn largest_logit(&self, row: usize, key: u64) -> Result<LargestLogit> {
        match LargestKey::read(key) {
            LargestKey::Finite(largest) => Ok(largest),
            LargestKey::NotFinite(token) => {
                let mut logit = 0f32;
                let offset = (row * self.head_columns + token as usize) * size_of::<f32>();
                self.scratch.projected.download_at(offset, bytemuck::bytes_of_mut(&mut logit))?;
                Ok(LargestLogit { token, logit })
            }
        }
    }

    /// Copies the logits of rows out that are not greedy, each stretch of such rows at once. Rows have `columns` logits on the
    /// device, of which each has as many as it has outputs.
    fn download_logits(
        &self,
        outputs_of_rows: &[usize],
        columns: usize,
        logits: &mut [f32],
        stride: usize,
    ) -> Result<()> {
        let rows: Vec<usize> = (0..outputs_of_rows.len()).filter(|&row| !self.row_reports.is_greedy(row)).collect();
        for stretch in rows.chunk_by(|row, next| row + 1 == *next) {
            let stretch = stretch[0]..stretch[0] + stretch.len();
            let offset = stretch.start * columns * size_of::<f32>();
            let outputs = &outputs_of_rows[stretch.clone()];
            let logits = &mut logits[stretch.start * stride..stretch.end * stride];
            if outputs.iter().all(|&outputs| outputs == stride) {
                self.scratch.projected.download_at(offset, bytemuck::cast_slice_mut(logits))?;
                continue;
            }
            let mut packed = zeros::<f32>(stretch.len() * columns)?;
            self.scratch.projected.download_at(offset, bytemuck::cast_slice_mut(&mut packed))?;
            let rows = logits.chunks_exact_mut(stride).zip(packed.chunks_exact(columns));
            for ((row, packed), &outputs) in rows.zip(outputs) {
                row[..outputs].copy_from_slice(&packed[..outputs]);
            }
        }
        Ok(())
    }

    /// Outputs of a group for a row: those of the weight that its adapters bring, where the group is a head of one linear.
    fn outputs_of_row(&self, group: usize, batch: &AdapterBatch, row: usize) -> usize {
        let entries = if batch.is_base_only() { &[] } else { batch.of_row(row) };
        let replaced = entries.iter().rev().find_map(|&entry| {
            let slot = batch.entries()[entry].slot.0 as usize;
            let linear = self.adapters.get(slot)?.as_ref()?.group(self.slot_group(group, batch))?.linears[0];
            (linear.weight != 0).then_some(linear.outputs as usize)
        });
        let Group { linears, out_features, .. } = &self.weights.groups[group];
        replaced.filter(|_| linears.len() == 1).unwrap_or(*out_features)
    }
}

/// Fails unless so many logits are room for rows of `columns`, and the marks of greedy rows are those of the rows.
fn check(rows: &LogitRows<'_>, columns: usize, logits: usize, stride: usize) -> Result<()> {
    if logits != rows.rows.len() * stride || stride < columns {
        return Err(Error::new(ErrorCode::Internal, "the buffer for logits does not fit")
            .with_expected(rows.rows.len() * columns)
            .with_found(logits));
    }
    if !rows.is_greedy.is_empty() && rows.is_greedy.len() != rows.rows.len() {
        return Err(unknown("greedy rows"));
    }
    Ok(())
}
