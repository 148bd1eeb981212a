//! The norms that no other kernel applies while reading: layer norms, norms with a bias, and those of queries or keys of a wider
//! scope than a head with the weight of all.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::grid_rows;
use crate::backend::cuda::compiler::sources::NORMS;
use crate::backend::cuda::driver::{Arguments, Device, Kernel};
use crate::backend::cuda::tables::RoutedNorm;
use crate::error::Result;

/// Threads of a block.
const THREADS: u32 = 256;

/// Norms of segments of rows: `weight * (x - mean) / sqrt(variance + eps) + bias`.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct NormSegments {
    /// `[rows, stride]` f32
    pub x: u64,
    /// `[rows, stride]` f32, of which the segments are written; may be `x`.
    pub out: u64,
    /// The norm: weights of `[width]` or `[segments, width]`, then its biases.
    pub norm: RoutedNorm,
    /// Number of rows.
    pub rows: u32,
    /// Values of a row.
    pub stride: u32,
    /// Column at which the first segment begins.
    pub first: u32,
    /// Width of a segment.
    pub width: u32,
    /// Values from the weights of a segment to those of the next; 0 where all have the same.
    pub weight_stride: u32,
    /// Values from a weight to its bias; 0 where there are no biases.
    pub bias_offset: u32,
    /// 1 if the mean is subtracted; else it counts as 0.
    pub subtracts_mean: u32,
    /// Epsilon.
    pub eps: f32,
}

/// The compiled kernel.
pub struct NormKernels {
    segments: Kernel,
}

impl NormKernels {
    /// Compiles it, or takes it from the cache.
    ///
    /// # Errors
    /// As [`Device::module`].
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        Ok(Self { segments: device.module(&NORMS, &[])?.kernel("norm_segments")? })
    }

    /// Norms that many segments of that many rows.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    pub fn segments(&self, norm: &NormSegments, segments: usize, rows: usize) -> Result<()> {
        let grid = [segments as u32, grid_rows(rows), 1];
        self.segments.launch(grid, THREADS, 0, &Arguments::of(norm))
    }
}
