//! The gate by which the workers of a pool enter a parallel region and leave it.
//!
//! ```text
//! state = epoch << 33 | open << 32 | workers inside
//!   caller   writes the job, opens the gate with the next epoch, claims tasks, closes it, waits for inside = 0
//!   worker   sees an open gate, enters by compare-and-swap (inside + 1), claims tasks, leaves (inside - 1)
//! ```
//!
//! The caller waits only for workers *inside*: one that the system has descheduled outside of the gate delays nobody.
//! loom explores the interleavings of this file in `tests/pool_check`.

#![allow(unsafe_code, reason = "the job is handed over in a cell that the gate alone protects")]

use super::sync::{AtomicBool, AtomicU64, AtomicUsize, Ordering, SPINS, UnsafeCell, fence, park, spin_loop, yield_now};

const OPEN: u64 = 1 << 32;
const INSIDE: u64 = OPEN - 1;
const EPOCH_SHIFT: u32 = 33;

/// Hands one job after another to workers.
pub(crate) struct Gate<J> {
    state: AtomicU64,
    /// The region's job; written only while the gate is closed and nobody is inside.
    job: UnsafeCell<J>,
    /// The next task to claim.
    next: AtomicUsize,
    /// Whether each worker is parked, or about to be.
    parked: Vec<AtomicBool>,
    quit: AtomicBool,
}

// SAFETY: `job` is written by the one caller while the gate is closed and no worker is inside, and copied by workers only
// between entering and leaving; the acquire and release operations on `state` order the two.
unsafe impl<J: Copy + Send> Sync for Gate<J> {}

impl<J: Copy> Gate<J> {
    /// A closed gate for that many workers; the job `idle` is never run.
    pub(crate) fn new(idle: J, workers: usize) -> Self {
        Self {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(idle),
            next: AtomicUsize::new(0),
            parked: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            quit: AtomicBool::new(false),
        }
    }

    /// Opens the gate for a job; `wake` is called for each worker that may be parked.
    ///
    /// # Safety
    /// The gate must be closed, only one thread may open and close it, and whatever the job refers to must stay valid
    /// until [`Gate::close`] returns.
    pub(crate) unsafe fn open(&self, job: J, wake: impl Fn(usize)) {
        self.next.store(0, Ordering::Relaxed);
        // SAFETY: the gate is closed and nobody is inside, since `close` has waited; the caller is the only one to write.
        self.job.with_mut(|cell| unsafe { *cell = job });
        let epoch = (self.state.load(Ordering::Relaxed) >> EPOCH_SHIFT) + 1;
        self.state.store(epoch << EPOCH_SHIFT | OPEN, Ordering::Release);
        // With the fence in `park_until_open`: either the worker sees the open gate, or this thread sees it parked.
        fence(Ordering::SeqCst);
        for (worker, parked) in self.parked.iter().enumerate() {
            if parked.load(Ordering::Relaxed) {
                wake(worker);
            }
        }
    }

    /// Claims a task of the open region: each index once, ascending, also beyond the last task.
    #[inline]
    pub(crate) fn claim(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Closes the gate and waits until no worker is inside.
    pub(crate) fn close(&self) {
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while self.state.load(Ordering::Acquire) & INSIDE != 0 {
            if spins < SPINS {
                spins += 1;
                spin_loop();
            } else {
                yield_now();
            }
        }
    }

    /// Makes workers return from [`Gate::work`]; the caller must unpark each of them afterwards.
    pub(crate) fn quit(&self) {
        self.quit.store(true, Ordering::Release);
    }

    /// Whether a worker is parked, or about to be.
    #[cfg(test)]
    pub(crate) fn is_parked(&self, worker: usize) -> bool {
        self.parked[worker].load(Ordering::SeqCst)
    }

    /// A worker's loop: takes part in each region that is still open when it arrives, spins for a while between regions,
    /// then parks.
    pub(crate) fn work(&self, worker: usize, run: impl Fn(J)) {
        let mut seen = 0;
        let mut spins = 0;
        while !self.quit.load(Ordering::Acquire) {
            let state = self.state.load(Ordering::Acquire);
            if is_open(state, seen) {
                if self.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    // SAFETY: inside the gate, so the caller has published the job and waits for this thread to leave.
                    run(self.job.with(|cell| unsafe { *cell }));
                    self.state.fetch_sub(1, Ordering::Release);
                    seen = state >> EPOCH_SHIFT;
                    spins = 0;
                }
            } else if spins < SPINS {
                spins += 1;
                spin_loop();
            } else {
                self.park_until_open(worker, seen);
                spins = 0;
            }
        }
    }

    /// Parks until the caller opens another region; may return earlier.
    fn park_until_open(&self, worker: usize, seen: u64) {
        self.parked[worker].store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !is_open(self.state.load(Ordering::Acquire), seen) && !self.quit.load(Ordering::Acquire) {
            park();
        }
        self.parked[worker].store(false, Ordering::Relaxed);
    }
}

/// Whether the gate is open for a region that the worker has not seen yet.
fn is_open(state: u64, seen: u64) -> bool {
    state & OPEN != 0 && state >> EPOCH_SHIFT != seen
}
