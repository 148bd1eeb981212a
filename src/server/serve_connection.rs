//! One connection: its limits of time, and its requests one after the other.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::Request;
use http_body::{Frame, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tower::{ServiceExt, service_fn};

use super::connections::{Busy, Connection};
use super::options::ServeOptions;
use super::write_timeout::WriteTimeout;

/// Largest headers of a request together, in bytes.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// Serves a connection until it ends or has to close, or until the request that it has is answered once the server is stopped.
pub fn serve_connection(
    stream: TcpStream,
    connection: Arc<Connection>,
    routes: Router,
    options: &ServeOptions,
    mut stopped: watch::Receiver<bool>,
) -> impl Future<Output = ()> + Send + use<> {
    // Chunks are small, and each is to arrive at once.
    let _ = stream.set_nodelay(true);
    let stream = WriteTimeout::new(stream, options.write_timeout);
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(options.header_timeout).max_buf_size(MAX_HEADER_BYTES);
    let place = Arc::clone(&connection);
    let service = service_fn(move |request: Request<_>| {
        let (routes, busy) = (routes.clone(), place.busy());
        async move {
            let response = routes.oneshot(request.map(Body::new)).await?;
            Ok::<_, Infallible>(response.map(|body| Body::new(TrackedBody { body, _busy: busy })))
        }
    });
    let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).into_owned();
    async move {
        let mut served = pin!(served);
        let outcome = tokio::select! {
            outcome = served.as_mut() => outcome,
            () = connection.must_close() => return,
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

/// Waits until the server is stopped.
pub async fn until_stopped(stopped: &mut watch::Receiver<bool>) {
    // The sender lives as long as the server.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// A response's body. Its connection is busy until it was sent.
struct TrackedBody {
    body: Body,
    _busy: Busy,
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
