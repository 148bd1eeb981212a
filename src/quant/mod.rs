//! What a stored weight means.
//!
//! Each packing is known in one file of this folder and nowhere else. To a backend every quantized weight looks the same,
//! [`QuantizedWeight`]: rows of unsigned codes in *stored order*, cut into groups of inputs, with
//!
//! ```text
//! W[n, permutation[k]] = scale[g, n] * (code[k, n] - zero[g, n])        g = the group that stored input k lies in
//! ```
//!
//! so that no kernel learns a file format. Where the format means that product rounded to float16, [`QuantizedWeight::rounds_to_f16`]
//! says so. [`StoredWeight::dequantize`] is the oracle of every packing and every kernel.

pub mod config;
pub mod exl2;
pub mod gptq;
mod packed;

use std::ops::Range;

use half::f16;

pub use self::config::QuantConfig;
use self::exl2::Exl2Weight;
use self::gptq::GptqWeight;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::{TensorView, shape_text};

/// One group of consecutive stored inputs that share a scale and a zero for each output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeGroup {
    /// Width of its codes in bits: 2, 3, 4, 5, 6 or 8.
    pub bits: u8,
    /// Number of stored inputs in it, at least 1.
    pub inputs: usize,
}

/// How the inputs of a quantized weight are cut and ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeLayout {
    /// The groups in stored order; their inputs sum to `in_features`.
    pub groups: Vec<CodeGroup>,
    /// `permutation[k]` is the model's input that stored input `k` multiplies; `None` where the orders are the same.
    pub permutation: Option<Vec<u32>>,
}

/// A weight of unsigned codes; see the module for the formula.
pub trait QuantizedWeight: Send + Sync {
    /// Width of the input.
    fn in_features(&self) -> usize;

    /// Width of the output, padding columns of the file not counted.
    fn out_features(&self) -> usize;

    /// Groups and input order.
    fn layout(&self) -> &CodeLayout;

    /// Whether each weight is the formula's product rounded to float16. The oracle rounds; a kernel that scales sums instead of
    /// weights cannot, and is off by at most half a unit in float16's last place for each weight.
    fn rounds_to_f16(&self) -> bool {
        false
    }

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
pub enum StoredWeight<'a> {
    /// Plain numbers, row-major `[out_features, in_features]`.
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

