//! Options of the server and their defaults.

use std::path::PathBuf;
use std::time::Duration;

use super::key::Key;
use super::openai::tool_calls::ToolCallFormat;
use crate::request_settings::RequestSettings;

/// Options of [`Server::bind`](super::Server::bind).
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Address or host name to listen on.
    pub host: String,
    /// Port to listen on; 0 for any that is free.
    pub port: u16,
    /// Keys that clients may show; empty for none that is asked for.
    pub api_keys: Vec<Key>,
    /// The key of the routes that load and unload adapters, which are refused without one. It opens all other routes too.
    pub admin_key: Option<Key>,
    /// A key for `/metrics` alone.
    pub metrics_key: Option<Key>,
    /// Whether the server may listen beyond loopback without keys.
    pub no_auth: bool,
    /// Origins of web pages that may send requests, such as `https://example.org`; `*` for all.
    pub cors_origins: Vec<String>,
    /// Names of the base model; responses have the first. By default the name of the model's folder. `base` is one too.
    pub served_model_names: Vec<String>,
    /// What a request has where it says nothing.
    pub defaults: RequestSettings,
    /// The format in which the model writes calls of tools; by default the one that its chat template teaches.
    pub tool_call_parser: Option<ToolCallFormat>,
    /// Samples that may wait beside those that run; requests beyond are refused.
    pub max_queue: usize,
    /// Largest body of a request, in bytes.
    pub max_body_bytes: usize,
    /// Largest number of open connections, at least 1. One more closes the connection that has been idle longest, or is answered
    /// with 503 if all have requests.
    pub max_connections: usize,
    /// Longest time for the headers of a request, and between requests of a connection.
    pub header_timeout: Duration,
    /// Longest time for the body of a request.
    pub body_timeout: Duration,
    /// Longest time in which a client that reads nothing keeps its connection while there is something to read.
    pub write_timeout: Duration,
    /// Longest time in which a stream of events sends nothing: a comment, where there is no event.
    pub event_silence: Duration,
    /// Longest time that running requests have to end when the server is stopped.
    pub shutdown_timeout: Duration,
    /// Folder of the adapters that are loaded when they are first named, and below which clients may name others to load.
    pub adapters_dir: Option<PathBuf>,
    /// Names of adapters that are never unloaded to make room for others.
    pub pinned_adapters: Vec<String>,
    /// Largest number of adapters that are loaded at the same time.
    pub max_adapter_loads: usize,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8000,
            api_keys: Vec::new(),
            admin_key: None,
            metrics_key: None,
            no_auth: false,
            cors_origins: Vec::new(),
            served_model_names: Vec::new(),
            defaults: RequestSettings::default(),
            tool_call_parser: None,
            max_queue: 256,
            max_body_bytes: 16 << 20,
            max_connections: 1024,
            header_timeout: Duration::from_secs(15),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            event_silence: Duration::from_secs(15),
            shutdown_timeout: Duration::from_secs(30),
            adapters_dir: None,
            pinned_adapters: Vec::new(),
            max_adapter_loads: 2,
        }
    }
}
