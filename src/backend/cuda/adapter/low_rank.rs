//! The low-rank part of a delta at a linear or an embedding, but for A: what expand reads.

use super::factors::{ScaledFactor, power_of_two};
use crate::adapter::delta::LowRank;
use crate::backend::PrepareError;
use crate::backend::cuda::device_image::DeviceImage;
use crate::backend::cuda::layout::ElementType;
use crate::backend::cuda::tables::{NORM_TERMS, SlotLinear};
use crate::error::Result;
use crate::sites::SiteId;
use crate::tensor::Tensor;

/// B on the device.
pub(super) struct ScaledB {
    pub(super) address: u64,
    /// What products with it are to be multiplied by, a power of two.
    pub(super) scale: f32,
}

/// B alone. It is multiplied by sums in f32, so it is f16 whatever the activations are.
///
/// # Errors
/// `memory_exhausted`.
pub(super) fn push_b(image: &mut DeviceImage, low: &LowRank<'_>) -> Result<ScaledB> {
    let b = ScaledFactor::new(&low.b, ElementType::F16);
    Ok(ScaledB { address: image.slice(&b.to_f16()?), scale: power_of_two(-b.exponent) })
}

/// B, its bias, scales and the magnitude; the terms of the magnitude's norms are left out.
///
/// # Errors
/// `memory_exhausted`.
pub(super) fn push_low_rank(image: &mut DeviceImage, low: &LowRank<'_>) -> Result<SlotLinear> {
    let b = push_b(image, low)?;
    Ok(SlotLinear {
        b: b.address,
        b_bias: push_floats(image, low.b_bias.as_ref())?,
        magnitude: push_floats(image, low.magnitude.as_ref())?,
        outputs: low.b.shape()[0] as u32,
        rank: low.rank() as u32,
        scale: low.scale * b.scale,
        b_bias_scale: low.scale,
        ..SlotLinear::default()
    })
}

/// The terms of each output's norm, as `[4, outputs]`.
///
/// # Errors
/// A norm that is 0 at a request weight of 1.
pub(super) fn push_norm_terms(
    image: &mut DeviceImage,
    site: SiteId,
    terms: &[[f64; NORM_TERMS]],
) -> Result<u64, PrepareError> {
    match terms.iter().position(|terms| terms[3] <= 0.0 || terms[3].is_nan()) {
        Some(output) => Err(PrepareError::ZeroNorm { site, output }),
        None => Ok(image.array((0..NORM_TERMS).flat_map(|term| terms.iter().map(move |terms| terms[term])))),
    }
}

/// A vector as f32, or 0.
///
/// # Errors
/// `memory_exhausted`.
pub(super) fn push_floats(image: &mut DeviceImage, vector: Option<&Tensor<'_>>) -> Result<u64> {
    let Some(vector) = vector else { return Ok(0) };
    Ok(image.slice(&vector.view().try_to_f32()?))
}
