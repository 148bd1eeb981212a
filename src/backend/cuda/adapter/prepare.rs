//! Putting an adapter together: a [`SlotGroup`] for each group that it changes, then the arrays that these point to.

use std::mem::offset_of;
use std::sync::Arc;

use parking_lot::Mutex;

use super::factors::{ScaledFactor, power_of_two};
use super::norm_terms::norm_terms;
use super::resident::Adapter;
use super::supported::check_supported;
use crate::adapter::delta::{LowRank, SiteDelta};
use crate::backend::PrepareError;
use crate::backend::cuda::device_image::{DeviceImage, HasPointers};
use crate::backend::cuda::driver::{Device, DeviceMemory, StagingBuffers};
use crate::backend::cuda::layout::{self, ElementType, STRIP_ROWS, Weight, WeightLayout};
use crate::backend::cuda::tables::{NORM_TERMS, SlotGroup, SlotLinear};
use crate::backend::cuda::weights::BaseWeights;
use crate::backend::sorted_deltas::Sorted;
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::Tensor;

/// Bytes that are copied to the device between two calls of `between_parts`.
const COPY_BYTES: usize = 32 << 20;
/// Strips of a weight that are packed between two calls of `between_parts`.
const PACK_STRIPS: usize = 256;

/// Puts an adapter together and copies it to the device, on the caller's thread and helpers for DoRA's norms.
///
/// # Errors
/// `adapter_feature_unsupported`; `memory_exhausted`; a DoRA norm of 0; what `between_parts` returned; `internal` if a delta does
/// not fit its site; the device failed.
pub(crate) fn prepare(
    weights: &BaseWeights,
    uploads: &Mutex<StagingBuffers>,
    deltas: &[SiteDelta<'_>],
    threads: usize,
    between_parts: &mut dyn FnMut() -> Result<()>,
) -> Result<Adapter, PrepareError> {
    let sorted = Sorted::new(|site| weights.find(site), deltas)?;
    check_supported(&sorted, |site| weights.find(site))?;
    let repeats = sorted.groups.keys().map(|&(_, repeat)| repeat as usize + 1).max().unwrap_or(0);
    let count = repeats * weights.group_count();
    let mut builder = Builder { weights, threads, image: DeviceImage::default(), between_parts };
    let mut groups = vec![SlotGroup::default(); count];
    let offset = builder.image.reserve::<SlotGroup>(count);
    for (&(group, repeat), members) in &sorted.groups {
        groups[repeat as usize * weights.group_count() + group] = builder.group(group, members)?;
    }
    let Builder { mut image, between_parts, .. } = builder;
    for (index, group) in groups.iter().enumerate() {
        image.write(offset + index * size_of::<SlotGroup>(), group);
    }
    let memory = copy(&weights.device, uploads, &mut image, between_parts)?;
    Ok(Adapter::new(memory, groups))
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
        let mut stack = Vec::new();
        for &(member, delta) in members {
            (self.between_parts)()?;
            let Some(linear) = slot.linears.get_mut(member) else {
                return Err(Error::new(ErrorCode::Internal, "a group has too many linears").into());
            };
            *linear = SlotLinear { rank_offset: slot.rank, ..self.linear(delta)? };
            if let Some(low) = &delta.low_rank {
                let a = ScaledFactor::new(&low.a, self.weights.element)?;
                linear.scale *= power_of_two(-a.exponent);
                slot.rank += linear.rank;
                stack.extend_from_slice(&a.values);
            }
        }
        if slot.rank > 0 {
            let shape = [slot.rank as usize, self.weights.in_features(group)];
            slot.a = self.strips(&Tensor::from_f32(&shape, &stack))?;
        }
        Ok(slot)
    }

    /// What it changes at one linear, but for A.
    fn linear(&mut self, delta: &SiteDelta<'_>) -> Result<SlotLinear, PrepareError> {
        let mut linear = SlotLinear::default();
        if let Some(weight) = &delta.weight {
            let layout = WeightLayout::dense(weight.shape()[0], weight.shape()[1]);
            let descriptor = Weight { codes: self.strips(weight)?, ..layout.descriptor()? };
            linear.weight = self.image.push(&descriptor);
        }
        linear.bias = self.floats(delta.bias.as_ref())?;
        let Some(low) = &delta.low_rank else { return Ok(linear) };
        // B is multiplied by f32 sums, so it is f16 whatever the activations are.
        let b = ScaledFactor::new(&low.b, ElementType::F16)?;
        linear.b = self.image.array(b.to_f16().map(half::f16::to_bits));
        linear.rank = low.rank() as u32;
        linear.scale = low.scale * power_of_two(-b.exponent);
        linear.b_bias = self.floats(low.b_bias.as_ref())?;
        linear.b_bias_scale = low.scale;
        if let Some(magnitude) = &low.magnitude {
            linear.magnitude = self.floats(Some(magnitude))?;
            linear.norm_terms = self.norm_terms(delta, low)?;
        }
        Ok(linear)
    }

    /// DoRA's terms `[4, outputs]`.
    fn norm_terms(&mut self, delta: &SiteDelta<'_>, low: &LowRank<'_>) -> Result<u64, PrepareError> {
        let weight = match &delta.weight {
            Some(weight) => weight.view().try_to_f32()?,
            None => self.weights.dense_weight(delta.site)?,
        };
        let terms = norm_terms(&weight, low, self.threads, self.between_parts)?;
        if let Some(output) = terms.iter().position(|terms| terms[3] <= 0.0 || terms[3].is_nan()) {
            return Err(PrepareError::ZeroNorm { site: delta.site, output });
        }
        Ok(self.image.array((0..NORM_TERMS).flat_map(|term| terms.iter().map(move |terms| terms[term]))))
    }

    /// A matrix as strips of the element type.
    fn strips(&mut self, matrix: &Tensor<'_>) -> Result<u64> {
        let layout = WeightLayout::dense(matrix.shape()[0], matrix.shape()[1]);
        let strips = matrix.shape()[0].div_ceil(STRIP_ROWS);
        let mut first = None;
        for start in (0..strips).step_by(PACK_STRIPS) {
            (self.between_parts)()?;
            let part = start..strips.min(start + PACK_STRIPS);
            let words = layout::pack_dense(&layout, matrix.view(), self.weights.element, part);
            // A strip is a multiple of the image's alignment, so the parts follow each other.
            first.get_or_insert(self.image.slice(&words));
        }
        Ok(first.unwrap_or(0))
    }

    /// A vector as f32, or 0.
    fn floats(&mut self, vector: Option<&Tensor<'_>>) -> Result<u64> {
        let Some(vector) = vector else { return Ok(0) };
        Ok(self.image.slice(&vector.view().try_to_f32()?))
    }
}
