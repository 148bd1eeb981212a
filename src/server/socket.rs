//! A client's socket, which a connection reads and writes while somebody else looks whether the client is still there.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, shutdown, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Probes of a client that sends nothing, in the time in which it may give no sign of life.
const PROBES: u32 = 4;

/// A socket that can be looked at beside its connection.
pub struct Socket {
    stream: TcpStream,
    /// Whether the connection has bytes that the socket does not take yet.
    has_unsent: AtomicBool,
    /// Bytes that were sent ahead of the connection, which it writes next.
    sent_ahead: AtomicUsize,
}

/// What the connection reads and writes.
pub struct SocketStream(Arc<Socket>);

/// What is known of the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Nothing: it is there.
    Open,
    /// It sends nothing more. It may wait for what is sent to it, or be gone.
    Finished,
    /// It was reset, or the connection is broken.
    Gone,
}

impl Socket {
    /// The socket of a connection. A client whose machine is gone without a word counts as gone once nothing has been heard of it for
    /// `silence`.
    pub fn new(stream: TcpStream, silence: Duration) -> Arc<Self> {
        // Chunks are small, and each is to arrive at once.
        let _ = stream.set_nodelay(true);
        // Where the system does not ask for signs of life, writing fails at last.
        let _ = ask_for_signs_of_life(&stream, silence);
        Arc::new(Self { stream, has_unsent: AtomicBool::new(false), sent_ahead: AtomicUsize::new(0) })
    }

    /// Its one reader and writer.
    pub fn stream(self: &Arc<Self>) -> SocketStream {
        SocketStream(Arc::clone(self))
    }

