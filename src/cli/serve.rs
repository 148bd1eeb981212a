//! `exlora serve`: the HTTP server.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueHint};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::low_level::pipe;

use super::args::{EngineArgs, RequestSettings, path};
use super::output::{print, print_json};
use crate::engine::Engine;
use crate::error::{Error, ErrorCode, Result};
use crate::server::{Key, ServeOptions, Server, StopHandle, ToolCallFormat};

#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    server: HttpArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    defaults: RequestSettings,
}

// Paragraphs are one line each, which is wrapped to the terminal's width.
const AFTER_HELP: &str = "\
Ask the base model, an adapter, or a mixture:
  curl localhost:8000/v1/completions -H 'Content-Type: application/json' \\
      -d '{\"model\": \"base\", \"prompt\": \"Once upon\"}'
  curl localhost:8000/v1/completions -H 'Content-Type: application/json' \\
      -d '{\"model\": \"sql\", \"prompt\": \"SELECT\"}'
  curl localhost:8000/v1/completions -H 'Content-Type: application/json' \\
      -d '{\"adapters\": {\"sql\": 0.7, \"tone\": 0.3}, \"prompt\": \"SELECT\"}'

The options under Sampling are what a request has where it says nothing. \
Without max_tokens a completion has 16 new tokens, and a chat's answer goes on up to the end of the context. \
The first Ctrl-C or SIGTERM lets running requests end, the second does not.";

#[derive(Args)]
#[command(next_help_heading = "Server")]
struct HttpArgs {
    /// Address or host name to listen on, of IPv6 also in brackets; beyond this machine only with --api-key or --no-auth.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 for any that is free.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Key that clients must show; may be repeated. Also read from EXLORA_API_KEY.
    #[arg(long = "api-key", value_name = "KEY")]
    api_keys: Vec<String>,
    /// Key of the routes that load and unload adapters, which are closed without one. Also read from EXLORA_ADMIN_KEY.
    #[arg(long, value_name = "KEY")]
    admin_key: Option<String>,
    /// Key for /metrics alone.
    #[arg(long, value_name = "KEY")]
    metrics_key: Option<String>,
    /// Let everyone who can reach the server use it, also from other machines.
    #[arg(long)]
    no_auth: bool,
    /// Origin of web pages that may send requests: scheme, host and port; may be repeated, * for all. None by default.
    #[arg(long = "cors-origin", value_name = "ORIGIN")]
    cors_origins: Vec<String>,
    /// Name of the base model; may be repeated, responses have the first. By default the name of its folder.
    #[arg(long = "served-model-name", value_name = "NAME")]
    served_model_names: Vec<String>,
    /// How the model writes calls of tools: hermes (also Qwen), llama3 or mistral. By default what its chat template teaches.
    #[arg(long, value_name = "FORMAT", value_parser = tool_call_format())]
    tool_call_parser: Option<ToolCallFormat>,
    /// Folder of adapters that are loaded when a request first names them, and below which clients may load others.
    #[arg(long, value_name = "DIR", value_parser = path(), value_hint = ValueHint::DirPath)]
    adapters_dir: Option<PathBuf>,
    /// Name of an adapter that is never unloaded to make room for others; may be repeated. Those of --adapter never are.
    #[arg(long = "pin", value_name = "NAME")]
    pinned_adapters: Vec<String>,
    /// Largest number of adapters that are loaded at the same time.
    #[arg(long, value_name = "N", default_value_t = ServeOptions::default().max_adapter_loads)]
    max_adapter_loads: usize,
    /// Requests that may wait beside those that run; more are refused with status 429.
    #[arg(long, value_name = "N", default_value_t = ServeOptions::default().max_queue)]
    max_queue: usize,
    /// Open connections. One more closes the one that has been idle longest; where all have requests, it is refused with status 503.
    #[arg(long, value_name = "N", default_value_t = ServeOptions::default().max_connections)]
    max_connections: usize,
    /// Longest time that running requests have to end when the server is stopped, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = ServeOptions::default().shutdown_timeout.as_secs())]
    shutdown_timeout: u64,
}

