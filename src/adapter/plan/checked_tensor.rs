//! A stored tensor of an adapter that was checked: present, of a float type, of the right number of dimensions; its shape and
//! values can be checked further.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::{Tensor, TensorView, shape_text};

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
    const CHUNK: usize = 4096;
    let mut buffer = [0.0; CHUNK];
    let (mut nan, mut infinite, mut first, mut nonzero) = (0, 0, None, false);
    for start in (0..view.len()).step_by(CHUNK) {
        let values = &mut buffer[..CHUNK.min(view.len() - start)];
        view.read_f32(start..start + values.len(), values);
        nonzero |= values.iter().any(|v| *v != 0.0);
        if values.iter().all(|v| v.is_finite()) {
            continue;
        }
        nan += values.iter().filter(|v| v.is_nan()).count();
        infinite += values.iter().filter(|v| v.is_infinite()).count();
        first = first.or_else(|| values.iter().position(|v| !v.is_finite()).map(|i| start + i));
    }
    match first {
        None => Ok(nonzero),
        Some(first) => Err(Error::new(ErrorCode::AdapterNotFinite, "a tensor holds values that are not finite")
            .with_expected("finite values")
            .with_found(format!("{nan} NaN and {infinite} infinite of {}, the first at index {first}", view.len()))),
    }
}
