//! One connection: its limits of time, and its requests one after the other.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Request, Response, header};
use http_body::{Frame, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tower::{ServiceExt, service_fn};

use super::client_watch::ClientWatch;
use super::connections::{Busy, Connection};
use super::options::ServeOptions;
use super::socket::Socket;
use super::sse;
use super::write_timeout::WriteTimeout;

/// Largest headers of a request together, in bytes.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// Serves a connection until it ends or has to close, until the client of a request is gone, or until the request that it has is
/// answered once the server is stopped.
pub fn serve_connection(
    stream: TcpStream,
    connection: Arc<Connection>,
    routes: Router,
    options: &ServeOptions,
    mut stopped: watch::Receiver<bool>,
) -> impl Future<Output = ()> + Send + use<> {
    let socket = Socket::new(stream, options.write_timeout);
    let stream = WriteTimeout::new(socket.stream(), options.write_timeout);
    let client = ClientWatch::new(socket);
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(options.header_timeout)
        .max_buf_size(MAX_HEADER_BYTES)
        // Whether a client that sends nothing more is gone is found out by asking it.
        .half_close(true);
    let (place, watch) = (Arc::clone(&connection), Arc::clone(&client));
    let service = service_fn(move |request: Request<_>| {
        let routes = routes.clone();
        let progress =
            Arc::new(Progress { connection: Arc::clone(&place), client: Arc::clone(&watch), busy: Mutex::default() });
        let request = request.map(|body| Body::new(ReceivedBody::new(Body::new(body), &progress)));
        async move {
            let response = routes.oneshot(request).await?;
            let has_events = has_events(&response);
            progress.is_answered(has_events);
            Ok::<_, Infallible>(response.map(|body| Body::new(SentBody { body, has_events, progress })))
        }
    });
    let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).into_owned();
    async move {
        let mut served = pin!(served);
        let outcome = tokio::select! {
            outcome = served.as_mut() => outcome,
            () = connection.must_close() => return,
            () = client.is_gone() => return,
            () = until_stopped(&mut stopped) => {
                served.as_mut().graceful_shutdown();
                tokio::select! {
                    outcome = served.as_mut() => outcome,
                    () = client.is_gone() => return,
                }
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

/// How far a request is.
struct Progress {
    connection: Arc<Connection>,
    client: Arc<ClientWatch>,
    /// Set once it has arrived whole. Until then its connection counts as idle and gives way to others, so that nobody keeps them
    /// out by bodies that never arrive.
    busy: Mutex<Option<Busy>>,
}

impl Progress {
    fn has_arrived(&self) {
        self.begin();
        self.client.waits();
    }

    /// Also where nobody has read its body.
    fn is_answered(&self, with_events: bool) {
        self.begin();
        self.client.is_answered(with_events);
    }

    fn begin(&self) {
        self.busy.lock().get_or_insert_with(|| self.connection.busy());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.client.ends();
    }
}

fn has_events(response: &Response<Body>) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE).map(|kind| kind.as_bytes());
    kind.is_some_and(|kind| kind.starts_with(sse::CONTENT_TYPE.as_bytes()))
}

/// A request's body, which tells when it has arrived. What is left of it after the answer concerns nobody.
struct ReceivedBody {
    body: Body,
    progress: Weak<Progress>,
}

impl ReceivedBody {
    fn new(body: Body, progress: &Arc<Progress>) -> Self {
        let received = Self { body, progress: Arc::downgrade(progress) };
        if received.body.is_end_stream() {
            received.note_end();
        }
        received
    }

    fn note_end(&self) {
        if let Some(progress) = self.progress.upgrade() {
            progress.has_arrived();
        }
    }
}

impl HttpBody for ReceivedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.note_end();
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
    /// Each of its frames is an event, so comments may stand between them.
    has_events: bool,
    progress: Arc<Progress>,
}

impl HttpBody for SentBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.has_events && self.progress.client.takes_comment() {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(sse::COMMENT.as_bytes())))));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
