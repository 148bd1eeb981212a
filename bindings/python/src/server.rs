//! The HTTP server as a Python object. `exlora/server.py` has the class that users see.

use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use exlora::error::{Error, ErrorCode};
use exlora::request_settings::read_json;
use exlora::server::{Key, ServeOptions, Server, StopHandle};
use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use serde_json::Value;

use crate::engine::PyEngine;
use crate::errors::{Result, py_err};
use crate::gil::{PythonCalls, detached};
use crate::numbers::{count, integer};

/// How often a thread that waits for the server looks at it, and at signals.
const LOOK: Duration = Duration::from_millis(20);

/// An HTTP server that answers requests in a thread of its own. Deleting it stops it.
#[pyclass(frozen, name = "Server", module = "exlora._exlora")]
pub(crate) struct PyServer {
    url: String,
    port: u16,
    stop: StopHandle,
    thread: Mutex<Option<JoinHandle<exlora::Result<()>>>>,
    /// The process that has the thread.
    process: u32,
}

#[pymethods]
impl PyServer {
    /// Listens, and answers requests from now on. `defaults` is a JSON object: what a request has where it says nothing.
    #[new]
    #[pyo3(signature = (engine, *, host="127.0.0.1".to_owned(), port: "SupportsIndex"=8000, api_keys=Vec::new(),
                        admin_key=None, metrics_key=None, no_auth=false, cors_origins=Vec::new(),
                        served_model_names=Vec::new(), adapters_dir=None, pinned_adapters=Vec::new(),
                        tool_call_parser=None, max_queue: "SupportsIndex"=256,
                        max_connections: "SupportsIndex"=1024, shutdown_timeout=30.0, defaults="{}"))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        engine: &Bound<'_, PyEngine>,
        host: String,
        #[pyo3(from_py_with = integer)] port: i64,
        api_keys: Vec<String>,
        admin_key: Option<&str>,
        metrics_key: Option<&str>,
        no_auth: bool,
        cors_origins: Vec<String>,
        served_model_names: Vec<String>,
        adapters_dir: Option<PathBuf>,
        pinned_adapters: Vec<String>,
        tool_call_parser: Option<&str>,
        #[pyo3(from_py_with = integer)] max_queue: i64,
        #[pyo3(from_py_with = integer)] max_connections: i64,
        shutdown_timeout: f64,
        defaults: &str,
    ) -> Result<Self> {
        let wrong = |what: &str| py_err(Error::new(ErrorCode::RequestInvalid, what));
        let defaults: Value = serde_json::from_str(defaults).map_err(|e| PyValueError::new_err(e.to_string()))?;
        let defaults = read_json(defaults)?;
        let options = ServeOptions {
            host,
            port: u16::try_from(port).map_err(|_| wrong("port is a number from 0 to 65535"))?,
            api_keys: api_keys.iter().map(|key| Key::new(key)).collect::<exlora::Result<_>>()?,
            admin_key: admin_key.map(Key::new).transpose()?,
            metrics_key: metrics_key.map(Key::new).transpose()?,
            no_auth,
            cors_origins,
            served_model_names,
            adapters_dir,
            pinned_adapters,
            tool_call_parser: tool_call_parser.map(str::parse).transpose()?,
            max_queue: count("max_queue", max_queue)?,
            max_connections: count("max_connections", max_connections)?,
            shutdown_timeout: Duration::try_from_secs_f64(shutdown_timeout)
                .map_err(|_| wrong("shutdown_timeout is a number of seconds, of at least 0"))?,
            defaults,
            ..ServeOptions::default()
        };
        let engine = engine.get().engine().clone();
        let server = detached(py, |_| {
            let server = Server::bind(engine, options)?;
            let (url, port, stop) = (server.url(), server.local_addr().port(), server.stop_handle());
            let thread = thread::Builder::new()
                .name("exlora-server".to_owned())
                .spawn(move || server.serve())
                .map_err(|e| Error::new(ErrorCode::IoFailed, format!("cannot start the server's thread: {e}")))?;
            Ok(Self { url, port, stop, thread: Mutex::new(Some(thread)), process: std::process::id() })
        })?;
        Ok(server)
    }

    /// Its URL, without a slash at the end.
    #[getter]
    fn url(&self) -> &str {
        &self.url
    }

    /// The port that it listens on.
    #[getter]
    fn port(&self) -> u16 {
        self.port
    }

    /// From now on, no request is accepted. Does not wait.
    fn begin_stop(&self) {
        self.stop.stop();
    }

    /// Waits until it has ended, but no longer than `timeout` seconds; whether it has. In a forked process it has.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        if timeout.is_some_and(f64::is_nan) {
            let error = Error::new(ErrorCode::RequestInvalid, "timeout is a number of seconds");
            return Err(py_err(error.with_found("nan")));
        }
        // What no duration can hold is longer than anybody waits.
        let limit = timeout.and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok());
        detached(py, |python| self.wait_with(python, limit.map(|limit| Instant::now() + limit)))
    }
}

impl PyServer {
    fn wait_with(&self, python: &mut PythonCalls, deadline: Option<Instant>) -> exlora::Result<bool> {
        if std::process::id() != self.process {
            // Threads are not forked.
            return Ok(true);
        }
        loop {
            let mut thread = self.thread.lock();
            if let Some(ended) = thread.take_if(|thread| thread.is_finished()) {
                let panicked = |_| Err(Error::new(ErrorCode::Internal, "the server's thread panicked"));
                return ended.join().unwrap_or_else(panicked).map(|()| true);
            }
            if thread.is_none() {
                return Ok(true);
            }
            drop(thread);
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(false);
            }
            python.check_signals()?;
            thread::sleep(LOOK);
        }
    }
}

impl Drop for PyServer {
    fn drop(&mut self) {
        self.stop.stop();
    }
}
