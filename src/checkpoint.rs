//! Memory-mapped safetensors: one file or shards by index, looked up by tensor name. SKELETON

use std::path::Path;

use crate::error::Result;
use crate::tensor::TensorView;

/// The tensors of one safetensors file or of all shards of a model folder.
pub struct Checkpoint {}

impl Checkpoint {
    /// Maps the checkpoint of a model folder.
    pub fn open(_dir: &Path) -> Result<Self> {
        todo!()
    }

    /// Reads one file into memory: what adapters use, since a file truncated under a map kills the process.
    pub fn read_file(_path: &Path) -> Result<Self> {
        todo!()
    }

    /// Takes the bytes of a file that is in memory already; `path` is for messages.
    pub fn from_bytes(_bytes: Vec<u8>, _path: &Path) -> Result<Self> {
        todo!()
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// `checkpoint_tensor_missing`, `checkpoint_dtype_unsupported`.
    pub fn tensor(&self, _name: &str) -> Result<TensorView<'_>> {
        todo!()
    }

    /// The tensor of that name, if there is one.
    ///
    /// # Errors
    /// `checkpoint_dtype_unsupported`.
    pub fn get(&self, _name: &str) -> Result<Option<TensorView<'_>>> {
        todo!()
    }

    /// Whether a tensor of that name exists.
    pub fn contains(&self, _name: &str) -> bool {
        todo!()
    }

    /// All tensor names, in file order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::empty()
    }

    /// The file that holds a tensor.
    pub fn path_of(&self, _name: &str) -> Option<&Path> {
        todo!()
    }

    /// Bytes of all files.
    pub fn file_bytes(&self) -> u64 {
        todo!()
    }

    /// SHA-256 of all file bytes, in hexadecimal (used for adapters).
    pub fn content_hash(&self) -> String {
        todo!()
    }

    /// Lets the kernel drop the mapped pages that were read so far.
    pub fn release(&self) {
        todo!()
    }
}
