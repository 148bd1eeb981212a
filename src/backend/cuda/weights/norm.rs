//! Weights of norms on the device, in f32.

use super::placer::Placer;
use crate::adapter::delta::SiteDelta;
use crate::backend::NormSource;
use crate::backend::cuda::driver::DeviceMemory;
use crate::backend::packed_norm::PackedNorm;
use crate::error::Result;
use crate::sites::SitePart;
use crate::tensor::TensorView;

/// A norm's packed values.
pub(crate) struct Norm {
    /// The form of the values.
    pub(crate) form: PackedNorm,
    /// The values in f32.
    pub(crate) memory: DeviceMemory,
    /// The same, to compare adapters with.
    values: Vec<f32>,
}

impl Norm {
    /// Copies a norm to the device.
    ///
    /// # Errors
    /// `memory_exhausted`; `internal` if it holds no floats, or its bias does not fit; the device failed.
    pub(super) fn load(placer: &mut Placer, source: &NormSource<'_>) -> Result<Self> {
        let form = PackedNorm::of(source)?;
        let mut values = vec![0.0; form.len()];
        form.pack(source, &mut values);
        Ok(Self { form, memory: placer.place(bytemuck::cast_slice(&values))?, values })
    }

    /// Channels that it has weights for.
    pub(crate) fn width(&self) -> usize {
        self.form.width()
    }

    /// Its values with what an adapter brings in their place.
    ///
    /// # Errors
    /// As [`PackedNorm::replace`].
    pub(crate) fn replaced(&self, delta: &SiteDelta<'_>) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.values.len()];
        self.form.replace(&self.values, delta, &mut values)?;
        Ok(values)
    }

    /// Whether a part of it is stored as exactly these values.
    pub(super) fn equals(&self, part: SitePart, values: &TensorView<'_>) -> bool {
        self.form.equals(&self.values, part, values)
    }
}
