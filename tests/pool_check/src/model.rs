//! The gate under loom: every interleaving of a caller and its workers, up to a number of preemptions.

/// What `gate.rs` is built from, as loom has it.
mod sync {
    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
    pub(crate) use loom::thread::{park, yield_now};

    /// Spinning adds interleavings and no behavior.
    pub(crate) const SPINS: u32 = 0;
}

/// Two models of a gate: one of its memory, one of its wake-ups.
macro_rules! models {
    () => {
        // Of the standard library: counting references adds interleavings, and loom's own panics while a model unwinds.
        use std::sync::Arc;

        use loom::cell::UnsafeCell;
        use loom::thread;

        use self::gate::Gate;

        fn explore(model: impl Fn() + Send + Sync + 'static) {
            let mut builder = loom::model::Builder::new();
            builder.preemption_bound = Some(3);
            builder.check(model);
        }

        /// Adds one to each cell of the tasks that it claims; loom reports accesses that nothing orders.
        fn run_tasks(gate: &Gate<usize>, cells: &[UnsafeCell<u32>], tasks: usize) {
            loop {
                let task = gate.claim();
                if task >= tasks {
                    return;
                }
                // SAFETY: each task is claimed once.
                cells[task].with_mut(|cell| unsafe { *cell += 1 });
            }
        }

        /// Regions of as many tasks as there are threads: each task runs once, and the caller sees what it wrote.
        fn regions(workers: usize, regions: u32) {
            explore(move || {
                let tasks = workers + 1;
                let cells: Arc<Vec<UnsafeCell<u32>>> = Arc::new((0..tasks).map(|_| UnsafeCell::new(0)).collect());
                let gate = Arc::new(Gate::new(0, workers));
                let threads: Vec<_> = (0..workers)
                    .map(|worker| {
                        let (gate, cells) = (Arc::clone(&gate), Arc::clone(&cells));
                        thread::spawn(move || gate.work(worker, |tasks| run_tasks(&gate, &cells, tasks)))
                    })
                    .collect();
                for region in 1..=regions {
                    // SAFETY: this thread alone opens and closes, and the job is a number.
                    unsafe { gate.open(tasks, workers, |worker| threads[worker].thread().unpark()) };
                    run_tasks(&gate, &cells, tasks);
                    gate.close();
                    for cell in &*cells {
                        // SAFETY: nobody is inside the gate.
                        assert_eq!(cell.with(|cell| unsafe { *cell }), region, "each task runs once");
                    }
                }
                gate.quit();
                threads.into_iter().for_each(|thread| {
                    thread.thread().unpark();
                    thread.join().unwrap();
                });
            });
        }

        /// Regions to which only the first of two workers is invited: the second neither takes part nor keeps it out.
        fn invitations() {
            explore(|| {
                let gate = Arc::new(Gate::new(0, 2));
                let cell = Arc::new(UnsafeCell::new(0));
                let threads: Vec<_> = (0..2)
                    .map(|worker| {
                        let (gate, cell) = (Arc::clone(&gate), Arc::clone(&cell));
                        thread::spawn(move || {
                            gate.work(worker, |tasks| {
                                assert_eq!(worker, 0, "only the first worker is invited");
                                run_tasks(&gate, std::slice::from_ref(&*cell), tasks);
                            });
                        })
                    })
                    .collect();
                // SAFETY: this thread alone opens and closes, and the job is a number.
                unsafe { gate.open(1, 1, |worker| threads[worker].thread().unpark()) };
                run_tasks(&gate, std::slice::from_ref(&*cell), 1);
                gate.close();
                // SAFETY: nobody is inside the gate.
                assert_eq!(cell.with(|cell| unsafe { *cell }), 1, "the task runs once");
                gate.quit();
                threads.into_iter().for_each(|thread| {
                    thread.thread().unpark();
                    thread.join().unwrap();
                });
            });
        }

        /// A caller that leaves all work to the worker: a lost wake-up is a deadlock.
        fn wake_up() {
            explore(|| {
                let gate = Arc::new(Gate::new(0, 1));
                let caller = thread::current();
                let worker = {
                    let gate = Arc::clone(&gate);
                    thread::spawn(move || gate.work(0, |_| caller.unpark()))
                };
                // SAFETY: this thread alone opens and closes, and the job is a number.
                unsafe { gate.open(1, 1, |_| worker.thread().unpark()) };
                thread::park();
                gate.close();
                gate.quit();
                worker.thread().unpark();
                worker.join().unwrap();
            });
        }
    };
}

#[allow(clippy::absurd_extreme_comparisons, reason = "SPINS is 0 here")]
#[path = "../../../src/backend/cpu/runtime/gate.rs"]
mod gate;

models!();

#[test]
fn every_task_runs_once_and_the_caller_sees_its_writes() {
    regions(1, 2);
    regions(2, 1);
}

#[test]
fn a_parked_worker_wakes_up() {
    wake_up();
}

#[test]
fn only_invited_workers_enter() {
    invitations();
}

/// Tests that a model finds a mistake that `build.rs` planted.
macro_rules! finds {
    ($mistake:ident, $model:expr, $error:literal) => {
        mod $mistake {
            mod sync {
                pub(crate) use super::super::sync::*;
            }
            #[allow(unused, clippy::all, reason = "SPINS is 0 here, and a mistake may leave something unused")]
            mod gate {
                include!(concat!(env!("OUT_DIR"), "/", stringify!($mistake), ".rs"));
            }

            models!();

            #[test]
            #[should_panic(expected = $error)]
            fn is_found() {
                $model
            }
        }
    };
}

finds!(closes_without_waiting, regions(1, 1), "Causality violation");
finds!(opens_without_release, regions(1, 1), "Causality violation");
finds!(leaves_without_release, regions(1, 1), "Causality violation");
finds!(wakes_without_fence, wake_up(), "deadlock");
finds!(parks_without_looking, wake_up(), "deadlock");
