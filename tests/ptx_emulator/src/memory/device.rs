//! Device memory: a region of address space, of which the system commits what is touched.
//!
//! Beside the data lie a shadow byte per byte, a race cell per word and two marks per sector. Device addresses are addresses of
//! this process, and the same in each run.
#![allow(unsafe_code, reason = "memory of the device is a mapping of this process")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::races::RaceCell;
use super::shadow::{State, WRITTEN};

/// Bytes of address space for data.
const REGION: u64 = 1 << 37;
const PREFERRED_BASE: u64 = 0x1000_0000_0000;
const SHADOW: u64 = REGION;
const CELLS: u64 = 2 * REGION;
const CELL_BYTES: u64 = size_of::<RaceCell>() as u64;
const SECTORS: u64 = CELLS + REGION / 4 * CELL_BYTES;
/// Bytes of a sector, the unit in which memory is read and written by a card.
pub(crate) const SECTOR_BYTES: u64 = 32;
const MARKS_BYTES: u64 = size_of::<[u16; 2]>() as u64;
const TOTAL: u64 = SECTORS + REGION / SECTOR_BYTES * MARKS_BYTES;
const PAGE: u64 = 4096;
/// Allocations begin at a multiple of this.
const ALIGNMENT: u64 = 1 << 16;
/// Byte that fresh memory is filled with: NaN in every float format.
const POISON: u8 = 0xff;
/// Larger allocations are not filled, which would commit them; they read as zero.
const POISON_LIMIT: u64 = 1 << 26;

/// A piece of device memory.
pub struct Allocation {
    /// Its size in bytes.
    pub bytes: u64,
    /// Its number, in the order of allocation.
    pub id: u64,
    /// Whether it has been freed; it is kept so that a late access can name it.
    pub freed: bool,
    /// What asked for it.
    pub label: String,
}

/// The memory of a device.
pub struct DeviceMemory {
    base: u64,
    next: u64,
    allocations: BTreeMap<u64, Allocation>,
    last_id: u64,
    used_bytes: u64,
    peak_bytes: u64,
    total_bytes: u64,
    /// Number of the launch, which marks and race cells carry.
    launch: u16,
}

impl DeviceMemory {
    /// Memory of a device that has `total_bytes`.
    ///
    /// # Errors
    /// If the address space cannot be reserved.
    pub fn new(total_bytes: u64) -> Result<DeviceMemory, String> {
        let map = |address: u64, flags| {
            let address = std::ptr::without_provenance_mut(address as usize);
            // SAFETY: a new private mapping; `FIXED_NOREPLACE` fails instead of replacing another one.
            unsafe { mmap_anonymous(address, TOTAL as usize, ProtFlags::READ | ProtFlags::WRITE, flags) }
        };
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let base = map(PREFERRED_BASE, flags | MapFlags::FIXED_NOREPLACE)
            .or_else(|_| map(0, flags))
            .map_err(|error| format!("cannot reserve address space for device memory: {error}"))?
            .expose_provenance() as u64;
        Ok(DeviceMemory {
            base,
            next: base + (1 << 20),
            allocations: BTreeMap::new(),
            last_id: 0,
            used_bytes: 0,
            peak_bytes: 0,
            total_bytes,
            launch: 0,
        })
    }

    /// Allocates `bytes`, or `None` if that many are not free. `label` says what for, in messages.
    pub fn allocate(&mut self, bytes: u64, label: &str) -> Option<u64> {
        if bytes == 0 || bytes > self.total_bytes.saturating_sub(self.used_bytes) {
            return None;
        }
        let address = self.place(bytes)?;
        self.last_id += 1;
        let allocation = Allocation { bytes, id: self.last_id, freed: false, label: label.into() };
        self.allocations.insert(address, allocation);
        self.used_bytes += bytes;
        self.peak_bytes = self.peak_bytes.max(self.used_bytes);
        self.states_mut(address, bytes).fill(State::Unwritten as u8);
        if bytes <= POISON_LIMIT {
            self.bytes_mut(address, bytes).fill(POISON);
        }
        Some(address)
    }

