//! Slots, generations, leases, byte budget: bookkeeping only, no device memory.
//!
//! A *generation* is one adapter that became resident; it never changes. It stays in its *slot* as long as a name or a lease
//! holds it, so that replacing or unloading a name never touches a request that runs.
//!
//! ```text
//! free ── reserve ──> reserved ── publish, admit ──> resident ── last name and lease gone ──> retired ── reap ──> free
//!   ^── dropped before anything was uploaded ──┘ └── dropped after an upload ──────────────────^
//! ```
//!
//! A retired slot's bytes are still the backend's, so they count until [`AdapterPool::reap`] had them dropped.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::adapter::batch::SlotId;
use crate::adapter::plan::AdapterSummary;
use crate::error::{Error, ErrorCode, Result};

/// Longest name of an adapter, in characters.
const MAX_NAME_CHARS: usize = 256;

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
pub struct AdapterPool {
    shared: Arc<Shared>,
}

struct Shared {
    limits: AdapterLimits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By [`SlotId`]; grows up to the limit.
    slots: Vec<Slot>,
    free: Vec<SlotId>,
    retired: Vec<SlotId>,
    names: BTreeMap<String, SlotId>,
    /// Bytes of all slots that aren't free.
    bytes: usize,
    leases: usize,
    last_generation: u64,
}

#[derive(Default)]
struct Slot {
    bytes: usize,
    leases: usize,
    named: bool,
    /// Set while a generation is in it.
    generation: Option<Arc<Generation>>,
}

/// What never changes about a resident adapter.
struct Generation {
    slot: SlotId,
    number: u64,
    name: String,
    resident_bytes: usize,
    summary: AdapterSummary,
}

impl Generation {
    fn info(&self, leases: usize) -> AdapterInfo {
        AdapterInfo {
            name: self.name.clone(),
            generation: self.number,
            resident_bytes: self.resident_bytes,
            leases,
            summary: self.summary.clone(),
        }
    }
}

impl State {
    fn slot(&mut self, id: SlotId) -> &mut Slot {
        &mut self.slots[id.0 as usize]
    }

    /// Puts a generation into a reserved slot.
    fn settle(&mut self, slot: SlotId, name: &str, bytes: usize, summary: AdapterSummary) -> Arc<Generation> {
        self.last_generation += 1;
        let number = self.last_generation;
        let generation = Arc::new(Generation { slot, number, name: name.to_owned(), resident_bytes: bytes, summary });
        self.slot(slot).generation = Some(generation.clone());
        generation
    }

    /// Takes the name off a slot.
    fn unname(&mut self, id: SlotId) {
        self.slot(id).named = false;
        self.retire_if_unused(id);
    }

    fn retire_if_unused(&mut self, id: SlotId) {
        let slot = self.slot(id);
        if !slot.named && slot.leases == 0 {
            slot.generation = None;
            self.retired.push(id);
        }
    }

    fn free(&mut self, id: SlotId) {
        self.bytes -= self.slot(id).bytes;
        *self.slot(id) = Slot::default();
        self.free.push(id);
    }

    fn unknown(&self, name: &str) -> Error {
        let names: Vec<_> = self.names.keys().take(16).map(|name| format!("'{name}'")).collect();
        let found = match (names.len(), self.names.len()) {
            (0, _) => "no adapters".to_owned(),
            (shown, all) if shown < all => format!("{} and {} more", names.join(", "), all - shown),
            _ => names.join(", "),
        };
        Error::new(ErrorCode::AdapterNotFound, format!("no adapter is loaded under the name '{name}'"))
            .with_found(found)
    }
}

impl AdapterPool {
    /// An empty pool.
    pub fn new(limits: AdapterLimits) -> Self {
        Self { shared: Arc::new(Shared { limits, state: Mutex::default() }) }
    }

