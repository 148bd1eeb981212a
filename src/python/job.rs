//! A submitted request as a Python object.

use parking_lot::Mutex;
use pyo3::prelude::*;

use super::detach::detached;
use super::results::PyChunk;
use crate::engine::Job;

/// A submitted request: its chunks, one by one. Letting go of it cancels the request.
///
/// The lock is only ever taken without the interpreter's lock, so the two cannot wait for each other.
#[pyclass(frozen, name = "Job", module = "exlora._exlora")]
pub(super) struct PyJob {
    job: Mutex<Option<Job>>,
    prompt: Vec<u32>,
}

impl PyJob {
    pub(super) fn new(job: Job) -> Self {
        Self { prompt: job.prompt_tokens().to_vec(), job: Mutex::new(Some(job)) }
    }

    fn with<T: Send>(&self, py: Python<'_>, f: impl FnOnce(&Job) -> T + Send) -> Option<T> {
        py.detach(|| self.job.lock().as_ref().map(f))
    }
}

#[pymethods]
impl PyJob {
    /// The next chunk, computing steps as needed; `None` after the last.
    fn next_chunk(&self, py: Python<'_>) -> PyResult<Option<PyChunk>> {
        let chunk = detached(py, |link| match &mut *self.job.lock() {
            Some(job) => job.next_chunk_with(&mut || link.check_signals()),
            None => Ok(None),
        })?;
        chunk.map(|chunk| PyChunk::new(py, chunk)).transpose()
    }

    /// The next chunk if one is ready; computes nothing.
    fn poll_chunk(&self, py: Python<'_>) -> PyResult<Option<PyChunk>> {
        let chunk = detached(py, |_| self.job.lock().as_mut().map_or(Ok(None), Job::poll_chunk))?;
        chunk.map(|chunk| PyChunk::new(py, chunk)).transpose()
    }

    /// Ends the request; its last chunk says `cancelled`.
    fn cancel(&self, py: Python<'_>) {
        self.with(py, Job::cancel);
    }

    /// Ends the request and lets go of everything it holds, its leases included.
    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.job.lock().take()));
    }

    /// Whether the last chunk has been handed out.
    #[getter]
    fn is_finished(&self, py: Python<'_>) -> bool {
        self.with(py, Job::is_finished).unwrap_or(true)
    }

    /// Prompt tokens whose keys and values are in the cache, and prompt tokens in all.
    #[getter]
    fn prefill_progress(&self, py: Python<'_>) -> (usize, usize) {
        self.with(py, Job::prefill_progress).unwrap_or((self.prompt.len(), self.prompt.len()))
    }

    /// The prompt's token ids.
    #[getter]
    fn prompt_tokens(&self) -> Vec<u32> {
        self.prompt.clone()
    }
}

impl Drop for PyJob {
    /// Ending a request may wait for a step; the interpreter goes on meanwhile.
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
