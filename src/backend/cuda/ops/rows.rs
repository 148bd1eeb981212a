//! Plain operations on rows, for an order of calls that the fused kernels do not cover.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::embed::SQUARES_COLUMNS;
use super::expand::Projection;
use super::grid_rows;
use crate::backend::cuda::compiler::sources::ROWS;
use crate::backend::cuda::driver::{Arguments, Device, Kernel};
use crate::backend::cuda::tables::RoutedNorm;
use crate::error::Result;

/// `y[i] = ` a group's linears, or `+= factor *` them.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct ExpandRows {
    /// The group.
    pub projection: Projection,
    /// The step's [`StepTables`](crate::backend::cuda::tables::StepTables).
    pub step: u64,
    /// `[rows, outputs]` f32, written; may be `projected` itself.
    pub y: u64,
    /// 1 if the result, times `factor`, is added to what `y` holds.
    pub is_added: u32,
    /// Factor on what is added.
    pub factor: f32,
}

/// Sums of squares of rows.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct SquareRows {
    /// `[rows, width]` f32
    pub x: u64,
    /// `[rows, ceil(width / 256)]` f32, written.
    pub sum_squares: u64,
    /// Number of rows.
    pub rows: u32,
    /// Width of a row.
    pub width: u32,
}

/// RMS norm.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct NormRows {
    /// `[rows, width]` f32
    pub x: u64,
    /// `[rows, ceil(width / 256)]` f32
    pub sum_squares: u64,
    /// The norm.
    pub norm: RoutedNorm,
    /// `[rows, width]` f32, written.
    pub out: u64,
    /// Number of rows.
    pub rows: u32,
    /// Width of a row.
    pub width: u32,
    /// Epsilon.
    pub eps: f32,
    /// Always 0.
    pub padding: u32,
}

/// The compiled kernels.
pub struct RowKernels {
    expand: Kernel,
    square: Kernel,
    norm: Kernel,
}

impl RowKernels {
    /// Compiles them, or takes them from the cache.
    ///
    /// # Errors
    /// As [`Device::module`].
    pub fn load(device: &Arc<Device>) -> Result<Self> {
        let module = device.module(&ROWS, &[])?;
        Ok(Self {
            expand: module.kernel("expand_rows")?,
            square: module.kernel("square_rows")?,
            norm: module.kernel("norm_rows")?,
        })
    }

    /// Computes that many rows.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    pub fn expand(&self, expand: &ExpandRows, rows: usize) -> Result<()> {
        let outputs = expand.projection.starts.last().copied().unwrap_or(0);
        launch(&self.expand, outputs, rows, &Arguments::of(expand))
    }

    /// Computes all rows.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    pub fn square(&self, square: &SquareRows) -> Result<()> {
        launch(&self.square, square.width, square.rows as usize, &Arguments::of(square))
    }

    /// Computes all rows.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    pub fn norm(&self, norm: &NormRows) -> Result<()> {
        launch(&self.norm, norm.width, norm.rows as usize, &Arguments::of(norm))
    }
}

fn launch(kernel: &Kernel, columns: u32, rows: usize, arguments: &Arguments<'_>) -> Result<()> {
    let grid = [columns.div_ceil(SQUARES_COLUMNS as u32), grid_rows(rows), 1];
    kernel.launch(grid, SQUARES_COLUMNS as u32, 0, arguments)
}
