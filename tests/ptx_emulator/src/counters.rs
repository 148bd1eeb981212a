//! What kernels did, counted.
use crate::instruction::Class;

/// Counts over one or several launches. Memory is counted only where the settings ask for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Launches.
    pub launches: u64,
    /// Instructions, each counted once for a warp.
    pub warp_instructions: u64,
    /// Instructions, counted for each thread that executes them.
    pub thread_instructions: u64,
    /// `thread_instructions` by class.
    pub by_class: [u64; Class::COUNT],
    /// `mma` instructions, each counted once for a warp.
    pub matrix_instructions: u64,
    /// Arrivals of warps at barriers of their block.
    pub barriers: u64,
    /// Bytes that threads ask of global memory in loads, asynchronous copies and atomics.
    pub global_load_bytes: u64,
    /// Bytes that threads give to global memory in stores and atomics.
    pub global_store_bytes: u64,
    /// Bytes of the 32-byte sectors that each load of a warp touches: what passes through the cache.
    pub requested_load_bytes: u64,
    /// As `requested_load_bytes`, of stores.
    pub requested_store_bytes: u64,
    /// Bytes of the 32-byte sectors that a launch reads, each counted once: what must come from memory.
    pub unique_load_bytes: u64,
    /// As `unique_load_bytes`, of stores.
    pub unique_store_bytes: u64,
    /// Of `global_load_bytes`, those of asynchronous copies.
    pub async_copy_bytes: u64,
    /// Loads, stores and `ldmatrix` of warps in shared memory.
    pub shared_accesses: u64,
    /// Passes over the banks of shared memory beyond those that the bytes need.
    pub bank_conflicts: u64,
    /// Time that the executor took.
    pub nanoseconds: u64,
}

impl Counters {
    /// Adds the counts of other launches.
    pub fn add(&mut self, other: &Counters) {
        for (count, (_, more)) in self.scalars_mut().into_iter().zip(other.scalars()) {
            *count += more;
        }
        for (count, more) in self.by_class.iter_mut().zip(other.by_class) {
            *count += more;
        }
    }

    /// All counts with their names; those of a class are named `instructions.CLASS`.
    pub fn named(&self) -> impl Iterator<Item = (String, u64)> {
        let scalars = self.scalars().map(|(name, count)| (name.to_string(), count));
        let classes = Class::NAMES.iter().zip(self.by_class);
        scalars.into_iter().chain(classes.map(|(name, count)| (format!("instructions.{name}"), count)))
    }

    fn scalars(&self) -> [(&'static str, u64); 15] {
        [
            ("launches", self.launches),
            ("warp_instructions", self.warp_instructions),
            ("thread_instructions", self.thread_instructions),
            ("matrix_instructions", self.matrix_instructions),
            ("barriers", self.barriers),
            ("global_load_bytes", self.global_load_bytes),
            ("global_store_bytes", self.global_store_bytes),
            ("requested_load_bytes", self.requested_load_bytes),
            ("requested_store_bytes", self.requested_store_bytes),
            ("unique_load_bytes", self.unique_load_bytes),
            ("unique_store_bytes", self.unique_store_bytes),
            ("async_copy_bytes", self.async_copy_bytes),
            ("shared_accesses", self.shared_accesses),
            ("bank_conflicts", self.bank_conflicts),
            ("nanoseconds", self.nanoseconds),
        ]
    }

    /// In the order of `scalars`.
    fn scalars_mut(&mut self) -> [&mut u64; 15] {
        [
            &mut self.launches,
            &mut self.warp_instructions,
            &mut self.thread_instructions,
            &mut self.matrix_instructions,
            &mut self.barriers,
            &mut self.global_load_bytes,
            &mut self.global_store_bytes,
            &mut self.requested_load_bytes,
            &mut self.requested_store_bytes,
            &mut self.unique_load_bytes,
            &mut self.unique_store_bytes,
            &mut self.async_copy_bytes,
            &mut self.shared_accesses,
            &mut self.bank_conflicts,
            &mut self.nanoseconds,
        ]
    }
}
