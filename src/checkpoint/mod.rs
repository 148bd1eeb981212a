//! Memory-mapped safetensors: one file or the shards of an index, looked up by tensor name.
//!
//! A model's files are mapped, not copied: weights are read once, from the map straight into a backend's own layout, and
//! [`Checkpoint::release`] then returns the pages to the kernel. Adapters are small and are read into memory, because
//! truncating a mapped file kills the process that maps it.
//!
//! Files are not trusted: `header` checks sizes before memory is allocated, `shards` rejects an index that points outside its
//! folder, and `files` opens regular files only.

mod header;
mod missing;
mod on_disk;
mod shards;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{Mmap, UncheckedAdvice};
use sha2::{Digest, Sha256};

use self::header::{LENGTH_BYTES, MAX_TENSORS, TensorInfo};
pub(crate) use self::missing::with_path_hint;
use self::on_disk::OpenFile;
pub use self::on_disk::TensorOnDisk;
use crate::error::{Error, ErrorCode, Result, printable};
use crate::files::{open_regular, read_until, unreadable};
use crate::tensor::TensorView;

/// Bytes that are hashed on one thread at once.
const HASHED_PART_BYTES: usize = 4 << 20;

/// The tensors of one safetensors file or of all shards of a model folder.
#[derive(Debug)]
pub struct Checkpoint {
    /// The folder or file it was opened from.
    origin: PathBuf,
    files: Vec<StoredFile>,
    /// Each tensor and the index of its file, in the order of the files and of their data.
    tensors: Vec<(TensorInfo, usize)>,
    by_name: HashMap<String, usize>,
}

#[derive(Debug)]
struct StoredFile {
    path: PathBuf,
    bytes: FileBytes,
}

#[derive(Debug)]
enum FileBytes {
    /// A map, and the file that it is of.
    Mapped(Mmap, Arc<OpenFile>),
    Owned(Vec<u8>),
}

impl std::ops::Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            FileBytes::Mapped(map, _) => map,
            FileBytes::Owned(bytes) => bytes,
        }
    }
}

impl Checkpoint {
    /// Maps the checkpoint of a model folder: `model.safetensors`, the shards of `model.safetensors.index.json`, or the
    /// folder's `*.safetensors`. An index that names none of the files in the folder is ignored with a warning.
    ///
    /// # Safety of the map
    /// The files must not change while they are mapped, that is as long as the `Checkpoint` lives (a model drops its own once
    /// it is loaded; what it reads later, see [`TensorOnDisk`], is not mapped). If another process truncates a mapped file, this process ends with SIGBUS; if it overwrites one in
    /// place, old and new weights are mixed. Replace model files by writing new ones and renaming. Adapters are not mapped,
    /// see [`Checkpoint::read_file`].
    ///
    /// # Errors
    /// `checkpoint_not_found`, `checkpoint_unreadable`, `checkpoint_truncated`, `checkpoint_header_invalid`,
    /// `checkpoint_too_large`, `checkpoint_index_invalid`, `checkpoint_tensor_duplicate`.
    pub fn open(dir: &Path) -> Result<Self> {
        let shards = shards::find(dir)?;
        let mut checkpoint = Self::empty(dir);
        for path in shards.files {
            let (file, length) = open_regular(&path)?;
            if length == 0 {
                header::json_length(&[], 0, &path)?;
            }
            // SAFETY: the map is read-only, so this process cannot change it. That no other process changes the file is the
            // contract stated above, which every loader that maps weights has. Its bytes are only read as numbers.
            #[expect(unsafe_code, reason = "mapping a file is unsafe")]
            let map = unsafe { Mmap::map(&file) }.map_err(|error| unreadable(&path, &error))?;
            let json = header::json_length(&map, map.len() as u64, &path)?;
            let tensors = header::read(&map[LENGTH_BYTES..LENGTH_BYTES + json], map.len() as u64, &path)?;
            let file = Arc::new(OpenFile::new(file, &path)?);
            checkpoint.add(path, FileBytes::Mapped(map, file), tensors)?;
        }
        for (tensor, file) in &shards.expected {
            let path = checkpoint.path_of(tensor);
            if path != Some(&*dir.join(file)) {
                return Err(Error::new(ErrorCode::CheckpointIndexInvalid, "a tensor is not where the index says")
                    .with_path(&shards.index)
                    .with_tensor(tensor)
                    .with_expected(file)
                    .with_found(path.map_or("no such tensor".into(), |path| path.display().to_string())));
            }
        }
        Ok(checkpoint)
    }

