//! The pool of resident adapters: names, versions, slots, leases, byte budget. Bookkeeping only, no device memory.
//!
//! An adapter version occupies its slot as long as a name or a lease holds it, so that replacing or unloading a name never
//! affects a running request.
//!
//! ```text
//! free -- reserve --> reserved -- publish --> resident -- last name and lease gone --> retired -- reap --> free
//!   ^-- dropped before install --'  '-- dropped after install -------------------------------^
//! ```
//!
//! The backend still holds the bytes of a retired slot, so they count until they have been dropped (reaped).

mod lease;
mod reservation;
mod state;

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

pub use self::lease::AdapterLease;
pub(crate) use self::reservation::Reservation;
use self::state::Shared;
pub use self::state::{AdapterInfo, AdapterLimits, Attachment};
use crate::adapter::batch::SlotId;
use crate::adapter::plan::AdapterSummary;
use crate::error::{Error, ErrorCode, Result};

/// Longest name of an adapter, in characters.
const MAX_NAME_CHARS: usize = 256;

/// Names, versions and slots of a model's adapters, which [`Model::load_adapter`](crate::Model::load_adapter) fills.
/// Thread-safe; every call locks briefly.
pub struct AdapterPool {
    shared: Arc<Shared>,
}

impl AdapterPool {
    /// An empty pool.
    pub fn new(limits: AdapterLimits) -> Self {
        Self { shared: Arc::new(Shared { limits, state: Mutex::default() }) }
    }

    /// The limits that it was made with.
    pub fn limits(&self) -> AdapterLimits {
        self.shared.limits
    }

    /// Reserves a slot and budget for an adapter of that many bytes.
    ///
    /// # Errors
    /// `adapter_budget_exceeded`.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<Reservation> {
        Reservation::new(&self.shared, bytes)
    }

    /// Makes an installed adapter available under `name`, atomically replacing the one that had the name.
    ///
    /// # Errors
    /// `adapter_name_invalid`; `adapter_model_mismatch` if the reservation is from another pool.
    pub(crate) fn publish(
        &self,
        name: &str,
        mut reservation: Reservation,
        summary: AdapterSummary,
    ) -> Result<AdapterInfo> {
        Self::check_name(name)?;
        if !reservation.is_of(&self.shared) {
            return Err(Error::new(ErrorCode::AdapterModelMismatch, "the reservation is from another pool"));
        }
        let mut state = self.shared.state.lock();
        reservation.mark_published();
        let version = state.occupy(reservation.slot(), name, summary, reservation.take_attachment());
        state.slot(version.slot).is_named = true;
        if let Some(replaced) = state.names.insert(name.to_owned(), version.slot) {
            state.unname(replaced);
        }
        Ok(version.info(0))
    }

    /// Makes an installed adapter resident without a name: it lives as long as its leases.
    ///
    /// # Panics
    /// If the reservation is from another pool.
    pub(crate) fn insert_anonymous(&self, mut reservation: Reservation, summary: AdapterSummary) -> AdapterLease {
        assert!(reservation.is_of(&self.shared), "the reservation is from another pool");
        let mut state = self.shared.state.lock();
        reservation.mark_published();
        let version = state.occupy(reservation.slot(), "", summary, reservation.take_attachment());
        AdapterLease::new(&self.shared, &mut state, version)
    }

    /// Removes a name. Its slot is retired when the last lease ends.
    ///
    /// # Errors
    /// `adapter_not_found`.
    pub(crate) fn unload(&self, name: &str) -> Result<()> {
        let mut state = self.shared.state.lock();
        let slot = state.names.remove(name).ok_or_else(|| state.not_found(name))?;
        state.unname(slot);
        Ok(())
    }

    /// A lease on the adapter version that currently has this name.
    ///
    /// # Errors
    /// `adapter_not_found`, with the names that are loaded.
    pub fn lease(&self, name: &str) -> Result<AdapterLease> {
        let mut state = self.shared.state.lock();
        let version = state.names.get(name).and_then(|slot| state.slots[slot.0 as usize].version.clone());
        let version = version.ok_or_else(|| state.not_found(name))?;
        Ok(AdapterLease::new(&self.shared, &mut state, version))
    }

    /// The named adapters, by name.
    pub fn list(&self) -> Vec<AdapterInfo> {
        let state = self.shared.state.lock();
        let slots = state.names.values().map(|slot| &state.slots[slot.0 as usize]);
        slots.filter_map(|slot| Some(slot.version.as_ref()?.info(slot.leases))).collect()
    }

    /// Number of leases currently held, over all adapter versions.
    pub fn leases(&self) -> usize {
        self.shared.state.lock().leases
    }

    /// Number of slots that are not free: named, leased, retired and reserved ones.
    pub fn resident(&self) -> usize {
        let state = self.shared.state.lock();
        state.slots.len() - state.free.len()
    }

    /// Bytes of those slots.
    pub fn resident_bytes(&self) -> usize {
        self.shared.state.lock().bytes
    }

    /// Calls `drop_slot` for each slot whose adapter version has neither a name nor a lease left, then frees the slot. The
    /// pool is not locked during the call. Threads that reap at the same time share the slots among them.
    pub(crate) fn reap(&self, mut drop_slot: impl FnMut(SlotId)) {
        loop {
            let Some(slot) = self.shared.state.lock().retired.pop() else { return };
            drop_slot(slot);
            self.shared.state.lock().free(slot);
        }
    }

    /// Checks that an adapter may have this name: not blank, at most 256 characters, no invisible ones.
    ///
    /// # Errors
    /// `adapter_name_invalid`.
    pub fn check_name(name: &str) -> Result<()> {
        let invalid = |message: &str| Err(Error::new(ErrorCode::AdapterNameInvalid, message));
        if name.trim().is_empty() {
            return invalid("the name is empty");
        }
        if name.chars().count() > MAX_NAME_CHARS {
            return invalid("the name is longer than 256 characters");
        }
        if name.chars().any(is_invisible) {
            return invalid("the name contains an invisible character");
        }
        Ok(())
    }
}

impl AdapterLease {
    /// Whether it is from that pool.
    pub fn is_of(&self, pool: &AdapterPool) -> bool {
        self.is_from(&pool.shared)
    }
}

/// Control characters, and those of Unicode that change or break a line without being visible.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

impl fmt::Debug for AdapterPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.lock();
        f.debug_struct("AdapterPool")
            .field("names", &state.names.keys())
            .field("bytes", &state.bytes)
            .field("leases", &state.leases)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
