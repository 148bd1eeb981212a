//! Which adapters are resident: loaded when they are first named, unloaded when others need the room.
//!
//! An adapter's name is its folder's path below `--adapters-dir`, links resolved, or what a client said when it loaded the
//! folder. Whoever names an adapter gets a lease. If it is not resident it is loaded, on a thread that no step and no other
//! request waits for, and once however many ask for it; if the budget is full, the least recently used adapter without lease or
//! pin is unloaded first. A load holds its lease until all who wait for it have theirs, so what was just loaded is not what is
//! unloaded next.
//!
//! When a folder's files change, the next request that names the adapter loads it as a new version. Should that fail, as it
//! does while files are being copied, the version that is loaded stays until the files change once more.
//!
//! Adapters that the server did not load (`--adapter`, or those of the program that started the server) stay.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use futures_util::future::Shared;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

use super::fingerprint::Fingerprint;
use super::paths::{AdaptersDir, FolderPlace};
use super::record::{Counts, Record, Source, Wanted};
use crate::adapter::pool::{AdapterInfo, AdapterLease, AdapterPool};
use crate::engine::Engine;
use crate::error::{Error, ErrorCode, Result};
use crate::model::LoadHooks;
use crate::server::metrics::Metrics;

/// A folder's files are looked at no more often than this, however many requests name the adapter.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// How long a load waits for an adapter that requests use now, where the budget is full and no other can be unloaded.
const ROOM_WAIT: Duration = Duration::from_secs(10);

/// How often it looks.
const ROOM_PAUSE: Duration = Duration::from_millis(5);

/// The adapters of an engine, and where they come from.
pub(super) struct Residency {
    engine: Engine,
    pub(super) dir: Option<AdaptersDir>,
    pub(super) load: LoadFn,
    /// One for each load that may run at a time.
    permits: Semaphore,
    pub(super) look_interval: Duration,
    pub(super) room_wait: Duration,
    metrics: Metrics,
    pub(super) table: Mutex<Table>,
}

/// Loads a folder under a name; the last argument unloads an adapter, or says that there is none to unload.
pub(super) type LoadFn =
    Box<dyn Fn(&Engine, &str, &Path, &mut dyn FnMut() -> bool) -> Result<AdapterInfo> + Send + Sync>;

#[derive(Default)]
pub(super) struct Table {
    /// By name: what was ever loaded and not unloaded by a client, and what was resident when the server started.
    pub(super) records: BTreeMap<String, Record>,
    /// The loads that run, by name.
    pub(super) loading: HashMap<String, Loading>,
    /// Number of uses so far, over all names.
    uses: u64,
    /// Names by the number that llama.cpp's clients know; never forgotten, so that a number never means another adapter.
    pub(super) ids: Vec<String>,
}

/// A load that runs.
#[derive(Clone)]
pub(super) struct Loading {
    /// How it ended, once it has. What it holds is the waiting requests' alone: the last one to look takes the lease with it.
    outcome: Shared<oneshot::Receiver<Result<AdapterLease>>>,
    /// Whether a client asked for it, and not the request that named it first.
    is_asked_for: bool,
}

/// What can be said at once, or the load to wait for before asking again.
enum Now<T> {
    Done(T),
    Wait(Loading),
}

/// An adapter's name as clients see it.
pub struct Status {
    /// The name.
    pub name: String,
    /// The number by which llama.cpp's clients name it.
    pub id: usize,
    /// The version that is resident; `None` for one that was evicted and will be loaded when it is named.
    pub info: Option<AdapterInfo>,
    /// Whether it stays when the budget is full.
    pub is_pinned: bool,
    /// Its folder; `None` for one that the program itself has loaded and unloaded.
    pub folder: Option<FolderPlace>,
    /// What has happened to it since the server started.
    pub counts: Counts,
}

