//! Long work without the interpreter's lock, that Python can still interrupt.

use std::time::{Duration, Instant};

use pyo3::prelude::*;

use crate::error::{Error, ErrorCode, Result};
use crate::model::Progress;

/// Signals are looked at no more often, since each look waits for whatever thread holds the interpreter's lock.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(20);

/// The way back into Python from detached work. An exception raised there ends the work and is what the caller sees.
pub(super) struct Link {
    raised: Option<PyErr>,
    looked: Instant,
}

impl Link {
    /// Calls Python; an exception becomes `interrupted`, so that the work in between unwinds as for any error.
    pub(super) fn call(&mut self, f: impl FnOnce(Python<'_>) -> PyResult<()>) -> Result<()> {
        Python::attach(f).map_err(|raised| {
            self.raised = Some(raised);
            Error::new(ErrorCode::Interrupted, "Python raised an exception")
        })
    }

    /// Lets Python's signal handlers run; Ctrl-C arrives here.
    pub(super) fn check_signals(&mut self) -> Result<()> {
        if self.looked.elapsed() < SIGNAL_INTERVAL {
            return Ok(());
        }
        self.looked = Instant::now();
        self.call(|py| py.check_signals())
    }
}

/// Runs `work` with the interpreter's lock released.
pub(super) fn detached<T: Send>(py: Python<'_>, work: impl FnOnce(&mut Link) -> Result<T> + Send) -> PyResult<T> {
    let mut link = Link { raised: None, looked: Instant::now() };
    let result = py.detach(|| work(&mut link));
    match link.raised {
        Some(raised) => Err(raised),
        None => Ok(result?),
    }
}

/// Who is told how far loading has come: nobody (`None`, `False`), a bar on stderr (`True`), or a callable taking
/// (modules done, modules in all).
pub(super) enum Listener {
    Nobody,
    Bar(indicatif::ProgressBar),
    Callable(Py<PyAny>),
}

impl Listener {
    /// Reads the argument `progress`.
    pub(super) fn new(progress: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        match progress {
            None => Ok(Listener::Nobody),
            Some(value) if value.is_callable() => Ok(Listener::Callable(value.clone().unbind())),
            Some(value) if value.extract::<bool>()? => Ok(Listener::Bar(indicatif::ProgressBar::new(0))),
            Some(_) => Ok(Listener::Nobody),
        }
    }

    /// Passes a report on, and Ctrl-C back.
    pub(super) fn report(&self, link: &mut Link, progress: Progress) -> Result<()> {
        match self {
            Listener::Nobody => {}
            Listener::Bar(bar) => {
                bar.set_length(progress.total as u64);
                bar.set_position(progress.done as u64);
            }
            Listener::Callable(callable) => {
                link.call(|py| callable.call1(py, (progress.done, progress.total)).map(drop))?;
            }
        }
        link.check_signals()
    }

    /// Leaves the terminal as it was.
    pub(super) fn finish(&self) {
        if let Listener::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
