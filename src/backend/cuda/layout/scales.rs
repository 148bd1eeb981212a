//! Scales and zeros: read once on the host, in rows of 16 for each strip.
//!
//! ```text
//! scales, zeros   [strips, scale_rows, 8] pairs: outputs g and g + 8 of the strip, which one lane needs together
//! ```

use half::f16;

use super::STRIP_ROWS;
use super::sections::WeightLayout;
use crate::error::{Error, ErrorCode, Result};
use crate::quant::QuantizedWeight;

/// The type in which scales are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum ScaleType {
    /// f16, where all are exact in it.
    #[default]
    F16 = 0,
    /// f32.
    F32 = 1,
}

impl ScaleType {
    /// Bytes of a scale.
    pub fn bytes(self) -> usize {
        match self {
            ScaleType::F16 => size_of::<f16>(),
            ScaleType::F32 => size_of::<f32>(),
        }
    }
}

/// How a weight's scales and zeros are stored, which its values decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScaleForm {
    /// The type of the scales.
    pub scale_type: ScaleType,
    /// Whether a zero differs from the middle of the codes.
    pub has_zeros: bool,
}

impl ScaleForm {
    /// That of a quantized weight.
    pub fn of(layout: &WeightLayout, weight: &dyn QuantizedWeight) -> Self {
        let outputs = layout.out_features;
        let (mut scales, mut zeros) = (vec![0.0; outputs], vec![0; outputs]);
        let mut form = Self::default();
        let mut groups = layout.scale_groups.clone();
        groups.dedup();
        for group in groups {
            weight.read_scales(group, 0..outputs, &mut scales, &mut zeros);
            let middle = 1 << (weight.layout().groups[group].bits - 1);
            if !scales.iter().all(is_f16) {
                form.scale_type = ScaleType::F32;
            }
            form.has_zeros |= zeros.iter().any(|&zero| zero != middle);
        }
        form
    }
}

/// Whether f16 holds a scale as it is.
fn is_f16(scale: &f32) -> bool {
    f16::from_f32(*scale).to_f32() == *scale
}

/// The scales and zeros of a weight, as the device stores them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScaleRows {
    /// The type of the scales.
    pub scale_type: ScaleType,
    /// Bytes of `[strips, scale_rows, 8]` pairs of scales. Padding is 0.
    pub scales: Vec<u8>,
    /// `[strips, scale_rows, 8]` pairs of f16 bits: zeros less `2^(bits-1)`; `None` if they are all 0.
    pub zeros: Option<Vec<u16>>,
}

impl ScaleRows {
    /// Reads those of a quantized weight.
    ///
    /// # Errors
    /// `internal` if a zero is further from the middle of the codes than f16 can tell.
    pub fn of(layout: &WeightLayout, weight: &dyn QuantizedWeight) -> Result<Self> {
        let (strips, rows, outputs) = (layout.strips(), layout.scale_rows(), layout.out_features);
        let mut all_scales = vec![0f32; strips * rows * STRIP_ROWS];
        let mut all_zeros = vec![0i32; strips * rows * STRIP_ROWS];
        let (mut scales, mut zeros) = (vec![0.0; outputs], vec![0; outputs]);
        for (row, &group) in layout.scale_groups.iter().enumerate() {
            if row == 0 || layout.scale_groups[row - 1] != group {
                weight.read_scales(group, 0..outputs, &mut scales, &mut zeros);
            }
            let middle = 1 << (weight.layout().groups[group].bits - 1);
            for (output, (&scale, &zero)) in scales.iter().zip(&zeros).enumerate() {
                let at = (output / STRIP_ROWS * rows + row) * STRIP_ROWS + place(output % STRIP_ROWS);
                all_scales[at] = scale;
                all_zeros[at] = zero - middle;
            }
        }
        if let Some(zero) = all_zeros.iter().find(|zero| zero.unsigned_abs() > 1 << 11) {
            return Err(Error::new(ErrorCode::Internal, "a zero point is far from every code").with_found(zero));
        }
        let (scale_type, scales) = if all_scales.iter().all(is_f16) {
            (ScaleType::F16, all_scales.iter().flat_map(|&scale| f16::from_f32(scale).to_le_bytes()).collect())
        } else {
            (ScaleType::F32, all_scales.iter().flat_map(|scale| scale.to_le_bytes()).collect())
        };
        let has_zeros = all_zeros.iter().any(|&zero| zero != 0);
        let bits = |&zero: &i32| f16::from_f32(zero as f32).to_bits();
        Ok(Self { scale_type, scales, zeros: has_zeros.then(|| all_zeros.iter().map(bits).collect()) })
    }

    /// Scale and zero (less the middle of the codes) of an output of a strip, in a row of scales of all strips.
    ///
    /// # Panics
    /// If the row is out of bounds.
    pub(super) fn read_one(&self, row: usize, output: usize) -> (f32, f32) {
        let at = row * STRIP_ROWS + place(output);
        let scale = match self.scale_type {
            ScaleType::F16 => f16::from_le_bytes(self.scales.as_chunks().0[at]).to_f32(),
            ScaleType::F32 => f32::from_le_bytes(self.scales.as_chunks().0[at]),
        };
        (scale, self.zeros.as_ref().map_or(0.0, |zeros| f16::from_bits(zeros[at]).to_f32()))
    }
}

/// Place of an output of a strip in a row of pairs.
fn place(output: usize) -> usize {
    output % 8 * 2 + output / 8
}
