//! Adapters that are loaded, evicted, replaced and unloaded while others wait for them.

use std::fs;
use std::future::{Future, poll_fn};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tempfile::TempDir;

use super::fields::{AdapterFields, AdapterKey, MixtureField};
use super::paths::{AdaptersDir, FolderPlace};
use super::residency::{LoadFn, Residency};
use super::selection::{Adapters, Selection};
use crate::adapter::pool::AdapterLease;
use crate::engine::{AdapterRef, Engine, EngineOptions, Request};
use crate::error::{Error, ErrorCode, Result};
use crate::model::LoadHooks;
use crate::server::metrics::Metrics;
use crate::server::options::ServeOptions;
use crate::{AdapterInfo, AdapterLimits};

/// Only there to fail instead of hanging.
const LIMIT: Duration = Duration::from_secs(60);

const FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn engine(max_adapters: usize) -> Engine {
    let adapter_limits = AdapterLimits { max_adapters, ..AdapterLimits::default() };
    let options = EngineOptions { adapter_limits, ..EngineOptions::default() };
    Engine::load(fixture("quill-4m"), options).expect("the bundled model loads")
}

/// Makes `dir/name` a copy of a bundled adapter. Each file is replaced by renaming.
fn place(dir: &Path, name: &str, adapter: &str) {
    let folder = dir.join(name);
    fs::create_dir_all(&folder).expect("created");
    for file in FILES {
        let aside = dir.join("aside");
        fs::copy(fixture("adapters").join(adapter).join(file), &aside).expect("copied");
        fs::rename(&aside, folder.join(file)).expect("renamed");
    }
}

/// A folder with copies of a bundled adapter under these names.
fn folder(names: &[&str]) -> TempDir {
    let dir = TempDir::new().expect("a folder");
    names.iter().for_each(|name| place(dir.path(), name, "jargon-lora-r8"));
    dir
}

fn residency(engine: &Engine, dir: &TempDir, most_loads: usize) -> Residency {
    let adapters = AdaptersDir::open(dir.path()).expect("opens");
    let mut residency = Residency::new(engine.clone(), Some(adapters), most_loads, Metrics::default());
    residency.look_interval = Duration::ZERO;
    residency.room_wait = Duration::from_secs(1);
    residency
}

/// Runs a future on several threads, for as long as the limit.
fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build().expect("starts");
    runtime.block_on(async { tokio::time::timeout(LIMIT, future).await.expect("it ends") })
}

/// Counts loads, and holds them until the test lets them go on.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    is_open: bool,
    loads: usize,
    running: usize,
    most_running: usize,
}

impl Gate {
    fn load_fn(self: &Arc<Self>) -> LoadFn {
        let gate = Arc::clone(self);
        Box::new(move |engine, name, folder, make_room| {
            gate.pass();
            let loaded = load(engine, name, folder, make_room);
            gate.state.lock().running -= 1;
            loaded
        })
    }

    fn pass(&self) {
        let mut state = self.state.lock();
        state.loads += 1;
        state.running += 1;
        state.most_running = state.most_running.max(state.running);
        self.changed.notify_all();
        let timed_out = self.changed.wait_while_for(&mut state, |state| !state.is_open, LIMIT).timed_out();
        assert!(!timed_out, "nobody opens the gate");
    }

    fn open(&self) {
        self.state.lock().is_open = true;
        self.changed.notify_all();
    }

    fn wait_for_loads(&self, loads: usize) {
        let mut state = self.state.lock();
        let timed_out = self.changed.wait_while_for(&mut state, |state| state.loads < loads, LIMIT).timed_out();
        assert!(!timed_out, "there are only {} loads", state.loads);
    }
}

fn load(engine: &Engine, name: &str, folder: &Path, make_room: &mut dyn FnMut() -> bool) -> Result<AdapterInfo> {
    engine.load_adapter_hooked(name, folder, &mut LoadHooks { between_parts: &mut || Ok(()), make_room })
}

fn names(engine: &Engine) -> Vec<String> {
    engine.adapters().into_iter().map(|info| info.name).collect()
}

fn code<T>(result: Result<T>) -> Option<ErrorCode> {
    result.err().map(|error| error.code())
}

