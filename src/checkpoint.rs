//! Memory-mapped safetensors: one file or shards by index, looked up by tensor name.
//!
//! A model's files are mapped and never copied: weights are read once, straight from the map into a backend's own layout, and
//! [`Checkpoint::release`] then gives the pages back. Adapters are small and are read into memory, since a file that another
//! process truncates under a map kills this one.
//!
//! Nothing in a file is trusted: `header` checks sizes before anything is allocated, `folder` keeps an index inside its folder,
//! and only regular files are opened (links to them are followed: hub caches are made of links).

mod folder;
mod header;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};
use rustix::fs::{FileType, Mode, OFlags};
use sha2::{Digest, Sha256};

use self::header::{LENGTH_BYTES, MAX_TENSORS, TensorInfo};
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::TensorView;

/// The tensors of one safetensors file or of all shards of a model folder.
#[derive(Debug)]
pub struct Checkpoint {
    /// The folder or file it was opened from.
    origin: PathBuf,
    files: Vec<StoredFile>,
    /// In the order of the files and of their data, with the index of the file.
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
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl std::ops::Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            FileBytes::Mapped(map) => map,
            FileBytes::Owned(bytes) => bytes,
        }
    }
}

impl Checkpoint {
    /// Maps the checkpoint of a model folder: `model.safetensors`, the shards of `model.safetensors.index.json`, or the
    /// `*.safetensors` there are. An index that names none of the files that are there is ignored with a warning.
    ///
    /// # Safety of the map
    /// The files must not be changed while they are mapped, which is for as long as the `Checkpoint` lives (a model lets go of
    /// its own once it is loaded). A file that another process truncates meanwhile ends this process with SIGBUS, and one
    /// that is overwritten in place gives mixed weights: replace model files by writing beside them and renaming. Adapters
    /// are not mapped, see [`Checkpoint::read_file`].
    ///
    /// # Errors
    /// `checkpoint_not_found`, `checkpoint_unreadable`, `checkpoint_truncated`, `checkpoint_header_invalid`,
    /// `checkpoint_too_large`, `checkpoint_index_invalid`, `checkpoint_tensor_duplicate`.
    pub fn open(dir: &Path) -> Result<Self> {
        let folder = folder::find(dir)?;
        let mut checkpoint = Self::empty(dir);
        for path in folder.files {
            let (file, length) = open_regular(&path)?;
            if length == 0 {
                header::json_length(&[], 0, &path)?;
            }
            // SAFETY: the map is read-only, so this process cannot break it; that no other process changes the file is the
            // contract stated above, the same as that of every loader that maps weights. The numbers in it are only data.
            #[expect(unsafe_code, reason = "mapping a file is unsafe")]
            let map = unsafe { Mmap::map(&file) }.map_err(|error| unreadable(&path, &error))?;
            let json = header::json_length(&map, map.len() as u64, &path)?;
            let tensors = header::read(&map[LENGTH_BYTES..LENGTH_BYTES + json], map.len() as u64, &path)?;
            checkpoint.add(path, FileBytes::Mapped(map), tensors)?;
        }
        for (tensor, file) in &folder.promised {
            let path = checkpoint.path_of(tensor);
            if path != Some(&*dir.join(file)) {
                return Err(Error::new(ErrorCode::CheckpointIndexInvalid, "a tensor is not where the index says")
                    .with_path(&folder.index)
                    .with_tensor(tensor)
                    .with_expected(file)
                    .with_found(path.map_or("no such tensor".into(), |path| path.display().to_string())));
            }
        }
        Ok(checkpoint)
    }

    /// Reads one file into memory: what adapters use, since a file truncated under a map kills the process.
    ///
    /// The header is checked against the size of the file before the rest is read.
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