    /// Takes a slot and budget for an adapter of that many bytes. Both return if the reservation is dropped unpublished;
    /// if something was uploaded meanwhile ([`Reservation::set_resident_bytes`] was called), by way of [`AdapterPool::reap`].
    ///
    /// # Errors
    /// `adapter_budget_exceeded`.
    pub fn reserve(&self, bytes: usize) -> Result<Reservation> {
        let AdapterLimits { max_bytes, max_adapters } = self.shared.limits;
        let mut state = self.shared.state.lock();
        if bytes > max_bytes.saturating_sub(state.bytes) {
            return Err(Error::new(ErrorCode::AdapterBudgetExceeded, "the adapter does not fit the byte budget")
                .with_expected(format!("at most {} of {max_bytes} bytes", max_bytes.saturating_sub(state.bytes)))
                .with_found(format!("{bytes} bytes")));
        }
        let slot = match state.free.pop() {
            Some(slot) => slot,
            None if state.slots.len() < max_adapters.min(u32::MAX as usize) => {
                state.slots.push(Slot::default());
                SlotId((state.slots.len() - 1) as u32)
            }
            None => {
                return Err(Error::new(ErrorCode::AdapterBudgetExceeded, "every slot is taken")
                    .with_expected(format!("at most {max_adapters} resident adapters, running ones included")));
            }
        };
        state.bytes += bytes;
        state.slot(slot).bytes = bytes;
        Ok(Reservation { shared: self.shared.clone(), slot, bytes, uploaded: false, settled: false })
    }

    /// Makes a reserved adapter findable under `name`, atomically replacing one that had it.
    ///
    /// # Errors
    /// `adapter_name_invalid`.
    pub fn publish(&self, name: &str, mut reservation: Reservation, summary: AdapterSummary) -> Result<AdapterInfo> {
        Self::check_name(name)?;
        self.check_reservation(&reservation)?;
        let mut state = self.shared.state.lock();
        reservation.settled = true;
        let generation = state.settle(reservation.slot, name, reservation.bytes, summary);
        state.slot(generation.slot).named = true;
        if let Some(replaced) = state.names.insert(name.to_owned(), generation.slot) {
            state.unname(replaced);
        }
        Ok(generation.info(0))
    }

    /// Makes a reserved adapter resident without a name: it lives as long as leases on it.
    ///
    /// # Panics
    /// If the reservation is of another pool.
    pub fn insert_anonymous(&self, mut reservation: Reservation, summary: AdapterSummary) -> AdapterLease {
        assert!(Arc::ptr_eq(&self.shared, &reservation.shared), "the reservation is of another pool");
        let mut state = self.shared.state.lock();
        reservation.settled = true;
        let generation = state.settle(reservation.slot, "", reservation.bytes, summary);
        AdapterLease::new(&self.shared, &mut state, generation)
    }

    /// Forgets a name; its slot retires when the last lease ends.
    ///
    /// # Errors
    /// `adapter_not_found`.
    pub fn unload(&self, name: &str) -> Result<()> {
        let mut state = self.shared.state.lock();
        let slot = state.names.remove(name).ok_or_else(|| state.unknown(name))?;
        state.unname(slot);
        Ok(())
    }

    /// A lease on the generation that now has this name.
    ///
    /// # Errors
    /// `adapter_not_found`, which lists the names there are.
    pub fn lease(&self, name: &str) -> Result<AdapterLease> {
        let mut state = self.shared.state.lock();
        let generation = state.names.get(name).and_then(|slot| state.slots[slot.0 as usize].generation.clone());
        let generation = generation.ok_or_else(|| state.unknown(name))?;
        Ok(AdapterLease::new(&self.shared, &mut state, generation))
    }

    /// The named adapters, by name.
    pub fn list(&self) -> Vec<AdapterInfo> {
        let state = self.shared.state.lock();
        let slots = state.names.values().map(|slot| &state.slots[slot.0 as usize]);
        slots.filter_map(|slot| Some(slot.generation.as_ref()?.info(slot.leases))).collect()
    }

    /// Number of leases now held, over all generations.
    pub fn leases(&self) -> usize {
        self.shared.state.lock().leases
    }

    /// Number of slots that aren't free: named, leased, retired and reserved ones.
    pub fn resident(&self) -> usize {
        let state = self.shared.state.lock();
        state.slots.len() - state.free.len()
    }

    /// Bytes of those slots.
    pub fn resident_bytes(&self) -> usize {
        self.shared.state.lock().bytes
    }