#[test]
fn an_adapter_is_loaded_once_however_many_wait_for_it() {
    let (engine, dir, gate) = (engine(8), folder(&["sql"]), Arc::new(Gate::default()));
    let mut residency = residency(&engine, &dir, 2);
    residency.load = gate.load_fn();
    let residency = Arc::new(residency);
    run(async {
        let lease = |residency: Arc<Residency>| async move { residency.lease("sql").await };
        let waiting: Vec<_> = (0..50).map(|_| tokio::spawn(lease(Arc::clone(&residency)))).collect();
        // One that gives up takes nothing from the others.
        let given_up = tokio::spawn(lease(Arc::clone(&residency)));
        tokio::task::spawn_blocking({
            let gate = Arc::clone(&gate);
            move || gate.wait_for_loads(1)
        })
        .await
        .expect("a load");
        given_up.abort();
        gate.open();
        let mut leases: Vec<AdapterLease> = Vec::new();
        for task in waiting {
            leases.push(task.await.expect("no panic").expect("it loads"));
        }
        assert!(leases.iter().all(|lease| lease.info().generation == leases[0].info().generation));
        assert_eq!((gate.state.lock().loads, engine.stats().leases), (1, 50), "one for each");
        drop(leases);
        let status = residency.statuses().remove(0);
        assert_eq!((status.counts.hits, status.counts.loads), (50, 1));
        assert!(status.counts.last_used.is_some() && !status.is_pinned);
        assert_eq!((status.name.as_str(), status.folder), ("sql", Some(FolderPlace::Below("sql".to_owned()))));
    });
    assert_eq!(engine.stats().leases, 0);
}

/// Wakes a task and then keeps who did so, as a busy machine may.
struct SlowWaker(Waker);

