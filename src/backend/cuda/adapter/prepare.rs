//! Putting an adapter together: what it changes at each group, embedding and norm, then the arrays that these point to.

use std::mem::offset_of;
use std::sync::Arc;

use parking_lot::Mutex;

use super::embedding::push_embedding;
use super::low_rank::{push_b, push_floats, push_low_rank, push_norm_terms};
use super::norm_terms::norm_terms;
use super::resident::Adapter;
use super::slot_array::SlotArray;
use super::stack::Stack;
use crate::adapter::delta::{LowRank, SiteDelta};
use crate::backend::PrepareError;
use crate::backend::cuda::device_image::{DeviceImage, HasPointers};
use crate::backend::cuda::driver::{Device, DeviceMemory, StagingBuffers};
use crate::backend::cuda::layout::{self, STRIP_ROWS, Weight, WeightLayout};
use crate::backend::cuda::tables::{ROW_MASK_BITS, RowMask, SlotGroup, SlotLinear, SlotNorm};
use crate::backend::cuda::weights::BaseWeights;
use crate::backend::sorted_deltas::Sorted;
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::{Tensor, zeros};

/// Bytes that are copied to the device between two calls of `between_parts`.
const COPY_BYTES: usize = 32 << 20;
/// Strips of a weight that are packed between two calls of `between_parts`.
const PACK_STRIPS: usize = 256;

/// Puts an adapter together and copies it to the device, on the caller's thread and helpers for DoRA's norms.
///
/// # Errors
/// `memory_exhausted`; a DoRA norm of 0; what `between_parts` returned; `internal` if a delta does
/// not fit its site; the device failed.
pub(crate) fn prepare(
    weights: &BaseWeights,
    uploads: &Mutex<StagingBuffers>,
    deltas: &[SiteDelta<'_>],
    threads: usize,
    between_parts: &mut dyn FnMut() -> Result<()>,
) -> Result<Adapter, PrepareError> {
    let sorted = Sorted::new(|site| weights.find(site), deltas)?;
    let mut image = DeviceImage::default();
    // They come first, so that the address of an array is never 0.
    let mut groups = SlotArray::reserve(&mut image, weights.group_count(), sorted.groups.keys().copied());
    let mut embeddings = SlotArray::reserve(&mut image, weights.tables.len(), sorted.tables.keys().copied());
    let mut norms = SlotArray::reserve(&mut image, weights.norms.len(), sorted.norms.keys().copied());

    let mut builder = Builder { weights, threads, image, between_parts };
    for (&place, members) in &sorted.groups {
        let group = builder.group(place.0, members)?;
        groups.set(&mut builder.image, place, group);
    }
    let Builder { mut image, between_parts, .. } = builder;
    for (&place, delta) in &sorted.tables {
        let embedding = push_embedding(&mut image, &weights.tables[place.0], delta, threads, between_parts)?;
        embeddings.set(&mut image, place, embedding);
    }
    for (&place, delta) in &sorted.norms {
        let values = weights.norms[place.0].replaced(delta)?;
        let weight = push_floats(&mut image, Some(&Tensor::from_f32(&[values.len()], &values)))?;
        norms.set(&mut image, place, SlotNorm { weight });
    }
    let memory = copy(&weights.device, uploads, &mut image, between_parts)?;
    Ok(Adapter::new(memory, groups, embeddings, norms))
}

/// Copies an image to memory of its own, beside the steps, and waits until it is there. From then on steps may use it: they are
/// launched later.
fn copy(
    device: &Arc<Device>,
    uploads: &Mutex<StagingBuffers>,
    image: &mut DeviceImage,
    between_parts: &mut dyn FnMut() -> Result<()>,
) -> Result<DeviceMemory> {
    let memory = device.allocate(image.len()).map_err(|error| {
        error.with_hint("unload an adapter that is not needed, or load the model with a smaller KV cache")
    })?;
    image.set_base(memory.address());
    for (index, bytes) in image.bytes().chunks(COPY_BYTES).enumerate() {
        between_parts()?;
        // Adapters that are prepared at the same time share the buffers, a part of one after a part of another.
        let mut uploads = uploads.lock();
        uploads.upload(&memory, index * COPY_BYTES, bytes)?;
        uploads.wait()?;
    }
    Ok(memory)
}

impl HasPointers for Weight {
    const POINTERS: &'static [usize] =
        &[offset_of!(Weight, codes), offset_of!(Weight, scales), offset_of!(Weight, zeros), offset_of!(Weight, order)];
}

struct Builder<'a> {
    weights: &'a BaseWeights,
    threads: usize,
    image: DeviceImage,
    between_parts: &'a mut dyn FnMut() -> Result<()>,
}

