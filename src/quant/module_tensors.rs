//! The tensors of one quantized module, whose shapes and data types are checked as they are fetched.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::{DType, TensorView, shape_text};

/// The tensors of the module at `path`.
pub(super) struct ModuleTensors<'a, 'p> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) path: &'p str,
    /// The hint of errors about a wrong shape.
    pub(super) hint: String,
}

impl<'a> ModuleTensors<'a, '_> {
    pub(super) fn name(&self, part: &str) -> String {
        format!("{}.{part}", self.path)
    }

    pub(super) fn error(&self, code: ErrorCode, what: &str, part: &str) -> Error {
        let name = self.name(part);
        let file = self.checkpoint.path_of(&name).unwrap_or(self.checkpoint.path());
        Error::new(code, what).with_path(file).with_tensor(name)
    }

    pub(super) fn mismatch(&self, what: &str, part: &str) -> Error {
        self.error(ErrorCode::QuantShapeMismatch, what, part).with_hint(&*self.hint)
    }

    pub(super) fn tensor(&self, part: &str, shape: &[usize]) -> Result<TensorView<'a>> {
        let view = self.checkpoint.tensor(&self.name(part))?;
        if view.shape() == shape {
            return Ok(view);
        }
        Err(self
            .mismatch("a quantized tensor has the wrong shape", part)
            .with_expected(shape_text(shape))
            .with_found(shape_text(view.shape())))
    }

    pub(super) fn check_dtype(&self, view: TensorView<'a>, part: &str, dtype: DType) -> Result<TensorView<'a>> {
        match view.dtype() {
            found if found == dtype => Ok(view),
            found => Err(self
                .error(ErrorCode::CheckpointDtypeUnsupported, "a quantized tensor has the wrong data type", part)
                .with_expected(dtype)
                .with_found(found)
                .with_hint(format!("quantize again with {part} as {dtype}"))),
        }
    }

    /// The words of an int32 tensor.
    pub(super) fn words(&self, part: &str, shape: &[usize]) -> Result<&'a [[u8; 4]]> {
        Ok(self.check_dtype(self.tensor(part, shape)?, part, DType::I32)?.bytes().as_chunks().0)
    }
}