    /// What is known of the other end now, whatever of its bytes nobody has read yet.
    pub fn peer(&self) -> Peer {
        let mut looked_at = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        // Where the system says nothing, as where a signal came, the next look will tell.
        let _ = poll(&mut looked_at, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        let found = looked_at[0].revents();
        if found.intersects(PollFlags::HUP | PollFlags::ERR) {
            Peer::Gone
        } else if found.contains(PollFlags::RDHUP) {
            Peer::Finished
        } else {
            Peer::Open
        }
    }

    /// Sends bytes that the connection is known to write next, which are left out when it does; `false` if it has bytes of its own
    /// to send first, or nothing is sent.
    ///
    /// # Errors
    /// The socket takes none, or not all of them.
    pub fn send_ahead(&self, bytes: &[u8]) -> io::Result<bool> {
        if self.has_unsent.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match self.stream.try_write(bytes) {
            Ok(sent) if sent == bytes.len() => {
                self.sent_ahead.fetch_add(sent, Ordering::Relaxed);
                Ok(true)
            }
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How many of the bytes that the connection writes were sent ahead.
    fn take_sent_ahead(&self, written: usize) -> usize {
        let taken = self.sent_ahead.load(Ordering::Relaxed).min(written);
        self.sent_ahead.fetch_sub(taken, Ordering::Relaxed);
        taken
    }

    /// Writes some of `bytes` bytes as soon as the socket takes them.
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        bytes: usize,
        send: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let sent_ahead = self.take_sent_ahead(bytes);
        if sent_ahead > 0 {
            return Poll::Ready(Ok(sent_ahead));
        }
        loop {
            let is_ready = self.stream.poll_write_ready(cx);
            self.has_unsent.store(is_ready.is_pending(), Ordering::Relaxed);
            ready!(is_ready)?;
            match send(&self.stream) {
                // It was not ready after all, and is asked again.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

/// Lets the system probe a connection on which nothing is sent, and break it when data or probes are not acknowledged for `silence`.
fn ask_for_signs_of_life(stream: &TcpStream, silence: Duration) -> io::Result<()> {
    // The system's unit is seconds, and it refuses 0.
    let between_probes = (silence / PROBES).max(Duration::from_secs(1));
    sockopt::set_tcp_keepidle(stream, between_probes)?;
    sockopt::set_tcp_keepintvl(stream, between_probes)?;
    // It takes no more than an i32 holds.
    let milliseconds = i32::try_from(silence.as_millis()).unwrap_or(i32::MAX);
    sockopt::set_tcp_user_timeout(stream, milliseconds.unsigned_abs())?;
    sockopt::set_socket_keepalive(stream, true)?;
    Ok(())
}

impl AsyncRead for SocketStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = &self.0.stream;
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_read(buffer.initialize_unfilled()) {
                Ok(bytes) => {
                    buffer.advance(bytes);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for SocketStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_send(cx, bytes.len(), |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = parts.iter().map(|part| part.len()).sum();
        self.0.poll_send(cx, bytes, |stream| stream.try_write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(&self.0.stream, Shutdown::Write).map_err(io::Error::from))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::{Shutdown, SocketAddr};

    use rustix::net::sockopt::set_socket_linger;
    use tokio::net::TcpListener;
    use tokio::time::{sleep, timeout};

    use super::*;

    const SILENCE: Duration = Duration::from_secs(60);

    /// A socket, and its client's end.
    async fn connected() -> (Arc<Socket>, std::net::TcpStream) {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("listens");
        let client = std::net::TcpStream::connect(listener.local_addr().expect("known")).expect("connects");
        (Socket::new(listener.accept().await.expect("accepted").0, SILENCE), client)
    }

    async fn until(socket: &Socket, peer: Peer) {
        let seen = async {
            while socket.peer() != peer {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(30), seen).await.unwrap_or_else(|_| panic!("it is {:?}", socket.peer()));
    }

    #[tokio::test]
    async fn an_end_that_sends_nothing_more_is_told_from_one_that_was_reset() {
        for unread in ["", "bytes that nobody reads"] {
            let (socket, mut client) = connected().await;
            io::Write::write_all(&mut client, unread.as_bytes()).expect("sent");
            assert_eq!(socket.peer(), Peer::Open);
            client.shutdown(Shutdown::Write).expect("shut down");
            until(&socket, Peer::Finished).await;
            assert!(socket.send_ahead(b"still there?").expect("sent"));
            sleep(Duration::from_millis(20)).await;
            assert_eq!(socket.peer(), Peer::Finished, "it reads");
            drop(client);

            // From here, one that was closed looks the same, until something is sent to it.
            let (socket, mut client) = connected().await;
            io::Write::write_all(&mut client, unread.as_bytes()).expect("sent");
            drop(client);
            until(&socket, Peer::Finished).await;
            assert!(socket.send_ahead(b"still there?").expect("sent"));
            until(&socket, Peer::Gone).await;

            let (socket, mut client) = connected().await;
            io::Write::write_all(&mut client, unread.as_bytes()).expect("sent");
            set_socket_linger(&client, Some(Duration::ZERO)).expect("set");
            drop(client);
            until(&socket, Peer::Gone).await;
        }
    }

    #[tokio::test]
    async fn the_system_finds_out_a_client_whose_machine_is_gone() {
        let (socket, _client) = connected().await;
        let stream = &socket.stream;
        assert!(sockopt::socket_keepalive(stream).expect("known"));
        assert_eq!(sockopt::tcp_user_timeout(stream).expect("known"), 60_000);
        let (idle, between) = (sockopt::tcp_keepidle(stream), sockopt::tcp_keepintvl(stream));
        assert_eq!((idle.expect("known"), between.expect("known")), (SILENCE / 4, SILENCE / 4));
    }

    #[tokio::test]
    async fn nothing_is_sent_between_bytes_that_wait() {
        let (socket, _client) = connected().await;
        let mut stream = socket.stream();
        let block = vec![0; 1 << 20];
        let fill = poll_fn(|cx| match Pin::new(&mut stream).poll_write(cx, &block) {
            Poll::Ready(written) => {
                written.expect("written");
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending => Poll::Ready(()),
        });
        timeout(Duration::from_secs(30), fill).await.expect("it is full");
        assert!(!socket.send_ahead(b"x").expect("not sent"));
    }

    #[tokio::test]
    async fn what_was_sent_ahead_is_written_once() {
        let text = b"HTTP/1.1 200 OK";
        for ahead in 0..=text.len() {
            for is_vectored in [false, true] {
                let (socket, client) = connected().await;
                let mut stream = socket.stream();
                for byte in text[..ahead].chunks(4) {
                    assert!(socket.send_ahead(byte).expect("sent"));
                }
                let mut left = &text[..];
                while !left.is_empty() {
                    let written = poll_fn(|cx| match is_vectored {
                        true => {
                            let (one, other) = left.split_at(left.len() / 2);
                            let parts = [io::IoSlice::new(one), io::IoSlice::new(other)];
                            Pin::new(&mut stream).poll_write_vectored(cx, &parts)
                        }
                        false => Pin::new(&mut stream).poll_write(cx, left),
                    });
                    left = &left[written.await.expect("written")..];
                }
                poll_fn(|cx| Pin::new(&mut stream).poll_shutdown(cx)).await.expect("shut down");
                let read = tokio::task::spawn_blocking(move || io::read_to_string(client));
                assert_eq!(read.await.expect("no panic").expect("read").as_bytes(), text, "{ahead} bytes ahead");
            }
        }
    }
}
