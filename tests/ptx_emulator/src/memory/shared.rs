//! The shared memory of a block.
use super::address::SHARED_BASE;
use super::races::RaceCell;
use super::shadow::State;
use crate::kernel::Kernel;

/// Byte that unwritten memory is filled with: NaN in every float format.
const POISON: u8 = 0xff;

/// Shared memory of one block: static variables with gaps between them, then the dynamic part.
pub(crate) struct SharedMemory {
    bytes: Vec<u8>,
    states: Vec<u8>,
    cells: Vec<RaceCell>,
    /// Which block the race cells are about; another for each block that uses this memory.
    pub(crate) epoch: u16,
}

impl SharedMemory {
    /// Memory for blocks of the kernel, not yet usable: see [`SharedMemory::reset`].
    pub(crate) fn new(kernel: &Kernel, dynamic_bytes: u32) -> SharedMemory {
        let len = (kernel.shared_layout_bytes + dynamic_bytes) as usize;
        SharedMemory {
            bytes: vec![POISON; len],
            states: vec![State::Unaddressable as u8; len],
            cells: vec![RaceCell::default(); len.div_ceil(4)],
            epoch: 0,
        }
    }

    /// Prepares the memory for the next block: nothing is written, nobody has accessed it.
    pub(crate) fn reset(&mut self, kernel: &Kernel) {
        self.bytes.fill(POISON);
        self.states.fill(State::Unaddressable as u8);
        for variable in &kernel.shared_variables {
            self.mark((variable.address - SHARED_BASE) as usize, variable.bytes as usize, State::Unwritten);
        }
        self.states[kernel.shared_layout_bytes as usize..].fill(State::Unwritten as u8);
        if self.epoch == u16::MAX {
            self.cells.fill(RaceCell::default());
            self.epoch = 0;
        }
        self.epoch += 1;
    }

    /// Offset of an address, if `len` bytes from there are inside.
    #[inline(always)]
    pub(crate) fn offset(&self, address: u64, len: u32) -> Option<usize> {
        let offset = address.wrapping_sub(u64::from(SHARED_BASE));
        let end = offset.checked_add(u64::from(len))?;
        (end <= self.bytes.len() as u64).then_some(offset as usize)
    }

    #[inline(always)]
    pub(crate) fn states(&self, offset: usize, len: usize) -> &[u8] {
        &self.states[offset..offset + len]
    }

    #[inline(always)]
    pub(crate) fn mark(&mut self, offset: usize, len: usize, state: State) {
        self.states[offset..offset + len].fill(state as u8);
    }

    #[inline(always)]
    pub(crate) fn bytes_mut(&mut self, offset: usize, len: usize) -> &mut [u8] {
        &mut self.bytes[offset..offset + len]
    }

    #[inline(always)]
    pub(crate) fn cell(&mut self, word: usize) -> &mut RaceCell {
        &mut self.cells[word]
    }

    /// Fills bytes that a copy in flight will overwrite with what must not be read.
    pub(crate) fn poison(&mut self, offset: usize, len: usize) {
        self.bytes[offset..offset + len].fill(POISON);
    }
}

/// Which variable of the kernel's shared memory an address is in, or near to.
pub(crate) fn describe(kernel: &Kernel, dynamic_bytes: u32, address: u64) -> String {
    let variables = kernel
        .shared_variables
        .iter()
        .map(|variable| (format!("{}[{}]", variable.name, variable.bytes), variable.address, variable.bytes));
    let dynamic = (dynamic_bytes > 0).then(|| {
        let name = format!("the dynamic shared memory [{dynamic_bytes}]");
        (name, SHARED_BASE + kernel.shared_layout_bytes, dynamic_bytes)
    });
    let mut nearest = None;
    for (name, start, len) in variables.chain(dynamic) {
        let (start, end) = (u64::from(start), u64::from(start) + u64::from(len));
        if (start..end).contains(&address) {
            return format!("byte {} of {name}", address - start);
        }
        if end <= address && nearest.as_ref().is_none_or(|&(_, last)| last < end) {
            nearest = Some((name, end));
        }
    }
    match nearest {
        Some((name, end)) => format!("{} byte(s) past the end of {name}", address - end),
        None => "no shared variable".into(),
    }
}
