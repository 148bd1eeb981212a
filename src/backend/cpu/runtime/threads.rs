//! A small pool of threads for regions of a few microseconds.
//!
//! A step has hundreds of parallel regions, so waking a parked thread for each would cost more than the work. Workers
//! spin for a bounded time after a region and only then park. Tasks are claimed one by one from an atomic counter, so a
//! thread that comes late takes less; and the caller works too and waits only for workers *inside* the region, so one
//! that the system has descheduled, or that a fork has lost, delays nobody.
//!
//! ```text
//! gate = epoch << 33 | open << 32 | workers inside
//!   caller   writes the job, opens the gate with the next epoch, works, shuts it, waits for inside = 0
//!   worker   sees an open gate, enters by compare-and-swap (inside + 1), works, leaves (inside - 1)
//! ```

use std::any::Any;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::error::{Error, ErrorCode, Result};

/// Rounds a worker spins for before it parks: some tens of microseconds.
const SPINS: u32 = 2000;
const OPEN: u64 = 1 << 32;
const INSIDE: u64 = OPEN - 1;

type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

struct Shared {
    gate: AtomicU64,
    /// The region's task and how many there are; written only while the gate is shut and nobody is inside.
    job: UnsafeCell<(*const Task<'static>, usize)>,
    next: AtomicUsize,
    panic: Mutex<Option<String>>,
    quit: AtomicBool,
    parked: Vec<AtomicBool>,
}

// SAFETY: `job` is written by the one caller while the gate is shut and no worker is inside, and read by workers only
// between entering and leaving; the gate's acquire and release order the two.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is followed only while the caller keeps its target alive.
unsafe impl Send for Shared {}

/// Threads that share the work of a region with their caller.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    epoch: u64,
    /// A forked child has no workers to join.
    process: u32,
}

impl Pool {
    /// A pool of that many threads, the caller included; at least one.
    ///
    /// # Errors
    /// `memory_exhausted` if a thread could not be started.
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let workers = threads.max(1) - 1;
        fn nothing(_task: usize, _worker: usize) {}
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            job: UnsafeCell::new((&nothing as *const Task<'static>, 0)),
            next: AtomicUsize::new(0),
            panic: Mutex::new(None),
            quit: AtomicBool::new(false),
            parked: (0..workers).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut pool = Self { shared, workers: Vec::new(), epoch: 0, process: std::process::id() };
        for worker in 0..workers {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("exlora-{}", worker + 1));
            let thread = thread.spawn(move || shared.work(worker));
            pool.workers.push(thread.map_err(|e| {
                Error::new(ErrorCode::MemoryExhausted, format!("cannot start thread {} of {threads}: {e}", worker + 1))
            })?);
        }
        Ok(pool)
    }

    /// Number of threads, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(index, thread)` once for each index of `0..tasks`, in any order and on any thread
    /// (`thread < self.threads()`; no two tasks run on the same one at the same time), and returns when all are done.
    ///
    /// # Errors
    /// `internal` if a task panicked; the others were still run.
    pub(crate) fn run(&mut self, tasks: usize, task: impl Fn(usize, usize) + Sync) -> Result<()> {
        let caller = self.workers.len();
        self.shared.next.store(0, Ordering::Relaxed);
        if tasks > 1 && caller > 0 {
            let job: *const Task<'_> = &raw const task;
            // SAFETY: only the lifetime is erased. Workers follow the pointer only while inside the gate, and this
            // function leaves only after shutting it and seeing nobody inside, so `task` outlives every use.
            let job = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(job) };
            // SAFETY: the gate is shut and nobody is inside (the last region ended so), and `&mut self` is the one
            // caller.
            unsafe { *self.shared.job.get() = (job, tasks) };
            self.epoch += 1;
            self.shared.gate.store(self.epoch << 33 | OPEN, Ordering::SeqCst);
            for (parked, worker) in self.shared.parked.iter().zip(&self.workers) {
                if parked.load(Ordering::SeqCst) {
                    worker.thread().unpark();
                }
            }
        }
        self.shared.claim(&task, tasks, caller);
        if tasks > 1 && caller > 0 {
            self.shared.gate.fetch_and(!OPEN, Ordering::AcqRel);
            let mut spins = 0;
            while self.shared.gate.load(Ordering::Acquire) & INSIDE != 0 {
                pause(&mut spins);
            }
        }
        match self.shared.panic.lock().take() {
            Some(message) => Err(Error::new(ErrorCode::Internal, format!("a CPU task panicked: {message}"))),
            None => Ok(()),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        self.shared.quit.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Runs tasks until none is left to claim.
    fn claim(&self, task: &Task<'_>, tasks: usize, thread: usize) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= tasks {
                return;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(index, thread))) {
                self.panic.lock().get_or_insert_with(|| panic_text(&*panic));
            }
        }
    }

    fn work(&self, worker: usize) {
        let mut seen = 0;
        let mut spins = 0;
        while !self.quit.load(Ordering::Relaxed) {
            let gate = self.gate.load(Ordering::Acquire);
            let epoch = gate >> 33;
            if gate & OPEN != 0 && epoch != seen {
                if self.gate.compare_exchange_weak(gate, gate + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    // SAFETY: inside the gate, so the caller has published the job and waits for this thread to leave.
                    let (task, tasks) = unsafe { *self.job.get() };
                    // SAFETY: as above; the caller keeps the task alive.
                    self.claim(unsafe { &*task }, tasks, worker);
                    self.gate.fetch_sub(1, Ordering::Release);
                    seen = epoch;
                    spins = 0;
                }
            } else if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                self.park(worker, seen);
                spins = 0;
            }
        }
    }

    /// Parks until the caller opens another region. Announcing it before looking once more, while the caller opens
    /// before it looks, makes a lost wake-up impossible.
    fn park(&self, worker: usize, seen: u64) {
        self.parked[worker].store(true, Ordering::SeqCst);
        let gate = self.gate.load(Ordering::SeqCst);
        if (gate & OPEN == 0 || gate >> 33 == seen) && !self.quit.load(Ordering::SeqCst) {
            std::thread::park();
        }
        self.parked[worker].store(false, Ordering::SeqCst);
    }
}

