//! The state behind a pool: slots, adapter versions, names and byte counts.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::adapter::batch::SlotId;
use crate::adapter::plan::AdapterSummary;
use crate::error::{Error, ErrorCode};

/// Limits of a pool.
#[derive(Clone, Copy, Debug)]
pub struct AdapterLimits {
    /// Bytes of all resident adapters in the backend. Tokenizers that adapters bring along are not counted.
    pub max_bytes: usize,
    /// Number of resident adapters. Replaced and unloaded ones count while requests still use them.
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
    /// Name under which requests find it; empty for an anonymous adapter.
    pub name: String,
    /// Number of the adapter version: counts up with every loading of an adapter.
    pub generation: u64,
    /// Bytes it occupies in the backend.
    pub resident_bytes: usize,
    /// Number of leases currently held on it: one for each request that uses it.
    pub leases: usize,
    /// What was read from its files.
    pub summary: AdapterSummary,
}

impl AsRef<str> for AdapterInfo {
    fn as_ref(&self) -> &str {
        &self.name
    }
}

/// What a higher layer keeps with an adapter version, such as the adapter's tokenizer.
pub type Attachment = Arc<dyn Any + Send + Sync>;

/// What a pool shares with its leases and reservations.
pub(super) struct Shared {
    pub limits: AdapterLimits,
    pub state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    /// By [`SlotId`]; grows up to the limit.
    pub slots: Vec<Slot>,
    pub free: Vec<SlotId>,
    pub retired: Vec<SlotId>,
    pub names: BTreeMap<String, SlotId>,
    /// Bytes of all slots that are not free.
    pub bytes: usize,
    pub leases: usize,
    last_version: u64,
}

#[derive(Default)]
pub(super) struct Slot {
    pub bytes: usize,
    pub leases: usize,
    pub is_named: bool,
    /// The adapter version in it; `None` while free, reserved or retired.
    pub version: Option<Arc<AdapterVersion>>,
}

/// One loading of an adapter; it never changes.
pub(super) struct AdapterVersion {
    pub slot: SlotId,
    pub number: u64,
    pub name: String,
    pub resident_bytes: usize,
    pub summary: AdapterSummary,
    pub attachment: Option<Attachment>,
}

impl AdapterVersion {
    pub fn info(&self, leases: usize) -> AdapterInfo {
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
    pub fn slot(&mut self, id: SlotId) -> &mut Slot {
        &mut self.slots[id.0 as usize]
    }

    /// Puts a new adapter version into a reserved slot.
    pub fn occupy(
        &mut self,
        slot: SlotId,
        name: &str,
        summary: AdapterSummary,
        attachment: Option<Attachment>,
    ) -> Arc<AdapterVersion> {
        self.last_version += 1;
        let (number, resident_bytes) = (self.last_version, self.slot(slot).bytes);
        let name = name.to_owned();
        let version = Arc::new(AdapterVersion { slot, number, name, resident_bytes, summary, attachment });
        self.slot(slot).version = Some(version.clone());
        version
    }

    /// Removes the name of a slot.
    pub fn unname(&mut self, id: SlotId) {
        self.slot(id).is_named = false;
        self.retire_if_unused(id);
    }

    pub fn retire_if_unused(&mut self, id: SlotId) {
        let slot = self.slot(id);
        if !slot.is_named && slot.leases == 0 {
            slot.version = None;
            self.retired.push(id);
        }
    }

    pub fn free(&mut self, id: SlotId) {
        self.bytes -= self.slot(id).bytes;
        *self.slot(id) = Slot::default();
        self.free.push(id);
    }

    /// The error for a name under which nothing is loaded.
    pub fn not_found(&self, name: &str) -> Error {
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