    /// Takes the bytes of a file that is in memory already; `path` is for messages.
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
                    return Err(Error::new(ErrorCode::CheckpointTensorDuplicate, "a tensor stands in two files")
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

    /// The tensor of that name.
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

    /// The tensor of that name, if there is one.
    ///
    /// # Errors
    /// `checkpoint_dtype_unsupported`.
    pub fn get(&self, name: &str) -> Result<Option<TensorView<'_>>> {
        let Some((info, file)) = self.by_name.get(name).map(|&i| &self.tensors[i]) else { return Ok(None) };
        let file = &self.files[*file];
        let Some(dtype) = info.readable_dtype() else {
            return Err(Error::new(ErrorCode::CheckpointDtypeUnsupported, "a data type that is not read here")
                .with_path(&file.path)
                .with_tensor(name)
                .with_found(info.dtype));
        };
        let view = TensorView::new(dtype, &info.shape, &file.bytes[info.range.clone()]);
        // The header's check makes the sizes agree.
        view.map(Some)
            .ok_or_else(|| Error::new(ErrorCode::Internal, "a checked tensor has the wrong size").with_tensor(name))
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

    /// SHA-256 of all file bytes, file after file, in hexadecimal (used for adapters; of a mapped model it reads everything).
    pub fn content_hash(&self) -> String {
        let mut hash = Sha256::new();
        for file in &self.files {
            hash.update(&*file.bytes);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Lets the kernel drop the mapped pages that were read so far; they come back from the file when read again.
    pub fn release(&self) {
        for file in &self.files {
            if let FileBytes::Mapped(map) = &file.bytes {
                // SAFETY: of a read-only map of a file no page can be dirty, so dropping pages loses nothing: a later read
                // through any borrow faults the same bytes in again.
                #[expect(unsafe_code, reason = "advice that drops pages is unsafe")]
                let dropped = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
                if let Err(error) = dropped {
                    tracing::debug!(path = %file.path.display(), %error, "mapped pages stay resident");
                }
            }
        }
    }
}

/// The names of a safetensors file's tensors, by reading its header alone.
///
/// # Errors
/// As [`Checkpoint::read_file`].
pub(crate) fn tensor_names(path: &Path) -> Result<Vec<String>> {
    let (mut file, length) = open_regular(path)?;
    let tensors = read_header(&mut file, length, &mut Vec::new(), path)?;
    Ok(tensors.into_iter().map(|info| info.name).collect())
}

/// Reads a file's header into `bytes`, and what it says; nothing is read that the file's length does not allow.
fn read_header(file: &mut File, length: u64, bytes: &mut Vec<u8>, path: &Path) -> Result<Vec<TensorInfo>> {
    read_until(file, bytes, length.min(LENGTH_BYTES as u64), path)?;
    let json = header::json_length(bytes, length, path)?;
    read_until(file, bytes, (LENGTH_BYTES + json) as u64, path)?;
    header::read(&bytes[LENGTH_BYTES..], length, path)
}

/// Reads a small file whole: a config, an index.
///
/// # Errors
/// `checkpoint_not_found`, `checkpoint_unreadable`, `checkpoint_too_large`.
pub(crate) fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let (mut file, length) = open_regular(path)?;
    if length > max_bytes {
        return Err(Error::new(ErrorCode::CheckpointTooLarge, "the file is too long")
            .with_path(path)
            .with_expected(format!("at most {max_bytes} bytes"))
            .with_found(format!("{length} bytes")));
    }
    let mut bytes = Vec::new();
    read_until(&mut file, &mut bytes, length, path)?;
    Ok(bytes)
}

/// Opens a regular file, or a link to one, and tells its length. A FIFO in its place cannot make the process wait.
fn open_regular(path: &Path) -> Result<(File, u64)> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| unreadable(path, &error.into()))?;
    let stat = rustix::fs::fstat(&file).map_err(|error| unreadable(path, &error.into()))?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return Ok((File::from(file), stat.st_size as u64)),
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "something else",
    };
    Err(Error::new(ErrorCode::CheckpointUnreadable, "not a regular file")
        .with_path(path)
        .with_expected("a regular file")
        .with_found(kind))
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::new(ErrorCode::CheckpointNotFound, "the file does not exist").with_path(path),
        _ => Error::new(ErrorCode::CheckpointUnreadable, format!("the file cannot be read: {error}")).with_path(path),
    }
}

/// Bytes that are read without asking the kernel whether it has them.
const UNASKED_BYTES: u64 = 64 << 20;

/// Bytes of memory that are to be had without swapping, where the kernel tells.
pub(crate) fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Reads on until `bytes` has `end` bytes.
fn read_until(file: &mut File, bytes: &mut Vec<u8>, end: u64, path: &Path) -> Result<()> {
    let missing = end - bytes.len() as u64;
    let exhausted = || {
        Error::new(ErrorCode::MemoryExhausted, "the file does not fit the memory")
            .with_path(path)
            .with_found(format!("{end} bytes"))
    };
    // A sparse file costs its writer nothing, and a kernel that overcommits kills whoever touches what it granted.
    if missing > UNASKED_BYTES
        && let Some(available) = available_memory().filter(|available| missing > *available)
    {
        return Err(exhausted().with_expected(format!("at most {available} bytes")));
    }
    bytes.try_reserve_exact(missing as usize).map_err(|_| exhausted())?;
    file.take(missing).read_to_end(bytes).map_err(|error| unreadable(path, &error))?;
    if (bytes.len() as u64) < end {
        return Err(Error::new(ErrorCode::CheckpointTruncated, "the file became shorter while it was read")
            .with_path(path)
            .with_expected(format!("{end} bytes"))
            .with_found(format!("{} bytes", bytes.len())));
    }
    Ok(())
}