    /// An address for an allocation: behind all earlier ones, or in a gap once the region is used up.
    fn place(&mut self, bytes: u64) -> Option<u64> {
        // The gap behind an allocation catches overruns.
        let footprint = |bytes: u64| (bytes + ALIGNMENT.max(bytes / 8)).next_multiple_of(ALIGNMENT);
        let (needed, limit) = (footprint(bytes), self.base + REGION - PAGE);
        if self.next + needed <= limit {
            let address = self.next;
            self.next += needed;
            return Some(address);
        }
        self.allocations.retain(|_, allocation| !allocation.freed);
        let mut address = self.base + (1 << 20);
        for (&start, allocation) in &self.allocations {
            if start >= address + needed {
                break;
            }
            address = start + footprint(allocation.bytes);
        }
        (address + needed <= limit).then_some(address)
    }

    /// Frees the allocation that starts at the address; false if there is none.
    pub fn free(&mut self, address: u64) -> bool {
        let Some(allocation) = self.allocations.get_mut(&address).filter(|allocation| !allocation.freed) else {
            return false;
        };
        allocation.freed = true;
        let bytes = allocation.bytes;
        self.used_bytes -= bytes;
        self.states_mut(address, bytes).fill(State::Unaddressable as u8);
        let offset = address - self.base;
        self.release_pages(offset..offset + bytes);
        self.release_pages(SHADOW + offset..SHADOW + offset + bytes);
        let cells = CELLS + offset / 4 * CELL_BYTES;
        self.release_pages(cells..cells + bytes.div_ceil(4) * CELL_BYTES);
        true
    }

    /// Frees all allocations.
    pub fn free_all(&mut self) {
        for address in self.live().map(|(address, _)| address).collect::<Vec<_>>() {
            self.free(address);
        }
    }

    /// The allocations that have not been freed, with their addresses.
    pub fn live(&self) -> impl Iterator<Item = (u64, &Allocation)> {
        self.allocations
            .iter()
            .filter(|(_, allocation)| !allocation.freed)
            .map(|(&address, allocation)| (address, allocation))
    }

    /// Bytes allocated now.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// The most bytes that were allocated at a time.
    pub fn peak_bytes(&self) -> u64 {
        self.peak_bytes
    }

    /// Bytes that the device has.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Makes it a device with that many bytes; what is allocated stays.
    pub fn set_total_bytes(&mut self, bytes: u64) {
        self.total_bytes = bytes;
    }

    /// Gives whole pages of the mapping back to the system; they read as zero from then on.
    fn release_pages(&self, range: Range<u64>) {
        let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
        if start < end {
            let pointer = std::ptr::with_exposed_provenance_mut((self.base + start) as usize);
            // SAFETY: the pages are inside the mapping and nothing refers to them. If the system declines, they keep their
            // contents, which nobody relies on.
            let _ = unsafe { madvise(pointer, (end - start) as usize, Advice::LinuxDontNeed) };
        }
    }

    /// Begins a launch: accesses of earlier ones count no longer.
    pub(crate) fn begin_launch(&mut self) {
        if self.launch == u16::MAX {
            self.release_pages(CELLS..TOTAL);
            self.launch = 0;
        }
        self.launch += 1;
    }

    /// The number of the present launch. Numbers repeat.
    #[inline(always)]
    pub(crate) fn launch(&self) -> u16 {
        self.launch
    }

    /// Whether the states of the bytes from there on may be asked for.
    #[inline(always)]
    pub(crate) fn covers(&self, address: u64) -> bool {
        address.wrapping_sub(self.base) < REGION - PAGE
    }

    /// Where an address lies in the data region.
    #[inline(always)]
    fn offset(&self, address: u64) -> u64 {
        assert!(self.covers(address), "{address:#x} is outside device memory");
        address - self.base
    }

