//! A submitted request as its caller holds it, and the mailbox its chunks travel through.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::Engine;
use super::request::{Chunk, Completion, Finish, FinishReason, Request, Usage};
use crate::adapter::pool::AdapterLease;
use crate::error::{Error, Result};

/// A submitted request. Dropping it cancels the request.
pub struct Job {
    engine: Engine,
    shared: Arc<JobShared>,
    prompt: Arc<[u32]>,
}

impl Job {
    pub(super) fn new(engine: Engine, shared: Arc<JobShared>, prompt: Arc<[u32]>) -> Self {
        Self { engine, shared, prompt }
    }

    /// The next chunk, stepping the engine as needed; `None` after the last.
    ///
    /// # Errors
    /// The request failed.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        self.next_chunk_with(&mut || Ok(()))
    }

    /// As [`Job::next_chunk`]; `between_steps` may stop the waiting by an error (Ctrl-C).
    ///
    /// # Errors
    /// The request failed, or what `between_steps` returned.
    pub fn next_chunk_with(&mut self, between_steps: &mut dyn FnMut() -> Result<()>) -> Result<Option<Chunk>> {
        loop {
            if let Some(chunk) = self.shared.take()? {
                return Ok(Some(chunk));
            }
            if self.shared.is_finished() {
                return Ok(None);
            }
            between_steps()?;
            let mut scheduler = self.engine.scheduler();
            // Whoever held the scheduler before may have computed this chunk already.
            if !self.shared.has_news() && !self.shared.is_finished() {
                scheduler.step(self.engine.model())?;
            }
            MutexGuard::unlock_fair(scheduler);
        }
    }

    /// Everything up to the end of the request, joined.
    pub(super) fn complete(
        &mut self,
        request: &Request,
        between_steps: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Completion> {
        let unfinished = Finish { reason: FinishReason::Cancelled, matched: None, usage: Usage::default() };
        let mut completion = Completion {
            text: String::new(),
            token_ids: Vec::new(),
            finish: unfinished,
            adapter: request.adapters.iter().map(|(adapter, weight)| (adapter.label(), *weight)).collect(),
            logprobs: Vec::new(),
            logits: Vec::new(),
        };
        while let Some(chunk) = self.next_chunk_with(between_steps)? {
            completion.text += &chunk.text;
            completion.token_ids.extend(chunk.token_ids);
            completion.logprobs.extend(chunk.logprobs);
            completion.logits.extend(chunk.logits);
            if let Some(finish) = chunk.finish {
                completion.finish = finish;
            }
        }
        Ok(completion)
    }

    /// The next chunk if one is ready; never steps.
    ///
    /// # Errors
    /// The request failed.
    pub fn poll_chunk(&mut self) -> Result<Option<Chunk>> {
        self.shared.take()
    }

    /// Whether the last chunk has been handed out.
    pub fn is_finished(&self) -> bool {
        self.shared.is_finished()
    }

    /// Prompt tokens whose keys and values are in the cache, and prompt tokens in all.
    pub fn prefill_progress(&self) -> (usize, usize) {
        (self.shared.prefilled(), self.prompt.len())
    }

    /// Ends the request; its last chunk says `cancelled`.
    pub fn cancel(&self) {
        self.shared.cancel();
    }

    /// The prompt's token ids.
    pub fn prompt_tokens(&self) -> &[u32] {
        &self.prompt
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.shared.is_finished() {
            self.shared.cancel();
            self.engine.scheduler().sweep_cancelled();
        }
        // Whatever was not taken is not wanted; leases end here.
        while let Ok(Some(_)) | Err(_) = self.shared.take() {}
    }
}

/// What a job and the scheduler share.
pub(super) struct JobShared {
    mailbox: Mutex<Mailbox>,
    is_cancelled: AtomicBool,
    /// Prompt tokens whose keys and values are in the cache.
    prefilled: AtomicUsize,
}

#[derive(Default)]
struct Mailbox {
    chunks: VecDeque<Chunk>,
    error: Option<Error>,
    is_closed: bool,
    /// Held until the last chunk is handed out.
    leases: Vec<AdapterLease>,
}

impl JobShared {
    pub(super) fn new(leases: Vec<AdapterLease>) -> Arc<Self> {
        Arc::new(Self {
            mailbox: Mutex::new(Mailbox { leases, ..Mailbox::default() }),
            is_cancelled: AtomicBool::new(false),
            prefilled: AtomicUsize::new(0),
        })
    }

    /// The next chunk, if one is ready. Leases end with the last one.
    pub(super) fn take(&self) -> Result<Option<Chunk>> {
        let mut mailbox = self.mailbox.lock();
        if let Some(error) = mailbox.error.take() {
            mailbox.chunks.clear();
            mailbox.leases.clear();
            return Err(error);
        }
        let chunk = mailbox.chunks.pop_front();
        if mailbox.is_closed && mailbox.chunks.is_empty() {
            mailbox.leases.clear();
        }
        Ok(chunk)
    }

    /// Whether a chunk or an error waits to be taken.
    pub(super) fn has_news(&self) -> bool {
        let mailbox = self.mailbox.lock();
        mailbox.error.is_some() || !mailbox.chunks.is_empty()
    }

    /// Whether nothing will come any more and everything was taken.
    pub(super) fn is_finished(&self) -> bool {
        let mailbox = self.mailbox.lock();
        mailbox.is_closed && mailbox.chunks.is_empty() && mailbox.error.is_none()
    }

    pub(super) fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Release);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Acquire)
    }

    pub(super) fn prefilled(&self) -> usize {
        self.prefilled.load(Ordering::Acquire)
    }

    pub(super) fn set_prefilled(&self, tokens: usize) {
        self.prefilled.store(tokens, Ordering::Release);
    }

    /// Hands a chunk over; the last one says how the request ended.
    pub(super) fn send(&self, chunk: Chunk) {
        let mut mailbox = self.mailbox.lock();
        mailbox.is_closed = chunk.finish.is_some();
        mailbox.chunks.push_back(chunk);
    }

    /// Ends the request with an error.
    pub(super) fn fail(&self, error: Error) {
        let mut mailbox = self.mailbox.lock();
        mailbox.is_closed = true;
        mailbox.error = Some(error);
    }
}