    /// Calls `drop_slot` for each slot whose generation has neither name nor lease left, then frees it. The lock is not held
    /// during the call; threads that reap at once share the slots among them.
    pub fn reap(&self, mut drop_slot: impl FnMut(SlotId)) {
        loop {
            let Some(slot) = self.shared.state.lock().retired.pop() else { return };
            drop_slot(slot);
            self.shared.state.lock().free(slot);
        }
    }

    /// Whether a name can be given to an adapter: not blank, at most 256 characters, none of them invisible.
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
            return invalid("the name holds a character that can't be seen");
        }
        Ok(())
    }

    fn check_reservation(&self, reservation: &Reservation) -> Result<()> {
        match Arc::ptr_eq(&self.shared, &reservation.shared) {
            true => Ok(()),
            false => Err(Error::new(ErrorCode::AdapterModelMismatch, "the reservation is of another pool")),
        }
    }
}

/// Control characters, and those of Unicode that change or break a line without being seen.
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

/// A slot and budget held while an adapter is uploaded.
pub struct Reservation {
    shared: Arc<Shared>,
    slot: SlotId,
    bytes: usize,
    uploaded: bool,
    settled: bool,
}

impl Reservation {
    /// The slot to upload into.
    pub fn slot(&self) -> SlotId {
        self.slot
    }

