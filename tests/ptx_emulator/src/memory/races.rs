//! Who accessed a word of memory: two accesses conflict if one writes and nothing orders them.

/// A thread at a moment: its block, and the clock of its warp, which advances wherever the warp synchronizes.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Accessor {
    pub(crate) block: u32,
    /// Warp of the block (5 bits), lane (5 bits), clock (22 bits).
    packed: u32,
}

const CLOCK_BITS: u32 = 22;

impl Accessor {
    #[inline(always)]
    pub(crate) fn new(block: u32, warp: u32, lane: u32, clock: u32) -> Accessor {
        Accessor { block, packed: (warp << 5 | lane) << CLOCK_BITS | clock & ((1 << CLOCK_BITS) - 1) }
    }

    /// Index of the thread in its block.
    #[inline(always)]
    pub(crate) fn thread(self) -> u32 {
        self.packed >> CLOCK_BITS
    }

    #[inline(always)]
    pub(crate) fn warp(self) -> u32 {
        self.thread() >> 5
    }

    #[inline(always)]
    pub(crate) fn clock(self) -> u32 {
        self.packed & ((1 << CLOCK_BITS) - 1)
    }

    fn same_warp_and_clock(self, other: Accessor) -> bool {
        const LANE: u32 = 31 << CLOCK_BITS;
        self.block == other.block && self.packed & !LANE == other.packed & !LANE
    }
}

/// An earlier access that nothing orders before the present one.
#[derive(Clone, Copy)]
pub(crate) enum Conflict {
    Written(Accessor),
    Read(Accessor),
}

/// Low four bits of an access's flags: which bytes of the word.
const BYTES: u8 = 0b1111;
/// Flag: a strong access (atomic, volatile, relaxed ..), which does not race with other strong ones.
const STRONG: u8 = 1 << 4;
/// Flag of a read: several lanes of the warp have read, the accessor is one of them.
const SEVERAL_LANES: u8 = 1 << 5;

/// The last accesses of four bytes of memory.
///
/// Writes are kept for two groups of bytes, as halves of a word are written by two threads. Of reads, those are forgotten that
/// are ordered before a later one. If more than three remain, those of the lowest and highest block and warp and the last one
/// are kept: what a writer forgets to wait for is seldom strictly between.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct RaceCell {
    /// The launch (global memory) or block (shared memory) that the rest is about.
    epoch: u16,
    write_flags: [u8; 2],
    read_flags: [u8; 3],
    _unused: u8,
    writes: [Accessor; 2],
    reads: [Accessor; 3],
}

impl RaceCell {
    /// Remembers a read of `bytes` (a bit each). `is_before(access, several_lanes)`: is the access ordered before now?
    #[inline(always)]
    pub(crate) fn read(
        &mut self,
        epoch: u16,
        me: Accessor,
        bytes: u8,
        strong: bool,
        is_before: impl Fn(Accessor, bool) -> bool,
    ) -> Result<(), Conflict> {
        let flags = bytes | if strong { STRONG } else { 0 };
        if self.epoch != epoch {
            *self = RaceCell { epoch, ..RaceCell::default() };
            self.reads[0] = me;
            self.read_flags[0] = flags;
            return Ok(());
        }
        self.check_writes(bytes, strong, &is_before)?;
        self.remember_read(me, flags, is_before);
        Ok(())
    }

    /// Remembers a write of `bytes`, as [`RaceCell::read`] does a read.
    #[inline(always)]
    pub(crate) fn write(
        &mut self,
        epoch: u16,
        me: Accessor,
        bytes: u8,
        strong: bool,
        is_before: impl Fn(Accessor, bool) -> bool,
    ) -> Result<(), Conflict> {
        let flags = bytes | if strong { STRONG } else { 0 };
        if self.epoch != epoch {
            *self = RaceCell { epoch, ..RaceCell::default() };
            self.writes[0] = me;
            self.write_flags[0] = flags;
            return Ok(());
        }
        self.check_writes(bytes, strong, &is_before)?;
        for (read, read_flags) in self.reads.iter().zip(&mut self.read_flags) {
            if *read_flags & bytes == 0 {
                continue;
            }
            if is_before(*read, *read_flags & SEVERAL_LANES != 0) {
                // Whoever is ordered after this write is ordered after that read.
                *read_flags &= !bytes;
            } else if !(strong && *read_flags & STRONG != 0) {
                return Err(Conflict::Read(*read));
            }
        }
        self.remember_write(me, flags);
        Ok(())
    }

    #[inline(always)]
    fn check_writes(
        &self,
        bytes: u8,
        strong: bool,
        is_before: impl Fn(Accessor, bool) -> bool,
    ) -> Result<(), Conflict> {
        for (write, write_flags) in self.writes.iter().zip(self.write_flags) {
            if write_flags & bytes != 0 && !(strong && write_flags & STRONG != 0) && !is_before(*write, false) {
                return Err(Conflict::Written(*write));
            }
        }
        Ok(())
    }

    fn remember_read(&mut self, me: Accessor, flags: u8, is_before: impl Fn(Accessor, bool) -> bool) {
        let mut empty = None;
        for slot in 0..3 {
            let (read, old) = (self.reads[slot], self.read_flags[slot]);
            if old & BYTES == 0 {
                empty = Some(slot);
            } else if read.same_warp_and_clock(me) && old & !SEVERAL_LANES == flags {
                if read != me {
                    self.read_flags[slot] |= SEVERAL_LANES;
                }
                return;
            } else if old & BYTES & !flags == 0
                && (old & STRONG != 0 || flags & STRONG == 0)
                && is_before(read, old & SEVERAL_LANES != 0)
            {
                (self.reads[slot], self.read_flags[slot]) = (me, flags);
                return;
            }
        }
        let slot = empty.unwrap_or_else(|| {
            let place = |slot: usize| (self.reads[slot].block, self.reads[slot].warp());
            let mut order = [0, 1, 2];
            order.sort_unstable_by_key(|&slot| place(slot));
            order[1]
        });
        (self.reads[slot], self.read_flags[slot]) = (me, flags);
    }

    fn remember_write(&mut self, me: Accessor, flags: u8) {
        for old in &mut self.write_flags {
            *old &= !(flags & BYTES);
        }
        let slot = (0..2)
            .find(|&slot| self.writes[slot] == me && self.write_flags[slot] & STRONG == flags & STRONG)
            .or_else(|| (0..2).find(|&slot| self.write_flags[slot] & BYTES == 0));
        match slot {
            Some(slot) if self.write_flags[slot] & BYTES != 0 => self.write_flags[slot] |= flags,
            slot => {
                let slot = slot.unwrap_or(0);
                (self.writes[slot], self.write_flags[slot]) = (me, flags);
            }
        }
    }

    /// Moves a write of that thread to now: what it began then, an asynchronous copy, ends now.
    pub(crate) fn extend_write(&mut self, epoch: u16, me: Accessor) {
        if self.epoch == epoch {
            for write in self.writes.iter_mut().filter(|write| write.block == me.block && write.thread() == me.thread())
            {
                *write = me;
            }
        }
    }
}
