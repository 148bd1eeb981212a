//! Linears: products with the base's weights and every adapter's A in one launch, expanded by the next.

use super::inputs::LinearInput;
use super::{CudaCompute, unknown};
use crate::adapter::batch::AdapterBatch;
use crate::backend::cuda::buffers::{Content, PendingProjection};
use crate::backend::cuda::ops::expand::{ExpandResidual, Projection};
use crate::backend::cuda::ops::linear::{InputType, LinearArguments, TILE_OUTPUTS};
use crate::backend::cuda::ops::norm_elements::NormElements;
use crate::backend::cuda::ops::rows::ExpandRows;
use crate::backend::cuda::step::Rows;
use crate::backend::cuda::tables::GROUP_LINEARS;
use crate::backend::cuda::weights::linear::Linear;
use crate::backend::{KvDType, Write};
use crate::error::{Error, ErrorCode, Result};

/// Most rows that are normed by the linear kernel while it reads them, for each of its tiles again: a row alone, for which a
/// launch costs as much. More are normed once, by a launch of their own.
const NORMED_WHILE_READ: usize = 1;

/// What some slots have at a group.
#[derive(Clone, Copy, Debug, Default)]
struct SlotSizes {
    /// Rows of the largest stack.
    stack_rows: usize,
    /// Outputs of the largest weight that replaces each linear's, or 0.
    replaced: [usize; GROUP_LINEARS],
    /// Whether one of them replaces rows of a weight, or takes something out of one.
    changes_weights: bool,
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
        let replaced = self.slots(batch, self.slot_group(group, batch)).replaced;
        if replaced[0] > out_features {
            return Err(Error::new(ErrorCode::Internal, "an adapter's weight has more outputs than the buffer")
                .with_expected(out_features)
                .with_found(replaced[0]));
        }
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
            Write::Add { .. } => {
                self.plain_rows(y)?;
                self.scratch.projected.reserve(&self.device, rows * out_features * size_of::<f32>())?
            }
        };
        let pending = self.project(group, input, Rows::First(rows), batch, projected, out_features)?;
        let Write::Add { factor } = write else {
            self.set_content(y, Content::Projected(pending));
            return Ok(());
        };
        let (projection, step) = (self.projection(&pending, projected)?, self.step.address(pending.routing.offset));
        let hidden = self.buffers[y].rows(&self.device)?;
        if linears == 1 {
            let sum_squares = self.buffers[y].squares(&self.device)?;
            let hidden_size = out_features as u32;
            let expand = ExpandResidual { projection, step, hidden, sum_squares, hidden_size, factor };
            self.kernels.expand(KvDType::F16)?.residual(&expand, rows)?;
            self.set_content(y, Content::Rows { has_squares: true });
        } else {
            self.kernels.rows.expand(&ExpandRows { projection, step, y: hidden, is_added: 1, factor }, rows)?;
            self.set_content(y, Content::Rows { has_squares: false });
        }
        Ok(())
    }

    /// The index of a group as adapters count it, by repeats of its layer.
    pub(super) fn slot_group(&self, group: usize, batch: &AdapterBatch) -> usize {
        batch.repeat() as usize * self.weights.groups.len() + group
    }

    /// Launches the products of a group's weights and of the adapters' stacks; rows of `projected` have `columns` values.
    pub(super) fn project(
        &mut self,
        group: usize,
        input: LinearInput,
        rows: Rows<'_>,
        batch: &AdapterBatch,
        projected: u64,
        columns: usize,
    ) -> Result<PendingProjection> {
        let routing = self.step.routing(rows, batch, &self.adapters)?;
        let slot_group = self.slot_group(group, batch);
        let slots = self.slots(batch, slot_group);
        let shrunk = match routing.entries * slots.stack_rows * size_of::<f32>() {
            0 => 0,
            bytes => self.scratch.shrunk.reserve(&self.device, bytes)?,
        };
        let shape = &self.weights.groups[group];
        let mut arguments = LinearArguments {
            linears: shape.linears.len() as u32,
            overflow_rows: self.row_reports.activation_overflows(&self.device)?,
            projected,
            shrunk,
            projected_stride: columns as u32,
            shrunk_stride: slots.stack_rows as u32,
            step: self.step.address(routing.offset),
            group: slot_group as u32,
            stack_tiles: slots.stack_rows.div_ceil(TILE_OUTPUTS) as u32,
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
            LinearInput::Normed { rows: x, squares, norm, eps, buffer } if routing.rows > NORMED_WHILE_READ => {
                let buffer = &mut self.buffers[buffer];
                let (elements, width) = (buffer.elements(&self.device)?, buffer.width as u32);
                let norm = self.routed_norm(norm);
                let (step, overflow_rows) = (arguments.step, arguments.overflow_rows);
                let normed =
                    NormElements { step, x, sum_squares: squares, norm, elements, overflow_rows, width, epsilon: eps };
                self.kernels.norm_elements.launch(&normed, routing.rows)?;
                (arguments.input, arguments.input_type) = (elements, InputType::Elements as u32);
            }
            LinearInput::Normed { rows: x, squares, norm, eps, .. } => {
                (arguments.input, arguments.sum_squares) = (x, squares);
                (arguments.norm, arguments.epsilon) = (self.routed_norm(norm), eps);
            }
        }
        self.kernels.linear.launch(&arguments, routing.rows, routing.entry_tiles)?;
        let SlotSizes { stack_rows: shrunk_stride, changes_weights, .. } = slots;
        Ok(PendingProjection { group, slot_group, routing, shrunk_stride, changes_weights })
    }

    /// What the slots that a batch names have at a group.
    fn slots(&self, batch: &AdapterBatch, slot_group: usize) -> SlotSizes {
        let mut sizes = SlotSizes::default();
        for segment in batch.segments() {
            let adapter = self.adapters.get(segment.slot.0 as usize).and_then(Option::as_ref);
            let Some(group) = adapter.and_then(|adapter| adapter.group(slot_group)) else { continue };
            sizes.stack_rows = sizes.stack_rows.max(group.stack_rows as usize);
            for (replaced, linear) in sizes.replaced.iter_mut().zip(&group.linears) {
                if linear.weight != 0 {
                    *replaced = (*replaced).max(linear.outputs as usize);
                }
                sizes.changes_weights |= linear.replaced_rows != 0 || linear.removed_b != 0;
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
        for (bias, linear) in bias.iter_mut().zip(linears) {
            *bias = linear.bias();
        }
        Ok(Projection {
            projected,
            shrunk,
            bias,
            changes_weights: u32::from(pending.changes_weights),
            shrunk_stride: pending.shrunk_stride as u32,
            group: pending.slot_group as u32,
            ..Projection::of_outputs(linears.iter().map(Linear::out_features))
        })
    }
}
