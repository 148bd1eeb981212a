//! Linears and the head: products with the base's weights and every adapter's A in one launch, expanded by the next.

use super::inputs::LinearInput;
use super::{CudaCompute, unknown};
use crate::adapter::batch::AdapterBatch;
use crate::backend::KvDType;
use crate::backend::Write;
use crate::backend::cuda::buffers::{Content, PendingProjection};
use crate::backend::cuda::ops::expand::{ExpandLogits, ExpandResidual, Projection};
use crate::backend::cuda::ops::linear::{InputType, LinearArguments, TILE_OUTPUTS};
use crate::backend::cuda::ops::rows::ExpandRows;
use crate::backend::cuda::step::Rows;
use crate::backend::cuda::tables::GROUP_LINEARS;
use crate::error::{Error, ErrorCode, Result};

/// The largest of what some slots have at a group.
#[derive(Clone, Copy, Debug, Default)]
struct SlotSizes {
    /// Stacked rank.
    rank: usize,
    /// Outputs of a weight that replaces each linear's, or 0.
    replaced: [usize; GROUP_LINEARS],
}

impl CudaCompute {
    /// See [`Compute::linear`](crate::backend::Compute::linear).
    pub(super) fn run_linear(
        &mut self,
        group: usize,
        x: usize,
        rows: usize,
        batch: &AdapterBatch,
        y: usize,
        write: Write,
    ) -> Result<()> {
        let shape = self.weights.groups.get(group).ok_or_else(|| unknown("a group"))?;
        let (in_features, out_features, linears) = (shape.in_features, shape.out_features, shape.linears.len());
        if x == y {
            return Err(unknown("one buffer for input and output,"));
        }
        self.expect(x, in_features, rows)?;
        self.expect(y, out_features, rows)?;
        if rows == 0 {
            return Ok(());
        }
        if matches!(self.buffers[x].content, Content::Normed(norm) if norm.source == y) {
            // The norm of y is taken before y changes.
            self.plain_rows(x)?;
        }
        let input = self.linear_input(x)?;
        if write == Write::Replace {
            // What y holds is not read again.
            self.set_content(y, Content::Undefined);
        }
        self.finish_pending()?;
        let projected = match write {
            Write::Replace => self.buffers[y].rows(&self.device)?,
            Write::Add => {
                self.plain_rows(y)?;
                self.scratch.projected.reserve(&self.device, rows * out_features * size_of::<f32>())?
            }
        };
        let pending = self.project(group, input, Rows::First(rows), batch, projected)?;
        if write == Write::Replace {
            self.set_content(y, Content::Projected(pending));
            return Ok(());
        }
        let (projection, step) = (self.projection(&pending, projected)?, self.step.address(pending.routing.offset));
        let hidden = self.buffers[y].rows(&self.device)?;
        if linears == 1 {
            let sum_squares = self.buffers[y].squares(&self.device)?;
            let hidden_size = out_features as u32;
            let expand = ExpandResidual { projection, step, hidden, sum_squares, hidden_size, factor: 1.0 };
            self.kernels.expand(KvDType::F16)?.residual(&expand, rows)?;
            self.set_content(y, Content::Rows { has_squares: true });
        } else {
            self.kernels.rows.expand(&ExpandRows { projection, step, y: hidden, is_added: 1, padding: 0 }, rows)?;
            self.set_content(y, Content::Rows { has_squares: false });
        }
        Ok(())
    }

    /// See [`Compute::head`](crate::backend::Compute::head).
    pub(super) fn run_head(
        &mut self,
        group: usize,
        x: usize,
        picked: &[u32],
        batch: &AdapterBatch,
        logits: &mut [f32],
        stride: usize,
    ) -> Result<()> {
        let shape = self.weights.groups.get(group).ok_or_else(|| unknown("a group"))?;
        let (in_features, out_features, linears) = (shape.in_features, shape.out_features, shape.linears.len());
        self.expect(x, in_features, picked.iter().max().map_or(0, |&row| row as usize + 1))?;
        if logits.len() != picked.len() * stride || stride < out_features {
            return Err(Error::new(ErrorCode::Internal, "the buffer for logits does not fit")
                .with_expected(picked.len() * out_features)
                .with_found(logits.len()));
        }
        if picked.is_empty() {
            return Ok(());
        }
        let input = self.linear_input(x)?;
        self.finish_pending()?;
        let bytes = picked.len() * out_features * size_of::<f32>();
        let projected = self.scratch.projected.reserve(&self.device, bytes)?;
        let pending = self.project(group, input, Rows::Picked(picked), batch, projected)?;
        let (projection, step) = (self.projection(&pending, projected)?, self.step.address(pending.routing.offset));
        // Each thread reads its product and writes its logit in its place.
        if linears == 1 {
            let (stride, vocab_size) = (out_features as u32, out_features as u32);
            let expand = ExpandLogits {
                projection,
                step,
                logits: projected,
                argmax: 0,
                stride,
                vocab_size,
                multiplier: 1.0,
                cap: 0.0,
            };
            self.kernels.expand(KvDType::F16)?.logits(&expand, picked.len())?;
        } else {
            let expand = ExpandRows { projection, step, y: projected, ..ExpandRows::default() };
            self.kernels.rows.expand(&expand, picked.len())?;
        }
        if stride == out_features {
            return self.scratch.projected.download(bytemuck::cast_slice_mut(logits));
        }
        let mut packed = vec![0f32; picked.len() * out_features];
        self.scratch.projected.download(bytemuck::cast_slice_mut(&mut packed))?;
        for (row, packed) in logits.chunks_exact_mut(stride).zip(packed.chunks_exact(out_features)) {
            row[..out_features].copy_from_slice(packed);
        }
        Ok(())
    }

