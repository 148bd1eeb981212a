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
use parking_lot::Mutex;
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
        let (routes, busy) = (routes.clone(), BusySince::default());
        let received = |body| Body::new(ReceivedBody::new(Body::new(body), Arc::clone(&place), busy.clone()));
        let (request, place) = (request.map(received), Arc::clone(&place));
        async move {
            let response = routes.oneshot(request).await?;
            // Also where nobody has read the body.
            busy.begin(&place);
            Ok::<_, Infallible>(response.map(|body| Body::new(SentBody { body, _busy: busy })))
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

/// Set once a request has arrived whole. Until then its connection counts as idle and gives way to others, so that nobody keeps
/// them out by bodies that never arrive.
#[derive(Clone, Default)]
struct BusySince(Arc<Mutex<Option<Busy>>>);

impl BusySince {
    fn begin(&self, connection: &Arc<Connection>) {
        self.0.lock().get_or_insert_with(|| connection.busy());
    }
}

/// A request's body, which tells when it has arrived.
struct ReceivedBody {
    body: Body,
    connection: Arc<Connection>,
    busy: BusySince,
}

impl ReceivedBody {
    fn new(body: Body, connection: Arc<Connection>, busy: BusySince) -> Self {
        let received = Self { body, connection, busy };
        received.note_end();
        received
    }

    fn note_end(&self) {
        if self.body.is_end_stream() {
            self.busy.begin(&self.connection);
        }
    }
}

impl HttpBody for ReceivedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match frame {
            Poll::Ready(None) => self.busy.begin(&self.connection),
            _ => self.note_end(),
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body. Its connection is busy until it was sent.
struct SentBody {
    body: Body,
    _busy: BusySince,
}

impl HttpBody for SentBody {
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
