//! The mailbox between the scheduler and a job: chunks, errors, cancellation, progress.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::output::Chunk;
use super::turns::Waiter;
use crate::adapter::pool::AdapterLease;
use crate::error::{Error, Result};
use crate::kv_cache::PAGE_TOKENS;

/// Numbers of the jobs that were cancelled, until their sequences are removed.
#[derive(Default)]
pub(super) struct CancelledJobs(Mutex<Vec<u64>>);

impl CancelledJobs {
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    pub(super) fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.0.lock())
    }
}

/// State shared by a job and the scheduler.
pub(super) struct JobState {
    number: u64,
    cancelled: Arc<CancelledJobs>,
    mailbox: Mutex<Mailbox>,
    /// Woken when there is output.
    waiter: Arc<Waiter>,
    is_cancelled: AtomicBool,
    /// Whether it has run.
    has_started: AtomicBool,
    /// Prompt tokens whose keys and values are in the cache.
    prefilled: AtomicUsize,
    /// Tokens that are not chosen next.
    forbidden_next: Mutex<Vec<u32>>,
}

#[derive(Default)]
struct Mailbox {
    chunks: VecDeque<Chunk>,
    error: Option<Error>,
    is_closed: bool,
    /// Held until the last chunk is taken.
    leases: Vec<AdapterLease>,
}

impl JobState {
    /// The state of the engine's job `number`, which adds itself to `cancelled` if it is.
    pub(super) fn new(
        number: u64,
        leases: Vec<AdapterLease>,
        waiter: &Arc<Waiter>,
        cancelled: &Arc<CancelledJobs>,
    ) -> Arc<Self> {
        Arc::new(Self {
            waiter: Arc::clone(waiter),
            number,
            cancelled: Arc::clone(cancelled),
            mailbox: Mutex::new(Mailbox { leases, ..Mailbox::default() }),
            is_cancelled: AtomicBool::new(false),
            has_started: AtomicBool::new(false),
            prefilled: AtomicUsize::new(0),
            forbidden_next: Mutex::default(),
        })
    }

    /// The next chunk, if one is ready. The leases end with the last one.
    pub(super) fn take(&self) -> Result<Option<Chunk>> {
        let mut mailbox = self.mailbox.lock();
        if let Some(error) = mailbox.error.take() {
            mailbox.chunks.clear();
            return Err(error);
        }
        let chunk = mailbox.chunks.pop_front();
        if mailbox.is_closed && mailbox.chunks.is_empty() {
            mailbox.leases.clear();
        }
        Ok(chunk)
    }

    /// Whether a chunk or an error is ready.
    pub(super) fn has_output(&self) -> bool {
        let mailbox = self.mailbox.lock();
        mailbox.error.is_some() || !mailbox.chunks.is_empty()
    }

    /// Whether the request has ended and everything was taken.
    pub(super) fn is_finished(&self) -> bool {
        let mailbox = self.mailbox.lock();
        mailbox.is_closed && mailbox.chunks.is_empty() && mailbox.error.is_none()
    }

    /// Whether the scheduler has sent the last chunk or an error.
    pub(super) fn has_ended(&self) -> bool {
        self.mailbox.lock().is_closed
    }

    /// Its number: jobs of an engine are counted in the order of submission.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// What wakes the thread that waits for its output.
    pub(super) fn waiter(&self) -> &Arc<Waiter> {
        &self.waiter
    }

    pub(super) fn cancel(&self) {
        if !self.is_cancelled.swap(true, Ordering::AcqRel) {
            self.cancelled.0.lock().push(self.number);
        }
    }

    /// Whether it runs, or has ended.
    pub(super) fn has_started(&self) -> bool {
        self.has_started.load(Ordering::Acquire) || self.has_ended()
    }

    pub(super) fn set_started(&self) {
        self.has_started.store(true, Ordering::Release);
    }

    /// Whether others with the same prompt, of that many tokens, find in the prefix cache what there will be of it.
    pub(super) fn has_cached_prompt(&self, tokens: usize) -> bool {
        // Of a prompt shorter than a page, nothing is kept.
        tokens < PAGE_TOKENS || self.prefilled() >= tokens || self.is_finished()
    }

    pub(super) fn prefilled(&self) -> usize {
        self.prefilled.load(Ordering::Acquire)
    }

    pub(super) fn set_prefilled(&self, tokens: usize) {
        self.prefilled.store(tokens, Ordering::Release);
    }

    /// Forbids tokens for the one that is chosen next.
    pub(super) fn forbid_next(&self, ids: Vec<u32>) {
        *self.forbidden_next.lock() = ids;
    }

    /// Whether tokens are forbidden for the one that is chosen next.
    pub(super) fn forbids_some(&self) -> bool {
        !self.forbidden_next.lock().is_empty()
    }

    /// The tokens that were forbidden since the last call.
    pub(super) fn take_forbidden(&self) -> Vec<u32> {
        std::mem::take(&mut *self.forbidden_next.lock())
    }

    /// Adds a chunk; one with `finish` is the last.
    pub(super) fn send(&self, chunk: Chunk) {
        let mut mailbox = self.mailbox.lock();
        mailbox.is_closed = chunk.finish.is_some();
        mailbox.chunks.push_back(chunk);
        drop(mailbox);
        self.waiter.wake();
    }

    /// Ends the request with an error, unless it has ended. Its leases end too: nothing of it will run again.
    pub(super) fn fail(&self, error: Error) {
        let mut mailbox = self.mailbox.lock();
        if !mailbox.is_closed {
            mailbox.is_closed = true;
            mailbox.error = Some(error);
            mailbox.leases.clear();
        }
        drop(mailbox);
        self.waiter.wake();
    }
}