    /// Reads one file into memory. Adapters use this: truncating a mapped file would kill the process.
    ///
    /// The header is checked against the file's size before the rest is read.
    ///
    /// # Errors
    /// `checkpoint_not_found`, `checkpoint_unreadable`, `checkpoint_truncated`, `checkpoint_header_invalid`,
    /// `checkpoint_too_large`, `memory_exhausted`.
    pub fn read_file(path: &Path) -> Result<Self> {
        let (mut file, length) = open_regular(path)?;
        let mut bytes = Vec::new();
        let tensors = read_header(&mut file, length, &mut bytes, path)?;
        read_until(&mut file, &mut bytes, length, path)?;
        let mut checkpoint = Self::empty(path);
        checkpoint.add(path.to_path_buf(), FileBytes::Owned(bytes), tensors)?;
        Ok(checkpoint)
    }

    /// Takes a file's bytes that are already in memory; `path` appears in error messages.
    ///
    /// # Errors
    /// `checkpoint_truncated`, `checkpoint_header_invalid`, `checkpoint_too_large`.
    pub fn from_bytes(bytes: Vec<u8>, path: &Path) -> Result<Self> {
        let length = bytes.len() as u64;
        let json = header::json_length(&bytes, length, path)?;
        let tensors = header::read(&bytes[LENGTH_BYTES..LENGTH_BYTES + json], length, path)?;
        let mut checkpoint = Self::empty(path);
        checkpoint.add(path.to_path_buf(), FileBytes::Owned(bytes), tensors)?;
        Ok(checkpoint)
    }

    fn empty(origin: &Path) -> Self {
        Self { origin: origin.to_path_buf(), files: Vec::new(), tensors: Vec::new(), by_name: HashMap::new() }
    }

    fn add(&mut self, path: PathBuf, bytes: FileBytes, tensors: Vec<TensorInfo>) -> Result<()> {
        if self.tensors.len() + tensors.len() > MAX_TENSORS {
            return Err(header::too_many_tensors().with_path(&self.origin));
        }
        let file = self.files.len();
        for info in tensors {
            let before = self.by_name.insert(info.name.clone(), self.tensors.len());
            match before.map(|before| self.tensors[before].1) {
                None => {}
                Some(other) => {
                    return Err(Error::new(ErrorCode::CheckpointTensorDuplicate, "a tensor appears in two files")
                        .with_path(&path)
                        .with_tensor(info.name)
                        .with_found(format!("another in {}", self.files[other].path.display())));
                }
            }
            self.tensors.push((info, file));
        }
        self.files.push(StoredFile { path, bytes });
        Ok(())
    }

