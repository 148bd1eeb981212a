//! Expand: B, its bias and DoRA's magnitude, in tiles of 16 outputs, for linears and embeddings alike.
//!
//! B is laid out as `[tile][rank][16]`, so that expand works on a tile's outputs before they are written. A magnitude stores,
//! for each output, a = |W|^2, b = s W.(BA) and c = s^2 |BA|^2 in f64: its norm at a request's weight f is
//! `sqrt(a + 2 f b + f^2 c)`, for any f, without W.

use std::ops::Range;

use super::dora_norms::NormTerms;
use crate::adapter::delta::{LowRank, SiteDelta};
use crate::backend::cpu::kernels::dispatch::Kernels;
use crate::backend::cpu::kernels::tile::{Width, prefetch};
use crate::backend::cpu::kernels::vector::LANES;
use crate::backend::cpu::runtime::arena::{Part, Region, RegionLayout};
use crate::backend::cpu::runtime::threads::Pool;
use crate::backend::cpu::weights::pack::interleave;
use crate::error::Result;
use crate::tensor::Tensor;

/// Tiles that a task writes: one alone is written in less time than it takes to claim.
const FILLED_TILES: usize = 32;

/// The expand of a low-rank delta: what it adds to the outputs, given `t = A x`.
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

/// DoRA's magnitude and the terms of its norms, all `[tile][16]`.
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

/// The low-rank part, if it has a magnitude (DoRA).
pub(crate) fn with_magnitude<'a>(source: &'a SiteDelta<'a>) -> Option<&'a LowRank<'a>> {
    source.low_rank.as_ref().filter(|low| low.magnitude.is_some())
}

impl Expand {
    /// Reserves space.
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
    ///
    /// # Errors
    /// A task panicked.
    pub(crate) fn fill(&self, pool: &mut Pool, region: &mut Region, low: &LowRank<'_>) -> Result<()> {
        let tiles_bytes = FILLED_TILES * self.tile_bytes();
        pool.for_chunks(region.part_mut::<u8>(self.b), tiles_bytes, |part, out| {
            for (tile, out) in out.chunks_exact_mut(self.tile_bytes()).enumerate() {
                let first = (part * FILLED_TILES + tile) * LANES;
                let row = |lane| Some((low.b.view(), first + lane)).filter(|&(_, row)| row < self.outputs);
                interleave(out, self.width, row);
            }
        })?;
        for (part, values) in self.b_bias.iter().zip(&low.b_bias) {
            values.view().read_f32(0..self.outputs, &mut region.part_mut(*part)[..self.outputs]);
        }
        Ok(())
    }

    /// Writes the magnitude and the terms of its norms. Padding outputs are not rescaled.
    ///
    /// # Errors
    /// The first output whose norm is 0 at a weight of 1.
    pub(crate) fn fill_magnitude(
        &self,
        region: &mut Region,
        low: &LowRank<'_>,
        terms: &[NormTerms],
    ) -> Result<(), usize> {
        let (Some(parts), Some(magnitude)) = (&self.magnitude, &low.magnitude) else { return Ok(()) };
        let scale = f64::from(low.scale);
        region.part_mut::<f32>(parts.m).fill(1.0);
        region.part_mut::<f32>(parts.at_one).fill(1.0);
        region.part_mut::<f64>(parts.quadratic[0]).fill(1.0);
        magnitude.view().read_f32(0..self.outputs, &mut region.part_mut::<f32>(parts.m)[..self.outputs]);
        for (i, terms) in terms.iter().enumerate() {
            if terms.total <= 0.0 || terms.total.is_nan() {
                return Err(i);
            }
            let m = f64::from(region.part::<f32>(parts.m)[i]);
            region.part_mut::<f32>(parts.at_one)[i] = (m / terms.total.sqrt()) as f32;
            let quadratic = [terms.weight, scale * terms.mixed, scale * scale * terms.delta];
            for (part, value) in parts.quadratic.into_iter().zip(quadratic) {
                region.part_mut::<f64>(part)[i] = value;
            }
        }
        Ok(())
    }

    /// Requests B's values for some tiles ahead of their use: among other adapters' they are too short for the hardware's own
    /// prefetching.
    pub(crate) fn prefetch(&self, region: &Region, tiles: Range<usize>) {
        let (b, bytes) = (region.part::<u8>(self.b), self.tile_bytes());
        prefetch(&b[b.len().min(tiles.start * bytes)..b.len().min(tiles.end * bytes)]);
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
        // An adapter with more outputs than the base may share a mixture with one that has only the base's.
        if tile * LANES >= self.outputs {
            return;
        }
        let (b, coefficient) = (&region.part::<u8>(self.b)[tile * self.tile_bytes()..], weight * self.scale);
        assert!(t.len() == self.rank);
        kernels.expand(b, self.width, t, coefficient, y);
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
