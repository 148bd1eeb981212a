//! A stored tensor of an adapter that was checked: present, of a float type, of the right number of dimensions; its shape and
//! values can be checked further.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::{DType, Tensor, TensorView, shape_text};

/// A tensor with its name in the file.
#[derive(Clone, Copy)]
pub(super) struct CheckedTensor<'a> {
    pub name: &'a str,
    pub view: TensorView<'a>,
}

impl<'a> CheckedTensor<'a> {
    /// The tensor of that name, of a float type and with that many dimensions.
    pub fn open(weights: &'a Checkpoint, name: &'a str, dimensions: usize) -> Result<Self> {
        let unsupported = |found: &str| {
            Error::new(ErrorCode::AdapterDtypeUnsupported, "the data type of a tensor is not supported")
                .with_tensor(name)
                .with_expected("float16, bfloat16 or float32")
                .with_found(found)
        };
        let view = weights.tensor(name).map_err(|error| match error.code() {
            ErrorCode::CheckpointDtypeUnsupported => unsupported(error.found().unwrap_or("another type")),
            _ => error,
        })?;
        if !view.dtype().is_float() {
            return Err(unsupported(&view.dtype().to_string()));
        }
        if view.shape().len() == dimensions && !view.is_empty() {
            return Ok(Self { name, view });
        }
        let error = Error::new(ErrorCode::AdapterShapeMismatch, "a tensor has the wrong number of dimensions")
            .with_tensor(name)
            .with_expected(if dimensions == 1 { "one dimension" } else { "two dimensions" })
            .with_found(shape_text(view.shape()));
        Err(match view.shape().len() > dimensions {
            true => error,
            false => error.with_hint(
                "saved from a sharded run (DeepSpeed ZeRO-3, FSDP) without gathering: gather the weights, save again",
            ),
        })
    }

    /// Its shape.
    pub fn shape(&self) -> &'a [usize] {
        self.view.shape()
    }

    /// As a tensor that borrows the file's bytes.
    pub fn tensor(&self) -> Tensor<'a> {
        self.view.into()
    }

    /// That it has this shape; `what` is the message if it does not.
    pub fn has_shape(&self, expected: &[usize], what: &str) -> Result<()> {
        match self.shape() == expected {
            true => Ok(()),
            false => Err(Error::new(ErrorCode::AdapterShapeMismatch, what)
                .with_tensor(self.name)
                .with_expected(shape_text(expected))
                .with_found(shape_text(self.shape()))),
        }
    }

    /// Whether any value is not zero.
    ///
    /// # Errors
    /// `adapter_not_finite`, with the number of such values.
    pub fn is_nonzero(&self) -> Result<bool> {
        is_nonzero(&self.view).map_err(|error| error.with_tensor(self.name))
    }
}

/// Whether any value is not zero; an error if one is not finite.
fn is_nonzero(view: &TensorView<'_>) -> Result<bool> {
    let (is_nonzero, is_finite) = match view.dtype() {
        DType::F16 => scan(view.bytes(), |bytes| u16::from_le_bytes(bytes).into(), 0x7C00, 0x7FFF),
        DType::BF16 => scan(view.bytes(), |bytes| u16::from_le_bytes(bytes).into(), 0x7F80, 0x7FFF),
        _ => scan(view.bytes(), u32::from_le_bytes, 0x7F80_0000, 0x7FFF_FFFF),
    };
    if is_finite { Ok(is_nonzero) } else { Err(not_finite(view)) }
}

/// Whether any value has a bit of `magnitude`, and whether none has all of `exponent`; without a branch, so that it is vectorized.
fn scan<const BYTES: usize>(
    values: &[u8],
    bits: impl Fn([u8; BYTES]) -> u32,
    exponent: u32,
    magnitude: u32,
) -> (bool, bool) {
    let (mut any, mut not_finite) = (0, false);
    for &value in values.as_chunks::<BYTES>().0 {
        let bits = bits(value);
        any |= bits & magnitude;
        not_finite |= bits & exponent == exponent;
    }
    (any != 0, !not_finite)
}

/// The error for a tensor with values that are not finite.
fn not_finite(view: &TensorView<'_>) -> Error {
    const CHUNK: usize = 4096;
    let mut buffer = [0.0; CHUNK];
    let (mut nan, mut infinite, mut first) = (0, 0, None);
    for start in (0..view.len()).step_by(CHUNK) {
        let values = &mut buffer[..CHUNK.min(view.len() - start)];
        view.read_f32(start..start + values.len(), values);
        nan += values.iter().filter(|v| v.is_nan()).count();
        infinite += values.iter().filter(|v| v.is_infinite()).count();
        first = first.or_else(|| values.iter().position(|v| !v.is_finite()).map(|i| start + i));
    }
    Error::new(ErrorCode::AdapterNotFinite, "a tensor holds values that are not finite")
        .with_expected("finite values")
        .with_found(format!(
            "{nan} NaN and {infinite} infinite of {}, the first at index {}",
            view.len(),
            first.unwrap_or(0)
        ))
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn zeros_and_values_that_are_not_finite_are_found_in_every_type() {
        let values = [-0.0f32, 1.0, -2.5, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        for &value in &values {
            let bytes = [
                (DType::F32, [0f32, value].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()),
                (DType::F16, [0f32, value].iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()),
                (DType::BF16, [0f32, value].iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect()),
            ];
            for (dtype, bytes) in &bytes {
                let view = TensorView::new(*dtype, &[2], bytes).expect("two values");
                match is_nonzero(&view) {
                    Ok(found) => assert!(value.is_finite() && found == (value != 0.0), "{dtype} {value}"),
                    Err(error) => {
                        assert!(!value.is_finite(), "{dtype} {value}");
                        assert!(error.found().is_some_and(|found| found.ends_with("the first at index 1")));
                    }
                }
            }
        }
    }

    #[test]
    fn the_smallest_and_the_largest_numbers_are_finite_and_not_zero() {
        let half = [f16::from_bits(1), f16::MAX].map(|value| value.to_le_bytes()).concat();
        let brain = [bf16::from_bits(1), bf16::MAX].map(|value| value.to_le_bytes()).concat();
        let single = [f32::from_bits(1), f32::MAX].map(|value| value.to_le_bytes()).concat();
        for (dtype, bytes) in [(DType::F16, half), (DType::BF16, brain), (DType::F32, single)] {
            let view = TensorView::new(dtype, &[2], &bytes).expect("two values");
            assert_eq!(is_nonzero(&view), Ok(true), "{dtype}");
        }
    }
}
