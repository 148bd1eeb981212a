//! RMS norms of many rows, as elements that the linear kernel copies as they are.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::embed::SQUARES_COLUMNS;
use super::grid_rows;
use crate::backend::cuda::compiler::sources::{ELEMENT_TYPES, NORM_ELEMENTS};
use crate::backend::cuda::driver::{Arguments, Device, Kernel};
use crate::backend::cuda::layout::ElementType;
use crate::backend::cuda::tables::RoutedNorm;
use crate::error::Result;

/// The argument of the kernel.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct NormElements {
    /// The step's [`StepTables`](crate::backend::cuda::tables::StepTables), which name the rows to be normed.
    pub step: u64,
    /// `[*, width]` f32
    pub x: u64,
    /// `[*, ceil(width / 256)]` f32
    pub sum_squares: u64,
    /// The norm, of whose routing row i is row i of x.
    pub norm: RoutedNorm,
    /// `[*, width]` of the element type, written.
    pub elements: u64,
    /// `[*]` u32: set to 1 where a value of the row exceeds the element type.
    pub overflow_rows: u64,
    /// Width of a row.
    pub width: u32,
    /// Epsilon.
    pub epsilon: f32,
}

/// The compiled kernel.
pub struct NormElementsKernel(Kernel);

impl NormElementsKernel {
    /// Compiles it, or takes it from the cache.
    ///
    /// # Errors
    /// As [`Device::module`].
    pub fn load(device: &Arc<Device>, element: ElementType) -> Result<Self> {
        let variant = match element {
            ElementType::F16 => 0,
            ElementType::Bf16 => 1,
        };
        Ok(Self(device.module(&NORM_ELEMENTS, ELEMENT_TYPES[variant])?.kernel("norm_elements")?))
    }

    /// Norms the step's rows, `rows` of them.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    pub fn launch(&self, arguments: &NormElements, rows: usize) -> Result<()> {
        let grid = [arguments.width.div_ceil(SQUARES_COLUMNS as u32), grid_rows(rows), 1];
        self.0.launch(grid, SQUARES_COLUMNS as u32, 0, &Arguments::of(arguments))
    }
}