    /// Corrects the budget once the backend has said what the adapter occupies.
    pub fn set_resident_bytes(&mut self, bytes: usize) {
        let mut state = self.shared.state.lock();
        state.bytes = state.bytes - self.bytes + bytes;
        state.slot(self.slot).bytes = bytes;
        self.bytes = bytes;
        self.uploaded = true;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut state = self.shared.state.lock();
        match self.uploaded {
            true => state.retire_if_unused(self.slot),
            false => state.free(self.slot),
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("slot", &self.slot).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// Holds one generation resident; clones share it and count as one more lease each.
pub struct AdapterLease {
    shared: Arc<Shared>,
    generation: Arc<Generation>,
}

impl AdapterLease {
    fn new(shared: &Arc<Shared>, state: &mut State, generation: Arc<Generation>) -> Self {
        state.leases += 1;
        state.slot(generation.slot).leases += 1;
        Self { shared: shared.clone(), generation }
    }

    /// The slot it occupies.
    pub fn slot(&self) -> SlotId {
        self.generation.slot
    }

    /// What it is.
    pub fn info(&self) -> AdapterInfo {
        let leases = self.shared.state.lock().slot(self.generation.slot).leases;
        self.generation.info(leases)
    }

    /// What was read from its files.
    pub fn summary(&self) -> &AdapterSummary {
        &self.generation.summary
    }

    /// Its name; of an anonymous one its folder's name.
    pub fn label(&self) -> String {
        let Generation { name, summary, .. } = &*self.generation;
        match (name.as_str(), summary.path.file_name()) {
            ("", Some(folder)) => folder.to_string_lossy().into_owned(),
            (name, _) => name.to_owned(),
        }
    }

    /// Content hash, part of the prefix key.
    pub fn content_hash(&self) -> &str {
        &self.generation.summary.content_hash
    }

    /// Whether it belongs to that pool.
    pub fn is_of(&self, pool: &AdapterPool) -> bool {
        Arc::ptr_eq(&self.shared, &pool.shared)
    }
}

impl Clone for AdapterLease {
    fn clone(&self) -> Self {
        Self::new(&self.shared, &mut self.shared.state.lock(), self.generation.clone())
    }
}

impl Drop for AdapterLease {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.leases -= 1;
        state.slot(self.generation.slot).leases -= 1;
        state.retire_if_unused(self.generation.slot);
    }
}

impl fmt::Debug for AdapterLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterLease")
            .field("name", &self.generation.name)
            .field("generation", &self.generation.number)
            .field("slot", &self.generation.slot)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::adapter::constraints::AdapterConstraints;

    fn pool(max_bytes: usize, max_adapters: usize) -> AdapterPool {
        AdapterPool::new(AdapterLimits { max_bytes, max_adapters })
    }

    fn summary(hash: &str) -> AdapterSummary {
        AdapterSummary {
            path: "adapters/sql".into(),
            content_hash: hash.to_owned(),
            rank: 8,
            alpha: 16.0,
            use_rslora: false,
            target_modules: Vec::new(),
            sites: 1,
            max_rank: 8,
            bytes: 10,
            constraints: AdapterConstraints::default(),
        }
    }

    fn load(pool: &AdapterPool, name: &str, hash: &str) -> AdapterInfo {
        let mut reservation = pool.reserve(10).expect("room");
        reservation.set_resident_bytes(12);
        pool.publish(name, reservation, summary(hash)).expect("a valid name")
    }

    fn reaped(pool: &AdapterPool) -> Vec<SlotId> {
        let mut slots = Vec::new();
        pool.reap(|slot| slots.push(slot));
        slots
    }

    #[test]
    fn a_lease_keeps_its_generation_through_replacement_and_unloading() {
        let pool = pool(100, 4);
        let first = load(&pool, "sql", "one");
        let lease = pool.lease("sql").expect("loaded");
        let second = load(&pool, "sql", "two");
        assert!(second.generation > first.generation);
        assert_eq!(pool.lease("sql").expect("loaded").content_hash(), "two");
        pool.unload("sql").expect("loaded");
        assert_eq!(lease.content_hash(), "one");
        assert_eq!(lease.info().generation, first.generation);

        let second_slot = reaped(&pool);
        assert_eq!(second_slot.len(), 1);
        assert_ne!(second_slot[0], lease.slot());
        let slot = lease.slot();
        drop(lease);
        assert_eq!(reaped(&pool), [slot]);
        assert_eq!((pool.resident(), pool.resident_bytes(), pool.leases()), (0, 0, 0));
    }

    #[test]
    fn a_slot_is_reused_only_after_the_backend_dropped_it() {
        let pool = pool(100, 1);
        load(&pool, "sql", "one");
        pool.unload("sql").expect("loaded");
        assert_eq!(pool.reserve(1).expect_err("still held").code(), ErrorCode::AdapterBudgetExceeded);
        pool.reap(|_| assert!(pool.reserve(1).is_err()));
        assert!(pool.reserve(1).is_ok());
    }

    #[test]
    fn an_unpublished_reservation_returns_slot_and_budget() {
        let pool = pool(10, 1);
        drop(pool.reserve(10).expect("room"));
        assert_eq!(pool.resident_bytes(), 0);
        assert_eq!(reaped(&pool), []);

        let mut uploaded = pool.reserve(10).expect("room");
        uploaded.set_resident_bytes(7);
        let slot = uploaded.slot();
        let error = pool.publish(" ", uploaded, summary("one")).expect_err("blank");
        assert_eq!(error.code(), ErrorCode::AdapterNameInvalid);
        assert_eq!(reaped(&pool), [slot]);
        assert_eq!((pool.resident(), pool.resident_bytes()), (0, 0));
    }

    #[test]
    fn bytes_and_slots_are_budgets() {
        let pool = pool(20, 2);
        load(&pool, "a", "one");
        let error = pool.reserve(9).expect_err("12 of 20 are taken");
        assert_eq!(error.code(), ErrorCode::AdapterBudgetExceeded);
        assert_eq!(error.expected(), Some("at most 8 of 20 bytes"));
        let _second = pool.reserve(8).expect("fits");
        assert_eq!(pool.reserve(0).expect_err("no slot").code(), ErrorCode::AdapterBudgetExceeded);
    }

    #[test]
    fn an_anonymous_adapter_lives_as_long_as_its_leases() {
        let pool = pool(100, 1);
        let lease = pool.insert_anonymous(pool.reserve(5).expect("room"), summary("one"));
        assert_eq!((lease.info().name.as_str(), lease.info().leases), ("", 1));
        let clone = lease.clone();
        assert_eq!((pool.leases(), lease.info().leases), (2, 2));
        drop(lease);
        assert_eq!(reaped(&pool), []);
        assert!(pool.list().is_empty());
        let slot = clone.slot();
        drop(clone);
        assert_eq!(reaped(&pool), [slot]);
    }

    #[test]
    fn an_unknown_name_is_told_with_the_names_there_are() {
        let pool = pool(100, 4);
        assert_eq!(pool.lease("sql").expect_err("empty").found(), Some("no adapters"));
        load(&pool, "wit", "one");
        load(&pool, "fr", "two");
        let error = pool.unload("sql").expect_err("not loaded");
        assert_eq!(error.code(), ErrorCode::AdapterNotFound);
        assert_eq!(error.found(), Some("'fr', 'wit'"));
        assert_eq!(pool.list().iter().map(AsRef::<str>::as_ref).collect::<Vec<_>>(), ["fr", "wit"]);
    }

    #[test]
    fn names_must_be_seen_to_be_told_apart() {
        for name in ["", "  ", "a\nb", "a\u{202e}b", "a\u{200b}b", &"x".repeat(257)] {
            assert_eq!(AdapterPool::check_name(name).expect_err(name).code(), ErrorCode::AdapterNameInvalid);
        }
        for name in ["sql", "Größe 2/ü", &"é".repeat(256)] {
            assert!(AdapterPool::check_name(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_lease_knows_its_pool() {
        let (one, other) = (pool(100, 1), pool(100, 1));
        load(&one, "sql", "one");
        let lease = one.lease("sql").expect("loaded");
        assert!(lease.is_of(&one) && !lease.is_of(&other));
        let foreign = other.reserve(1).expect("room");
        assert_eq!(
            one.publish("x", foreign, summary("two")).expect_err("foreign").code(),
            ErrorCode::AdapterModelMismatch
        );
        assert_eq!(other.resident(), 0);
    }

    /// Four threads load, replace, unload and lease three names at random. What a backend would hold is modeled by the set
    /// of uploaded slots: a slot uploaded twice without a drop between, or dropped while leased, fails.
    #[test]
    fn threads_share_a_pool_without_losing_a_slot_or_a_byte() {
        let pool = pool(1000, 12);
        let uploaded: Mutex<HashSet<SlotId>> = Mutex::default();
        let leased: Mutex<Vec<SlotId>> = Mutex::default();
        let reap = || {
            pool.reap(|slot| {
                assert!(!leased.lock().contains(&slot), "{slot:?} is leased");
                assert!(uploaded.lock().remove(&slot), "{slot:?} was not uploaded");
            });
        };
        std::thread::scope(|scope| {
            for seed in 1..=4u64 {
                let (pool, uploaded, leased, reap) = (&pool, &uploaded, &leased, &reap);
                scope.spawn(move || {
                    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    let mut random = |n: u64| {
                        state ^= state << 13;
                        state ^= state >> 7;
                        state ^= state << 17;
                        state % n
                    };
                    let mut held: Vec<AdapterLease> = Vec::new();
                    for _ in 0..2000 {
                        let name = ["a", "b", "c"][random(3) as usize];
                        match random(6) {
                            0 | 1 => {
                                reap();
                                let Ok(mut reservation) = pool.reserve(10) else { continue };
                                if random(8) == 0 {
                                    continue;
                                }
                                assert!(uploaded.lock().insert(reservation.slot()), "a slot was uploaded twice");
                                reservation.set_resident_bytes(11);
                                if random(8) != 0 {
                                    pool.publish(name, reservation, summary(name)).expect("a valid name");
                                }
                            }
                            2 => drop(pool.unload(name)),
                            3 | 4 if held.len() < 2 => {
                                if let Ok(lease) = pool.lease(name) {
                                    assert_eq!(lease.content_hash(), name);
                                    leased.lock().push(lease.slot());
                                    held.push(lease);
                                }
                            }
                            _ => {
                                if let Some(lease) = held.pop() {
                                    let mut leased = leased.lock();
                                    let at = leased.iter().position(|slot| *slot == lease.slot());
                                    leased.swap_remove(at.expect("it was leased"));
                                    drop(leased);
                                    drop(lease);
                                }
                            }
                        }
                    }
                    for lease in held {
                        let mut leased = leased.lock();
                        let at = leased.iter().position(|slot| *slot == lease.slot());
                        leased.swap_remove(at.expect("it was leased"));
                    }
                });
            }
        });
        for name in ["a", "b", "c"] {
            drop(pool.unload(name));
        }
        assert!(leased.lock().is_empty());
        reap();
        assert_eq!((pool.resident(), pool.resident_bytes(), pool.leases()), (0, 0, 0));
        assert!(uploaded.lock().is_empty());
        assert!(pool.list().is_empty());
    }
}
