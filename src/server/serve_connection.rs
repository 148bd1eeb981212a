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
    let client = ClientWatch::new(socket, options.event_silence);
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
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if self.has_events && frame.is_ready() {
            self.progress.client.is_sent_event();
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::SocketAddr;
    use std::time::Duration;

    use axum::routing::get;
    use futures_util::{StreamExt, stream};
    use tokio::net::TcpListener;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::server::connections::Connections;

    /// What a client reads of a stream whose events come after so many milliseconds.
    async fn read(pauses: &'static [u64], event_silence: Duration) -> String {
        let events = move || async move {
            let events = stream::iter(pauses).then(|pause| async move {
                sleep(Duration::from_millis(*pause)).await;
                sse::event(pause)
            });
            sse::response(events)
        };
        let routes = Router::new().route("/", get(events));
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("it listens");
        let address = listener.local_addr().expect("known");
        let client = tokio::task::spawn_blocking(move || {
            let mut client = std::net::TcpStream::connect(address).expect("connects");
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("sent");
            let mut text = String::new();
            client.read_to_string(&mut text).expect("an answer");
            text
        });
        let (stream, _) = listener.accept().await.expect("accepted");
        let connection = Connections::new(1).open().expect("room");
        let options = ServeOptions { event_silence, ..ServeOptions::default() };
        let (_stop, stopped) = watch::channel(false);
        let served = serve_connection(stream, connection, routes, &options, stopped);
        timeout(Duration::from_secs(60), served).await.expect("it ends");
        client.await.expect("no panic")
    }

    #[tokio::test]
    async fn a_stream_with_nothing_to_say_sends_comments_between_its_events() {
        let events = |text: &str| -> Vec<String> {
            text.lines().filter(|line| line.starts_with("data: ")).map(str::to_owned).collect()
        };
        let comments = |text: &str| text.matches("\n: ping\n\n").count();
        let text = read(&[1, 700, 1], Duration::from_millis(100)).await;
        assert_eq!(events(&text), ["data: 1", "data: 700", "data: 1"]);
        let (before, _) = text.split_once("data: 700").expect("sent");
        assert!(comments(before) >= 2, "{text}");
        let text = read(&[1, 300, 300, 1], Duration::from_secs(60)).await;
        assert_eq!((events(&text).len(), comments(&text)), (4, 0), "{text}");
    }
}
