//! What the handlers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::adapters::Adapters;
use super::client_paths::ClientPaths;
use super::engine_loop::{EngineLoop, stopping};
use super::metrics::Metrics;
use super::options::ServeOptions;
use super::prompt_text::PromptText;
use crate::engine::Engine;
use crate::error::{Error, ErrorCode, Result};

/// What the handlers share.
pub struct AppState {
    /// The engine. Only [`EngineLoop`] steps it.
    pub engine: Engine,
    /// The thread that steps it.
    pub engine_loop: EngineLoop,
    /// The adapters of requests.
    pub adapters: Adapters,
    /// The options of the server.
    pub options: ServeOptions,
    /// What is counted.
    pub metrics: Metrics,
    /// How much text of prompts is encoded.
    pub prompt_text: PromptText,
    /// When the server was started, in seconds since 1970.
    pub started: u64,
    /// The name of the model's folder.
    pub folder_name: String,
    /// What clients see of its files.
    pub client_paths: ClientPaths,
    /// Whether only this machine reaches the server.
    pub is_loopback: bool,
    is_stopping: AtomicBool,
}

impl AppState {
    /// Starts the engine's thread.
    ///
    /// # Errors
    /// As [`EngineLoop::start`] and [`Adapters::new`]; `request_invalid` or `sampling_invalid` for the defaults of requests.
    pub fn new(engine: Engine, mut options: ServeOptions, is_loopback: bool) -> Result<Arc<Self>> {
        check_defaults(&engine, &options)?;
        let folder_name = folder_name(&engine);
        if options.served_model_names.is_empty() {
            options.served_model_names.push(folder_name.clone());
        }
        let engine_loop = EngineLoop::start(&engine, engine.max_rows().saturating_add(options.max_queue))?;
        let metrics = Metrics::default();
        let adapters = Adapters::new(&engine, &options, &metrics)?;
        let prompt_text = PromptText::new(engine.max_tokens());
        let client_paths = ClientPaths::new(engine.model().path().to_owned(), &folder_name);
        let (started, is_stopping) = (unix_seconds(), AtomicBool::new(false));
        Ok(Arc::new(Self {
            engine,
            engine_loop,
            adapters,
            options,
            metrics,
            prompt_text,
            started,
            folder_name,
            client_paths,
            is_loopback,
            is_stopping,
        }))
    }

    /// The name of the base model in responses.
    pub fn model_name(&self) -> &str {
        self.options.served_model_names.first().map_or("base", String::as_str)
    }

    /// From now on, no request is accepted.
    pub fn stop_accepting(&self) {
        self.is_stopping.store(true, Ordering::Release);
    }

    /// Whether requests are accepted.
    ///
    /// # Errors
    /// `server_stopping`.
    pub fn check_accepting(&self) -> Result<()> {
        if self.is_stopping.load(Ordering::Acquire) { Err(stopping()) } else { Ok(()) }
    }
}

/// Runs work that takes a while, such as encoding a prompt, beside the threads that answer requests.
///
/// # Errors
/// What the work returned; `internal` if it panicked; `server_stopping`.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_cancelled() => Err(stopping()),
        Err(_) => Err(Error::new(ErrorCode::Internal, "a request's preparation panicked")),
    }
}

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Checks what a request has where it says nothing.
fn check_defaults(engine: &Engine, options: &ServeOptions) -> Result<()> {
    let mut request = engine.request("");
    options.defaults.apply(&mut request)?;
    if request.negative_prompt.is_none() {
        // It counts for the requests that bring one.
        request.sampling.cfg_scale = None;
    }
    engine.check_settings(&request)
}

fn folder_name(engine: &Engine) -> String {
    let path = engine.model().path();
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    path.file_name().map_or_else(|| "base".to_owned(), |name| name.to_string_lossy().into_owned())
}
