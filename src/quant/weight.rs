//! A stored weight as backends see it, whatever its file format: dense numbers, or codes with scales and zeros.

use std::ops::Range;

use half::f16;

use super::bit_fields::BitStreams;
use crate::error::Result;
use crate::tensor::{TensorView, zeros};

/// A group of consecutive stored inputs; each output has one scale and one zero for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantGroup {
    /// Width of its codes in bits: 2, 3, 4, 5, 6 or 8.
    pub bits: u8,
    /// Number of stored inputs, at least 1.
    pub inputs: usize,
}

/// How the inputs of a quantized weight are grouped and ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantLayout {
    /// The groups in stored order; their inputs sum to `in_features`.
    pub groups: Vec<QuantGroup>,
    /// `permutation[k]` is the model's input that stored input `k` multiplies; `None` if both orders are the same.
    pub permutation: Option<Vec<u32>>,
}

/// A weight stored as unsigned integer codes; the module's documentation has the formula.
pub trait QuantizedWeight: Send + Sync {
    /// Width of the input.
    fn in_features(&self) -> usize;

    /// Width of the output, without the file's padding columns.
    fn out_features(&self) -> usize;

    /// Groups and input order.
    fn layout(&self) -> &QuantLayout;

    /// Whether the format rounds each weight to float16. The oracle rounds; a kernel that scales sums instead of single
    /// weights cannot, and differs by at most half a float16 ULP per weight.
    fn rounds_to_f16(&self) -> bool {
        false
    }

    /// Writes the codes of a range of stored inputs and of outputs, row-major `[inputs, outputs]`.
    ///
    /// # Panics
    /// If a range is out of bounds, or `codes` does not have `inputs * outputs` elements.
    fn read_codes(&self, inputs: Range<usize>, outputs: Range<usize>, codes: &mut [u8]);

    /// The words that hold the codes: a bit stream for each output, and perhaps padding columns after them.
    fn code_streams(&self) -> BitStreams<'_>;

    /// Where in each stream the code of a stored input begins; it takes the bits of the input's group, lowest first.
    ///
    /// # Panics
    /// If the input is out of bounds.
    fn first_bit(&self, input: usize) -> usize;

    /// Writes the scales and zeros of one group for a range of outputs.
    ///
    /// # Panics
    /// If the group or range is out of bounds, or a slice's length differs from the range's.
    fn read_scales(&self, group: usize, outputs: Range<usize>, scales: &mut [f32], zeros: &mut [i32]);
}

/// The weight `[out_features, in_features]` of a linear, as the checkpoint stores it.
pub enum StoredWeight<'a> {
    /// Unquantized, row-major `[out_features, in_features]`.
    Dense(TensorView<'a>),
    /// Codes with scales and zeros.
    Quantized(Box<dyn QuantizedWeight + 'a>),
}

impl StoredWeight<'_> {
    /// Width of the input.
    pub fn in_features(&self) -> usize {
        match self {
            StoredWeight::Dense(view) => view.shape()[1],
            StoredWeight::Quantized(weight) => weight.in_features(),
        }
    }

    /// Width of the output.
    pub fn out_features(&self) -> usize {
        match self {
            StoredWeight::Dense(view) => view.shape()[0],
            StoredWeight::Quantized(weight) => weight.out_features(),
        }
    }

    /// The rows of a range of outputs in f32, `[outputs, in_features]`, inputs in the model's order.
    ///
    /// # Panics
    /// If the range is out of bounds.
    pub fn dequantize(&self, outputs: Range<usize>) -> Vec<f32> {
        let mut out = vec![0.0; outputs.len() * self.in_features()];
        self.read_rows(outputs, &mut out);
        out
    }

    /// As [`StoredWeight::dequantize`] of all outputs, for a weight of any size.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub(crate) fn try_dequantize(&self) -> Result<Vec<f32>> {
        let mut out = zeros(self.out_features().saturating_mul(self.in_features()))?;
        self.read_rows(0..self.out_features(), &mut out);
        Ok(out)
    }

    fn read_rows(&self, outputs: Range<usize>, out: &mut [f32]) {
        let in_features = self.in_features();
        match self {
            StoredWeight::Dense(view) => view.read_f32(outputs.start * in_features..outputs.end * in_features, out),
            StoredWeight::Quantized(weight) => dequantize_codes(&**weight, outputs, out),
        }
    }
}

fn dequantize_codes(weight: &dyn QuantizedWeight, outputs: Range<usize>, out: &mut [f32]) {
    let (in_features, width) = (weight.in_features(), outputs.len());
    let (mut scales, mut zeros) = (vec![0.0; width], vec![0; width]);
    let mut codes = Vec::new();
    let rounds_to_f16 = weight.rounds_to_f16();
    let mut start = 0;
    for (g, group) in weight.layout().groups.iter().enumerate() {
        codes.resize(group.inputs * width, 0);
        weight.read_codes(start..start + group.inputs, outputs.clone(), &mut codes);
        weight.read_scales(g, outputs.clone(), &mut scales, &mut zeros);
        for (k, row) in codes.chunks_exact(width).enumerate() {
            let input = match &weight.layout().permutation {
                Some(permutation) => permutation[start + k] as usize,
                None => start + k,
            };
            for (n, &code) in row.iter().enumerate() {
                let value = scales[n] * (i32::from(code) - zeros[n]) as f32;
                out[n * in_features + input] = if rounds_to_f16 { f16::from_f32(value).to_f32() } else { value };
            }
        }
        start += group.inputs;
    }
}
