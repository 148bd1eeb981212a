//! Tensors that stay in their file and are read from it in parts.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, ErrorCode, Result};
use crate::files::unreadable;

/// An open file, and what tells whether it is as it was when it was opened.
#[derive(Debug)]
pub(super) struct OpenFile {
    file: File,
    path: PathBuf,
    stamp: Stamp,
}

/// What changes when a file is written or truncated in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    length: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { length: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) })
    }
}

impl OpenFile {
    /// A file as it is now.
    ///
    /// # Errors
    /// `checkpoint_unreadable`.
    pub(super) fn new(file: File, path: &Path) -> Result<Self> {
        let stamp = Stamp::of(&file).map_err(|error| unreadable(path, &error))?;
        Ok(Self { file, path: path.to_path_buf(), stamp })
    }
}

/// A tensor's bytes in an open file of a checkpoint.
///
/// They are read, not mapped: if the file is truncated there is an error, not a signal. A file that is deleted or replaced by
/// renaming another stays readable as it was; one that is changed in place is noticed by [`TensorOnDisk::check_unchanged`].
#[derive(Clone, Debug)]
pub struct TensorOnDisk {
    file: Arc<OpenFile>,
    /// Offset of the first byte in the file.
    start: u64,
    len: usize,
}

impl TensorOnDisk {
    /// `len` bytes of a file from `start` on.
    pub(super) fn new(file: Arc<OpenFile>, start: u64, len: usize) -> Self {
        Self { file, start, len }
    }

    /// Reads the tensor's bytes from `offset` on.
    ///
    /// # Errors
    /// `checkpoint_truncated`, `checkpoint_unreadable`; `internal` if they lie beyond the tensor.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        let OpenFile { file, path, .. } = &*self.file;
        if offset.checked_add(out.len()).is_none_or(|end| end > self.len) {
            return Err(Error::new(ErrorCode::Internal, "bytes beyond a tensor").with_path(path));
        }
        file.read_exact_at(out, self.start + offset as u64).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Error::new(ErrorCode::CheckpointTruncated, "the file shrank after the model was loaded").with_path(path)
            }
            _ => unreadable(path, &error),
        })
    }

    /// Whether what was read so far is what the file held when it was opened.
    ///
    /// # Errors
    /// `checkpoint_unreadable` if it was changed since.
    pub fn check_unchanged(&self) -> Result<()> {
        let OpenFile { file, path, stamp } = &*self.file;
        let now = Stamp::of(file).map_err(|error| unreadable(path, &error))?;
        if now == *stamp {
            return Ok(());
        }
        Err(Error::new(ErrorCode::CheckpointUnreadable, "the file was changed in place after the model was loaded")
            .with_path(path)
            .with_hint("load the model again; replace model files by writing new ones and renaming them"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn on_disk(path: &Path) -> TensorOnDisk {
        TensorOnDisk::new(Arc::new(OpenFile::new(File::open(path).unwrap(), path).unwrap()), 2, 4)
    }

    #[test]
    fn parts_of_a_tensor_are_read_and_nothing_beyond_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        fs::write(&path, [9, 9, 1, 2, 3, 4, 9]).unwrap();
        let tensor = on_disk(&path);
        let mut out = [0; 2];
        tensor.read(1, &mut out).unwrap();
        assert_eq!(out, [2, 3]);
        assert_eq!(tensor.read(3, &mut out).unwrap_err().code(), ErrorCode::Internal);
        assert_eq!(tensor.read(usize::MAX, &mut out).unwrap_err().code(), ErrorCode::Internal);
    }

    #[test]
    fn a_replaced_or_deleted_file_stays_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("weights"), folder.path().join("other"));
        fs::write(&path, [0, 0, 1, 2, 3, 4]).unwrap();
        fs::write(&other, [0; 6]).unwrap();
        let tensor = on_disk(&path);
        fs::rename(&other, &path).unwrap();
        fs::remove_file(&path).unwrap();
        let mut out = [0; 4];
        tensor.read(0, &mut out).unwrap();
        tensor.check_unchanged().unwrap();
        assert_eq!(out, [1, 2, 3, 4]);
    }

    #[test]
    fn a_file_that_is_changed_in_place_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        fs::write(&path, [0, 0, 1, 2, 3, 4]).unwrap();
        let tensor = on_disk(&path);
        fs::write(&path, [0, 0, 1]).unwrap();
        assert_eq!(tensor.read(0, &mut [0; 4]).unwrap_err().code(), ErrorCode::CheckpointTruncated);
        let error = tensor.check_unchanged().unwrap_err();
        assert_eq!(error.code(), ErrorCode::CheckpointUnreadable);
        assert!(error.message().contains("changed in place"));
    }
}
