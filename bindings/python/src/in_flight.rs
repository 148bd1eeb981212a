//! Requests in flight as a Python object. `exlora/as_completed.py` has the iterator that users see.

use exlora::engine::{Finished, InFlight};
use exlora::error::Result;
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::engine::PyEngine;
use crate::gil::{PythonCalls, detached};
use crate::numbers::{count, integer};
use crate::request::PyRequest;
use crate::results::ResultOut;

/// The index of a request, and the result of one of its samples.
type Item<'py> = (usize, ResultOut<'py>);

/// Requests that were submitted and whose results were not taken yet. Deleting it ends them.
///
/// The lock is only taken without the interpreter's lock, so the two cannot wait for each other.
#[pyclass(frozen, name = "InFlight", module = "exlora._exlora")]
pub(crate) struct PyInFlight {
    in_flight: Mutex<Option<InFlight>>,
}

impl PyInFlight {
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut InFlight, &mut PythonCalls) -> Result<T> + Send,
    ) -> PyResult<Option<T>> {
        detached(py, |python| self.in_flight.lock().as_mut().map(|in_flight| f(in_flight, python)).transpose())
    }

    fn item<'py>(py: Python<'py>, finished: Option<Option<Finished>>) -> PyResult<Option<Item<'py>>> {
        let finished = finished.flatten();
        finished.map(|finished| Ok((finished.index, ResultOut::new(py, finished.result)?))).transpose()
    }
}

#[pymethods]
impl PyInFlight {
    /// No requests yet.
    #[new]
    fn new(engine: &Bound<'_, PyEngine>) -> Self {
        Self { in_flight: Mutex::new(Some(InFlight::new(engine.get().engine()))) }
    }

    /// Submits `n` samples of a request; if it is refused, that is their result.
    #[pyo3(signature = (index, request, n: "SupportsIndex"))]
    fn submit(
        &self,
        py: Python<'_>,
        index: usize,
        request: &Bound<'_, PyRequest>,
        #[pyo3(from_py_with = integer)] n: i64,
    ) -> PyResult<()> {
        let request = request.get().samples(count("n", n)?);
        self.with(py, |in_flight, _| {
            in_flight.submit(index, request);
            Ok(())
        })
        .map(drop)
    }

    /// Whether another request should be submitted before the next result is awaited.
    fn has_room(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.with(py, |in_flight, _| Ok(in_flight.has_room()))?.unwrap_or(false))
    }

    /// Whether nothing was submitted whose result was not taken.
    fn is_empty(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.with(py, |in_flight, _| Ok(in_flight.is_empty()))?.unwrap_or(true))
    }

    /// The next result, computing steps as needed; `None` if nothing is in flight.
    fn next_result<'py>(&self, py: Python<'py>) -> PyResult<Option<Item<'py>>> {
        let finished = self.with(py, |in_flight, python| in_flight.next_with(&mut || python.check_signals()))?;
        Self::item(py, finished)
    }

    /// The next result if one is ready; computes nothing.
    fn poll_result<'py>(&self, py: Python<'py>) -> PyResult<Option<Item<'py>>> {
        let finished = self.with(py, |in_flight, _| Ok(in_flight.poll()))?;
        Self::item(py, finished)
    }

    /// Ends all requests.
    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.in_flight.lock().take()));
    }
}

impl Drop for PyInFlight {
    /// Frees what the requests hold without the interpreter's lock.
    fn drop(&mut self) {
        let mut in_flight = self.in_flight.get_mut().take();
        if in_flight.is_some() {
            Python::try_attach(|py| {
                let in_flight = in_flight.take();
                py.detach(|| drop(in_flight));
            });
        }
    }
}
