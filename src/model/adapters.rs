//! Loading adapters into a model while it computes.
//!
//! Reading, checking, resolving and preparing an adapter hold no lock: only the adapter's own thread is busy. The step lock is
//! taken to install the prepared adapter, which is a move, and to free retired slots if the budget is short of them.

use std::path::Path;

use super::Model;
use crate::adapter::AdapterFiles;
use crate::adapter::plan::AdapterSummary;
use crate::adapter::pool::{AdapterInfo, AdapterLease, AdapterPool, Attachment, Reservation};
use crate::backend::PrepareError;
use crate::error::{Error, ErrorCode, Result};
use crate::sites::SiteId;

/// What a caller does while an adapter is loaded, on the loading thread.
pub(crate) struct LoadHooks<'a> {
    /// Called every second or more often; an error (Ctrl-C) ends the loading.
    pub between_parts: &'a mut dyn FnMut() -> Result<()>,
    /// Called while the budget is short: unloads an adapter, or says `false`.
    pub make_room: &'a mut dyn FnMut() -> bool,
}

impl Model {
    /// Loads an adapter under a name, or replaces the one that has the name. Running requests keep the old version. Steps go
    /// on while the adapter is read and prepared.
    ///
    /// # Errors
    /// Anything of `adapter_*`; nothing changed then.
    pub fn load_adapter(&self, name: &str, dir: &Path) -> Result<AdapterInfo> {
        self.load_adapter_with(name, dir, &mut || Ok(()))
    }

    /// As [`Model::load_adapter`]; an error from `between_parts` (Ctrl-C), which is called every second or more often, ends
    /// the loading.
    ///
    /// # Errors
    /// As [`Model::load_adapter`], and what `between_parts` returned.
    pub fn load_adapter_with(
        &self,
        name: &str,
        dir: &Path,
        between_parts: &mut dyn FnMut() -> Result<()>,
    ) -> Result<AdapterInfo> {
        self.load_adapter_attaching(name, dir, &mut LoadHooks { between_parts, make_room: &mut || false }, || Ok(None))
    }

    /// As [`Model::load_adapter_with`], with all hooks, keeping an attachment with the adapter version. It is made once the
    /// adapter's files have been checked.
    ///
    /// # Errors
    /// As [`Model::load_adapter_with`], and what `attachment` returned.
    pub(crate) fn load_adapter_attaching(
        &self,
        name: &str,
        dir: &Path,
        hooks: &mut LoadHooks<'_>,
        attachment: impl FnOnce() -> Result<Option<Attachment>>,
    ) -> Result<AdapterInfo> {
        let subject = |e: Error| e.with_subject(format!("adapter '{name}'"));
        // Before any file is read. Publishing checks it again.
        AdapterPool::check_name(name).map_err(subject)?;
        let (reservation, summary) = self.install(dir, hooks, attachment).map_err(subject)?;
        self.adapters.publish(name, reservation, summary).map_err(subject)
    }

    /// Loads an adapter without a name; it lives as long as its leases.
    ///
    /// # Errors
    /// Anything of `adapter_*`; nothing changed then.
    pub fn load_anonymous_adapter(&self, dir: &Path) -> Result<AdapterLease> {
        self.load_anonymous_adapter_with(dir, &mut || Ok(()))
    }

    /// As [`Model::load_anonymous_adapter`], and `between_parts` as for [`Model::load_adapter_with`].
    ///
    /// # Errors
    /// As [`Model::load_anonymous_adapter`], and what `between_parts` returned.
    pub fn load_anonymous_adapter_with(
        &self,
        dir: &Path,
        between_parts: &mut dyn FnMut() -> Result<()>,
    ) -> Result<AdapterLease> {
        self.load_anonymous_adapter_attaching(dir, between_parts, || Ok(None))
    }