    /// The same tensors by other names: what `new_name` makes of each.
    ///
    /// # Errors
    /// `checkpoint_tensor_duplicate`: two would have the same.
    pub fn renamed(mut self, new_name: impl for<'n> Fn(&'n str) -> Cow<'n, str>) -> Result<Self> {
        self.by_name.clear();
        for (index, (info, file)) in self.tensors.iter_mut().enumerate() {
            info.name = new_name(&info.name).into_owned();
            if self.by_name.insert(info.name.clone(), index).is_some() {
                return Err(Error::new(ErrorCode::CheckpointTensorDuplicate, "two tensors mean the same")
                    .with_path(&self.files[*file].path)
                    .with_tensor(&info.name));
            }
        }
        Ok(self)
    }

    /// The tensor with this name.
    ///
    /// # Errors
    /// `checkpoint_tensor_missing`, `checkpoint_dtype_unsupported`.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        self.get(name)?.ok_or_else(|| {
            Error::new(ErrorCode::CheckpointTensorMissing, "a tensor is missing")
                .with_path(&self.origin)
                .with_tensor(name)
        })
    }

    /// The tensor with this name, if there is one.
    ///
    /// # Errors
    /// `checkpoint_dtype_unsupported`.
    pub fn get(&self, name: &str) -> Result<Option<TensorView<'_>>> {
        let Some((info, file)) = self.by_name.get(name).map(|&i| &self.tensors[i]) else { return Ok(None) };
        let file = &self.files[*file];
        let Some(dtype) = info.readable_dtype() else {
            return Err(Error::new(ErrorCode::CheckpointDtypeUnsupported, "unsupported data type")
                .with_path(&file.path)
                .with_tensor(name)
                .with_found(info.dtype));
        };
        let view = TensorView::new(dtype, &info.shape, &file.bytes[info.range.clone()]);
        // The header's check makes the sizes agree.
        view.map(Some)
            .ok_or_else(|| Error::new(ErrorCode::Internal, "a checked tensor has the wrong size").with_tensor(name))
    }

    /// A tensor's bytes in its file, for reading parts of it after the `Checkpoint` is gone. `None` if there is no such tensor or
    /// its file is not mapped.
    pub fn on_disk(&self, name: &str) -> Option<TensorOnDisk> {
        let (info, file) = &self.tensors[*self.by_name.get(name)?];
        match &self.files[*file].bytes {
            FileBytes::Mapped(_, file) => {
                Some(TensorOnDisk::new(Arc::clone(file), info.range.start as u64, info.range.len()))
            }
            FileBytes::Owned(_) => None,
        }
    }

    /// Whether a tensor of that name exists, readable or not.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// All tensor names, in the order of the files and of their data.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|(info, _)| info.name.as_str())
    }

    /// The file that holds a tensor.
    pub fn path_of(&self, name: &str) -> Option<&Path> {
        let &(_, file) = &self.tensors[*self.by_name.get(name)?];
        Some(&self.files[file].path)
    }

    /// The folder or file it was opened from.
    pub fn path(&self) -> &Path {
        &self.origin
    }

    /// Bytes of all files.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes.len() as u64).sum()
    }

    /// SHA-256 over the SHA-256 of each part of 4 MiB of the files, in order, in hexadecimal: parts are hashed on all cores. Used
    /// for adapters; for a mapped model it would read every file.
    pub fn content_hash(&self) -> String {
        let parts: Vec<&[u8]> = self.files.iter().flat_map(|file| file.bytes.chunks(HASHED_PART_BYTES)).collect();
        let mut hash = Sha256::new();
        for digest in hash_parts(&parts) {
            hash.update(digest);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Returns the mapped pages read so far to the kernel; reading them again fetches them from the file.
    pub fn release(&self) {
        for file in &self.files {
            if let FileBytes::Mapped(map, _) = &file.bytes {
                // SAFETY: pages of a read-only file map are never dirty, so dropping them loses nothing: a later read through
                // any borrow faults the same bytes in again.
                #[expect(unsafe_code, reason = "advice that drops pages is unsafe")]
                let dropped = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
                if let Err(error) = dropped {
                    tracing::debug!(path = %printable(&file.path.to_string_lossy()), %error, "mapped pages stay resident");
                }
            }
        }
    }
}

/// SHA-256 of each part, on as many threads as there are cores and parts.
fn hash_parts(parts: &[&[u8]]) -> Vec<[u8; 32]> {
    let digest = |part: &&[u8]| Sha256::digest(part).into();
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let of_thread = parts.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let mut shares = parts.chunks(of_thread);
        let own = shares.next().unwrap_or(&[]);
        // A thread that cannot be started leaves its share to this one.
        let shares: Vec<_> = shares
            .map(|share| {
                let thread = std::thread::Builder::new();
                (share, thread.spawn_scoped(scope, move || share.iter().map(digest).collect::<Vec<_>>()))
            })
            .collect();
        let mut digests: Vec<_> = own.iter().map(digest).collect();
        for (share, thread) in shares {
            let hashed = thread.ok().and_then(|thread| thread.join().ok());
            digests.extend(hashed.unwrap_or_else(|| share.iter().map(digest).collect()));
        }
        digests
    })
}

/// The tensor names of a safetensors file; only its header is read.
///
/// # Errors
/// As [`Checkpoint::read_file`].
pub(crate) fn tensor_names(path: &Path) -> Result<Vec<String>> {
    let (mut file, length) = open_regular(path)?;
    let tensors = read_header(&mut file, length, &mut Vec::new(), path)?;
    Ok(tensors.into_iter().map(|info| info.name).collect())
}

/// Reads a file's header into `bytes` and parses it; never reads past what the file's length allows.
fn read_header(file: &mut File, length: u64, bytes: &mut Vec<u8>, path: &Path) -> Result<Vec<TensorInfo>> {
    read_until(file, bytes, length.min(LENGTH_BYTES as u64), path)?;
    let json = header::json_length(bytes, length, path)?;
    read_until(file, bytes, (LENGTH_BYTES + json) as u64, path)?;
    header::read(&bytes[LENGTH_BYTES..], length, path)
}
