//! A small pool of threads for regions of a few microseconds.
//!
//! A step has hundreds of parallel regions, so waking a parked thread for each would cost more than the work. Workers
//! spin for a bounded time after a region and only then park. Tasks are claimed in runs, long ones first, from an atomic counter,
//! so a thread that arrives late takes fewer, and the counter moves between cores a few times a region; and the caller works too
//! and waits only for workers inside the region, so one that the system has descheduled, or that a fork has lost, delays nobody.
//! A region that knows how little work it has asks [`Pool::threads_for`] how many threads are worth it. The protocol is in
//! `gate.rs`.

#![allow(unsafe_code, reason = "tasks borrow from the caller's stack, and each takes its own part of a slice")]

use std::any::Any;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::gate::Gate;
use crate::error::{Error, ErrorCode, Result};

type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// Work of a region that is worth another thread, in nanoseconds on one. Entering and leaving a region moves four cache lines
/// between cores, at some 300 ns each on virtual machines.
const NS_WORTH_A_THREAD: usize = 4000;

/// A region's task, how often it is called, and on how many threads.
#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    tasks: usize,
    threads: usize,
}

// SAFETY: the task is `Sync`, and the pointer is followed only while the caller keeps its target alive.
unsafe impl Send for Job {}

struct Shared {
    gate: Gate<Job>,
    panic: Mutex<Option<String>>,
}

/// Threads that share the work of a region with their caller.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
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
        let idle = Job { task: &nothing as *const Task<'static>, tasks: 0, threads: 1 };
        let shared = Arc::new(Shared { gate: Gate::new(idle, workers), panic: Mutex::new(None) });
        let mut pool = Self { shared, workers: Vec::new(), process: std::process::id() };
        for worker in 0..workers {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("exlora-{}", worker + 1));
            let thread = thread.spawn(move || {
                // SAFETY: inside the gate, so the caller keeps the task alive until this thread has left.
                shared
                    .gate
                    .work(worker, |job| shared.claim(unsafe { &*job.task }, Runs::new(job.tasks, job.threads), worker));
            });
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

    /// Number of threads that are worth waking for that much work, in nanoseconds on one thread.
    pub(crate) fn threads_for(&self, nanoseconds: usize) -> usize {
        threads_for(nanoseconds, self.threads())
    }

    /// Calls `task(index, thread)` once for each index of `0..tasks`, in any order and on any thread
    /// (`thread < self.threads()`; no two tasks run on the same one at the same time), and returns when all are done.
    ///
    /// # Errors
    /// `internal` if a task panicked; the others were still run.
    pub(crate) fn run(&mut self, tasks: usize, task: impl Fn(usize, usize) + Sync) -> Result<()> {
        self.run_on(self.threads(), tasks, task)
    }

    /// As [`Pool::run`], on at most that many threads.
    ///
    /// # Errors
    /// As [`Pool::run`].
    pub(crate) fn run_on(&mut self, threads: usize, tasks: usize, task: impl Fn(usize, usize) + Sync) -> Result<()> {
        let caller = self.workers.len();
        let workers = caller.min(threads.min(tasks).saturating_sub(1));
        if workers > 0 {
            let borrowed: *const Task<'_> = &raw const task;
            // SAFETY: only the lifetime is erased. Workers follow the pointer only while inside the gate, and `close`
            // returns only when nobody is inside, so `task` outlives every use.
            let erased = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(borrowed) };
            let job = Job { task: erased, tasks, threads: workers + 1 };
            // SAFETY: `&mut self` is the one caller, the region before has closed the gate, and this one closes it below:
            // `claim` does not unwind.
            unsafe { self.shared.gate.open(job, workers, |worker| self.workers[worker].thread().unpark()) };
            self.shared.claim(&task, Runs::new(tasks, workers + 1), caller);
            self.shared.gate.close();
        } else {
            (0..tasks).for_each(|index| self.shared.call(&task, index, caller));
        }
        match self.shared.panic.lock().take() {
            Some(message) => Err(Error::new(ErrorCode::Internal, format!("a CPU task panicked: {message}"))),
            None => Ok(()),
        }
    }

    /// Calls `task(index, chunk)` for each chunk of `len` values of a slice; the last chunk may be shorter.
    ///
    /// # Errors
    /// As [`Pool::run`].
    pub(crate) fn for_chunks<T: Send>(
        &mut self,
        values: &mut [T],
        len: usize,
        task: impl Fn(usize, &mut [T]) + Sync,
    ) -> Result<()> {
        self.for_chunks_on(self.threads(), values, len, task)
    }

    /// As [`Pool::for_chunks`], on at most that many threads.
    ///
    /// # Errors
    /// As [`Pool::run`].
    pub(crate) fn for_chunks_on<T: Send>(
        &mut self,
        threads: usize,
        values: &mut [T],
        len: usize,
        task: impl Fn(usize, &mut [T]) + Sync,
    ) -> Result<()> {
        let (len, total) = (len.max(1), values.len());
        let chunks = Disjoint::new(values);
        self.run_on(threads, total.div_ceil(len), |index, _| {
            // SAFETY: each chunk belongs to one task, and chunks don't overlap.
            task(index, unsafe { chunks.part(index * len..total.min((index + 1) * len)) });
        })
    }

    /// As [`Pool::for_chunks`], and each call also gets one of `scratch`, which has one for each thread.
    ///
    /// # Errors
    /// As [`Pool::run`].
    ///
    /// # Panics
    /// If there are fewer than threads.
    pub(crate) fn for_chunks_with<T: Send, S: Send>(
        &mut self,
        values: &mut [T],
        len: usize,
        scratch: &mut [S],
        task: impl Fn(usize, &mut [T], &mut S) + Sync,
    ) -> Result<()> {
        assert!(scratch.len() >= self.threads());
        let (len, total) = (len.max(1), values.len());
        let (chunks, scratch) = (Disjoint::new(values), Disjoint::new(scratch));
        self.run(total.div_ceil(len), |index, thread| {
            // SAFETY: each chunk belongs to one task, and chunks don't overlap.
            let chunk = unsafe { chunks.part(index * len..total.min((index + 1) * len)) };
            // SAFETY: no two tasks run on the same thread at the same time.
            let [own] = (unsafe { scratch.part(thread..thread + 1) }) else { return };
            task(index, chunk, own);
        })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        self.shared.gate.quit();
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Runs tasks until none is left to claim.
    fn claim(&self, task: &Task<'_>, mut runs: Runs, thread: usize) {
        loop {
            let run = runs.get(self.gate.claim());
            if run.is_empty() {
                return;
            }
            run.for_each(|index| self.call(task, index, thread));
        }
    }

    /// Runs one task and keeps the message of the first that panics.
    fn call(&self, task: &Task<'_>, index: usize, thread: usize) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(index, thread))) {
            self.panic.lock().get_or_insert_with(|| panic_text(&*panic));
        }
    }
}