impl Residency {
    pub(super) fn new(engine: Engine, dir: Option<AdaptersDir>, most_loads: usize, metrics: Metrics) -> Self {
        let load: LoadFn = Box::new(|engine, name, folder, make_room| {
            engine.load_adapter_hooked(name, folder, &mut LoadHooks { between_parts: &mut || Ok(()), make_room })
        });
        let mut table = Table::default();
        let mut resident = engine.adapters();
        resident.sort_by_key(|info| info.generation);
        for info in resident {
            table.record(&info.name);
        }
        Self {
            engine,
            dir,
            load,
            permits: Semaphore::new(most_loads.max(1)),
            look_interval: LOOK_INTERVAL,
            room_wait: ROOM_WAIT,
            metrics,
            table: Mutex::new(table),
        }
    }

    pub(super) fn pool(&self) -> &AdapterPool {
        self.engine.model().adapters()
    }

    /// A lease on the adapter of that name, which is loaded if need be.
    ///
    /// # Errors
    /// `adapter_not_found`, `adapter_path_refused`, `adapter_budget_exceeded`, and any other that loading an adapter has.
    pub(super) async fn lease(self: &Arc<Self>, name: &str) -> Result<AdapterLease> {
        let name = &*self.identity(name).await?;
        let mut is_stale = self.has_changed(name).await;
        loop {
            let loading = match self.lease_or_load(name, is_stale)? {
                Now::Done(lease) => return Ok(lease),
                Now::Wait(loading) => loading,
            };
            let is_asked_for = loading.is_asked_for;
            let outcome = loading.outcome().await;
            if !is_asked_for {
                let lease = outcome?.another();
                self.note_use(&mut self.table.lock(), name);
                return Ok(lease);
            }
            // A client has loaded another folder under the name, or failed to, which is no answer to this request.
            is_stale = is_stale && outcome.is_err();
        }
    }

    fn lease_or_load(self: &Arc<Self>, name: &str, is_stale: bool) -> Result<Now<AdapterLease>> {
        let mut table = self.table.lock();
        if let Some(loading) = table.loading.get(name) {
            return Ok(Now::Wait(loading.clone()));
        }
        match self.pool().lease(name) {
            Ok(lease) if !is_stale => {
                self.note_use(&mut table, name);
                Ok(Now::Done(lease))
            }
            Err(error) if self.dir.is_none() => Err(error),
            _ => {
                // One that a client loaded comes back from where it was.
                let source = table.records.get(name).and_then(|record| record.source.as_ref());
                let wanted = source.map_or(Wanted::Name, |source| source.wanted.clone());
                Ok(Now::Wait(self.start(&mut table, name, wanted, false)))
            }
        }
    }

    /// Whether the files of a resident adapter have changed.
    async fn has_changed(self: &Arc<Self>, name: &str) -> bool {
        let wanted = {
            let mut table = self.table.lock();
            let source = table.records.get_mut(name).and_then(|record| record.source.as_mut());
            match source {
                Some(source) if source.looked_at.elapsed() >= self.look_interval => {
                    source.looked_at = Instant::now();
                    source.wanted.clone()
                }
                _ => return false,
            }
        };
        let owned = name.to_owned();
        let found = self.blocking(move |this| Ok(Fingerprint::of(&this.folder(&owned, &wanted)?).ok())).await;
        // A folder that is gone takes nothing from those who use what was loaded.
        let Ok(Some(found)) = found else { return false };
        let table = self.table.lock();
        let source = table.records.get(name).and_then(|record| record.source.as_ref());
        source.is_some_and(|source| source.is_new(&found))
    }

    /// Loads the folder at a client's path under a name.
    ///
    /// # Errors
    /// `request_invalid`: an adapter has the name, and is not to be replaced. `adapter_generation_mismatch`: it has another
    /// generation than `expected`, where 0 stands for none. `adapter_path_refused`, and what loading an adapter has.
    pub(super) async fn load(
        self: &Arc<Self>,
        name: &str,
        path: &str,
        replaces: bool,
        expected: Option<u64>,
    ) -> Result<Status> {
        loop {
            let (loading, is_own) = self.start_replacing(name, path, replaces, expected)?;
            let outcome = loading.outcome().await;
            if is_own {
                // The load's own lease is held until its status was read, of which it is no part.
                let mut info = outcome?.info();
                info.leases = info.leases.saturating_sub(1);
                return Ok(self.status_of(name, Some(info)));
            }
        }
    }