    /// Launches the products of a group's weights and of the adapters' A's.
    fn project(
        &mut self,
        group: usize,
        input: LinearInput,
        rows: Rows<'_>,
        batch: &AdapterBatch,
        projected: u64,
    ) -> Result<PendingProjection> {
        let routing = self.step.routing(rows, batch, &self.adapters)?;
        let slot_group = batch.repeat() as usize * self.weights.groups.len() + group;
        let slots = self.slots(batch, slot_group);
        let shrunk = match routing.entries * slots.rank * size_of::<f32>() {
            0 => 0,
            bytes => self.scratch.shrunk.reserve(&self.device, bytes)?,
        };
        let shape = &self.weights.groups[group];
        let mut arguments = LinearArguments {
            linears: shape.linears.len() as u32,
            overflow_rows: self.row_flags.activation_overflows(&self.device)?,
            projected,
            shrunk,
            projected_stride: shape.out_features as u32,
            shrunk_stride: slots.rank as u32,
            step: self.step.address(routing.offset),
            group: slot_group as u32,
            rank_tiles: slots.rank.div_ceil(TILE_OUTPUTS) as u32,
            replaced_tiles: slots.replaced.map(|outputs| outputs.div_ceil(TILE_OUTPUTS) as u32),
            ..LinearArguments::default()
        };
        let mut first_column = 0;
        for (index, linear) in shape.linears.iter().enumerate() {
            (arguments.weights[index], arguments.first_columns[index]) = (*linear.weight(), first_column);
            first_column += linear.out_features() as u32;
        }
        match input {
            LinearInput::Elements(x) => (arguments.input, arguments.input_type) = (x, InputType::Elements as u32),
            LinearInput::Rows(x) => arguments.input = x,
            LinearInput::Normed { rows, squares, gamma, eps } => {
                (arguments.input, arguments.sum_squares) = (rows, squares);
                (arguments.gamma, arguments.epsilon) = (gamma, eps);
            }
        }
        self.kernels.linear.launch(&arguments, routing.rows, routing.entry_tiles)?;
        Ok(PendingProjection { group, slot_group, routing, shrunk_stride: slots.rank })
    }

    /// What the slots that a batch names have at a group.
    fn slots(&self, batch: &AdapterBatch, slot_group: usize) -> SlotSizes {
        let mut sizes = SlotSizes::default();
        for segment in batch.segments() {
            let adapter = self.adapters.get(segment.slot.0 as usize).and_then(Option::as_ref);
            let Some(group) = adapter.and_then(|adapter| adapter.group(slot_group)) else { continue };
            sizes.rank = sizes.rank.max(group.rank as usize);
            let linears = &self.weights.groups[slot_group % self.weights.groups.len()].linears;
            for ((replaced, slot), linear) in sizes.replaced.iter_mut().zip(&group.linears).zip(linears) {
                if slot.weight != 0 {
                    *replaced = linear.out_features();
                }
            }
        }
        sizes
    }

    /// What finishes products.
    pub(super) fn projection(&mut self, pending: &PendingProjection, projected: u64) -> Result<Projection> {
        let shrunk_bytes = pending.routing.entries * pending.shrunk_stride * size_of::<f32>();
        let shrunk = match shrunk_bytes {
            0 => 0,
            bytes => self.scratch.shrunk.reserve(&self.device, bytes)?,
        };
        let linears = &self.weights.groups[pending.group].linears;
        let mut bias = [0; GROUP_LINEARS];
        let mut out_features = [0; GROUP_LINEARS];
        for (index, linear) in linears.iter().enumerate() {
            (bias[index], out_features[index]) = (linear.bias(), linear.out_features());
        }
        Ok(Projection {
            projected,
            shrunk,
            bias,
            starts: Projection::starts(&out_features),
            shrunk_stride: pending.shrunk_stride as u32,
            group: pending.slot_group as u32,
        })
    }
}
