//! Long work with the interpreter's lock (GIL) released, which Python can still interrupt.

use std::cell::Cell;
use std::sync::Once;
use std::time::{Duration, Instant};

use exlora::error::{Error, ErrorCode, Result};
use exlora::guard;
use pyo3::exceptions::{PyException, PyKeyboardInterrupt};
use pyo3::prelude::*;

use crate::errors::py_err;
use crate::logging;

/// Signals are checked at most this often, because each check waits for the thread that holds the interpreter's lock.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(20);

thread_local! {
    /// Whether this thread works for a caller in Python.
    static HAS_CALLER: Cell<bool> = const { Cell::new(false) };
    /// What a callback raised for that caller.
    static FOR_CALLER: Cell<Option<PyErr>> = const { Cell::new(None) };
}

/// Calls Python from work that runs without the interpreter's lock. An exception raised there ends the work and reaches the
/// caller.
pub(crate) struct PythonCalls {
    raised: Option<PyErr>,
    last_check: Instant,
}

impl PythonCalls {
    /// Calls Python. An exception becomes the error `interrupted`, which ends the work like any other error.
    pub(crate) fn call(&mut self, f: impl FnOnce(Python<'_>) -> PyResult<()>) -> Result<()> {
        attached(f).map_err(|raised| {
            self.raised = Some(raised);
            Error::new(ErrorCode::Interrupted, "Python raised an exception")
        })
    }

    /// Raises what a callback raised for the caller, lets Python's signal handlers run (Ctrl-C), and delivers log records.
    pub(crate) fn check_signals(&mut self) -> Result<()> {
        if let Some(raised) = FOR_CALLER.take() {
            return self.call(|_| Err(raised));
        }
        if self.last_check.elapsed() < SIGNAL_INTERVAL {
            return Ok(());
        }
        self.last_check = Instant::now();
        self.call(|py| {
            logging::deliver(py);
            py.check_signals()
        })
    }
}

/// Calls Python from a thread that runs without the interpreter's lock.
pub(crate) fn attached<T>(f: impl FnOnce(Python<'_>) -> T) -> T {
    // Once the interpreter has ended, a daemon thread may still come here. It must not go back: the state that Python would
    // restore is freed.
    Python::try_attach(f).unwrap_or_else(|| wait_for_the_end())
}

/// The error of a request whose callback raised. What is no `Exception` (Ctrl-C, `sys.exit()`) reaches the caller of the engine too.
pub(crate) fn callback_error(py: Python<'_>, code: ErrorCode, callback: &str, raised: PyErr) -> Error {
    let error = Error::new(code, format!("{callback} raised {raised}"));
    if raised.is_instance_of::<PyException>(py) {
        return error;
    }
    if HAS_CALLER.get() {
        FOR_CALLER.set(Some(raised));
    } else if raised.is_instance_of::<PyKeyboardInterrupt>(py) {
        // A thread of the engine's own has no caller, so the main thread is told. Where it cannot be, the request's error remains.
        let _ = py.import("_thread").and_then(|thread| thread.call_method0("interrupt_main"));
    }
    error
}

/// Waits until the process ends.
fn wait_for_the_end() -> ! {
    loop {
        std::thread::park();
    }
}

/// What the module needs of its process, before its first work. Not when it is imported: the command, which Python runs through
/// this module too, does this its own way.
fn prepare_process() {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        logging::install();
        guard::silence_guarded_panics();
    });
}

/// Runs `work` with the interpreter's lock released, then delivers the log records it caused.
pub(crate) fn detached<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&mut PythonCalls) -> Result<T> + Send,
) -> PyResult<T> {
    let mut python = PythonCalls { raised: None, last_check: Instant::now() };
    prepare_process();
    // A callback may come here again.
    let (had_caller, for_outer) = (HAS_CALLER.replace(true), FOR_CALLER.take());
    let result = py.detach(|| work(&mut python));
    let raised = python.raised.or(FOR_CALLER.replace(for_outer));
    HAS_CALLER.set(had_caller);
    logging::deliver(py);
    match raised {
        Some(raised) => Err(raised),
        None => result.map_err(py_err),
    }
}
