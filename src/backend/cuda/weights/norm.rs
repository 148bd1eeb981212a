//! Weights of norms on the device, in f32.

use super::placer::Placer;
use crate::backend::cuda::driver::DeviceMemory;
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::TensorView;

/// A norm's weight `[width]`.
pub(crate) struct Norm {
    /// The values in f32.
    pub(crate) memory: DeviceMemory,
    /// The same, to compare adapters with.
    values: Vec<f32>,
}

impl Norm {
    /// Copies a weight to the device.
    ///
    /// # Errors
    /// `memory_exhausted`; `internal` if it holds no floats; the device failed.
    pub(super) fn load(placer: &mut Placer, weight: TensorView<'_>) -> Result<Self> {
        if !weight.dtype().is_float() {
            return Err(Error::new(ErrorCode::Internal, "a norm's weight must hold floats").with_found(weight.dtype()));
        }
        let values = weight.try_to_f32()?;
        Ok(Self { memory: placer.place(bytemuck::cast_slice(&values))?, values })
    }

    /// Number of values.
    pub(crate) fn width(&self) -> usize {
        self.values.len()
    }

    /// Whether it holds exactly these values.
    pub(super) fn equals(&self, values: TensorView<'_>) -> bool {
        values.shape() == [self.values.len()] && values.to_f32() == self.values
    }
}
