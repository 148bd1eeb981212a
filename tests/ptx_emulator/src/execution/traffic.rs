//! Counts of the bytes that move and of bank conflicts.
use super::access::resolve;
use super::warp::{Lanes, WarpContext};
use crate::instruction::StateSpace;
use crate::memory::SECTOR_BYTES;

/// Which way data goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Load,
    Store,
}

/// Banks of shared memory, of four bytes each.
const BANKS: usize = 32;

impl WarpContext<'_, '_> {
    /// Counts an access of each active lane to `bytes` bytes, where counting is on.
    #[inline(always)]
    pub(crate) fn count_access(&mut self, space: StateSpace, addresses: &[u64; 32], bytes: u32, direction: Direction) {
        if self.launch.settings.count_memory {
            self.count_lanes(space, addresses, bytes, direction);
        }
    }

    #[inline(never)]
    fn count_lanes(&mut self, space: StateSpace, addresses: &[u64; 32], bytes: u32, direction: Direction) {
        let first = self.mask.trailing_zeros() as usize;
        match resolve(space, addresses[first]).0 {
            StateSpace::Global => self.count_global(addresses, &[bytes; 32], direction),
            StateSpace::Shared => {
                // Lanes are served in groups whose bytes fill all banks once.
                let group = (BANKS * 4 / bytes.max(4) as usize).min(32);
                let words = bytes.div_ceil(4).into();
                for start in (0..32).step_by(group) {
                    let lanes = (start..start + group).filter(|&lane| self.mask >> lane & 1 != 0);
                    let conflicts = bank_conflicts(lanes.map(|lane| addresses[lane]), words);
                    self.launch.counters.bank_conflicts += conflicts;
                }
                self.launch.counters.shared_accesses += 1;
            }
            _ => {}
        }
    }

    /// Counts `cp.async`, whose lanes may read fewer bytes than they copy.
    pub(crate) fn count_async_copy(&mut self, sources: &[u64; 32], bytes: &[u32; 32]) {
        if self.launch.settings.count_memory {
            self.count_global(sources, bytes, Direction::Load);
            let total = Lanes(self.mask).map(|lane| u64::from(bytes[lane as usize])).sum::<u64>();
            self.launch.counters.async_copy_bytes += total;
        }
    }

    /// Counts `ldmatrix`, which reads rows of 16 bytes, eight at a time.
    pub(crate) fn count_rows(&mut self, addresses: &[u64]) {
        if self.launch.settings.count_memory {
            let conflicts = addresses.chunks(8).map(|rows| bank_conflicts(rows.iter().copied(), 4)).sum::<u64>();
            self.launch.counters.bank_conflicts += conflicts;
            self.launch.counters.shared_accesses += 1;
        }
    }

    fn count_global(&mut self, addresses: &[u64; 32], bytes: &[u32; 32], direction: Direction) {
        let (mut sectors, mut count, mut total) = ([0; 32], 0, 0);
        // An access of a lane is aligned and at most a sector long: it touches one.
        for lane in Lanes(self.mask).map(|lane| lane as usize).filter(|&lane| bytes[lane] > 0) {
            sectors[count] = addresses[lane] / SECTOR_BYTES;
            count += 1;
            total += u64::from(bytes[lane]);
        }
        let sectors = &mut sectors[..count];
        sectors.sort_unstable();
        let (mut requested, mut unique, mut last) = (0, 0, None);
        for &sector in &*sectors {
            if last.replace(sector) != Some(sector) {
                requested += SECTOR_BYTES;
                let is_first = self.launch.memory.mark_sector(sector * SECTOR_BYTES, direction == Direction::Store);
                unique += if is_first { SECTOR_BYTES } else { 0 };
            }
        }
        let counters = &mut self.launch.counters;
        let [bytes, requested_bytes, unique_bytes] = match direction {
            Direction::Load => {
                [&mut counters.global_load_bytes, &mut counters.requested_load_bytes, &mut counters.unique_load_bytes]
            }
            Direction::Store => [
                &mut counters.global_store_bytes,
                &mut counters.requested_store_bytes,
                &mut counters.unique_store_bytes,
            ],
        };
        *bytes += total;
        *requested_bytes += requested;
        *unique_bytes += unique;
    }
}

/// Passes over the banks beyond the first that accesses to `words` words each take. Lanes that read the same word share it.
fn bank_conflicts(addresses: impl Iterator<Item = u64>, words: u64) -> u64 {
    let mut touched: Vec<u64> = addresses.flat_map(|address| (0..words).map(move |word| address / 4 + word)).collect();
    touched.sort_unstable();
    touched.dedup();
    let mut passes = [0; BANKS];
    touched.iter().for_each(|word| passes[*word as usize % BANKS] += 1);
    passes.into_iter().max().unwrap_or(0).max(1) - 1
}

#[cfg(test)]
mod tests {
    use super::bank_conflicts;

    #[test]
    fn words_of_one_bank_take_a_pass_each() {
        assert_eq!(bank_conflicts((0..32).map(|lane| lane * 4), 1), 0);
        assert_eq!(bank_conflicts((0..32).map(|lane| lane * 8), 1), 1);
        assert_eq!(bank_conflicts((0..32).map(|lane| lane * 128), 1), 31);
        assert_eq!(bank_conflicts((0..32).map(|_| 64), 1), 0);
        assert_eq!(bank_conflicts((0..8).map(|row| row * 128), 4), 7);
        assert_eq!(bank_conflicts((0..8).map(|row| row * 144), 4), 0);
    }
}
