//! The embedding: rows of a table become the residual stream.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::grid_rows;
use crate::backend::cuda::compiler::sources::EMBED;
use crate::backend::cuda::driver::{Arguments, Device, Kernel};
use crate::backend::cuda::tables::FloatRows;
use crate::error::Result;

/// Columns of the residual stream whose squares are summed together, in `sum_squares [rows, ceil(hidden_size / 256)]`.
pub const SQUARES_COLUMNS: usize = 256;

/// The argument of the kernel.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Embed {
    /// The step's [`StepTables`](crate::backend::cuda::tables::StepTables), with tokens within the tables of their rows.
    pub step: u64,
    /// `[vocab, hidden_size]`
    pub table: FloatRows,
    /// `[rows, hidden_size]` f32, written.
    pub hidden: u64,
    /// `[rows, ceil(hidden_size / 256)]` f32, written.
    pub sum_squares: u64,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// The embedding, as slots count embeddings.
    pub embedding: u32,
    /// Factor on the results.
    pub multiplier: f32,
    /// Always 0.
    pub padding: u32,
}

/// The compiled kernel.
pub struct EmbedKernel {
    kernel: Kernel,
}

impl EmbedKernel {
    /// Compiles it, or takes it from the cache.
    ///
    /// # Errors
    /// As [`Device::module`].
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        Ok(Self { kernel: device.module(&EMBED, &[])?.kernel("embed")? })
    }

    /// Computes that many rows.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    pub fn launch(&self, embed: &Embed, rows: usize) -> Result<()> {
        let columns = embed.hidden_size.div_ceil(SQUARES_COLUMNS as u32);
        self.kernel.launch([columns, grid_rows(rows), 1], SQUARES_COLUMNS as u32, 0, &Arguments::of(embed))
    }
}
