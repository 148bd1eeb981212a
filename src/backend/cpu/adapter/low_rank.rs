//! B and what belongs to its outputs, by tiles of 16: one finishing routine for linears and embeddings.
//!
//! B stands as `[tile][rank][16]`, so that expand happens on a tile's outputs before they are written. A magnitude brings,
//! for each output, a = |W|^2, b = s W.(BA) and c = s^2 |BA|^2 in f64: its norm at a request's weight f is
//! `sqrt(a + 2 f b + f^2 c)`, whatever f is, without W.

use super::dora_norms::Moments;
use crate::adapter::delta::{LowRank, SiteDelta};
use crate::backend::cpu::kernels::dispatch::Kernels;
use crate::backend::cpu::kernels::tile::Width;
use crate::backend::cpu::kernels::vector::LANES;
use crate::backend::cpu::runtime::arena::{Part, Region, RegionLayout};
use crate::backend::cpu::weights::pack::interleave;
use crate::tensor::Tensor;

/// What a low-rank delta does to the outputs, given `t = A x`.
pub(crate) struct Expand {
    /// Length of t.
    pub(crate) rank: usize,
    scale: f32,
    width: Width,
    outputs: usize,
    /// `[tile][rank][16]`
    b: Part,
    /// `[tile][16]`
    b_bias: Option<Part>,
    magnitude: Option<Magnitude>,
}

/// DoRA's magnitude and what its norms are made of, all `[tile][16]`.
struct Magnitude {
    m: Part,
    /// m / n at a weight of 1.
    at_one: Part,
    /// `[a, b, c]`
    quadratic: [Part; 3],
}

/// m / n at a request's weight.
fn ratio(m: f32, [a, b, c]: [f64; 3], weight: f32) -> f32 {
    let weight = f64::from(weight);
    let square = a + 2.0 * weight * b + weight * weight * c;
    (f64::from(m) / square.max(0.0).sqrt()) as f32
}

/// The low-rank part, if it has a magnitude.
pub(crate) fn rescaling<'a>(source: &'a SiteDelta<'a>) -> Option<&'a LowRank<'a>> {
    source.low_rank.as_ref().filter(|low| low.magnitude.is_some())
}

impl Expand {
    /// Takes room.
    pub(crate) fn lay_out(layout: &mut RegionLayout, low: &LowRank<'_>) -> Self {
        let (rank, outputs) = (low.rank(), low.b.shape()[0]);
        let width = Width::of_dtype(low.b.dtype()).unwrap_or(Width::F32);
        let lanes = outputs.next_multiple_of(LANES);
        let mut vector = |_: &Tensor<'_>| layout.take::<f32>(lanes);
        let b_bias = low.b_bias.as_ref().map(&mut vector);
        let m = low.magnitude.as_ref().map(&mut vector);
        let magnitude = m.map(|m| Magnitude {
            m,
            at_one: layout.take::<f32>(lanes),
            quadratic: [(); 3].map(|()| layout.take::<f64>(lanes)),
        });
        let b = layout.take::<u8>(lanes * rank * width.bits() / 8);
        Self { rank, scale: low.scale, width, outputs, b, b_bias, magnitude }
    }

    fn tile_bytes(&self) -> usize {
        self.rank * LANES * self.width.bits() / 8
    }

    /// Writes B and its bias.
    pub(crate) fn fill(&self, region: &mut Region, low: &LowRank<'_>) {
        let out = region.part_mut::<u8>(self.b);
        for (tile, out) in out.chunks_exact_mut(self.tile_bytes()).enumerate() {
            let row = |lane| Some((low.b.view(), tile * LANES + lane)).filter(|&(_, row)| row < self.outputs);
            interleave(out, self.width, row);
        }
        for (part, values) in self.b_bias.iter().zip(&low.b_bias) {
            values.view().read_f32(0..self.outputs, &mut region.part_mut(*part)[..self.outputs]);
        }
    }

    /// Writes the magnitude and its norms' parts. Where there are no outputs nothing is rescaled.
    ///
    /// # Errors
    /// The first output whose norm is 0 at a weight of 1.
    pub(crate) fn fill_magnitude(
        &self,
        region: &mut Region,
        low: &LowRank<'_>,
        moments: &Moments,
    ) -> Result<(), usize> {
        let (Some(parts), Some(magnitude)) = (&self.magnitude, &low.magnitude) else { return Ok(()) };
        let scale = f64::from(low.scale);
        let m = magnitude.view().to_f32();
        region.part_mut::<f32>(parts.m).fill(1.0);
        region.part_mut::<f32>(parts.at_one).fill(1.0);
        region.part_mut::<f64>(parts.quadratic[0]).fill(1.0);
        for (i, &m) in m.iter().enumerate() {
            let quadratic = [moments.weight[i], scale * moments.mixed[i], scale * scale * moments.delta[i]];
            let square = quadratic[0] + 2.0 * quadratic[1] + quadratic[2];
            if square <= 0.0 || square.is_nan() {
                return Err(i);
            }
            region.part_mut::<f32>(parts.m)[i] = m;
            region.part_mut::<f32>(parts.at_one)[i] = ratio(m, quadratic, 1.0);
            for (part, value) in parts.quadratic.into_iter().zip(quadratic) {
                region.part_mut::<f64>(part)[i] = value;
            }
        }
        Ok(())
    }

    /// Applies the delta to one tile of a row's outputs, its bias not yet added.
    pub(crate) fn apply(
        &self,
        region: &Region,
        kernels: &Kernels,
        tile: usize,
        t: &[f32],
        weight: f32,
        y: &mut [f32; LANES],
    ) {
        // An adapter that brings more outputs may stand in a mixture with one that does not know them.
        if tile * LANES >= self.outputs {
            return;
        }
        let (b, coefficient) = (&region.part::<u8>(self.b)[tile * self.tile_bytes()..], weight * self.scale);
        assert!(t.len() == self.rank && b.len() >= self.tile_bytes());
        // SAFETY: the kernels exist, so their instruction set does; a tile of B is `[rank][16]` in its width.
        unsafe { (kernels.expand)(b.as_ptr(), self.width, t, coefficient, y) };
        if let Some(bias) = self.b_bias {
            let bias = &region.part::<f32>(bias)[tile * LANES..];
            y.iter_mut().zip(bias).for_each(|(y, bias)| *y += coefficient * bias);
        }
        if let Some(magnitude) = &self.magnitude {
            magnitude.rescale(region, tile, weight, y);
        }
    }
}

impl Magnitude {
    /// `y *= m / n`
    fn rescale(&self, region: &Region, tile: usize, weight: f32, y: &mut [f32; LANES]) {
        let first = tile * LANES;
        if weight == 1.0 {
            let ratios = &region.part::<f32>(self.at_one)[first..];
            return y.iter_mut().zip(ratios).for_each(|(y, ratio)| *y *= ratio);
        }
        let m = &region.part::<f32>(self.m)[first..];
        let [a, b, c] = self.quadratic.map(|part| &region.part::<f64>(part)[first..]);
        for (i, y) in y.iter_mut().enumerate() {
            *y *= ratio(m[i], [a[i], b[i], c[i]], weight);
        }
    }
}