    /// A pointer into the mapping.
    #[inline(always)]
    fn pointer(&self, offset: u64) -> NonNull<u8> {
        let pointer = std::ptr::with_exposed_provenance_mut((self.base + offset) as usize);
        // SAFETY: the mapping does not contain address zero.
        unsafe { NonNull::new_unchecked(pointer) }
    }

    /// The shadow bytes of `len` bytes, at most a page.
    #[inline(always)]
    pub(crate) fn states(&self, address: u64, len: u64) -> &[u8] {
        // SAFETY: the shadow region is mapped, and borrowed with `self`; `offset` has checked the address, a page more is there.
        unsafe { std::slice::from_raw_parts(self.pointer(SHADOW + self.offset(address)).as_ptr(), len as usize) }
    }

    #[inline(always)]
    fn states_mut(&mut self, address: u64, len: u64) -> &mut [u8] {
        // SAFETY: as for `states`; callers pass ranges inside an allocation or less than a page.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(SHADOW + self.offset(address)).as_ptr(), len as usize) }
    }

    /// Marks bytes as written.
    #[inline(always)]
    pub(crate) fn mark_written(&mut self, address: u64, len: u64) {
        self.states_mut(address, len).fill(State::Written as u8);
    }

    /// The data of `len` bytes inside an allocation, or less than a page.
    #[inline(always)]
    pub(crate) fn bytes_mut(&mut self, address: u64, len: u64) -> &mut [u8] {
        // SAFETY: the data region is mapped, and borrowed with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(self.offset(address)).as_ptr(), len as usize) }
    }

    /// The race cell of the word that contains the address.
    #[inline(always)]
    pub(crate) fn cell(&mut self, address: u64) -> &mut RaceCell {
        let offset = CELLS + self.offset(address) / 4 * CELL_BYTES;
        // SAFETY: the cells of all addresses that `offset` accepts are mapped, aligned (the region begins at a page) and valid:
        // zero bytes are a cell. They are borrowed with `self`.
        unsafe { self.pointer(offset).cast::<RaceCell>().as_mut() }
    }

    /// Marks a sector as read or written in this launch; whether it was not yet.
    #[inline(always)]
    pub(crate) fn mark_sector(&mut self, address: u64, is_write: bool) -> bool {
        if !self.covers(address) {
            return false;
        }
        let launch = self.launch;
        let offset = SECTORS + self.offset(address) / SECTOR_BYTES * MARKS_BYTES;
        // SAFETY: as for `cell`.
        let marks = unsafe { self.pointer(offset).cast::<[u16; 2]>().as_mut() };
        std::mem::replace(&mut marks[usize::from(is_write)], launch) != launch
    }

    /// Whether the whole range is inside one live allocation.
    pub fn contains(&self, address: u64, len: u64) -> bool {
        self.allocations.range(..=address).next_back().is_some_and(|(&start, allocation)| {
            !allocation.freed && address.checked_add(len).is_some_and(|end| end <= start + allocation.bytes)
        })
    }

    /// The first address of the range that nobody has written. The range is inside an allocation.
    pub fn first_unwritten(&self, address: u64, len: u64) -> Option<u64> {
        self.states(address, len).iter().position(|state| state & WRITTEN == 0).map(|at| address + at as u64)
    }

