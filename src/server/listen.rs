//! The server's socket and its life: from `bind` over `serve` to a graceful end.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use rustix::process::{Resource, getrlimit};
use tokio::runtime::{self, Runtime};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::connections::Connections;
use super::options::ServeOptions;
use super::router::{check_origins, router};
use super::serve_connection::{serve_connection, until_stopped};
use super::state::AppState;
use super::turn_away::{MAX_TURNED_AWAY, turn_away};
use crate::engine::Engine;
use crate::error::{Error, ErrorCode, Result};

/// Threads that read requests and write responses. What takes longer has threads of its own.
const HTTP_THREADS: usize = 2;

/// Most of the threads that encode prompts, check grammars and load adapters. What is beyond waits.
const BLOCKING_THREADS: usize = 32;

/// How long the server waits after an error of `accept`, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long clients whose requests were ended have to read so.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Open files that are not connections: those of the model, of adapters that are being loaded, of Python, and clients that there
/// is no connection for.
const OTHER_FILES: u64 = 96 + MAX_TURNED_AWAY as u64;

/// An HTTP server over one engine.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    state: Arc<AppState>,
    routes: Router,
    stop: watch::Sender<bool>,
}

/// Stops a [`Server`] from any thread.
#[derive(Clone)]
pub struct StopHandle(watch::Sender<bool>);

impl StopHandle {
    /// Stops it: no request is accepted from now on, and running ones end within
    /// [`ServeOptions::shutdown_timeout`](super::ServeOptions::shutdown_timeout).
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Server {
    /// Listens for requests to an engine, which nobody else may step. They are answered from [`Server::serve`] on.
    ///
    /// # Errors
    /// As [`Server::listen`] and [`Server::new`].
    pub fn bind(engine: Engine, options: ServeOptions) -> Result<Self> {
        Self::new(Self::listen(&options)?, engine, options)
    }

    /// Listens where the options say, before there is an engine.
    ///
    /// # Errors
    /// `io_failed`: the address cannot be listened on. `request_invalid`: it is beyond loopback, and there is no key;
    /// a CORS origin is none; or there may be no connections.
    pub fn listen(options: &ServeOptions) -> Result<TcpListener> {
        let failed = |e| cannot_listen(options, &e);
        check_origins(&options.cors_origins)?;
        if options.max_connections == 0 {
            let what = "max_connections is 0, so nobody could ask the server anything";
            return Err(Error::new(ErrorCode::RequestInvalid, what).with_expected("at least 1"));
        }
        // An address of IPv6 may be in brackets, as in a URL.
        let host = options.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&options.host);
        let listener = TcpListener::bind((host, options.port)).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        if !address.ip().is_loopback() && options.api_keys.is_empty() && !options.no_auth {
            let what = format!("{} can be reached from other machines, and there is no key", address.ip());
            return Err(Error::new(ErrorCode::RequestInvalid, what)
                .with_hint("give an API key, or say that everyone may use the server: --no-auth"));
        }
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(listener)
    }

    /// A server that listens already, with the same options.
    ///
    /// # Errors
    /// `io_failed`: the folder of adapters cannot be opened. `adapter_name_invalid`: an adapter has a name of the base.
    /// `request_invalid` or `sampling_invalid`: the defaults are wrong. For pinned adapters, those that loading an adapter has.
    pub fn new(listener: TcpListener, engine: Engine, options: ServeOptions) -> Result<Self> {
        let address = listener.local_addr().map_err(|e| cannot_listen(&options, &e))?;
        let (stop, _) = watch::channel(false);
        let state = AppState::new(engine, options, address.ip().is_loopback())?;
        let routes = router(&state)?;
        Ok(Self { listener, address, state, routes, stop })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The base model's name in responses.
    pub fn model_name(&self) -> &str {
        self.state.model_name()
    }

    /// What stops it.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle(self.stop.clone())
    }

    /// Answers requests until it is stopped.
    ///
    /// # Errors
    /// `io_failed`: the operating system gives no threads.
    pub fn serve(self) -> Result<()> {
        let runtime = http_threads()?;
        let grace = self.state.options.shutdown_timeout;
        let state = Arc::clone(&self.state);
        runtime.block_on(self.run());
        // Whatever still runs ends now.
        state.engine_loop.stop();
        runtime.shutdown_timeout(grace.min(Duration::from_secs(1)));
        Ok(())
    }

    async fn run(self) {
        let Ok(listener) = tokio::net::TcpListener::from_std(self.listener).inspect_err(|error| {
            tracing::error!(%error, "cannot listen");
        }) else {
            return;
        };
        let max_connections = most_connections(self.state.options.max_connections);
        let connections = Connections::new(max_connections);
        let (mut tasks, mut turned_away) = (JoinSet::new(), JoinSet::new());
        let mut stopped = self.stop.subscribe();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = tasks.join_next() => continue,
                () = until_stopped(&mut stopped) => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    let Some(connection) = connections.open() else {
                        self.state.metrics.rejected();
                        while turned_away.try_join_next().is_some() {}
                        if turned_away.len() < MAX_TURNED_AWAY {
                            turned_away.spawn(turn_away(stream, max_connections));
                        }
                        continue;
                    };
                    let (options, stopped) = (&self.state.options, self.stop.subscribe());
                    tasks.spawn(serve_connection(stream, connection, self.routes.clone(), options, stopped));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        self.state.stop_accepting();
        let limit = self.state.options.shutdown_timeout;
        if tokio::time::timeout(limit, all_ended(&mut tasks)).await.is_err() {
            tracing::warn!("requests that still ran after {} s are ended", limit.as_secs());
            let state = Arc::clone(&self.state);
            // It waits for a step.
            let _ = tokio::task::spawn_blocking(move || state.engine_loop.stop()).await;
            // Their clients are told so.
            let _ = tokio::time::timeout(LAST_WORDS, all_ended(&mut tasks)).await;
        }
    }
}

fn cannot_listen(options: &ServeOptions, error: &std::io::Error) -> Error {
    let what = format!("cannot listen on {} port {}: {error}", options.host, options.port);
    Error::new(ErrorCode::IoFailed, what).with_hint("choose another --port or --host")
}

async fn all_ended(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

/// The largest number of connections that leaves files to open for everything else.
fn most_connections(asked: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let left = usize::try_from(limit.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX);
    if left < asked {
        tracing::warn!(limit, asked, "there are fewer connections than asked for: the process may open too few files");
    }
    asked.min(left)
}

fn http_threads() -> Result<Runtime> {
    runtime::Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("exlora-http")
        .enable_io()
        .enable_time()
        .build()
        .map_err(|e| Error::new(ErrorCode::IoFailed, format!("cannot start the server's threads: {e}")))
}