fn pause(spins: &mut u32) {
    if *spins < SPINS {
        *spins += 1;
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

/// A mutable slice of which each task takes a part of its own.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out parts of a slice that are `Send` themselves, and `part` has callers promise they don't overlap.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Of the whole slice.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The part `range`.
    ///
    /// # Panics
    /// If the range is out of bounds.
    ///
    /// # Safety
    /// No two parts alive at the same time may overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds of the slice borrowed mutably for 'a; the caller promises that parts don't overlap.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// Physical cores this process may use: a second thread of a core adds nothing to bandwidth or to its vector units.
pub(crate) fn default_threads() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    let mut cores = std::collections::BTreeSet::new();
    for cpu in 0.. {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        match std::fs::read_to_string(path) {
            Ok(siblings) => cores.insert(siblings),
            Err(_) => break,
        };
    }
    if cores.is_empty() { allowed } else { allowed.min(cores.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_on_a_thread_of_the_pool() {
        for threads in [1, 2, 3, 7] {
            let mut pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            for tasks in [0, 1, 2, 100, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |task, thread| {
                    assert!(thread < threads);
                    counts[task].fetch_add(1, Ordering::Relaxed);
                })
                .unwrap();
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_region_sees_what_the_one_before_wrote() {
        let mut pool = Pool::new(3).unwrap();
        let mut values = vec![0u64; 64];
        for round in 0..2000 {
            let parts = Disjoint::new(&mut values);
            // SAFETY: each task takes one element of its own.
            pool.run(64, |task, _| unsafe { parts.part(task..task + 1)[0] += 1 }).unwrap();
            assert!(values.iter().all(|&value| value == round + 1));
        }
    }

    #[test]
    fn parked_workers_wake_up() {
        let mut pool = Pool::new(2).unwrap();
        for _ in 0..3 {
            while !pool.shared.parked[0].load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            let helped = AtomicBool::new(false);
            pool.run(2, |_, thread| {
                // The caller holds its task until the worker has come for the other.
                if thread == 0 {
                    helped.store(true, Ordering::SeqCst);
                }
                while !helped.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
            })
            .unwrap();
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_goes_on() {
        for threads in [1, 3] {
            let mut pool = Pool::new(threads).unwrap();
            let ran = AtomicUsize::new(0);
            let error = pool
                .run(10, |task, _| {
                    ran.fetch_add(1, Ordering::Relaxed);
                    assert_ne!(task, 4, "four is right out");
                })
                .unwrap_err();
            assert_eq!(error.code(), ErrorCode::Internal);
            assert!(error.message().contains("four is right out"));
            assert_eq!(ran.load(Ordering::Relaxed), 10);
            pool.run(10, |_, _| {}).unwrap();
        }
    }
}
