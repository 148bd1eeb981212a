//! The lock around the scheduler: who computes a step, and what never waits for one.
//!
//! One step runs at a time, on the thread that holds the scheduler's lock. Submitting, reading counters and dropping a job
//! don't take that lock unless it is free: new sequences go into a queue of their own, counters come from the snapshot
//! published after the last step, and cancelled sequences are removed by the thread that computes the step. Each of these
//! takes the same time however many requests wait.
//!
//! Of the threads that wait for output, one computes steps while the others sleep until a step has produced theirs, or until
//! it is their turn (`turns.rs`).

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::job_state::{CancelledJobs, JobState};
use super::scheduler::Scheduler;
use super::sequence::Sequence;
use super::stats::SchedulerStats;
use super::turns::{TurnQueue, Waiter};
use crate::adapter::pool::AdapterLease;
use crate::error::{Error, ErrorCode, Result};
use crate::fork_safe_mutex::ForkSafeMutex;
use crate::guard::catch_panic;
use crate::model::Model;

/// A thread that waits for output returns to its caller this often, which then looks for Ctrl-C.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

thread_local! {
    /// Whether this thread computes a step, so that it would wait for itself.
    static IN_STEP: Cell<bool> = const { Cell::new(false) };
}

/// Marks this thread as computing a step.
struct InStep;

impl InStep {
    fn begin() -> Self {
        IN_STEP.set(true);
        Self
    }

    /// # Errors
    /// `request_invalid`: this thread computes a step.
    fn refuse() -> Result<()> {
        if IN_STEP.get() {
            let what = "an engine was asked to compute by a function that a step calls";
            return Err(
                Error::new(ErrorCode::RequestInvalid, what).with_hint("submit the request, and wait for it later")
            );
        }
        Ok(())
    }
}

impl Drop for InStep {
    fn drop(&mut self) {
        IN_STEP.set(false);
    }
}