    /// The rows of some outputs in f32, `[outputs, in_features]`, inputs in the model's order.
    ///
    /// # Panics
    /// If the range is out of bounds.
    pub fn dequantize(&self, outputs: Range<usize>) -> Vec<f32> {
        let in_features = self.in_features();
        let mut out = vec![0.0; outputs.len() * in_features];
        match self {
            StoredWeight::Dense(view) => {
                view.read_f32(outputs.start * in_features..outputs.end * in_features, &mut out)
            }
            StoredWeight::Quantized(weight) => dequantize_codes(&**weight, outputs, &mut out),
        }
        out
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

/// Tensor names by which formats that are not read here give themselves away.
const FOREIGN: &[(&str, &str)] = &[
    ("trellis", "exl3"),
    ("weight_packed", "compressed-tensors"),
    ("weight_scale_inv", "fp8"),
    ("weight_scale", "scaled fp8 or int8"),
    ("weight_scales", "eetq"),
    ("weight.absmax", "bitsandbytes"),
    ("SCB", "bitsandbytes"),
    ("W_q", "hqq"),
    ("codebooks", "aqlm"),
    ("Qidxs", "quip#"),
    ("B", "marlin"),
];

/// Last names of the tensors that hold a weight, and what their format is called.
const FORMATS: [(&str, &str); 3] = [("q_weight", "exl2"), ("qweight", "gptq"), ("weight", "dense")];

/// The format of the weight at module path `path`: `exl2`, `gptq`, `dense`; `None` if none is stored there.
pub fn format_of(checkpoint: &Checkpoint, path: &str) -> Option<&'static str> {
    FORMATS.iter().find(|(part, _)| checkpoint.contains(&format!("{path}.{part}"))).map(|&(_, format)| format)
}

/// Finds the stored weight of the linear at module path `path`, by the names of its tensors, and checks it.
///
/// `path.q_weight` is EXL2, whatever `config` says; `path.qweight` is GPTQ, whose `config` then says widths and groups;
/// `path.weight` is plain numbers.
///
/// # Errors
/// `checkpoint_tensor_missing`, `checkpoint_dtype_unsupported`, `checkpoint_shape_mismatch`, `quant_format_unsupported`,
/// `quant_config_invalid`, `quant_shape_mismatch`, `quant_value_invalid`.
pub fn open_linear<'a>(
    checkpoint: &'a Checkpoint,
    config: Option<&QuantConfig>,
    path: &str,
    in_features: usize,
    out_features: usize,
) -> Result<StoredWeight<'a>> {
    for (part, format) in FOREIGN {
        let name = format!("{path}.{part}");
        if let Some(file) = checkpoint.path_of(&name) {
            return Err(Error::new(ErrorCode::QuantFormatUnsupported, "a quantization format that is not read here")
                .with_path(file)
                .with_tensor(name)
                .with_found(*format));
        }
    }
    let [exl2, gptq, plain] = FORMATS.map(|(part, _)| format!("{path}.{part}"));
    let Some((codes, file)) = [&exl2, &gptq].into_iter().find_map(|name| Some((name, checkpoint.path_of(name)?)))
    else {
        return open_dense(checkpoint, &plain, &[out_features, in_features]).map(StoredWeight::Dense);
    };
    let contradiction =
        |what: &str| Err(Error::new(ErrorCode::QuantConfigInvalid, what).with_path(file).with_tensor(codes));
    if checkpoint.contains(&plain) {
        return contradiction("a module has both a plain and a quantized weight");
    }
    if *codes == exl2 {
        if checkpoint.contains(&gptq) {
            return contradiction("a module has both an EXL2 and a GPTQ weight");
        }
        let weight = Exl2Weight::open(checkpoint, path, in_features, out_features)?;
        return Ok(StoredWeight::Quantized(Box::new(weight)));
    }
    let config = match config {
        Some(QuantConfig::Gptq(config)) => config,
        Some(QuantConfig::Exl2) => return contradiction("a GPTQ weight where the quantization config says EXL2"),
        None => {
            return contradiction("a quantized weight, but neither config.json nor quantize_config.json says how");
        }
    };
    let Some(params) = config.params_of(path)? else {
        return contradiction(
            "a quantized weight where 'dynamic' of the quantization config leaves the module unquantized",
        );
    };
    let weight = GptqWeight::open(checkpoint, config, params, path, in_features, out_features)?;
    Ok(StoredWeight::Quantized(Box::new(weight)))
}

/// The bias of the linear at module path `path`, `[out_features]`, if it has one. Quantizers often write one of zeros; EXL2
/// pads it as it pads the columns of the weight, and what is beyond `out_features` means nothing.
///
/// # Errors
/// `checkpoint_shape_mismatch`, `checkpoint_dtype_unsupported`.
pub fn open_bias<'a>(checkpoint: &'a Checkpoint, path: &str, out_features: usize) -> Result<Option<TensorView<'a>>> {
    let name = format!("{path}.bias");
    if !checkpoint.contains(&name) {
        return Ok(None);
    }
    let padded = [exl2::padded(out_features)];
    if format_of(checkpoint, path) == Some("exl2") && checkpoint.get(&name)?.is_some_and(|bias| bias.shape() == padded)
    {
        return open_dense(checkpoint, &name, &padded).map(Some);
    }
    open_dense(checkpoint, &name, &[out_features]).map(Some)
}

/// A tensor of plain numbers of that shape: a dense weight, a bias, a norm, an embedding.
///
/// # Errors
/// `checkpoint_tensor_missing`, `checkpoint_shape_mismatch`, `checkpoint_dtype_unsupported`.
pub fn open_dense<'a>(checkpoint: &'a Checkpoint, name: &str, shape: &[usize]) -> Result<TensorView<'a>> {
    let view = checkpoint.tensor(name)?;
    let error = |code, what: &str| {
        Error::new(code, what).with_tensor(name).with_path(checkpoint.path_of(name).unwrap_or(checkpoint.path()))
    };
    if view.shape() != shape {
        return Err(error(ErrorCode::CheckpointShapeMismatch, "a tensor has the wrong shape")
            .with_expected(shape_text(shape))
            .with_found(shape_text(view.shape())));
    }
    if !view.dtype().is_float() {
        return Err(error(ErrorCode::CheckpointDtypeUnsupported, "a weight that is not stored as floats")
            .with_expected("float16, bfloat16 or float32")
            .with_found(view.dtype()));
    }
    Ok(view)
}
