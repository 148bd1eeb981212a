//! The lock around the scheduler: who computes a step, and what never waits for one.
//!
//! One step runs at a time, on the thread that holds the scheduler's lock. Submitting, reading counters and dropping a job
//! don't take that lock unless it is free: new sequences go into a queue of their own, counters come from the snapshot
//! published after the last step, and cancelled sequences are removed by the thread that computes the step. Each of these
//! takes the same time however many requests wait.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::job_state::{CancelledJobs, JobState};
use super::scheduler::Scheduler;
use super::sequence::Sequence;
use super::stats::SchedulerStats;
use crate::adapter::pool::AdapterLease;
use crate::error::{Error, ErrorCode, Result};
use crate::guard::catch_panic;
use crate::model::Model;

/// A model and the scheduler of one engine, shared by the engine's clones and its jobs.
pub(super) struct EngineCore {
    model: Arc<Model>,
    /// Submitted sequences that the scheduler has not seen yet.
    incoming: Mutex<VecDeque<Sequence>>,
    scheduler: Mutex<Scheduler>,
    /// The scheduler's counters when its lock was last released.
    snapshot: Mutex<SchedulerStats>,
    /// Jobs whose sequences may still be in the scheduler.
    cancelled: Arc<CancelledJobs>,
    /// Number of jobs so far.
    jobs: AtomicU64,
}

impl EngineCore {
    pub(super) fn new(model: Arc<Model>, scheduler: Scheduler) -> Self {
        Self {
            model,
            incoming: Mutex::default(),
            snapshot: Mutex::new(scheduler.stats()),
            scheduler: Mutex::new(scheduler),
            cancelled: Arc::default(),
            jobs: AtomicU64::new(0),
        }
    }

    pub(super) fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The state of a new job, which holds these leases.
    pub(super) fn new_job(&self, leases: Vec<AdapterLease>) -> Arc<JobState> {
        JobState::new(self.jobs.fetch_add(1, Ordering::Relaxed), leases, &self.cancelled)
    }

    /// Queues a sequence. Never waits for a step.
    pub(super) fn submit(&self, sequence: Sequence) {
        self.incoming.lock().push_back(sequence);
    }

    /// Computes one step for all sequences; `false` if there was nothing to do.
    ///
    /// # Errors
    /// `internal`: the scheduler panicked. All sequences ended with that error, and the next ones find it as new.
    pub(super) fn step(&self) -> Result<bool> {
        let mut scheduler = self.lock();
        let outcome = self.step_locked(&mut scheduler);
        self.unlock(scheduler);
        outcome
    }

    /// Waits for a running step, then computes another one unless `is_ready`. Errors reach those jobs that they end.
    pub(super) fn step_unless(&self, is_ready: impl FnOnce() -> bool) {
        let mut scheduler = self.lock();
        if !is_ready() {
            // A job that this error ends has it in its mailbox.
            let _ = self.step_locked(&mut scheduler);
        }
        self.unlock(scheduler);
    }

    fn step_locked(&self, scheduler: &mut Scheduler) -> Result<bool> {
        let on_panic = |message: &str| Error::new(ErrorCode::Internal, format!("the scheduler panicked: {message}"));
        catch_panic(on_panic, || Ok(scheduler.step(&self.model))).inspect_err(|error| {
            tracing::error!(%error, "every request ends");
            scheduler.reset(error);
        })
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
        // Either this thread gets the lock, or the one that releases it afterwards finds the cancelled jobs.
        while !self.cancelled.is_empty() {
            let Some(scheduler) = self.try_lock() else { return };
            self.publish_and_release(scheduler);
        }
    }

    /// The scheduler's counters: current ones if no step runs, else those after the last step. Never waits for a step.
    pub(super) fn stats(&self) -> SchedulerStats {
        if let Some(scheduler) = self.try_lock() {
            self.unlock(scheduler);
        }
        let mut stats = *self.snapshot.lock();
        stats.rows_waiting += self.incoming.lock().len();
        stats
    }

    /// Loses the sequences that the scheduler has not seen yet.
    #[cfg(test)]
    pub(super) fn drop_incoming(&self) {
        self.incoming.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Scheduler> {
        let mut scheduler = self.scheduler.lock();
        self.update(&mut scheduler);
        scheduler
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Scheduler>> {
        let mut scheduler = self.scheduler.try_lock()?;
        self.update(&mut scheduler);
        Some(scheduler)
    }

    /// Queues what was submitted and removes what was cancelled since the lock was last taken.
    fn update(&self, scheduler: &mut Scheduler) {
        // In this order: what was cancelled before now was submitted before now.
        let cancelled = self.cancelled.take();
        let incoming = std::mem::take(&mut *self.incoming.lock());
        for sequence in incoming {
            scheduler.queue(sequence);
        }
        for job in cancelled {
            scheduler.cancel(job);
        }
    }

    fn unlock(&self, scheduler: MutexGuard<'_, Scheduler>) {
        self.publish_and_release(scheduler);
        self.remove_cancelled();
    }

    fn publish_and_release(&self, scheduler: MutexGuard<'_, Scheduler>) {
        *self.snapshot.lock() = scheduler.stats();
        MutexGuard::unlock_fair(scheduler);
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