    /// As [`Model::load_anonymous_adapter_with`], keeping an attachment as [`Model::load_adapter_attaching`] does.
    ///
    /// # Errors
    /// As [`Model::load_anonymous_adapter_with`], and what `attachment` returned.
    #[doc(hidden)]
    pub fn load_anonymous_adapter_attaching(
        &self,
        dir: &Path,
        between_parts: &mut dyn FnMut() -> Result<()>,
        attachment: impl FnOnce() -> Result<Option<Attachment>>,
    ) -> Result<AdapterLease> {
        let (reservation, summary) =
            self.install(dir, &mut LoadHooks { between_parts, make_room: &mut || false }, attachment)?;
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
    fn install(
        &self,
        dir: &Path,
        hooks: &mut LoadHooks<'_>,
        attachment: impl FnOnce() -> Result<Option<Attachment>>,
    ) -> Result<(Reservation, AdapterSummary)> {
        let files = AdapterFiles::read(dir)?;
        (hooks.between_parts)()?;
        let checked = files.check(&self.sites)?;
        let attachment = attachment()?;
        let reduced = checked.without_copies(|site, part, values| self.preparer.equals_base(site, part, values));
        // Before anything takes long; the size of the prepared adapter is checked again.
        let bytes = reduced.summary().bytes;
        let mut reservation = self.with_room(hooks, || self.adapters.reserve(bytes))?;
        // What retired slots hold may be what a device lacks for this one. A running step frees them itself.
        if let Some(mut core) = self.core.try_lock() {
            self.reap(&mut core);
        }
        let resolved = reduced.resolve(|site| self.preparer.dense_weight(site), hooks.between_parts)?;
        let prepared = self.preparer.prepare(&resolved.deltas, hooks.between_parts).map_err(|error| match error {
            PrepareError::ZeroNorm { site, output } => self.zero_norm(dir, site, output),
            PrepareError::Failed(error) => error,
        })?;
        self.with_room(hooks, || reservation.resize(prepared.bytes()))?;
        reservation.attach(attachment);
        reservation.mark_installed();
        self.core.lock()?.compute.install_adapter(reservation.slot(), prepared)?;
        Ok((reservation, resolved.summary))
    }

    /// Takes from the budget. While it is short, frees the retired slots, which may wait for a step, and then what
    /// `make_room` unloads.
    fn with_room<T>(&self, hooks: &mut LoadHooks<'_>, mut take: impl FnMut() -> Result<T>) -> Result<T> {
        let is_short =
            |outcome: &Result<T>| outcome.as_ref().is_err_and(|error| error.code() == ErrorCode::AdapterBudgetExceeded);
        let mut outcome = take();
        while is_short(&outcome) {
            self.reap(&mut *self.core.lock()?);
            outcome = take();
            if is_short(&outcome) && !(hooks.make_room)() {
                break;
            }
        }
        outcome
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;
    use std::time::Duration;

    use parking_lot::Mutex;

    use super::*;
    use crate::adapter::delta::SiteDelta;
    use crate::adapter::pool::AdapterLimits;
    use crate::backend::{AdapterPreparer, PreparedAdapter};
    use crate::model::ModelOptions;
    use crate::sites::SitePart;
    use crate::tensor::TensorView;
    use crate::{Engine, EngineOptions, Prompt, Request};

    /// Longest time to wait for another thread before a test fails.
    const PATIENCE: Duration = Duration::from_secs(60);
    const DORA: &str = "adapters/devil-dora-r8";

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
    }

    fn model(adapter_limits: AdapterLimits) -> Arc<Model> {
        let options = ModelOptions { adapter_limits, ..ModelOptions::default() };
        Model::load(&fixture("quill-4m-gptq-4bit-g128-sym"), &options, &mut |_| Ok(())).expect("the fixture loads")
    }

    /// A preparer that reports when it begins and when it is done, and waits in between.
    struct ObservedPreparer {
        inner: Arc<dyn AdapterPreparer>,
        begun: Sender<()>,
        go_on: Mutex<Receiver<()>>,
        done: Sender<()>,
    }

    impl AdapterPreparer for ObservedPreparer {
        fn equals_base(&self, site: SiteId, part: SitePart, values: TensorView<'_>) -> bool {
            self.inner.equals_base(site, part, values)
        }

        fn dense_weight(&self, site: SiteId) -> Result<Vec<f32>> {
            self.inner.dense_weight(site)
        }

        fn prepare(
            &self,
            deltas: &[SiteDelta<'_>],
            between_parts: &mut dyn FnMut() -> Result<()>,
        ) -> Result<PreparedAdapter, PrepareError> {
            self.begun.send(()).expect("the test listens");
            self.go_on.lock().recv_timeout(PATIENCE).expect("the test lets it go on");
            let prepared = self.inner.prepare(deltas, between_parts);
            self.done.send(()).expect("the test listens");
            prepared
        }
    }

    /// The test's ends of an [`ObservedPreparer`].
    struct Observer {
        begun: Receiver<()>,
        go_on: Sender<()>,
        done: Receiver<()>,
    }

    fn observed_model() -> (Arc<Model>, Observer) {
        let mut model = model(AdapterLimits::default());
        let (begun, begun_here) = channel();
        let (go_on_here, go_on) = channel();
        let (done, done_here) = channel();
        let model_mut = Arc::get_mut(&mut model).expect("the only owner");
        let inner = Arc::clone(&model_mut.preparer);
        model_mut.preparer = Arc::new(ObservedPreparer { inner, begun, go_on: Mutex::new(go_on), done });
        (model, Observer { begun: begun_here, go_on: go_on_here, done: done_here })
    }

    #[test]
    fn an_adapter_is_prepared_while_a_step_runs() {
        let (model, observer) = observed_model();
        thread::scope(|scope| {
            // A step that runs until the test lets go of the lock.
            let step = model.core.lock().expect("not forked");
            let loading = scope.spawn(|| model.load_adapter("devil", &fixture(DORA)));
            observer.begun.recv_timeout(PATIENCE).expect("loading reaches the preparer");
            observer.go_on.send(()).expect("it waits");
            observer.done.recv_timeout(PATIENCE).expect("preparing ends while the step runs");
            assert!(model.memory().weights_bytes > 0 && !model.describe_device().is_empty());
            assert!(model.adapters().list().is_empty(), "it is not installed yet");
            drop(step);
            let info = loading.join().expect("no panic").expect("it loads");
            assert_eq!(model.memory().adapters_bytes, info.resident_bytes);
        });
    }

    #[test]
    fn steps_run_while_an_adapter_is_prepared() {
        let (model, observer) = observed_model();
        let engine = Engine::from_model(Arc::clone(&model), None, EngineOptions::default()).expect("an engine");
        thread::scope(|scope| {
            let loading = scope.spawn(|| model.load_adapter("devil", &fixture(DORA)));
            observer.begun.recv_timeout(PATIENCE).expect("loading reaches the preparer");
            let request = Request::new(Prompt::Tokens(vec![5, 6, 7])).max_new_tokens(4);
            let completions = engine.generate(&[request]).expect("steps run while the preparer waits");
            assert_eq!(completions.len(), 1);
            assert!(observer.done.try_recv().is_err() && model.adapters().list().is_empty());
            observer.go_on.send(()).expect("it waits");
            loading.join().expect("no panic").expect("it loads");
        });
        assert_eq!(model.adapters().list().len(), 1);
    }

    #[test]
    fn retired_slots_are_freed_when_the_budget_is_short() {
        let model = model(AdapterLimits { max_adapters: 1, ..AdapterLimits::default() });
        for _ in 0..3 {
            model.load_adapter("devil", &fixture(DORA)).expect("the only slot is free or retired");
            let full = model.load_adapter("other", &fixture(DORA)).expect_err("the only slot is taken");
            assert_eq!(full.code(), ErrorCode::AdapterBudgetExceeded);
            model.unload_adapter("devil").expect("loaded");
        }
        assert_eq!((model.memory().adapters_bytes, model.adapters().resident()), (0, 0));
    }

    #[test]
    fn room_is_made_while_the_budget_is_short() {
        let model = model(AdapterLimits { max_adapters: 2, ..AdapterLimits::default() });
        let load = |name: &str, make_room: &mut dyn FnMut() -> bool| {
            let hooks = &mut LoadHooks { between_parts: &mut || Ok(()), make_room };
            model.load_adapter_attaching(name, &fixture(DORA), hooks, || Ok(None))
        };
        for name in ["one", "two"] {
            load(name, &mut || panic!("there is room")).expect("it loads");
        }
        // The first that is unloaded is still in use, so its slot is not free.
        let lease = model.adapters().lease("one").expect("loaded");
        let mut unloaded = ["one", "two"].into_iter();
        let mut make_room = || unloaded.next().is_some_and(|name| model.unload_adapter(name).is_ok());
        load("three", &mut make_room).expect("there is room once the second is gone");
        let error = load("four", &mut || false).expect_err("nothing is unloaded");
        assert_eq!((error.code(), model.adapters().list().len()), (ErrorCode::AdapterBudgetExceeded, 1));
        drop(lease);
    }

    #[test]
    fn the_size_of_the_prepared_adapter_counts() {
        let resident = model(AdapterLimits::default()).load_adapter("devil", &fixture(DORA)).expect("it loads");
        let (file_bytes, resident_bytes) = (resident.summary.bytes, resident.resident_bytes);
        assert!(file_bytes < resident_bytes, "norms and padding take {resident_bytes} of {file_bytes} bytes");
        let limited = |max_bytes| model(AdapterLimits { max_bytes, ..AdapterLimits::default() });
        for (max_bytes, fits) in [(file_bytes - 1, false), (resident_bytes - 1, false), (resident_bytes, true)] {
            let model = limited(max_bytes);
            let outcome = model.load_adapter("devil", &fixture(DORA));
            assert_eq!(outcome.as_ref().err().map(Error::code), (!fits).then_some(ErrorCode::AdapterBudgetExceeded));
            let resident = if fits { resident_bytes } else { 0 };
            assert_eq!((model.memory().adapters_bytes, model.adapters().resident_bytes()), (resident, resident));
        }
    }
}
