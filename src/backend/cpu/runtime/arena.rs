//! Memory that weights stream from at full speed.
//!
//! Anonymous mappings, aligned to 2 MiB and advised to be huge pages: decode reads every weight once a token, and with
//! 4 KiB pages TLB misses halve its speed (more under virtualization). Weights live as
//! long as the backend, so an [`Arena`] only grows; adapters, caches and activations each have a [`Region`] of their
//! own, freed when dropped. Mappings are zeroed and occupy nothing until touched.

#![allow(unsafe_code, reason = "memory mapped by hand, for huge pages")]

use std::ptr::{self, NonNull};

use bytemuck::Pod;
use rustix::mm::{MapFlags, ProtFlags};

use crate::backend::cpu::kernels::vector::LINE;
use crate::error::{Error, ErrorCode, Result};

const HUGE_PAGE: usize = 2 << 20;
/// Regions below this size keep small pages, so that a small adapter does not occupy 2 MiB.
const HUGE_FROM: usize = 8 << 20;
/// Address space taken at once for weights.
const ARENA_CHUNK: usize = 64 << 20;

/// Zeroed memory of its own, aligned to a page at least.
pub(crate) struct Region {
    map: NonNull<u8>,
    mapped: usize,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a region is plain memory that it alone owns; access follows the borrow of the region.
unsafe impl Send for Region {}
// SAFETY: as above; shared borrows only read.
unsafe impl Sync for Region {}

impl Region {
    /// At least `bytes` bytes.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        let page = rustix::param::page_size();
        let exhausted = || Error::new(ErrorCode::MemoryExhausted, format!("cannot map {bytes} bytes"));
        let len = bytes.max(1).checked_next_multiple_of(page).ok_or_else(exhausted)?;
        let huge = len >= HUGE_FROM;
        let mapped = if huge { len.checked_add(HUGE_PAGE).ok_or_else(exhausted)? } else { len };
        let flags = MapFlags::PRIVATE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no existing memory.
        let map =
            unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), mapped, ProtFlags::READ | ProtFlags::WRITE, flags) };
        let map = map.ok().and_then(|p| NonNull::new(p.cast::<u8>())).ok_or_else(exhausted)?;
        let skip = if huge { map.as_ptr().align_offset(HUGE_PAGE) } else { 0 };
        // SAFETY: `skip < HUGE_PAGE`, and the mapping is longer than `len` by that much.
        let start = unsafe { map.add(skip) };
        #[cfg(target_os = "linux")]
        if huge {
            // SAFETY: the range lies in the mapping made above. It is advice: a refusal costs speed only.
            let _ = unsafe { rustix::mm::madvise(start.as_ptr().cast(), len, rustix::mm::Advice::LinuxHugepage) };
        }
        Ok(Self { map, mapped, start, len })
    }

    /// Bytes it occupies once all of it was touched.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Its memory as values.
    pub(crate) fn values<T: Pod>(&self) -> &[T] {
        // SAFETY: `start..start + len` is mapped, initialized (zeroed by the kernel) and borrowed from `self`.
        let bytes = unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) };
        bytemuck::cast_slice(bytes)
    }

    /// Its memory as values, to write.
    pub(crate) fn values_mut<T: Pod>(&mut self) -> &mut [T] {
        // SAFETY: as in `values`, borrowed mutably.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) };
        bytemuck::cast_slice_mut(bytes)
    }
}

/// A part of a [`Region`], in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    start: usize,
    len: usize,
}

/// Lays out the parts of a region before it is mapped.
#[derive(Default)]
pub(crate) struct RegionLayout {
    bytes: usize,
}

impl RegionLayout {
    /// Reserves space for `count` values, aligned to a line.
    pub(crate) fn take<T: Pod>(&mut self, count: usize) -> Part {
        let part = Part { start: self.bytes, len: count * size_of::<T>() };
        self.bytes += part.len.next_multiple_of(LINE);
        part
    }

    /// The region, of zeros.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub(crate) fn map(&self) -> Result<Region> {
        Region::new(self.bytes)
    }
}

impl Region {
    /// The values of a part.
    ///
    /// # Panics
    /// If the part is of another region, or its length is not a multiple of the value's.
    pub(crate) fn part<T: Pod>(&self, part: Part) -> &[T] {
        bytemuck::cast_slice(&self.values::<u8>()[part.start..part.start + part.len])
    }

