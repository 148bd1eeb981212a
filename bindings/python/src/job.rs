//! A submitted request as a Python object.

use exlora::engine::{CancelHandle, Job};
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::args::TokenIds;
use crate::gil::detached;
use crate::results::PyChunk;

/// A submitted request: its chunks, one by one. Deleting it cancels the request.
///
/// The lock is only taken without the interpreter's lock, so the two cannot wait for each other.
#[pyclass(frozen, name = "Job", module = "exlora._exlora")]
pub(crate) struct PyJob {
    job: Mutex<Option<Job>>,
    /// Beside the lock, so that a thread can cancel while another one waits for a chunk.
    cancel_handle: CancelHandle,
    prompt: Vec<u32>,
    prefill_tokens: usize,
    seed: u64,
}

impl PyJob {
    pub(crate) fn new(job: Job) -> Self {
        Self {
            prompt: job.prompt_tokens().to_vec(),
            seed: job.seed(),
            prefill_tokens: job.prefill_progress().1,
            cancel_handle: job.cancel_handle(),
            job: Mutex::new(Some(job)),
        }
    }

    fn with<T: Send>(&self, py: Python<'_>, f: impl FnOnce(&Job) -> T + Send) -> Option<T> {
        py.detach(|| self.job.lock().as_ref().map(f))
    }
}

#[pymethods]
impl PyJob {
    /// The next chunk, computing steps as needed; `None` after the last.
    fn next_chunk(&self, py: Python<'_>) -> PyResult<Option<PyChunk>> {
        let chunk = detached(py, |python| match &mut *self.job.lock() {
            Some(job) => job.next_chunk_with(&mut || python.check_signals()),
            None => Ok(None),
        })?;
        chunk.map(|chunk| PyChunk::new(py, chunk)).transpose()
    }

    /// The next chunk if one is ready; computes nothing.
    fn poll_chunk(&self, py: Python<'_>) -> PyResult<Option<PyChunk>> {
        let chunk = detached(py, |_| self.job.lock().as_mut().map_or(Ok(None), Job::poll_chunk))?;
        chunk.map(|chunk| PyChunk::new(py, chunk)).transpose()
    }

    /// Ends the request at the next step; its last chunk has the reason `cancelled`. Never waits.
    fn cancel(&self) {
        self.cancel_handle.cancel();
    }

    /// Ends the request and releases its adapters. Waits for a thread that waits for a chunk of this request.
    fn close(&self, py: Python<'_>) {
        self.cancel_handle.cancel();
        py.detach(|| drop(self.job.lock().take()));
    }

    /// Forbids tokens for the one that the next step chooses, in the place of those that were forbidden before it. With drafts
    /// a step may choose several tokens, of which this concerns the first.
    fn forbid_next(&self, py: Python<'_>, ids: TokenIds) {
        self.with(py, |job| job.forbid_next(&ids.0));
    }

    /// Whether the last chunk was returned.
    #[getter]
    fn is_finished(&self, py: Python<'_>) -> bool {
        self.with(py, Job::is_finished).unwrap_or(true)
    }

    /// Whether the request runs, or has ended; before that it waits for others.
    #[getter]
    fn has_started(&self, py: Python<'_>) -> bool {
        self.with(py, Job::has_started).unwrap_or(true)
    }

    /// Prompt tokens whose keys and values are in the cache, and the number of prompt tokens. Those of a negative prompt count.
    #[getter]
    fn prefill_progress(&self, py: Python<'_>) -> (usize, usize) {
        self.with(py, Job::prefill_progress).unwrap_or((self.prefill_tokens, self.prefill_tokens))
    }

    /// Seed of its random numbers: the one it was given, or the one drawn for it.
    #[getter]
    fn seed(&self) -> u64 {
        self.seed
    }

    /// Token ids of the prompt.
    #[getter]
    fn prompt_tokens(&self) -> Vec<u32> {
        self.prompt.clone()
    }
}

impl Drop for PyJob {
    /// Frees what the request holds without the interpreter's lock.
    fn drop(&mut self) {
        if let Some(job) = self.job.get_mut().take() {
            let mut job = Some(job);
            Python::try_attach(|py| {
                let job = job.take();
                py.detach(|| drop(job));
            });
        }
    }
}
