//! Loading adapters into a model while it computes.
//!
//! Reading, checking, resolving and preparing an adapter hold no lock: only the adapter's own thread is busy. The step lock is
//! taken to install the prepared adapter, which is a move, and to free retired slots if the budget is short of them.

use std::path::Path;

use super::Model;
use crate::adapter::AdapterFiles;
use crate::adapter::plan::AdapterSummary;
use crate::adapter::pool::{AdapterInfo, AdapterLease, AdapterPool, Reservation};
use crate::backend::PrepareError;
use crate::error::{Error, ErrorCode, Result};
use crate::sites::SiteId;

impl Model {
    /// Loads an adapter under a name, or replaces the one that has the name. Running requests keep the old version. Steps go
    /// on while the adapter is read and prepared.
    ///
    /// # Errors
    /// Anything of `adapter_*`; nothing changed then.
    pub fn load_adapter(&self, name: &str, dir: &Path) -> Result<AdapterInfo> {
        let subject = |e: Error| e.with_subject(format!("adapter '{name}'"));
        // Before any file is read. Publishing checks it again.
        AdapterPool::check_name(name).map_err(subject)?;
        let (reservation, summary) = self.install(dir).map_err(subject)?;
        self.adapters.publish(name, reservation, summary).map_err(subject)
    }

    /// Loads an adapter without a name; it lives as long as its leases.
    ///
    /// # Errors
    /// Anything of `adapter_*`; nothing changed then.
    pub fn load_anonymous_adapter(&self, dir: &Path) -> Result<AdapterLease> {
        let (reservation, summary) = self.install(dir)?;
        Ok(self.adapters.insert_anonymous(reservation, summary))
    }

    /// Removes a name. The memory is freed when the last request that uses the adapter has ended.
    ///
    /// # Errors
    /// `adapter_not_found`.
    pub fn unload_adapter(&self, name: &str) -> Result<()> {
        self.adapters.unload(name)
    }

    /// Reads and prepares an adapter and installs it in a slot.
    fn install(&self, dir: &Path) -> Result<(Reservation, AdapterSummary)> {
        let files = AdapterFiles::read(dir)?;
        let checked = files.check(&self.sites)?;
        let reduced = checked.without_copies(|site, part, values| self.preparer.equals_base(site, part, values));
        // Before anything takes long; the size of the prepared adapter is checked again.
        let bytes = reduced.summary().bytes;
        let mut reservation = self.reaping_if_short(|| self.adapters.reserve(bytes))?;
        let resolved = reduced.resolve(|site| self.preparer.dense_weight(site))?;
        let prepared = self.preparer.prepare(&resolved.deltas).map_err(|error| match error {
            PrepareError::ZeroNorm { site, output } => self.zero_norm(dir, site, output),
            PrepareError::Failed(error) => error,
        })?;
        self.reaping_if_short(|| reservation.resize(prepared.bytes()))?;
        self.core.lock().compute.install_adapter(reservation.slot(), prepared)?;
        reservation.mark_installed();
        Ok((reservation, resolved.summary))
    }

    /// Takes from the budget. If it is short, frees the retired slots and tries again, which may wait for a step.
    fn reaping_if_short<T>(&self, mut take: impl FnMut() -> Result<T>) -> Result<T> {
        match take() {
            Err(error) if error.code() == ErrorCode::AdapterBudgetExceeded => {
                self.reap(&mut self.core.lock());
                take()
            }
            outcome => outcome,
        }
    }

    fn zero_norm(&self, dir: &Path, site: SiteId, output: usize) -> Error {
        let what = format!("DoRA divides by the norms of '{}', one of which is 0", self.sites.get(site).path);
        Error::new(ErrorCode::AdapterScaleInvalid, what)
            .with_path(dir)
            .with_expected("norms above 0")
            .with_found(format!("0 at output {output}"))
            .with_hint("the base's weight and the adapter's delta cancel in that output, or both are 0")
    }
}