impl Builder<'_> {
    /// What the adapter changes at the members of a group.
    fn group(&mut self, group: usize, members: &[(usize, &SiteDelta<'_>)]) -> Result<SlotGroup, PrepareError> {
        let mut slot = SlotGroup::default();
        let mut stack = Stack::default();
        for &(member, delta) in members {
            (self.between_parts)()?;
            let Some(linear) = slot.linears.get_mut(member) else {
                return Err(Error::new(ErrorCode::Internal, "a group has too many linears").into());
            };
            *linear = self.linear(delta, self.weights.out_features(group, member), &mut stack)?;
        }
        if stack.rows() > 0 {
            let layout = WeightLayout::dense(stack.rows(), self.weights.in_features(group));
            slot.stack = self.strips(&layout, |row, values| stack.read_row(row, values))?;
            slot.stack_rows = stack.rows() as u32;
        }
        Ok(slot)
    }

    /// What it changes at one linear, whose base has that many outputs; what multiplies the input is put on the stack.
    fn linear<'a>(
        &mut self,
        delta: &'a SiteDelta<'_>,
        outputs: usize,
        stack: &mut Stack<'a>,
    ) -> Result<SlotLinear, PrepareError> {
        let outputs = delta.weight.as_ref().map_or(outputs, |weight| weight.shape()[0]);
        let mut linear = match &delta.low_rank {
            Some(low) => push_low_rank(&mut self.image, low)?,
            None => SlotLinear::default(),
        };
        linear.outputs = outputs as u32;
        if let Some(weight) = &delta.weight {
            linear.weight = self.weight(weight)?;
        }
        linear.bias = push_floats(&mut self.image, delta.bias.as_ref())?;
        if let Some(rows) = delta.rows.as_ref().filter(|rows| !rows.ids.is_empty()) {
            let stacked = stack.push(&rows.values, self.weights.element);
            linear.replaced_rows = self.image.slice(&row_masks(&rows.ids, outputs)?);
            (linear.rows_offset, linear.rows_scale) = (stacked.first, stacked.scale);
        }
        if let Some(removed) = &delta.removed {
            let (a, b) = (stack.push(&removed.a, self.weights.element), push_b(&mut self.image, removed)?);
            (linear.removed_b, linear.removed_scale) = (b.address, removed.scale * b.scale * a.scale);
            (linear.removed_rank, linear.removed_offset) = (removed.rank() as u32, a.first);
        }
        let Some(low) = delta.low_rank.as_ref() else { return Ok(linear) };
        let a = stack.push(&low.a, self.weights.element);
        linear.rank_offset = a.first;
        linear.scale *= a.scale;
        if low.magnitude.is_some() {
            linear.norm_terms = self.norm_terms(delta, low)?;
        }
        Ok(linear)
    }

    /// DoRA's terms `[4, outputs]`.
    fn norm_terms(&mut self, delta: &SiteDelta<'_>, low: &LowRank<'_>) -> Result<u64, PrepareError> {
        let mut weight = match &delta.weight {
            Some(weight) => weight.view().try_to_f32()?,
            None => self.weights.dense_weight(delta.site)?,
        };
        if let Some(rows) = &delta.rows {
            let inputs = rows.values.shape()[1];
            for (index, &id) in rows.ids.iter().enumerate() {
                let values = &mut weight[id as usize * inputs..][..inputs];
                rows.values.view().read_f32(index * inputs..(index + 1) * inputs, values);
            }
        }
        let terms = norm_terms(&weight, low, self.threads, self.between_parts)?;
        push_norm_terms(&mut self.image, delta.site, &terms)
    }

    /// A weight that replaces the base's, with its descriptor.
    fn weight(&mut self, weight: &Tensor<'_>) -> Result<u64> {
        let (element, inputs) = (self.weights.element, weight.shape()[1]);
        let layout = WeightLayout::dense(weight.shape()[0], inputs);
        let mut overflows = false;
        let codes = self.strips(&layout, |row, values| {
            weight.view().read_f32(row * inputs..(row + 1) * inputs, values);
            overflows |= values.iter().any(|&value| element.overflows(value));
        })?;
        if overflows {
            let what = "the adapter brings a weight with values beyond the 16-bit type in which the device computes";
            return Err(
                Error::new(ErrorCode::AdapterFeatureUnsupported, what).with_hint("load the model with device=\"cpu\"")
            );
        }
        Ok(self.image.push(&Weight { codes, ..layout.descriptor()? }))
    }

    /// A matrix of which `read_row` reads a row, as strips of the element type.
    fn strips(&mut self, layout: &WeightLayout, mut read_row: impl FnMut(usize, &mut [f32])) -> Result<u64> {
        let strips = layout.out_features.div_ceil(STRIP_ROWS);
        let mut first = None;
        for start in (0..strips).step_by(PACK_STRIPS) {
            (self.between_parts)()?;
            let part = start..strips.min(start + PACK_STRIPS);
            let words = layout::pack_rows(layout, self.weights.element, part, &mut read_row);
            // A strip is a multiple of the image's alignment, so the parts follow each other.
            first.get_or_insert(self.image.slice(&words));
        }
        Ok(first.unwrap_or(0))
    }
}

/// Which rows of a weight of that many outputs are replaced; ids ascend.
fn row_masks(ids: &[u32], outputs: usize) -> Result<Vec<RowMask>> {
    let mut masks = zeros::<RowMask>(outputs.div_ceil(ROW_MASK_BITS))?;
    for &id in ids {
        masks[id as usize / ROW_MASK_BITS].bits |= 1 << (id as usize % ROW_MASK_BITS);
    }
    let mut before = 0;
    for mask in &mut masks {
        mask.before = before;
        before += mask.bits.count_ones();
    }
    Ok(masks)
}