    /// Copies from the host to the device. The range is inside an allocation.
    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        self.bytes_mut(address, bytes.len() as u64).copy_from_slice(bytes);
        self.mark_written(address, bytes.len() as u64);
    }

    /// Copies from the device to the host. The range is inside an allocation.
    pub fn read(&mut self, address: u64, bytes: &mut [u8]) {
        bytes.copy_from_slice(self.bytes_mut(address, bytes.len() as u64));
    }

    /// Copies within the device, states included. The ranges are inside allocations, and may overlap.
    pub fn copy(&mut self, destination: u64, source: u64, len: u64) {
        for region in [0, SHADOW] {
            let (from, to) =
                (self.pointer(region + self.offset(source)), self.pointer(region + self.offset(destination)));
            // SAFETY: both ranges are inside the mapping.
            unsafe { to.copy_from(from, len as usize) };
        }
    }

    /// Fills `count` elements with a pattern. The range is inside an allocation.
    pub fn fill(&mut self, address: u64, pattern: &[u8], count: u64) {
        let len = pattern.len() as u64 * count;
        self.bytes_mut(address, len)
            .chunks_exact_mut(pattern.len())
            .for_each(|element| element.copy_from_slice(pattern));
        self.mark_written(address, len);
    }

    /// Which allocation an address is in or near to, for messages.
    pub fn describe(&self, address: u64) -> String {
        if address < 1 << 16 {
            return "a null pointer, or a small offset from one".into();
        }
        let name = |allocation: &Allocation| {
            format!("allocation #{} ({}, {} bytes)", allocation.id, allocation.label, allocation.bytes)
        };
        let above = self.allocations.range(address.saturating_add(1)..).next();
        let before = above.map(|(&start, allocation)| (start - address, allocation)).filter(|&(gap, _)| gap < 1 << 32);
        if let Some((&start, allocation)) = self.allocations.range(..=address).next_back() {
            let end = start + allocation.bytes;
            if address < end {
                let freed = if allocation.freed { ", which has been freed" } else { "" };
                return format!("byte {} of {}{freed}", address - start, name(allocation));
            }
            let past = address - end;
            if past < 1 << 32 && before.is_none_or(|(gap, _)| gap > past) {
                let freed = if allocation.freed { ", which has been freed" } else { "" };
                return format!("{past} byte(s) past the end of {}{freed}", name(allocation));
            }
        }
        match before {
            Some((gap, allocation)) => format!("{gap} byte(s) before {}", name(allocation)),
            None => "no allocation nearby".into(),
        }
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's, and nothing borrowed from it outlives it.
        let _ = unsafe { munmap(std::ptr::with_exposed_provenance_mut(self.base as usize), TOTAL as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_used_again_when_none_are_left() {
        let mut memory = DeviceMemory::new(1 << 30).unwrap();
        let kept = memory.allocate(5000, "kept").unwrap();
        memory.next = memory.base + REGION - (1 << 20);
        for bytes in [1u64, 4096, 4097, 10_000, 100_000] {
            for _ in 0..20 {
                let address = memory.allocate(bytes, "tried").unwrap();
                assert!(address + bytes < kept || address > kept + 5000);
                assert!(memory.contains(address, bytes) && !memory.contains(address, bytes + 1));
                assert_eq!(memory.states(address + bytes - 1, 2), [State::Unwritten as u8, State::Unaddressable as u8]);
                assert!(memory.free(address) && !memory.free(address));
                assert!(memory.states_mut(address, bytes).iter().all(|&state| state == State::Unaddressable as u8));
            }
        }
        assert!(memory.contains(kept, 5000));
    }

    #[test]
    fn copies_carry_what_was_never_written() {
        let mut memory = DeviceMemory::new(1 << 20).unwrap();
        let [source, destination] = [0, 1].map(|_| memory.allocate(8, "tried").unwrap());
        memory.write(source, &[1, 2, 3]);
        memory.copy(destination, source, 8);
        assert_eq!(memory.first_unwritten(destination, 8), Some(destination + 3));
        let mut bytes = [0; 3];
        memory.read(destination, &mut bytes);
        assert_eq!(bytes, [1, 2, 3]);
    }

    #[test]
    fn an_address_is_described_by_the_nearest_allocation() {
        let mut memory = DeviceMemory::new(1 << 20).unwrap();
        let address = memory.allocate(400, "weights").unwrap();
        assert_eq!(memory.describe(address + 7), "byte 7 of allocation #1 (weights, 400 bytes)");
        assert_eq!(memory.describe(address + 403), "3 byte(s) past the end of allocation #1 (weights, 400 bytes)");
        assert_eq!(memory.describe(address - 4), "4 byte(s) before allocation #1 (weights, 400 bytes)");
        assert_eq!(memory.describe(8), "a null pointer, or a small offset from one");
        memory.free(address);
        assert!(memory.describe(address).ends_with("which has been freed"));
    }
}