    /// Starts a load of a client's path, or returns the one that runs for the name, and `false`.
    fn start_replacing(
        self: &Arc<Self>,
        name: &str,
        path: &str,
        replaces: bool,
        expected: Option<u64>,
    ) -> Result<(Loading, bool)> {
        let mut table = self.table.lock();
        if let Some(loading) = table.loading.get(name) {
            return Ok((loading.clone(), false));
        }
        let generation = self.check_generation(name, expected)?;
        if generation > 0 && !replaces {
            return Err(already_loaded(name, generation));
        }
        Ok((self.start(&mut table, name, Wanted::Path(path.to_owned()), true), true))
    }

    /// Unloads an adapter; requests that use it go on. Returns the generation that was unloaded, 0 for one that had been evicted.
    ///
    /// # Errors
    /// `adapter_not_found`, `adapter_generation_mismatch`.
    pub(super) async fn unload(&self, name: &str, expected: Option<u64>) -> Result<u64> {
        loop {
            match self.unload_unless_loading(name, expected)? {
                Now::Done(generation) => return Ok(generation),
                // Whether it succeeds or not.
                Now::Wait(loading) => drop(loading.outcome().await),
            }
        }
    }

    fn unload_unless_loading(&self, name: &str, expected: Option<u64>) -> Result<Now<u64>> {
        let mut table = self.table.lock();
        if let Some(loading) = table.loading.get(name) {
            return Ok(Now::Wait(loading.clone()));
        }
        let generation = self.check_generation(name, expected)?;
        let was_evicted = generation == 0 && table.records.contains_key(name);
        if !was_evicted {
            self.engine.unload_adapter(name)?;
        }
        table.records.remove(name);
        Ok(Now::Done(generation))
    }

    /// Loads an adapter that stays when the budget is full, on the caller's thread. Before anybody else uses it.
    ///
    /// # Errors
    /// As [`Residency::lease`].
    pub(super) fn load_pinned(&self, name: &str) -> Result<()> {
        let name = if self.is_known(name) { name.to_owned() } else { self.name_of_folder(name)? };
        if self.pool().lease(&name).is_err() {
            self.load_folder(&name, Wanted::Name, self.folder(&name, &Wanted::Name)?, false)?;
        }
        self.set_pinned(&name, true);
        Ok(())
    }

    /// Says whether a name stays when the budget is full.
    pub(super) fn set_pinned(&self, name: &str, is_pinned: bool) {
        self.table.lock().record(name).is_pinned = is_pinned;
    }

    fn note_use(&self, table: &mut Table, name: &str) {
        table.note_use(name);
        self.metrics.adapter_used(name);
    }

    /// All names that have been loaded, with what is resident now, in the order of their ids.
    pub(super) fn statuses(&self) -> Vec<Status> {
        let mut table = self.table.lock();
        let mut resident = self.pool().list();
        // Also those that the program has loaded beside the server.
        resident.sort_by_key(|info| info.generation);
        for info in &resident {
            table.record(&info.name);
        }
        let mut resident: BTreeMap<String, AdapterInfo> =
            resident.into_iter().map(|info| (info.name.clone(), info)).collect();
        let statuses = table.records.iter().map(|(name, record)| self.status(name, record, resident.remove(name)));
        let mut statuses: Vec<Status> = statuses.collect();
        statuses.sort_by_key(|status| status.id);
        statuses
    }

    fn status_of(&self, name: &str, info: Option<AdapterInfo>) -> Status {
        let mut table = self.table.lock();
        self.status(name, table.record(name), info)
    }

    fn status(&self, name: &str, record: &Record, info: Option<AdapterInfo>) -> Status {
        let folder = record.source.as_ref().map(|source| source.folder.as_path());
        let folder = folder.or_else(|| info.as_ref().map(|info| info.summary.path.as_path()));
        let folder = folder.map(|folder| match self.dir.as_ref().and_then(|dir| dir.relative(folder)) {
            Some(path) => FolderPlace::Below(path),
            None => FolderPlace::Elsewhere(folder.to_owned()),
        });
        let is_pinned = record.is_pinned || record.source.is_none();
        Status { name: name.to_owned(), id: record.id, info, is_pinned, folder, counts: record.counts }
    }