/// The runs in which a region's tasks are claimed: each is a part of the tasks that are left, so that the last ones are short.
struct Runs {
    /// The part of the rest that is claimed at once: one of this many.
    parts: usize,
    tasks: usize,
    /// Number of the next run.
    number: usize,
    /// Its first task.
    start: usize,
}

impl Runs {
    /// Those of a region for that many threads.
    fn new(tasks: usize, threads: usize) -> Self {
        Self { parts: 2 * threads, tasks, number: 0, start: 0 }
    }

    /// The tasks of a run, empty beyond the last; numbers must ascend from call to call.
    fn get(&mut self, number: usize) -> Range<usize> {
        loop {
            let start = self.start;
            let left = self.tasks - start;
            self.start += left.div_ceil(self.parts);
            self.number += 1;
            if self.number > number || left == 0 {
                return start..self.start;
            }
        }
    }
}

/// Number of threads, of at most `threads`, that are worth waking for that much work, in nanoseconds on one thread.
fn threads_for(nanoseconds: usize, threads: usize) -> usize {
    (nanoseconds / NS_WORTH_A_THREAD).clamp(1, threads.max(1))
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

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
    fn small_work_stays_on_one_thread_and_large_work_takes_all() {
        let counts: Vec<usize> = [0, 3999, 7999, 8000, 12_000, 1_000_000].map(|ns| threads_for(ns, 4)).to_vec();
        assert_eq!(counts, [1, 1, 1, 2, 3, 4]);
        assert_eq!(threads_for(usize::MAX, 1), 1);
    }

    #[test]
    fn a_region_runs_on_no_more_threads_than_it_asks_for() {
        let mut pool = Pool::new(4).unwrap();
        for _ in 0..200 {
            let used: Vec<AtomicBool> = (0..4).map(|_| AtomicBool::new(false)).collect();
            pool.run_on(2, 100, |_, thread| used[thread].store(true, Ordering::Relaxed)).unwrap();
            // The caller is the last.
            assert!(!used[1].load(Ordering::Relaxed) && !used[2].load(Ordering::Relaxed));
        }
    }

    #[test]
    fn runs_cover_all_tasks_once_and_become_shorter() {
        for (tasks, threads) in [(0, 2), (1, 2), (3, 8), (176, 2), (1000, 5)] {
            let (mut runs, mut next, mut before) = (Runs::new(tasks, threads), 0, usize::MAX);
            for number in 0.. {
                let run = runs.get(number);
                if run.is_empty() {
                    break;
                }
                assert!(run.start == next && run.len() <= before && number < 12 * threads);
                (next, before) = (run.end, run.len());
            }
            assert_eq!(next, tasks);
            // Another thread claims every third run.
            let (mut all, mut some) = (Runs::new(tasks, threads), Runs::new(tasks, threads));
            for number in 0..30 {
                let run = all.get(number);
                if number % 3 == 1 {
                    assert_eq!(some.get(number), run);
                }
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
            while !pool.shared.gate.is_parked(0) {
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
    fn a_panic_is_an_error_and_the_pool_stays_usable() {
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
