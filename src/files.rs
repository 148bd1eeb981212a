//! The one way to read files that are not trusted: regular files only, with sizes checked before memory is allocated.
//!
//! Links are followed: hub caches consist of links.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};

use crate::error::{Error, ErrorCode, Result};

/// Reads a small file (a config, an index) into memory.
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

/// Opens a regular file, or a link to one, and returns its length too. A FIFO in its place cannot block the process.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64)> {
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

/// The error for a file that is missing or cannot be read.
pub(crate) fn unreadable(path: &Path, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::new(ErrorCode::CheckpointNotFound, "the file does not exist").with_path(path),
        _ => Error::new(ErrorCode::CheckpointUnreadable, format!("the file cannot be read: {error}")).with_path(path),
    }
}

/// Reads up to this many bytes skip the check of available memory.
const UNCHECKED_BYTES: u64 = 64 << 20;

/// Bytes of memory available without swapping, if the kernel reports it.
pub(crate) fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Appends the file's next bytes to `bytes` until it holds `end` bytes.
pub(crate) fn read_until(file: &mut File, bytes: &mut Vec<u8>, end: u64, path: &Path) -> Result<()> {
    let missing = end - bytes.len() as u64;
    let exhausted = || {
        Error::new(ErrorCode::MemoryExhausted, "the file does not fit in memory")
            .with_path(path)
            .with_found(format!("{end} bytes"))
    };
    // A sparse file costs nothing to create, and a kernel that overcommits kills the process that touches the pages.
    if missing > UNCHECKED_BYTES
        && let Some(available) = available_memory().filter(|available| missing > *available)
    {
        return Err(exhausted().with_expected(format!("at most {available} bytes")));
    }
    bytes.try_reserve_exact(missing as usize).map_err(|_| exhausted())?;
    file.take(missing).read_to_end(bytes).map_err(|error| unreadable(path, &error))?;
    if (bytes.len() as u64) < end {
        return Err(Error::new(ErrorCode::CheckpointTruncated, "the file shrank while it was being read")
            .with_path(path)
            .with_expected(format!("{end} bytes"))
            .with_found(format!("{} bytes", bytes.len())));
    }
    Ok(())
}