    /// The generation that has the name, 0 if none has, after comparing it with what a client expects.
    fn check_generation(&self, name: &str, expected: Option<u64>) -> Result<u64> {
        let generation = self.pool().lease(name).map_or(0, |lease| lease.info().generation);
        match expected {
            Some(expected) if expected != generation => {
                let what = format!("adapter '{name}' has another generation");
                Err(Error::new(ErrorCode::AdapterGenerationMismatch, what)
                    .with_expected(expected)
                    .with_found(generation))
            }
            _ => Ok(generation),
        }
    }

    /// Starts a load, which ends even if nobody waits for it any more.
    fn start(self: &Arc<Self>, table: &mut Table, name: &str, wanted: Wanted, is_asked_for: bool) -> Loading {
        let (sender, outcome) = oneshot::channel();
        let loading = Loading { outcome: outcome.shared(), is_asked_for };
        table.loading.insert(name.to_owned(), loading.clone());
        let (this, name) = (Arc::clone(self), name.to_owned());
        tokio::spawn(async move {
            let outcome = this.run(&name, wanted, !is_asked_for).await;
            if let Err(error) = &outcome {
                tracing::info!(adapter = name, %error, "an adapter was not loaded");
            }
            let outcome =
                outcome.map_err(|error| this.dir.iter().fold(error, |error, dir| dir.as_seen_by_clients(error)));
            // `outcome` holds a lease, so nothing evicts the adapter in between.
            this.table.lock().loading.remove(&name);
            // If nobody waits any more, the lease ends here.
            drop(sender.send(outcome));
        });
        loading
    }

    async fn run(self: &Arc<Self>, name: &str, wanted: Wanted, keeps_old: bool) -> Result<AdapterLease> {
        AdapterPool::check_name(name)?;
        let owned = name.to_owned();
        let (folder, wanted) = self
            .blocking(move |this| {
                let folder = this.folder(&owned, &wanted)?;
                Ok((folder, wanted))
            })
            .await?;
        // Only now: a name that nothing has need not wait for those that are being loaded.
        let Ok(_permit) = self.permits.acquire().await else { return Err(given_up()) };
        let owned = name.to_owned();
        self.blocking(move |this| this.load_folder(&owned, wanted, folder, keeps_old)).await
    }

