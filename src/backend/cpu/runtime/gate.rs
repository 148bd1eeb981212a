//! The gate by which the workers of a pool enter a parallel region and leave it.
//!
//! ```text
//! state = epoch << 33 | open << 32 | invited workers << 16 | workers inside
//!   caller   writes the job, opens the gate with the next epoch, claims tasks, closes it, waits for inside = 0
//!   worker   sees an open gate, enters by compare-and-swap (inside + 1), claims tasks, leaves (inside - 1)
//! ```
//!
//! The caller waits only for workers *inside*: one that the system has descheduled outside of the gate delays nobody. Only the
//! first workers are invited to a region that has too little work for all.
//! loom explores the interleavings of this file in `tests/pool_check`.

#![allow(unsafe_code, reason = "the job is handed over in a cell that the gate alone protects")]

use super::sync::{AtomicBool, AtomicU64, AtomicUsize, Ordering, SPINS, UnsafeCell, fence, park, spin_loop, yield_now};

const OPEN: u64 = 1 << 32;
const INVITED_SHIFT: u32 = 16;
const INSIDE: u64 = (1 << INVITED_SHIFT) - 1;
const EPOCH_SHIFT: u32 = 33;

/// A value on cache lines of its own: two, since processors fetch them in pairs.
#[repr(align(128))]
struct Apart<T>(T);

/// Hands one job after another to workers.
///
/// What a worker waits for arrives in one cache line with the job; the counter that all write is in another.
pub(crate) struct Gate<J> {
    entrance: Apart<Entrance<J>>,
    /// The number of claims.
    claims: Apart<AtomicUsize>,
    /// Whether each worker is parked, or about to be.
    parked: Vec<AtomicBool>,
}

/// What workers look at while they wait.
struct Entrance<J> {
    state: AtomicU64,
    quit: AtomicBool,
    /// The region's job; written only while the gate is closed and nobody is inside.
    job: UnsafeCell<J>,
}

// SAFETY: `job` is written by the one caller while the gate is closed and no worker is inside, and copied by workers only
// between entering and leaving; the acquire and release operations on `state` order the two.
unsafe impl<J: Copy + Send> Sync for Gate<J> {}

impl<J: Copy> Gate<J> {
    /// A closed gate for that many workers, fewer than 65536; the job `idle` is never run.
    pub(crate) fn new(idle: J, workers: usize) -> Self {
        let entrance = Entrance { state: AtomicU64::new(0), quit: AtomicBool::new(false), job: UnsafeCell::new(idle) };
        Self {
            entrance: Apart(entrance),
            claims: Apart(AtomicUsize::new(0)),
            parked: (0..workers).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// Opens the gate for a job and the first `workers` of the workers; `wake` is called for each of them that may be parked.
    ///
    /// # Safety
    /// The gate must be closed, only one thread may open and close it, and whatever the job refers to must stay valid
    /// until [`Gate::close`] returns.
    pub(crate) unsafe fn open(&self, job: J, workers: usize, wake: impl Fn(usize)) {
        let Entrance { state, job: cell, .. } = &self.entrance.0;
        self.claims.0.store(0, Ordering::Relaxed);
        // SAFETY: the gate is closed and nobody is inside, since `close` has waited; the caller is the only one to write.
        cell.with_mut(|cell| unsafe { *cell = job });
        let epoch = (state.load(Ordering::Relaxed) >> EPOCH_SHIFT) + 1;
        let invited = workers.min(self.parked.len()) as u64;
        state.store(epoch << EPOCH_SHIFT | OPEN | invited << INVITED_SHIFT, Ordering::Release);
        // With the fence in `park_until_open`: either the worker sees the open gate, or this thread sees it parked.
        fence(Ordering::SeqCst);
        for (worker, parked) in self.parked.iter().take(workers).enumerate() {
            if parked.load(Ordering::Relaxed) {
                wake(worker);
            }
        }
    }

    /// The number of the next claim of the open region: each once, ascending from 0.
    #[inline]
    pub(crate) fn claim(&self) -> usize {
        self.claims.0.fetch_add(1, Ordering::Relaxed)
    }

    /// Closes the gate and waits until no worker is inside.
    pub(crate) fn close(&self) {
        let state = &self.entrance.0.state;
        state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while state.load(Ordering::Acquire) & INSIDE != 0 {
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
        self.entrance.0.quit.store(true, Ordering::Release);
    }

    /// Whether a worker is parked, or about to be.
    #[cfg(test)]
    pub(crate) fn is_parked(&self, worker: usize) -> bool {
        self.parked[worker].load(Ordering::SeqCst)
    }

    /// A worker's loop: takes part in each region that is still open when it arrives, spins for a while between regions,
    /// then parks.
    pub(crate) fn work(&self, worker: usize, run: impl Fn(J)) {
        let Entrance { state, quit, job } = &self.entrance.0;
        let mut seen = 0;
        let mut spins = 0;
        while !quit.load(Ordering::Acquire) {
            let now = state.load(Ordering::Acquire);
            if is_open(now, seen, worker) {
                if state.compare_exchange_weak(now, now + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    // SAFETY: inside the gate, so the caller has published the job and waits for this thread to leave.
                    run(job.with(|cell| unsafe { *cell }));
                    state.fetch_sub(1, Ordering::Release);
                    seen = now >> EPOCH_SHIFT;
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

    /// Parks until the caller opens another region for the worker; may return earlier.
    fn park_until_open(&self, worker: usize, seen: u64) {
        let Entrance { state, quit, .. } = &self.entrance.0;
        self.parked[worker].store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !is_open(state.load(Ordering::Acquire), seen, worker) && !quit.load(Ordering::Acquire) {
            park();
        }
        self.parked[worker].store(false, Ordering::Relaxed);
    }
}

/// Whether the gate is open to a worker for a region that it has not seen yet.
fn is_open(state: u64, seen: u64, worker: usize) -> bool {
    let invited = (state & (OPEN - 1)) >> INVITED_SHIFT;
    state & OPEN != 0 && state >> EPOCH_SHIFT != seen && (worker as u64) < invited
}