impl ServeArgs {
    /// Checks that there is something to load a pinned adapter from.
    fn check_pins(&self) -> Result<()> {
        let is_loaded = |name: &String| self.engine.adapters.iter().any(|adapter| adapter.name == *name);
        let unknown = self.server.pinned_adapters.iter().find(|name| !is_loaded(name));
        match unknown.filter(|_| self.server.adapters_dir.is_none()) {
            None => Ok(()),
            Some(name) => {
                let what =
                    format!("--pin {name}: no --adapter has this name, and there is no --adapters-dir to load it from");
                Err(Error::new(ErrorCode::RequestInvalid, what)
                    .with_hint(format!("give --adapters-dir DIR, or --adapter {name}=DIR")))
            }
        }
    }

    fn options(&self) -> Result<ServeOptions> {
        let args = &self.server;
        let from_environment = |name: &str| std::env::var(name).ok().filter(|key| !key.is_empty());
        let api_keys = args.api_keys.iter().cloned().chain(from_environment("EXLORA_API_KEY"));
        let admin_key = args.admin_key.clone().or_else(|| from_environment("EXLORA_ADMIN_KEY"));
        Ok(ServeOptions {
            host: args.host.clone(),
            port: args.port,
            api_keys: api_keys.map(|key| Key::new(&key)).collect::<Result<_>>()?,
            admin_key: admin_key.as_deref().map(Key::new).transpose()?,
            metrics_key: args.metrics_key.as_deref().map(Key::new).transpose()?,
            no_auth: args.no_auth,
            cors_origins: args.cors_origins.clone(),
            served_model_names: args.served_model_names.clone(),
            defaults: self.defaults.clone(),
            tool_call_parser: args.tool_call_parser,
            max_queue: args.max_queue,
            max_connections: args.max_connections,
            shutdown_timeout: Duration::from_secs(args.shutdown_timeout),
            adapters_dir: args.adapters_dir.clone(),
            pinned_adapters: args.pinned_adapters.clone(),
            max_adapter_loads: args.max_adapter_loads,
            ..ServeOptions::default()
        })
    }
}

fn tool_call_format() -> impl TypedValueParser<Value = ToolCallFormat> {
    PossibleValuesParser::new(ToolCallFormat::ALL.map(ToolCallFormat::name)).try_map(|name| name.parse())
}

pub(super) fn run(args: &ServeArgs, json: bool) -> Result<()> {
    let options = args.options()?;
    // What is wrong with them is told before the model takes its time to load.
    args.check_pins()?;
    let listener = Server::listen(&options)?;
    let (engine, _) = args.engine.load()?;
    allow_open_files();
    let server = Server::new(listener, engine.clone(), options)?;
    stop_on_signals(server.stop_handle())?;
    report_ready(&engine, &server, json)?;
    server.serve()
}

/// Lets the process have as many open files as it may ask for: each connection is one.
fn allow_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot, the server has fewer connections.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// One line: where the server listens, and what it serves.
fn report_ready(engine: &Engine, server: &Server, json: bool) -> Result<()> {
    let adapters: Vec<String> = engine.adapters().into_iter().map(|adapter| adapter.name).collect();
    let (url, name, path) = (server.url(), server.model_name(), engine.model().path().display().to_string());
    if json {
        return print_json(&json!({ "url": url, "served_model_name": name, "model": path, "adapters": adapters }));
    }
    let names = if adapters.is_empty() { "none".to_owned() } else { adapters.join(", ") };
    print(&format!("listening on {url}, model {name} ({path}), adapters: {names}\n"))
}

/// The first Ctrl-C or SIGTERM stops the server, the second one ends the process at once.
fn stop_on_signals(handle: StopHandle) -> Result<()> {
    let failed = |e: std::io::Error| Error::new(ErrorCode::IoFailed, format!("cannot catch signals: {e}"));
    let (mut receiver, sender) = UnixStream::pair().map_err(failed)?;
    let is_stopping = Arc::default();
    for signal in [SIGINT, SIGTERM] {
        // Handlers run in this order: the first acts only if the flag was set before.
        flag::register_conditional_default(signal, Arc::clone(&is_stopping)).map_err(failed)?;
        flag::register(signal, Arc::clone(&is_stopping)).map_err(failed)?;
        pipe::register(signal, sender.try_clone().map_err(failed)?).map_err(failed)?;
    }
    thread::Builder::new()
        .name("exlora-signals".to_owned())
        .spawn(move || {
            // Where the pipe is broken, no signal can come either.
            if receiver.read(&mut [0]).is_ok() {
                handle.stop();
            }
        })
        .map_err(failed)?;
    Ok(())
}