    /// Runs `f` on a thread that may wait.
    pub(super) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        f: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let this = Arc::clone(self);
        let outcome = tokio::task::spawn_blocking(move || f(&this)).await;
        outcome.unwrap_or_else(|_| Err(given_up()))
    }

    pub(super) fn folder(&self, name: &str, wanted: &Wanted) -> Result<PathBuf> {
        let Some(dir) = &self.dir else {
            let what = format!("the server has no folder to load adapter '{name}' from");
            return Err(Error::new(ErrorCode::AdapterPathRefused, what).with_hint("start it with --adapters-dir"));
        };
        match wanted {
            Wanted::Path(path) => dir.resolve(path),
            Wanted::Name => dir.find(name)?.ok_or_else(|| {
                Error::new(ErrorCode::AdapterNotFound, format!("there is no adapter named '{name}'"))
                    .with_hint("give the name of a folder below --adapters-dir")
            }),
        }
    }

    /// Loads a folder under a name, on a thread that may take its time. If that fails, `keeps_old` asks for the version that is
    /// loaded. The lease is taken before anything can unload it.
    fn load_folder(&self, name: &str, wanted: Wanted, folder: PathBuf, keeps_old: bool) -> Result<AdapterLease> {
        // Before the files are read: what changes while they are read is noticed by the next request.
        let fingerprint = Fingerprint::of(&folder).ok();
        let start = Instant::now();
        let loaded = (self.load)(&self.engine, name, &folder, &mut || self.make_room());
        let (load_time, lease) = (start.elapsed(), self.pool().lease(name));
        let mut table = self.table.lock();
        let error = match loaded {
            Ok(info) => {
                let record = table.record(name);
                record.counts.loads += 1;
                record.counts.load_time += load_time;
                self.metrics.adapter_loaded(name, load_time);
                record.source = Some(Source { wanted, folder, fingerprint, failed: None, looked_at: Instant::now() });
                let (generation, bytes, seconds) = (info.generation, info.resident_bytes, load_time.as_secs_f64());
                tracing::info!(adapter = name, generation, bytes, seconds, "an adapter is loaded");
                return lease;
            }
            Err(error) => error,
        };
        // Where there was no room, nothing is wrong with the files.
        let is_failure = error.code() != ErrorCode::AdapterBudgetExceeded;
        if is_failure {
            self.metrics.adapter_load_failed();
        }
        let Some(record) = table.records.get_mut(name) else { return Err(error) };
        record.counts.failed_loads += u64::from(is_failure);
        match (lease, &mut record.source) {
            (Ok(lease), Some(source)) if keeps_old => {
                tracing::warn!(adapter = name, %error, "its files have changed and cannot be loaded: the version before stays");
                source.failed = fingerprint;
                Ok(lease)
            }
            _ => Err(error),
        }
    }

    /// Unloads an adapter, for which it waits while requests use all that may go; `false` if there is none.
    fn make_room(&self) -> bool {
        let start = Instant::now();
        loop {
            match self.evict_one() {
                Room::Made => return true,
                Room::Busy if start.elapsed() < self.room_wait => std::thread::sleep(ROOM_PAUSE),
                Room::Busy | Room::None => return false,
            }
        }
    }

    /// Unloads the least recently used adapter that nobody uses and that is not to stay.
    fn evict_one(&self) -> Room {
        let mut table = self.table.lock();
        let may_go =
            |name: &String| table.records.get(name).is_some_and(|record| record.source.is_some() && !record.is_pinned);
        let resident: Vec<AdapterInfo> = self.pool().list().into_iter().filter(|info| may_go(&info.name)).collect();
        let unused = resident.iter().filter(|info| info.leases == 0 && !table.loading.contains_key(&info.name));
        let by_use = unused.filter_map(|info| Some((table.records.get(&info.name)?.last_use, &info.name)));
        let Some((_, name)) = by_use.min() else {
            // The load that asks is one of those that run; what the others load may go later.
            return if resident.is_empty() && table.loading.len() <= 1 { Room::None } else { Room::Busy };
        };
        if self.engine.unload_adapter(name).is_err() {
            return Room::Busy;
        }
        table.record(name).counts.evictions += 1;
        self.metrics.adapter_evicted(name);
        tracing::info!(adapter = name, "an adapter is unloaded, for another one needs the room");
        Room::Made
    }
}

/// Whether an adapter was unloaded to make room.
enum Room {
    Made,
    /// Requests use all that may go, or they are being loaded.
    Busy,
    /// None may go.
    None,
}

impl Table {
    /// The record of a name, which gets one, and an id, if it has none.
    fn record(&mut self, name: &str) -> &mut Record {
        if !self.records.contains_key(name) {
            let known = self.ids.iter().position(|known| known == name);
            let id = known.unwrap_or_else(|| {
                self.ids.push(name.to_owned());
                self.ids.len() - 1
            });
            self.records.insert(name.to_owned(), Record::new(id));
        }
        self.records.entry(name.to_owned()).or_insert_with(|| Record::new(0))
    }

    fn note_use(&mut self, name: &str) {
        self.uses += 1;
        let uses = self.uses;
        let record = self.record(name);
        record.last_use = uses;
        record.counts.hits += 1;
        record.counts.last_used = Some(SystemTime::now());
    }
}

impl Loading {
    /// How it ended, once it has.
    async fn outcome(self) -> Result<AdapterLease> {
        self.outcome.await.unwrap_or_else(|_| Err(given_up()))
    }
}

fn already_loaded(name: &str, generation: u64) -> Error {
    Error::new(ErrorCode::RequestInvalid, format!("adapter '{name}' is loaded already"))
        .with_found(format!("generation {generation}"))
        .with_hint("set load_inplace to replace it, or unload it first")
}

fn given_up() -> Error {
    Error::new(ErrorCode::Internal, "an adapter's load was given up")
}
