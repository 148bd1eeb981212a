//! A request's hold on an adapter version.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::adapter::batch::SlotId;
use crate::adapter::plan::AdapterSummary;
use crate::adapter::pool::state::{AdapterInfo, AdapterVersion, Shared, State};

/// Keeps one adapter version resident. Clones are one lease together, which ends with the last of them: a request that keeps
/// its lease in several places counts once.
#[derive(Clone)]
pub struct AdapterLease(Arc<Hold>);

/// What a lease counts for.
struct Hold {
    shared: Arc<Shared>,
    version: Arc<AdapterVersion>,
}

impl AdapterLease {
    pub(super) fn new(shared: &Arc<Shared>, state: &mut State, version: Arc<AdapterVersion>) -> Self {
        state.leases += 1;
        state.slot(version.slot).leases += 1;
        Self(Arc::new(Hold { shared: shared.clone(), version }))
    }

    /// A lease of its own on the same adapter version, for another request.
    #[must_use]
    pub fn another(&self) -> Self {
        let Hold { shared, version } = &*self.0;
        Self::new(shared, &mut shared.state.lock(), version.clone())
    }

    /// Whether both are on the same adapter version.
    pub fn is_same_version(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0.version, &other.0.version)
    }

    /// The slot that the adapter occupies.
    pub fn slot(&self) -> SlotId {
        self.version().slot
    }

    /// The adapter version as users see it.
    pub fn info(&self) -> AdapterInfo {
        let leases = self.0.shared.state.lock().slot(self.version().slot).leases;
        self.version().info(leases)
    }

    /// What was read from its files.
    pub fn summary(&self) -> &AdapterSummary {
        &self.version().summary
    }

    /// The adapter's name; of an anonymous one its folder's name.
    pub fn label(&self) -> String {
        let AdapterVersion { name, summary, .. } = self.version();
        match (name.as_str(), summary.path.file_name()) {
            ("", Some(folder)) => folder.to_string_lossy().into_owned(),
            (name, _) => name.to_owned(),
        }
    }

    /// SHA-256 over config and weights, part of the prefix key.
    pub fn content_hash(&self) -> &str {
        &self.version().summary.content_hash
    }

    /// What a higher layer keeps with the adapter version, if it is a `T`.
    pub(crate) fn attachment<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.version().attachment.as_deref()?.downcast_ref()
    }

    /// Whether it is of the pool with this state.
    pub(super) fn is_from(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.0.shared, shared)
    }

    fn version(&self) -> &AdapterVersion {
        &self.0.version
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.leases -= 1;
        state.slot(self.version.slot).leases -= 1;
        state.retire_if_unused(self.version.slot);
    }
}

impl fmt::Debug for AdapterLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.version();
        f.debug_struct("AdapterLease")
            .field("name", &version.name)
            .field("generation", &version.number)
            .field("slot", &version.slot)
            .finish_non_exhaustive()
    }
}
