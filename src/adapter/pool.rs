//! Slots, generations, leases, byte budget: bookkeeping only, no device memory. SKELETON

use crate::adapter::batch::SlotId;
use crate::adapter::plan::AdapterSummary;
use crate::error::Result;

/// Limits of a pool.
#[derive(Clone, Copy, Debug)]
pub struct AdapterLimits {
    /// Bytes of all resident adapters.
    pub max_bytes: usize,
    /// Number of resident adapters, retired generations that still run included.
    pub max_adapters: usize,
}

impl Default for AdapterLimits {
    /// 8 GiB and 1024 adapters.
    fn default() -> Self {
        Self { max_bytes: 8 << 30, max_adapters: 1024 }
    }
}

/// A resident adapter as users see it.
#[derive(Clone, Debug)]
pub struct AdapterInfo {
    /// Name under which requests find it; empty for an anonymous one.
    pub name: String,
    /// Counts up with every adapter that becomes resident.
    pub generation: u64,
    /// Bytes it occupies in the backend.
    pub resident_bytes: usize,
    /// Leases now held on it.
    pub leases: usize,
    /// What was read from its files.
    pub summary: AdapterSummary,
}

impl AsRef<str> for AdapterInfo {
    fn as_ref(&self) -> &str {
        &self.name
    }
}

/// Names, generations and slots of a model's adapters. Thread-safe; locks briefly.
pub struct AdapterPool {}

impl AdapterPool {
    /// An empty pool.
    pub fn new(_limits: AdapterLimits) -> Self {
        todo!()
    }

    /// Takes a slot and budget for an adapter of that many bytes; both return if the reservation is dropped unpublished.
    ///
    /// # Errors
    /// `adapter_budget_exceeded`.
    pub fn reserve(&self, _bytes: usize) -> Result<Reservation> {
        todo!()
    }

    /// Makes a reserved adapter findable under `name`, atomically replacing one that had it.
    ///
    /// # Errors
    /// `adapter_name_invalid`.
    pub fn publish(&self, _name: &str, _reservation: Reservation, _summary: AdapterSummary) -> Result<AdapterInfo> {
        todo!()
    }

    /// Makes a reserved adapter resident without a name: it lives as long as leases on it.
    pub fn admit(&self, _reservation: Reservation, _summary: AdapterSummary) -> AdapterLease {
        todo!()
    }

    /// Forgets a name; its slot retires when the last lease ends.
    ///
    /// # Errors
    /// `adapter_not_found`.
    pub fn unload(&self, _name: &str) -> Result<()> {
        todo!()
    }

    /// A lease on the generation that now has this name.
    ///
    /// # Errors
    /// `adapter_not_found`, which lists the names there are.
    pub fn lease(&self, _name: &str) -> Result<AdapterLease> {
        todo!()
    }

    /// The named adapters, by name.
    pub fn list(&self) -> Vec<AdapterInfo> {
        todo!()
    }

    /// Number of leases now held, over all generations.
    pub fn leases(&self) -> usize {
        todo!()
    }

    /// Generations in slots, retired ones included.
    pub fn resident(&self) -> usize {
        todo!()
    }

    /// Calls `drop_slot` for each slot whose generation has neither name nor lease left, then frees it.
    pub fn reap(&self, _drop_slot: impl FnMut(SlotId)) {
        todo!()
    }
}

/// A slot and budget held while an adapter is uploaded.
pub struct Reservation {}

impl Reservation {
    /// The slot to upload into.
    pub fn slot(&self) -> SlotId {
        todo!()
    }

    /// Corrects the budget once the backend has said what the adapter occupies.
    pub fn set_resident_bytes(&mut self, _bytes: usize) {
        todo!()
    }
}

/// Holds one generation resident; clones share it and count as one more lease each.
#[derive(Clone)]
pub struct AdapterLease {}

impl AdapterLease {
    /// The slot it occupies.
    pub fn slot(&self) -> SlotId {
        todo!()
    }

    /// What it is.
    pub fn info(&self) -> AdapterInfo {
        todo!()
    }

    /// Content hash, part of the prefix key.
    pub fn content_hash(&self) -> &str {
        todo!()
    }

    /// Whether it belongs to that pool.
    pub fn is_of(&self, _pool: &AdapterPool) -> bool {
        todo!()
    }
}
