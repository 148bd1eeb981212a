//! The server's socket and its life: from `bind` over `serve` to a graceful end.

use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::runtime::{self, Runtime};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::options::ServeOptions;
use super::router::router;
use super::state::AppState;
use crate::engine::Engine;
use crate::error::{Error, ErrorCode, Result};

/// Threads that read requests and write responses. What takes longer has threads of its own.
const HTTP_THREADS: usize = 2;

/// Largest headers of a request together, in bytes.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// How long the server waits after an error of `accept`, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An HTTP server over one engine.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    state: Arc<AppState>,
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
    /// `io_failed`: the address cannot be listened on. `request_invalid`: it is beyond loopback, and there is no key.
    pub fn bind(engine: Engine, options: ServeOptions) -> Result<Self> {
        let failed = |e: std::io::Error| {
            let what = format!("cannot listen on {} port {}: {e}", options.host, options.port);
            Error::new(ErrorCode::IoFailed, what).with_hint("choose another --port or --host")
        };
        let listener = TcpListener::bind((options.host.as_str(), options.port)).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        if !address.ip().is_loopback() && options.api_keys.is_empty() && !options.no_auth {
            let what = format!("{} can be reached from other machines, and there is no key", address.ip());
            return Err(Error::new(ErrorCode::RequestInvalid, what)
                .with_hint("give an API key, or say that everyone may use the server: --no-auth"));
        }
        let (stop, _) = watch::channel(false);
        Ok(Self { listener, address, state: AppState::new(engine, options)?, stop })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
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
        let routes = router(&self.state);
        let mut connections = JoinSet::new();
        let mut stopped = self.stop.subscribe();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                () = until_stopped(&mut stopped) => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (options, stopped) = (&self.state.options, self.stop.subscribe());
                    connections.spawn(connection(stream, routes.clone(), options, stopped));
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
        let ended = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, ended).await.is_err() {
            tracing::warn!("requests that still ran after {} s are ended", limit.as_secs());
        }
    }
}

/// Serves a connection until it ends, or until the request that it has is answered once the server is stopped.
fn connection(
    stream: TcpStream,
    routes: Router,
    options: &ServeOptions,
    mut stopped: watch::Receiver<bool>,
) -> impl Future<Output = ()> + Send + use<> {
    // Chunks are small, and each is to arrive at once.
    let _ = stream.set_nodelay(true);
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(options.header_timeout).max_buf_size(MAX_HEADER_BYTES);
    let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes)).into_owned();
    async move {
        let mut served = pin!(served);
        let outcome = tokio::select! {
            outcome = served.as_mut() => outcome,
            () = until_stopped(&mut stopped) => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        };
        // Clients that go away or send no HTTP are nothing to report.
        if let Err(error) = outcome {
            tracing::debug!(error, "a connection ended");
        }
    }
}

async fn until_stopped(stopped: &mut watch::Receiver<bool>) {
    // The sender lives as long as the server.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

fn http_threads() -> Result<Runtime> {
    runtime::Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .thread_name("exlora-http")
        .enable_io()
        .enable_time()
        .build()
        .map_err(|e| Error::new(ErrorCode::IoFailed, format!("cannot start the server's threads: {e}")))
}
