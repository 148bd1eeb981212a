//! What a stored weight means.
//!
//! Each packing is known in one file of this folder and nowhere else. To a backend every quantised weight looks the same,
//! [`CodedWeight`]: rows of unsigned codes in *stored order*, cut into groups of inputs, with
//!
//! ```text
//! W[n, permutation[k]] = scale[g, n] * (code[k, n] - zero[g, n])        g = the group that stored input k lies in
//! ```
//!
//! so that no kernel learns a file format. [`QuantWeight::dequantise`] is the oracle of every packing and every kernel.

pub mod gptq;

use std::ops::Range;

use crate::tensor::TensorView;

/// One group of consecutive stored inputs that share a scale and a zero for each output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeGroup {
    /// Width of its codes in bits: 2, 3, 4, 5, 6 or 8.
    pub bits: u8,
    /// Number of stored inputs in it, at least 1.
    pub inputs: usize,
}

/// How the inputs of a quantised weight are cut and ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeLayout {
    /// The groups in stored order; their inputs sum to `in_features`.
    pub groups: Vec<CodeGroup>,
    /// `permutation[k]` is the model's input that stored input `k` multiplies; `None` where the orders are the same.
    pub permutation: Option<Vec<u32>>,
}

/// A weight of unsigned codes; see the module for the formula.
pub trait CodedWeight: Send + Sync {
    /// Width of the input.
    fn in_features(&self) -> usize;

    /// Width of the output, padding columns of the file not counted.
    fn out_features(&self) -> usize;

    /// Groups and input order.
    fn layout(&self) -> &CodeLayout;

    /// Writes the codes of some stored inputs and outputs, row-major `[inputs, outputs]`.
    ///
    /// # Panics
    /// If a range is out of bounds or `codes` has another length than their product.
    fn read_codes(&self, inputs: Range<usize>, outputs: Range<usize>, codes: &mut [u8]);

    /// Writes scale and zero of one group for some outputs.
    ///
    /// # Panics
    /// If the group or range is out of bounds, or a slice has another length than the range.
    fn read_scales(&self, group: usize, outputs: Range<usize>, scales: &mut [f32], zeros: &mut [i32]);
}

/// A weight `[out_features, in_features]` of a linear, as the checkpoint stores it.
pub enum QuantWeight<'a> {
    /// Plain numbers, row-major `[out_features, in_features]`.
    Dense(TensorView<'a>),
    /// Codes with scales and zeros.
    Coded(Box<dyn CodedWeight + 'a>),
}

impl QuantWeight<'_> {
    /// Width of the input.
    pub fn in_features(&self) -> usize {
        match self {
            QuantWeight::Dense(view) => view.shape()[1],
            QuantWeight::Coded(weight) => weight.in_features(),
        }
    }

    /// Width of the output.
    pub fn out_features(&self) -> usize {
        match self {
            QuantWeight::Dense(view) => view.shape()[0],
            QuantWeight::Coded(weight) => weight.out_features(),
        }
    }

    /// The rows of some outputs in f32, `[outputs, in_features]`, inputs in the model's order.
    ///
    /// # Panics
    /// If the range is out of bounds.
    pub fn dequantise(&self, outputs: Range<usize>) -> Vec<f32> {
        let in_features = self.in_features();
        let mut out = vec![0.0; outputs.len() * in_features];
        match self {
            QuantWeight::Dense(view) => view.read_f32(outputs.start * in_features..outputs.end * in_features, &mut out),
            QuantWeight::Coded(weight) => dequantise_codes(&**weight, outputs, &mut out),
        }
        out
    }
}

fn dequantise_codes(weight: &dyn CodedWeight, outputs: Range<usize>, out: &mut [f32]) {
    let (in_features, width) = (weight.in_features(), outputs.len());
    let (mut scales, mut zeros) = (vec![0.0; width], vec![0; width]);
    let mut codes = Vec::new();
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
                out[n * in_features + input] = scales[n] * (i32::from(code) - zeros[n]) as f32;
            }
        }
        start += group.inputs;
    }
}

// SKELETON below: helper's room
use crate::checkpoint::Checkpoint;
use crate::error::Result;

/// The quantisation a model folder declares, with its per-module overrides.
pub struct QuantConfig {}

impl QuantConfig {
    /// Reads `quantization_config` of config.json, or quantize_config.json beside it.
    pub fn read(_dir: &std::path::Path, _config: &serde_json::Value) -> Result<Option<Self>> {
        todo!()
    }
}

/// Finds the stored weight of the linear at module path `path`, by the names of its tensors, and checks it.
///
/// # Errors
/// Missing tensors, wrong shapes, unreadable formats.
pub fn open_linear<'a>(
    _checkpoint: &'a Checkpoint,
    _config: Option<&QuantConfig>,
    _path: &str,
    _in_features: usize,
    _out_features: usize,
) -> Result<QuantWeight<'a>> {
    todo!()
}

/// The bias of the linear at `path`, if one is stored.
pub fn open_bias<'a>(_checkpoint: &'a Checkpoint, _path: &str, _out_features: usize) -> Result<Option<TensorView<'a>>> {
    todo!()
}
