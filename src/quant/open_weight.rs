//! Finding the stored weight of a module by the names of its tensors, and opening it in its format.

use super::config::QuantConfig;
use super::exl2::{self, Exl2Weight};
use super::gptq::GptqWeight;
use super::weight::StoredWeight;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::{TensorView, shape_text};

/// Tensor names that identify an unsupported format.
const UNSUPPORTED: &[(&str, &str)] = &[
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

/// The last component of the name of a weight tensor, and the name of its format.
const FORMATS: [(&str, &str); 3] = [("q_weight", "exl2"), ("qweight", "gptq"), ("weight", "dense")];

/// The format of the weight at module path `path`: `exl2`, `gptq`, `dense`; `None` if the checkpoint has no weight there.
pub fn format_of(checkpoint: &Checkpoint, path: &str) -> Option<&'static str> {
    FORMATS.iter().find(|(part, _)| checkpoint.contains(&format!("{path}.{part}"))).map(|&(_, format)| format)
}

/// Finds and validates the stored weight of the linear at module path `path`, by the names of its tensors.
///
/// `path.q_weight` is EXL2, whatever `config` says; `path.qweight` is GPTQ, with the widths and groups of `config`;
/// `path.weight` is unquantized.
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
    for (part, format) in UNSUPPORTED {
        let name = format!("{path}.{part}");
        if let Some(file) = checkpoint.path_of(&name) {
            return Err(Error::new(ErrorCode::QuantFormatUnsupported, "unsupported quantization format")
                .with_path(file)
                .with_tensor(name)
                .with_found(*format));
        }
    }
    let [exl2, gptq, dense] = FORMATS.map(|(part, _)| format!("{path}.{part}"));
    let Some((codes, file)) = [&exl2, &gptq].into_iter().find_map(|name| Some((name, checkpoint.path_of(name)?)))
    else {
        return open_dense(checkpoint, &dense, &[out_features, in_features]).map(StoredWeight::Dense);
    };
    let contradiction =
        |what: &str| Err(Error::new(ErrorCode::QuantConfigInvalid, what).with_path(file).with_tensor(codes));
    if checkpoint.contains(&dense) {
        return contradiction("a module has both an unquantized and a quantized weight");
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
        Some(QuantConfig::Exl2) => return contradiction("a GPTQ weight, but the quantization config declares EXL2"),
        None => {
            return contradiction(
                "a quantized weight, but neither config.json nor quantize_config.json describes its quantization",
            );
        }
    };
    let Some(params) = config.params_of(path)? else {
        return contradiction(
            "a quantized weight, but 'dynamic' of the quantization config leaves this module unquantized",
        );
    };
    let weight = GptqWeight::open(checkpoint, config, params, path, in_features, out_features)?;
    Ok(StoredWeight::Quantized(Box::new(weight)))
}

/// The bias of the linear at module path `path`, `[out_features]`, if it has one. Quantizers often write one of zeros. EXL2
/// pads it as it pads the columns of the weight; values beyond `out_features` are ignored.
///
/// # Errors
/// `checkpoint_shape_mismatch`, `checkpoint_dtype_unsupported`.
pub fn open_bias<'a>(checkpoint: &'a Checkpoint, path: &str, out_features: usize) -> Result<Option<TensorView<'a>>> {
    let name = format!("{path}.bias");
    if !checkpoint.contains(&name) {
        return Ok(None);
    }
    let padded = [exl2::padded_outputs(out_features)];
    if format_of(checkpoint, path) == Some("exl2") && checkpoint.get(&name)?.is_some_and(|bias| bias.shape() == padded)
    {
        return open_dense(checkpoint, &name, &padded).map(Some);
    }
    open_dense(checkpoint, &name, &[out_features]).map(Some)
}

/// An unquantized tensor of a given shape: a dense weight, a bias, a norm, an embedding.
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
        return Err(error(ErrorCode::CheckpointDtypeUnsupported, "a weight is not stored as floats")
            .with_expected("float16, bfloat16 or float32")
            .with_found(view.dtype()));
    }
    Ok(view)
}