/// A model and the scheduler of one engine, shared by the engine's clones and its jobs.
pub(super) struct EngineCore {
    model: Arc<Model>,
    /// Submitted sequences that the scheduler has not seen yet.
    incoming: Mutex<VecDeque<Sequence>>,
    scheduler: ForkSafeMutex<Scheduler>,
    /// The threads that wait while another one computes a step.
    turns: TurnQueue,
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
            scheduler: ForkSafeMutex::new(scheduler),
            turns: TurnQueue::default(),
            cancelled: Arc::default(),
            jobs: AtomicU64::new(0),
        }
    }

    pub(super) fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The state of a new job, which holds these leases and whose output `waiter` waits for.
    pub(super) fn new_job(&self, leases: Vec<AdapterLease>, waiter: &Arc<Waiter>) -> Arc<JobState> {
        JobState::new(self.jobs.fetch_add(1, Ordering::Relaxed), leases, waiter, &self.cancelled)
    }

    /// Queues a sequence. Never waits for a step.
    pub(super) fn submit(&self, sequence: Sequence) {
        self.incoming.lock().push_back(sequence);
    }

    /// Computes one step for all sequences; `false` if there was nothing to do.
    ///
    /// # Errors
    /// `internal`: the scheduler panicked. All sequences ended with that error, and the next ones find it as new.
    /// `forked_while_in_use`, `request_invalid`: called by a step.
    pub(super) fn step(&self) -> Result<bool> {
        let mut scheduler = self.lock()?;
        let outcome = self.step_locked(&mut scheduler);
        self.unlock(scheduler);
        outcome
    }

    /// Waits until `is_ready`, but no longer than [`LONGEST_WAIT`], or until no other thread computes a step; then computes
    /// one. Errors of a step reach those jobs that they end.
    ///
    /// `waiter` is that of the jobs whose output makes it ready.
    ///
    /// # Errors
    /// `forked_while_in_use`, `request_invalid`: called by a step.
    pub(super) fn step_unless(&self, waiter: &Arc<Waiter>, is_ready: impl Fn() -> bool) -> Result<()> {
        self.step_unless_within(LONGEST_WAIT, waiter, is_ready)
    }

    fn step_unless_within(&self, limit: Duration, waiter: &Arc<Waiter>, is_ready: impl Fn() -> bool) -> Result<()> {
        let Some(mut scheduler) = self.wait_for_turn(limit, waiter, &is_ready)? else { return Ok(()) };
        // Before it was this thread's turn, another thread's step may have produced output.
        if !is_ready() {
            // A job that this error ends has it in its mailbox.
            let _ = self.step_locked(&mut scheduler);
        }
        self.unlock(scheduler);
        Ok(())
    }

    /// The scheduler once no other thread has it; `None` if it is ready before, or after the limit.
    fn wait_for_turn(
        &self,
        limit: Duration,
        waiter: &Arc<Waiter>,
        is_ready: &impl Fn() -> bool,
    ) -> Result<Option<MutexGuard<'_, Scheduler>>> {
        InStep::refuse()?;
        if let Some(scheduler) = self.try_lock() {
            return Ok(Some(scheduler));
        }
        let deadline = Instant::now() + limit;
        let place = self.turns.enter(waiter);
        let turn = loop {
            // In this order after having entered: whoever produces output or releases the lock from now on wakes this thread.
            if is_ready() {
                break None;
            }
            if let Some(scheduler) = self.try_lock() {
                break Some(scheduler);
            }
            if !place.wait_until(deadline) {
                // In a forked child, the thread that computes may not exist, which waiting for the lock finds out.
                break if self.scheduler.is_forked() { Some(self.lock()?) } else { None };
            }
        };
        drop(place);
        // If this thread was woken to compute, another one has to instead.
        if turn.is_none() && !self.scheduler.is_locked() {
            self.turns.wake_first();
        }
        Ok(turn)
    }

    fn step_locked(&self, scheduler: &mut Scheduler) -> Result<bool> {
        let on_panic = |message: &str| Error::new(ErrorCode::Internal, format!("the scheduler panicked: {message}"));
        let _in_step = InStep::begin();
        catch_panic(on_panic, || Ok(scheduler.step(&self.model))).inspect_err(|error| {
            tracing::error!(%error, "every request ends");
            scheduler.reset(error);
        })
    }

    /// Forgets every cached prefix. Waits for a running step.
    pub(super) fn clear_prefixes(&self) {
        // A forked child that has lost the lock has lost the cache with it.
        let Ok(mut scheduler) = self.lock() else { return };
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

    fn lock(&self) -> Result<MutexGuard<'_, Scheduler>> {
        InStep::refuse()?;
        let mut scheduler = self.scheduler.lock()?;
        self.update(&mut scheduler);
        Ok(scheduler)
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
        self.turns.wake_first();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::engine::job::Job;
    use crate::{Engine, EngineOptions, Request};

    /// Only there to fail instead of hanging.
    const LIMIT: Duration = Duration::from_secs(60);

    fn engine(max_rows: usize) -> Engine {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/quill-4m");
        Engine::load(folder, EngineOptions { max_rows, ..EngineOptions::default() }).expect("the bundled model loads")
    }

    fn submit(engine: &Engine, max_new_tokens: usize) -> Job {
        let mut request = Request::new(vec![5, 6, 7]).max_new_tokens(max_new_tokens);
        request.stop_at_eos = false;
        engine.submit(request).expect("submitted")
    }

    fn wait_until(condition: impl Fn() -> bool) {
        let end = Instant::now() + LIMIT;
        while !condition() {
            assert!(Instant::now() < end, "it never comes true");
            std::thread::yield_now();
        }
    }

    /// The test holds the scheduler's lock, as a step does for as long as it computes.
    #[test]
    fn submitting_counting_and_dropping_never_wait_for_a_step() {
        let engine = engine(16);
        engine.generate(&[Request::new(vec![5, 6, 7]).max_new_tokens(2)]).expect("runs");
        let before = engine.stats();
        let step = engine.core.lock().expect("not forked");
        let (sender, receiver) = mpsc::channel();
        let other = engine.clone();
        let thread = std::thread::spawn(move || {
            let job = other.submit(Request::new(vec![5, 6, 7])).expect("submitted");
            let during = other.stats();
            assert!(other.adapters().is_empty());
            drop(job);
            sender.send(during).expect("the test waits");
        });
        let during = receiver.recv_timeout(LIMIT).expect("nothing waits for the step");
        thread.join().expect("no panic");
        assert_eq!((during.rows_running, during.rows_waiting), (0, 1));
        assert_eq!((during.tokens_generated, during.kv_pages_total), (before.tokens_generated, before.kv_pages_total));
        // Whoever ends the step removes the dropped job.
        engine.core.unlock(step);
        assert_eq!(engine.core.snapshot.lock().rows_waiting, 0);
        assert_eq!(engine.stats(), before);
    }

    #[test]
    fn output_reaches_its_thread_although_others_wait_for_their_turn() {
        let engine = engine(2);
        let (sender, receiver) = mpsc::channel();
        let mut running = [submit(&engine, 20), submit(&engine, 20)];
        let waiting: Vec<Job> = (0..8).map(|_| submit(&engine, 1)).collect();
        std::thread::scope(|scope| {
            let mut step = engine.core.lock().expect("not forked");
            // They wait for a turn, before those for whom there will be output.
            for mut job in waiting {
                scope.spawn(move || job.next_chunk().expect("no error"));
            }
            wait_until(|| engine.core.turns.len() == 8);
            let [one, other] = &mut running;
            scope.spawn(move || sender.send(one.next_chunk().expect("no error").is_some()));
            wait_until(|| engine.core.turns.len() == 9);
            // While the lock is held: a step's output does not wait for the next turn.
            step.step(engine.model());
            assert!(receiver.recv_timeout(LIMIT).expect("it does not wait for the lock"));
            assert!(other.poll_chunk().expect("no error").is_some());
            engine.core.unlock(step);
        });
        assert_eq!(engine.core.turns.len(), 0);
    }

    #[test]
    fn a_batch_is_woken_by_the_output_of_any_of_its_requests() {
        let engine = engine(2);
        let (sender, receiver) = mpsc::channel();
        let batch = engine.clone();
        std::thread::scope(|scope| {
            let mut step = engine.core.lock().expect("not forked");
            scope.spawn(move || {
                let requests = [40, 1].map(|tokens| Request::new(vec![5, 6, 7]).max_new_tokens(tokens));
                let mut results = batch.as_completed(requests);
                let (index, result) = results.next().expect("a result");
                result.expect("it succeeds");
                sender.send(index).expect("the test waits");
            });
            wait_until(|| engine.core.turns.len() == 1);
            engine.core.update(&mut step);
            step.step(engine.model());
            assert_eq!(receiver.recv_timeout(LIMIT).expect("it does not wait for the lock"), 1);
            engine.core.unlock(step);
        });
    }

    /// Nobody waits with a limit here, so a turn that is not handed on would hang.
    #[test]
    fn every_turn_is_handed_on() {
        let engine = engine(3);
        let jobs: Vec<Job> = (0..24).map(|index| submit(&engine, 5 + index)).collect();
        std::thread::scope(|scope| {
            for mut job in jobs {
                let core = &engine.core;
                scope.spawn(move || {
                    let state = Arc::clone(job.state());
                    while !state.is_finished() {
                        core.step_unless_within(Duration::from_secs(3600), state.waiter(), || state.has_output())
                            .expect("not forked");
                        while job.poll_chunk().expect("no error").is_some() {}
                    }
                });
            }
        });
        assert_eq!((engine.core.turns.len(), engine.stats().rows_running), (0, 0));
        assert_eq!(engine.stats().tokens_generated, (0..24).map(|index| 5 + index).sum::<u64>());
    }
}
