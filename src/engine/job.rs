//! A submitted request, as its caller holds it.

use std::sync::Arc;

use super::engine_core::EngineCore;
use super::job_state::JobState;
use super::output::Chunk;
use crate::error::Result;

/// A submitted request. Dropping it cancels the request.
pub struct Job {
    core: Arc<EngineCore>,
    state: Arc<JobState>,
    prompt: Arc<[u32]>,
    /// Tokens of the prompt, and of the negative prompt if there is one.
    prefill_tokens: usize,
    seed: u64,
}

impl Job {
    pub(super) fn new(
        core: Arc<EngineCore>,
        state: Arc<JobState>,
        prompt: Arc<[u32]>,
        prefill_tokens: usize,
        seed: u64,
    ) -> Self {
        Self { core, state, prompt, prefill_tokens, seed }
    }

    /// What the scheduler tells about the request.
    pub(super) fn state(&self) -> &Arc<JobState> {
        &self.state
    }

    /// The next chunk, computing steps for all requests as needed; `None` after the last.
    ///
    /// # Errors
    /// The request failed.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        self.next_chunk_with(&mut || Ok(()))
    }

    /// As [`Job::next_chunk`]; an error from `between_steps` (Ctrl-C) ends the wait.
    ///
    /// # Errors
    /// The request failed, or what `between_steps` returned.
    pub fn next_chunk_with(&mut self, between_steps: &mut dyn FnMut() -> Result<()>) -> Result<Option<Chunk>> {
        loop {
            if let Some(chunk) = self.state.take()? {
                return Ok(Some(chunk));
            }
            if self.state.is_finished() {
                return Ok(None);
            }
            between_steps()?;
            let is_ready = || self.state.has_output() || self.state.is_finished();
            self.core.step_unless(self.state.waiter(), is_ready)?;
        }
    }

    /// The next chunk if one is ready. Never computes a step or waits for one.
    ///
    /// # Errors
    /// The request failed.
    pub fn poll_chunk(&mut self) -> Result<Option<Chunk>> {
        self.state.take()
    }

    /// Whether the last chunk was returned.
    pub fn is_finished(&self) -> bool {
        self.state.is_finished()
    }

    /// Whether the request runs, or has ended; before that it waits for others.
    pub fn has_started(&self) -> bool {
        self.state.has_started()
    }

    /// Prompt tokens whose keys and values are in the cache, and the number of prompt tokens. Those of a negative prompt count.
    pub fn prefill_progress(&self) -> (usize, usize) {
        (self.state.prefilled(), self.prefill_tokens)
    }

    /// Whether other samples of the request find in the prefix cache what there will be of its prompt.
    pub fn has_cached_prompt(&self) -> bool {
        self.state.has_cached_prompt(self.prefill_tokens)
    }

    /// Forbids tokens for the one that the next step chooses, in the place of those that were forbidden before it. Ids that the
    /// model does not have are ignored. With drafts a step may choose several tokens, of which this concerns the first.
    pub fn forbid_next(&self, ids: &[u32]) {
        self.state.forbid_next(ids.to_vec());
    }

    /// Ends the request at the next step; its last chunk has the reason `cancelled`.
    pub fn cancel(&self) {
        self.state.cancel();
    }

    /// A handle that cancels the request from another thread, also while this one waits for a chunk.
    pub fn cancel_handle(&self) -> CancelHandle {
        CancelHandle(Arc::clone(&self.state))
    }

    /// Seed of its random numbers: the one it was given, or the one drawn for it.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Token ids of the prompt.
    pub fn prompt_tokens(&self) -> &[u32] {
        &self.prompt
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.state.is_finished() {
            self.state.cancel();
            self.core.remove_cancelled();
        }
        // Discards the chunks that were not taken; the leases end here.
        while let Ok(Some(_)) | Err(_) = self.state.take() {}
    }
}

/// Cancels a [`Job`] from another thread.
#[derive(Clone)]
pub struct CancelHandle(Arc<JobState>);

impl CancelHandle {
    /// Ends the request at the next step; its last chunk has the reason `cancelled`.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}