    /// The values of a part, to write.
    ///
    /// # Panics
    /// As [`Region::part`].
    pub(crate) fn part_mut<T: Pod>(&mut self, part: Part) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.values_mut::<u8>()[part.start..part.start + part.len])
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` and nothing borrows from it.
        let _ = unsafe { rustix::mm::munmap(self.map.as_ptr().cast(), self.mapped) };
    }
}

/// A part of an [`Arena`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ArenaSlice {
    region: usize,
    start: usize,
    len: usize,
}

/// Memory that only grows: packed weights, embedding tables, norms.
#[derive(Default)]
pub(crate) struct Arena {
    regions: Vec<Region>,
    /// Bytes taken of the last region.
    taken: usize,
    /// Bytes taken of all regions.
    total: usize,
}

impl Arena {
    /// Takes `bytes` zeroed bytes, aligned to a line.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub(crate) fn take(&mut self, bytes: usize) -> Result<ArenaSlice> {
        let exhausted = || Error::new(ErrorCode::MemoryExhausted, format!("cannot map {bytes} bytes"));
        let padded = bytes.checked_next_multiple_of(LINE).ok_or_else(exhausted)?;
        let free = self.regions.last().map_or(0, |last| last.len() - self.taken);
        if padded > free || self.regions.is_empty() {
            self.regions.push(Region::new(padded.max(ARENA_CHUNK))?);
            self.taken = 0;
        }
        let slice = ArenaSlice { region: self.regions.len() - 1, start: self.taken, len: bytes };
        self.taken += padded;
        self.total += padded;
        Ok(slice)
    }

    /// The values of a slice.
    ///
    /// # Panics
    /// If the slice is of another arena, or its length is not a multiple of the value's.
    pub(crate) fn values<T: Pod>(&self, slice: ArenaSlice) -> &[T] {
        bytemuck::cast_slice(&self.regions[slice.region].values::<u8>()[slice.start..slice.start + slice.len])
    }

    /// The values of a slice, to write.
    ///
    /// # Panics
    /// As [`Arena::values`].
    pub(crate) fn values_mut<T: Pod>(&mut self, slice: ArenaSlice) -> &mut [T] {
        let bytes = &mut self.regions[slice.region].values_mut::<u8>()[slice.start..slice.start + slice.len];
        bytemuck::cast_slice_mut(bytes)
    }

    /// Bytes taken.
    pub(crate) fn bytes(&self) -> usize {
        self.total
    }
}

/// Makes a scratch vector at least `len` long; its contents are undefined afterwards.
///
/// # Errors
/// `memory_exhausted`.
pub(crate) fn grow<T: Copy + Default>(scratch: &mut Vec<T>, len: usize) -> Result<()> {
    if scratch.len() < len {
        let additional = len - scratch.len();
        scratch.try_reserve_exact(additional).map_err(|_| exhausted(len.saturating_mul(size_of::<T>())))?;
        scratch.resize(len, T::default());
    }
    Ok(())
}

/// The error for scratch of that many bytes that cannot be had.
pub(crate) fn exhausted(bytes: usize) -> Error {
    Error::new(ErrorCode::MemoryExhausted, format!("cannot allocate {bytes} bytes of scratch"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_regions_begin_on_a_huge_page_and_come_zeroed() {
        let mut region = Region::new(HUGE_FROM + 1).unwrap();
        assert_eq!(region.values::<u8>().as_ptr().align_offset(HUGE_PAGE), 0);
        assert!(region.len() > HUGE_FROM);
        let last = region.values::<u64>().len() - 1;
        assert_eq!(region.values::<u64>()[last], 0);
        region.values_mut::<u64>()[last] = 7;
        assert_eq!(region.values::<u64>()[last], 7);
    }

    #[test]
    fn slices_of_an_arena_are_aligned_and_apart() {
        let mut arena = Arena::default();
        let (a, b) = (arena.take(65).unwrap(), arena.take(8).unwrap());
        arena.values_mut::<u8>(a).fill(1);
        assert_eq!(arena.values::<u64>(b), [0]);
        assert_eq!(arena.values::<u8>(b).as_ptr().align_offset(LINE), 0);
        assert_eq!(arena.bytes(), 192);
        let large = arena.take(ARENA_CHUNK + 1).unwrap();
        assert_eq!(arena.values::<u8>(large).len(), ARENA_CHUNK + 1);
        assert!(arena.values::<u8>(a).iter().all(|&byte| byte == 1));
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        assert_eq!(Region::new(usize::MAX / 2).err().unwrap().code(), ErrorCode::MemoryExhausted);
        assert_eq!(Region::new(usize::MAX).err().unwrap().code(), ErrorCode::MemoryExhausted);
        assert_eq!(Arena::default().take(usize::MAX).unwrap_err().code(), ErrorCode::MemoryExhausted);
    }
}
