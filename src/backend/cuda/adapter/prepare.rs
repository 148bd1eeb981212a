//! Putting an adapter together: a [`SlotGroup`] for each group that it changes, then the arrays that these point to.

use std::mem::offset_of;
use std::sync::Arc;

use super::factors::{ScaledFactor, power_of_two};
use super::low_rank::{push_floats, push_low_rank, push_norm_terms};
use super::norm_terms::norm_terms;
use super::resident::Adapter;
use super::supported::check_supported;
use crate::adapter::delta::{LowRank, SiteDelta};
use crate::backend::PrepareError;
use crate::backend::cuda::device_image::{DeviceImage, HasPointers};
use crate::backend::cuda::driver::{Device, DeviceMemory};
use crate::backend::cuda::layout::{self, STRIP_ROWS, Weight, WeightLayout};
use crate::backend::cuda::tables::{SlotGroup, SlotLinear};
use crate::backend::cuda::weights::BaseWeights;
use crate::backend::sorted_deltas::Sorted;
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::Tensor;

/// Bytes that are copied to the device between two calls of `between_parts`.
const COPY_BYTES: usize = 64 << 20;
/// Strips of a weight that are packed between two calls of `between_parts`.
const PACK_STRIPS: usize = 256;

/// Puts an adapter together and copies it to the device, on the caller's thread and helpers for DoRA's norms.
///
/// # Errors
/// `adapter_feature_unsupported`; `memory_exhausted`; a DoRA norm of 0; what `between_parts` returned; `internal` if a delta does
/// not fit its site; the device failed.
pub(crate) fn prepare(
    weights: &BaseWeights,
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
    let memory = copy(&weights.device, &mut image, between_parts)?;
    Ok(Adapter::new(memory, groups))
}

/// Copies an image to memory of its own.
fn copy(
    device: &Arc<Device>,
    image: &mut DeviceImage,
    between_parts: &mut dyn FnMut() -> Result<()>,
) -> Result<DeviceMemory> {
    let memory = device.allocate(image.len())?;
    image.set_base(memory.address());
    for (index, bytes) in image.bytes().chunks(COPY_BYTES).enumerate() {
        between_parts()?;
        memory.upload(index * COPY_BYTES, bytes)?;
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
        linear.bias = push_floats(&mut self.image, delta.bias.as_ref())?;
        let Some(low) = &delta.low_rank else { return Ok(linear) };
        linear = SlotLinear { weight: linear.weight, bias: linear.bias, ..push_low_rank(&mut self.image, low)? };
        if low.magnitude.is_some() {
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
        push_norm_terms(&mut self.image, delta.site, &terms)
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
}
