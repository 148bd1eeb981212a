//! The lock around the scheduler: who computes a step, and what never waits for one.
//!
//! One step runs at a time, on the thread that holds the scheduler's lock. Submitting, reading counters and dropping a job
//! don't take that lock unless it is free: new sequences go into a queue of their own, counters come from the snapshot
//! published after the last step, and cancelled sequences are removed by the thread that computes the step.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use parking_lot::{Mutex, MutexGuard};

use super::scheduler::Scheduler;
use super::sequence::Sequence;
use super::stats::SchedulerStats;
use crate::error::Result;
use crate::model::Model;

/// A model and the scheduler of one engine, shared by the engine's clones and its jobs.
pub(super) struct EngineCore {
    model: Arc<Model>,
    /// Submitted sequences that the scheduler has not seen yet.
    incoming: Mutex<VecDeque<Sequence>>,
    scheduler: Mutex<Scheduler>,
    /// The scheduler's counters when its lock was last released.
    snapshot: Mutex<SchedulerStats>,
    /// Whether a job was dropped whose sequence may still be in the scheduler.
    has_cancelled: AtomicBool,
}

impl EngineCore {
    pub(super) fn new(model: Arc<Model>, scheduler: Scheduler) -> Self {
        Self {
            model,
            incoming: Mutex::default(),
            snapshot: Mutex::new(scheduler.stats()),
            scheduler: Mutex::new(scheduler),
            has_cancelled: AtomicBool::new(false),
        }
    }

    pub(super) fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Queues a sequence. Never waits for a step.
    pub(super) fn submit(&self, sequence: Sequence) {
        self.incoming.lock().push_back(sequence);
    }

    /// Computes one step for all sequences; `false` if there was nothing to do.
    pub(super) fn step(&self) -> Result<bool> {
        let mut scheduler = self.lock();
        let outcome = scheduler.step(&self.model);
        self.unlock(scheduler);
        outcome
    }

    /// Waits for a running step, then computes another one unless `is_ready`.
    pub(super) fn step_unless(&self, is_ready: impl FnOnce() -> bool) -> Result<()> {
        let mut scheduler = self.lock();
        let outcome = if is_ready() { Ok(false) } else { scheduler.step(&self.model) };
        self.unlock(scheduler);
        outcome.map(drop)
    }

    /// Forgets every cached prefix. Waits for a running step.
    pub(super) fn clear_prefixes(&self) {
        let mut scheduler = self.lock();
        scheduler.clear_prefixes();
        self.unlock(scheduler);
    }

    /// Removes the sequences of cancelled jobs. Never waits: while a step runs, the thread that computes it does this after
    /// the step.
    pub(super) fn remove_cancelled(&self) {
        self.has_cancelled.store(true, Ordering::Release);
        self.remove_cancelled_if_unlocked();
    }

    /// The scheduler's counters: current ones if no step runs, else those after the last step. Never waits for a step.
    pub(super) fn stats(&self) -> SchedulerStats {
        if let Some(mut scheduler) = self.try_lock() {
            scheduler.remove_cancelled();
            self.unlock(scheduler);
        }
        let mut stats = *self.snapshot.lock();
        stats.rows_waiting += self.incoming.lock().len();
        stats
    }

    fn lock(&self) -> MutexGuard<'_, Scheduler> {
        let mut scheduler = self.scheduler.lock();
        self.queue_incoming(&mut scheduler);
        scheduler
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Scheduler>> {
        let mut scheduler = self.scheduler.try_lock()?;
        self.queue_incoming(&mut scheduler);
        Some(scheduler)
    }

    fn queue_incoming(&self, scheduler: &mut Scheduler) {
        for sequence in self.incoming.lock().drain(..) {
            scheduler.queue(sequence);
        }
    }

    fn unlock(&self, scheduler: MutexGuard<'_, Scheduler>) {
        *self.snapshot.lock() = scheduler.stats();
        MutexGuard::unlock_fair(scheduler);
        self.remove_cancelled_if_unlocked();
    }

    fn remove_cancelled_if_unlocked(&self) {
        // Pairs the flag with the lock: either the thread that sets the flag gets the lock, or the thread that releases the
        // lock afterwards sees the flag.
        fence(Ordering::SeqCst);
        while self.has_cancelled.load(Ordering::Acquire) {
            let Some(mut scheduler) = self.try_lock() else { return };
            self.has_cancelled.store(false, Ordering::Relaxed);
            scheduler.remove_cancelled();
            *self.snapshot.lock() = scheduler.stats();
            MutexGuard::unlock_fair(scheduler);
            fence(Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use crate::{Engine, EngineOptions, Request};

    /// The test holds the scheduler's lock, as a step does for as long as it computes. The limit is only there to fail
    /// instead of hanging.
    #[test]
    fn submitting_counting_and_dropping_never_wait_for_a_step() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/quill-4m");
        let engine = Engine::load(folder, EngineOptions::default()).expect("the bundled model loads");
        engine.generate(&[Request::new(vec![5, 6, 7]).max_new_tokens(2)]).expect("runs");
        let before = engine.stats();
        let step = engine.core.lock();
        let (sender, receiver) = mpsc::channel();
        let other = engine.clone();
        let thread = std::thread::spawn(move || {
            let job = other.submit(Request::new(vec![5, 6, 7])).expect("submitted");
            let during = other.stats();
            assert!(other.adapters().is_empty());
            drop(job);
            sender.send(during).expect("the test waits");
        });
        let during = receiver.recv_timeout(Duration::from_secs(60)).expect("nothing waits for the step");
        thread.join().expect("no panic");
        assert_eq!((during.rows_running, during.rows_waiting), (0, 1));
        assert_eq!((during.tokens_generated, during.kv_pages_total), (before.tokens_generated, before.kv_pages_total));
        // Whoever ends the step removes the dropped job.
        engine.core.unlock(step);
        assert_eq!(engine.core.snapshot.lock().rows_waiting, 0);
        assert_eq!(engine.stats(), before);
    }
}