impl Wake for SlowWaker {
    fn wake(self: Arc<Self>) {
        self.0.wake_by_ref();
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn what_was_just_loaded_may_go_as_soon_as_its_request_has_ended() {
    let (engine, dir) = (engine(8), folder(&["sql"]));
    let residency = Arc::new(residency(&engine, &dir, 2));
    run(async {
        let mut lease = Box::pin(residency.lease("sql"));
        let leased = poll_fn(|context| {
            let slow = Waker::from(Arc::new(SlowWaker(context.waker().clone())));
            lease.as_mut().poll(&mut Context::from_waker(&slow))
        });
        drop(leased.await.expect("it loads"));
        // The task that loaded it may not have ended yet.
        assert_eq!(engine.stats().leases, 0);
    });
}

#[test]
fn a_load_stalls_neither_steps_nor_requests_for_other_adapters() {
    let (engine, dir, gate) = (engine(8), folder(&["slow", "other"]), Arc::new(Gate::default()));
    engine.load_adapter("resident", fixture("adapters/sqlite-rslora-r16")).expect("it loads");
    let mut residency = residency(&engine, &dir, 1);
    residency.load = gate.load_fn();
    let residency = Arc::new(residency);
    run(async {
        let slow = tokio::spawn({
            let residency = Arc::clone(&residency);
            async move { residency.lease("slow").await }
        });
        tokio::task::block_in_place(|| gate.wait_for_loads(1));
        let lease = residency.lease("resident").await.expect("resident");
        let request = Request::new(vec![5, 6]).leased_adapter(lease, 1.0).max_new_tokens(3);
        tokio::task::block_in_place(|| engine.generate(&[request])).expect("steps go on");
        // What is nobody's name does not wait for its turn to load.
        assert_eq!(code(residency.lease("nobody").await), Some(ErrorCode::AdapterNotFound));
        gate.open();
        slow.await.expect("no panic").expect("it loads");
    });
}

#[test]
fn no_more_loads_run_at_a_time_than_allowed() {
    let all = ["a", "b", "c", "d", "e"];
    let (engine, dir, gate) = (engine(8), folder(&all), Arc::new(Gate::default()));
    let mut residency = residency(&engine, &dir, 2);
    residency.load = gate.load_fn();
    let residency = Arc::new(residency);
    run(async {
        let tasks = all.map(|name| {
            let residency = Arc::clone(&residency);
            tokio::spawn(async move { residency.lease(name).await })
        });
        tokio::task::block_in_place(|| gate.wait_for_loads(2));
        gate.open();
        for task in tasks {
            task.await.expect("no panic").expect("it loads");
        }
    });
    assert_eq!((gate.state.lock().most_running, names(&engine).len()), (2, 5));
}

#[test]
fn the_least_recently_used_adapter_without_lease_or_pin_makes_room() {
    let (engine, dir) = (engine(3), folder(&["a", "b", "c", "d", "kept"]));
    let residency = Arc::new(residency(&engine, &dir, 2));
    residency.set_pinned("kept", true);
    run(async {
        for name in ["kept", "a", "b", "a", "c"] {
            residency.lease(name).await.expect("it loads");
        }
        assert_eq!(names(&engine), ["a", "c", "kept"], "b was used least recently");
        let (a, c) = (residency.lease("a").await.expect("resident"), residency.lease("c").await.expect("resident"));
        let error = residency.lease("d").await.expect_err("all are used or pinned");
        assert_eq!(error.code(), ErrorCode::AdapterBudgetExceeded);
        let failed = |name: &str| {
            residency.statuses().into_iter().find(|status| status.name == name).map(|status| status.counts.failed_loads)
        };
        assert!(failed("d").is_none_or(|failed| failed == 0), "its files are in order");
        let waiting = {
            let residency = Arc::clone(&residency);
            tokio::spawn(async move { residency.lease("d").await })
        };
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished(), "it waits for a lease to end");
        drop(a);
        waiting.await.expect("no panic").expect("there is room now");
        assert_eq!((names(&engine), failed("d")), (vec!["c".to_owned(), "d".to_owned(), "kept".to_owned()], Some(0)));
        drop(c);
        let evicted = residency.lease("b").await.expect("it comes back");
        assert_eq!(names(&engine), ["b", "d", "kept"]);
        let status = residency.statuses().into_iter().find(|status| status.name == "b").expect("listed");
        assert_eq!((status.counts.loads, status.counts.evictions, status.is_pinned), (2, 1, false));
        let gone = residency.statuses().into_iter().find(|status| status.name == "a").expect("listed");
        assert!(gone.info.is_none() && gone.counts.evictions == 1);
        drop(evicted);
    });
}

#[test]
fn adapters_that_the_server_did_not_load_stay() {
    let (engine, dir) = (engine(2), folder(&["a", "b"]));
    engine.load_adapter("own", fixture("adapters/sqlite-rslora-r16")).expect("it loads");
    let residency = Arc::new(residency(&engine, &dir, 2));
    run(async {
        for name in ["a", "b", "own", "a"] {
            residency.lease(name).await.expect("it loads");
        }
        assert_eq!(names(&engine), ["a", "own"]);
        assert!(residency.statuses().iter().find(|status| status.name == "own").expect("listed").is_pinned);
    });
}

#[test]
fn a_changed_folder_is_a_new_version_and_running_requests_keep_the_old_one() {
    let (engine, dir) = (engine(8), folder(&["sql"]));
    let residency = Arc::new(residency(&engine, &dir, 2));
    run(async {
        let old = residency.lease("sql").await.expect("it loads");
        assert_eq!(residency.lease("sql").await.expect("resident").info().generation, old.info().generation);
        place(dir.path(), "sql", "sqlite-rslora-r16");
        let new = residency.lease("sql").await.expect("it loads");
        assert!(new.info().generation > old.info().generation);
        assert_ne!(new.content_hash(), old.content_hash());
        assert_eq!(engine.stats().adapters_resident, 2, "the old one is leased");
    });
}

#[test]
fn a_link_that_leads_elsewhere_is_a_new_version() {
    let (engine, dir) = (engine(8), folder(&["v1"]));
    place(dir.path(), "v2", "sqlite-rslora-r16");
    let point = |to: &str| {
        symlink(to, dir.path().join("aside")).expect("linked");
        fs::rename(dir.path().join("aside"), dir.path().join("current")).expect("renamed");
    };
    point("v1");
    let residency = Arc::new(residency(&engine, &dir, 2));
    run(async {
        residency.load("mine", "current", false, None).await.expect("it loads");
        for name in ["current", "mine"] {
            let rank = async || residency.lease(name).await.expect("it loads").summary().rank;
            point("v1");
            assert_eq!(rank().await, 8);
            point("v2");
            assert_eq!(rank().await, 16);
        }
    });
}

#[test]
fn changed_files_that_cannot_be_loaded_leave_the_version_before() {
    let (engine, dir) = (engine(8), folder(&["sql"]));
    let counted = Arc::new(AtomicUsize::new(0));
    let mut residency = residency(&engine, &dir, 2);
    residency.load = {
        let counted = Arc::clone(&counted);
        Box::new(move |engine, name, folder, make_room| {
            counted.fetch_add(1, Ordering::Relaxed);
            load(engine, name, folder, make_room)
        })
    };
    let residency = Arc::new(residency);
    run(async {
        let first = residency.lease("sql").await.expect("it loads").info().generation;
        fs::write(dir.path().join("sql").join(FILES[1]), "cut short").expect("written");
        for _ in 0..3 {
            assert_eq!(residency.lease("sql").await.expect("the one before").info().generation, first);
        }
        assert_eq!(counted.load(Ordering::Relaxed), 2, "the damaged files are tried once");
        place(dir.path(), "sql", "jargon-lora-r8");
        assert!(residency.lease("sql").await.expect("it loads").info().generation > first);
        // A folder that is gone takes nothing away.
        fs::remove_dir_all(dir.path().join("sql")).expect("removed");
        residency.lease("sql").await.expect("resident");
        // One that was never loaded has nothing to fall back to, and is tried again each time.
        fs::create_dir(dir.path().join("broken")).expect("created");
        for _ in 0..2 {
            assert_eq!(code(residency.lease("broken").await), Some(ErrorCode::AdapterConfigNotFound));
        }
    });
}

#[test]
fn clients_load_replace_and_unload_with_a_guard() {
    let (engine, dir) = (engine(8), folder(&["sql", "other"]));
    let residency = Arc::new(residency(&engine, &dir, 2));
    run(async {
        let load = |name, path, replaces, expected| residency.load(name, path, replaces, expected);
        let first = load("mine", "sql", false, None).await.expect("it loads").info.expect("resident").generation;
        assert_eq!(code(load("mine", "other", false, None).await), Some(ErrorCode::RequestInvalid));
        let mismatch = Some(ErrorCode::AdapterGenerationMismatch);
        for expected in [0, first + 1] {
            assert_eq!(code(load("mine", "other", true, Some(expected)).await), mismatch);
        }
        assert_eq!(code(load("new", "other", false, Some(1)).await), mismatch);
        let second =
            load("mine", "other", true, Some(first)).await.expect("it loads").info.expect("resident").generation;
        assert!(second > first);
        // A load that fails leaves what was there, and says so.
        assert_eq!(code(load("mine", "nothing", true, None).await), Some(ErrorCode::AdapterNotFound));
        fs::write(dir.path().join("other").join(FILES[1]), "cut short").expect("written");
        assert!(load("mine", "other", true, None).await.is_err());
        assert_eq!(residency.lease("mine").await.expect("resident").info().generation, second);
        assert_eq!(code(load("mine", "../sql", true, None).await), Some(ErrorCode::AdapterPathRefused));

        assert_eq!(code(residency.unload("mine", Some(first)).await), mismatch);
        let lease = residency.lease("mine").await.expect("resident");
        assert_eq!(residency.unload("mine", Some(second)).await.expect("unloaded"), second);
        assert_eq!(code(residency.unload("mine", None).await), Some(ErrorCode::AdapterNotFound));
        assert_eq!(code(residency.lease("mine").await), Some(ErrorCode::AdapterNotFound));
        assert_eq!(engine.stats().leases, 1, "who uses it keeps it");
        drop(lease);
    });
}

#[test]
fn an_adapter_that_was_evicted_comes_back_from_where_a_client_loaded_it() {
    let (engine, dir) = (engine(1), folder(&["sql", "other"]));
    let residency = Arc::new(residency(&engine, &dir, 2));
    run(async {
        residency.load("mine", "sql", false, None).await.expect("it loads");
        residency.lease("other").await.expect("it loads");
        assert_eq!(names(&engine), ["other"]);
        residency.lease("mine").await.expect("it comes back");
        residency.lease("other").await.expect("it loads");
        assert_eq!(residency.unload("mine", None).await.expect("forgotten"), 0);
        assert_eq!(code(residency.lease("mine").await), Some(ErrorCode::AdapterNotFound));
    });
}

#[test]
fn nothing_is_evicted_between_its_load_and_its_lease() {
    let all = ["a", "b", "c", "d", "e", "f"];
    let (engine, dir) = (engine(3), folder(&all));
    let residency = Arc::new(residency(&engine, &dir, 3));
    run(async {
        let tasks: Vec<_> = (0..8)
            .map(|task| {
                let (residency, engine) = (Arc::clone(&residency), engine.clone());
                tokio::spawn(async move {
                    let mut leased = 0;
                    for turn in 0..25 {
                        let name = all[(task * 7 + turn * (task + 1)) % all.len()];
                        match residency.lease(name).await {
                            Ok(lease) => {
                                assert_eq!(lease.label(), name);
                                assert!(engine.stats().adapters_resident <= 3);
                                leased += 1;
                                tokio::task::yield_now().await;
                            }
                            Err(error) => assert_eq!(error.code(), ErrorCode::AdapterBudgetExceeded, "{error}"),
                        }
                    }
                    leased
                })
            })
            .collect();
        let mut leased = 0;
        for task in tasks {
            leased += task.await.expect("no panic");
        }
        assert!(leased > 50, "{leased}");
    });
    assert_eq!(engine.stats().leases, 0);
    let statuses = residency.statuses();
    let sum = |of: fn(&super::residency::Status) -> u64| statuses.iter().map(of).sum::<u64>();
    let (loads, evictions) = (sum(|status| status.counts.loads), sum(|status| status.counts.evictions));
    assert_eq!(loads - evictions, names(&engine).len() as u64);
}

fn adapters(engine: &Engine, dir: &TempDir) -> Adapters {
    let options = ServeOptions {
        adapters_dir: Some(dir.path().to_owned()),
        served_model_names: vec!["quill".to_owned(), "org/quill".to_owned()],
        ..ServeOptions::default()
    };
    Adapters::new(engine, &options, &Metrics::default()).expect("they are there")
}

fn fields(model: Option<&str>, adapters: Option<&[(&str, f32)]>) -> AdapterFields {
    let part = |&(name, weight): &(&str, f32)| (AdapterKey::Name(name.to_owned()), weight);
    AdapterFields {
        model: model.map(str::to_owned),
        adapters: adapters.map(|parts| MixtureField(parts.iter().map(part).collect())),
        lora: None,
    }
}

/// Names and weights, and what the response calls the model.
fn named(selection: Result<Selection>) -> Result<(Vec<(String, f32)>, String), ErrorCode> {
    let selection = selection.map_err(|error: Error| error.code())?;
    let name = |(adapter, weight): &(AdapterRef, f32)| {
        assert!(matches!(adapter, AdapterRef::Lease(_)), "it is leased");
        (adapter.label(), *weight)
    };
    Ok((selection.adapters.iter().map(name).collect(), selection.model))
}

#[test]
fn a_request_names_the_base_an_adapter_or_a_mixture() {
    let (engine, dir) = (engine(8), folder(&["sql", "team/wit", "base:odd"]));
    let adapters = adapters(&engine, &dir);
    run(async {
        let of = async |fields| named(adapters.select(&fields).await);
        for (model, called) in [(None, "quill"), (Some("base"), "base"), (Some("org/quill"), "org/quill")] {
            assert_eq!(of(fields(model, None)).await, Ok((vec![], called.to_owned())));
        }
        assert!(of(fields(Some(""), None)).await.is_err(), "an empty name is no name of the base");
        let one = |name: &str| vec![(name.to_owned(), 1.0)];
        for model in ["sql", "base:sql", "base::sql", "quill:sql", "org/quill::sql"] {
            assert_eq!(of(fields(Some(model), None)).await, Ok((one("sql"), model.to_owned())));
        }
        assert_eq!(of(fields(Some("quill:team/wit"), None)).await, Ok((one("team/wit"), "quill:team/wit".to_owned())));
        for (model, mixture) in [(Some("base:odd"), None), (None, Some(&[("base:odd", 1.0)][..]))] {
            assert_eq!(of(fields(model, mixture)).await, Err(ErrorCode::AdapterNotFound), "it is read as 'odd'");
        }
        let twice = [("sql", 0.5), ("sql", 0.25)];
        let selection = adapters.select(&fields(None, Some(&twice))).await.expect("it loads");
        assert_eq!((selection.adapters.len(), engine.stats().leases), (2, 1), "it is one adapter");
        drop(selection);
        let parts = [("team/wit", 0.25), ("sql", -0.5)];
        let mixture = parts.map(|(name, weight)| (name.to_owned(), weight)).to_vec();
        for model in [None, Some("quill")] {
            assert_eq!(of(fields(model, Some(&parts))).await, Ok((mixture.clone(), "quill".to_owned())));
        }
        for unknown in ["nobody", "base:nobody", "base:", "base:base:sql", "../sql", "sql/", "SQL"] {
            assert_eq!(of(fields(Some(unknown), None)).await, Err(ErrorCode::AdapterNotFound), "{unknown}");
        }
        assert_eq!(of(fields(None, Some(&[("sql", 1.0), ("nobody", 1.0)]))).await, Err(ErrorCode::AdapterNotFound));
        assert_eq!(of(fields(None, Some(&[("sql", 1.0); 65]))).await, Err(ErrorCode::AdapterMixtureInvalid));
    });
    assert_eq!(engine.stats().leases, 0);
}

#[test]
fn a_mixture_of_more_adapters_than_fit_is_refused_at_once() {
    let (engine, dir) = (engine(2), folder(&["a", "b", "c"]));
    let adapters = adapters(&engine, &dir);
    run(async {
        let of = async |parts: &[(&str, f32)]| named(adapters.select(&fields(None, Some(parts))).await).map(drop);
        assert_eq!(of(&[("a", 1.0), ("b", 1.0), ("a", 0.5)]).await, Ok(()));
        assert_eq!(of(&[("a", 1.0), ("b", 1.0), ("c", 1.0)]).await, Err(ErrorCode::AdapterMixtureInvalid));
    });
    assert_eq!(engine.stats().leases, 0);
}

#[test]
fn fields_that_contradict_each_other_are_refused() {
    let (engine, dir) = (engine(8), folder(&["sql"]));
    let adapters = adapters(&engine, &dir);
    run(async {
        let both = AdapterFields { lora: Some(MixtureField::default()), ..fields(None, Some(&[("sql", 1.0)])) };
        for contradicting in [both, fields(Some("sql"), Some(&[("sql", 1.0)])), fields(Some("sql"), Some(&[]))] {
            assert_eq!(named(adapters.select(&contradicting).await), Err(ErrorCode::RequestInvalid));
        }
    });
}

#[test]
fn llama_cpps_ids_count_names_in_the_order_of_loading_and_never_change() {
    let (engine, dir) = (engine(8), folder(&["b", "a"]));
    engine.load_adapter("own", fixture("adapters/sqlite-rslora-r16")).expect("it loads");
    let adapters = adapters(&engine, &dir);
    run(async {
        let with_id = async |id| {
            let lora = Some(MixtureField(vec![(AdapterKey::Id(id), 0.5)]));
            named(adapters.select(&AdapterFields { lora, ..AdapterFields::default() }).await).map(|(parts, _)| parts)
        };
        adapters.select(&fields(Some("b"), None)).await.expect("it loads");
        assert_eq!(with_id(0).await, Ok(vec![("own".to_owned(), 0.5)]));
        assert_eq!(with_id(1).await, Ok(vec![("b".to_owned(), 0.5)]));
        assert_eq!(with_id(2).await, Err(ErrorCode::AdapterNotFound), "it was never loaded");
        adapters.residency.unload("own", None).await.expect("unloaded");
        adapters.select(&fields(Some("a"), None)).await.expect("it loads");
        assert_eq!(with_id(0).await, Err(ErrorCode::AdapterNotFound), "its id is nobody else's");
        assert_eq!(with_id(2).await, Ok(vec![("a".to_owned(), 0.5)]));
    });
}

#[test]
fn the_default_mixture_is_that_of_requests_for_the_base_that_name_none() {
    let (engine, dir) = (engine(8), folder(&["sql"]));
    let adapters = adapters(&engine, &dir);
    adapters.set_default_mixture(vec![("sql".to_owned(), 0.5)]);
    run(async {
        let of = async |fields| named(adapters.select(&fields).await).map(|(parts, _)| parts);
        let half = vec![("sql".to_owned(), 0.5)];
        assert_eq!(of(fields(None, None)).await, Ok(half.clone()));
        assert_eq!(of(fields(Some("quill"), None)).await, Ok(half));
        assert_eq!(of(fields(Some("quill"), Some(&[]))).await, Ok(vec![]), "the base alone");
        assert_eq!(of(fields(Some("sql"), None)).await, Ok(vec![("sql".to_owned(), 1.0)]));
    });
}
