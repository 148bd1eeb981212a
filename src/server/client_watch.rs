//! Whether the client of a request is still there.
//!
//! A client whose system has reset the connection is gone. One that sends nothing more may have closed the connection, or only its
//! own direction of it while it waits for the answer, as `nc -N` does: both look the same from here, until something is sent. So it
//! is sent what it would be sent anyway, only earlier: the first bytes of its answer, which are the same in all answers of HTTP/1;
//! or a comment among its events. The system of a client that is gone answers that with a reset.
//!
//! The connection itself notices none of this while it waits for an answer: it reads nothing then, since that may be the next
//! request.
//!
//! A stream of events that has none to send for a while is sent a comment too: whatever lies between it and its client may take a
//! silent connection for a dead one.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::socket::{Peer, Socket};

/// How often a client that waits is looked at: about once a step, and seldom enough for a thousand of them.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// What all answers begin with. Each byte asks a client once whether it is there.
const BEGINNING: &[u8] = b"HTTP/1.";

/// A client that sends nothing more is asked at once, and each time again after that many times as many looks. So the bytes of
/// [`BEGINNING`] last for hours, and one that leaves while it waits is found out.
const ASKING_FACTOR: u64 = 8;

/// What looks after the client of a connection, one request after the other.
pub struct ClientWatch {
    socket: Arc<Socket>,
    /// Longest time in which a stream of events is sent nothing.
    longest_silence: Duration,
    request: Mutex<Request>,
    has_request: Notify,
}

/// The request that a connection has.
#[derive(Clone, Copy, Debug)]
struct Request {
    phase: Phase,
    /// Looks at a client that sends nothing more.
    looks: u64,
    /// Number of the look from which on the client is asked again.
    asks_at: u64,
}

/// How far the request of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is none, or it has not arrived whole.
    None,
    /// The client waits for an answer, of which it was sent that many bytes of [`BEGINNING`].
    Waits { begun: usize },
    /// It is sent events, the last of them at this time.
    Events { is_to_be_asked: bool, last_sent: Instant },
    /// It is sent an answer, whose own bytes tell whether it is there.
    Answer,
}

impl ClientWatch {
    /// Looks after the client at the other end of a socket, to which a stream of events sends a comment after `longest_silence`.
    pub fn new(socket: Arc<Socket>, longest_silence: Duration) -> Arc<Self> {
        let request = Mutex::new(Request::new(Phase::None));
        Arc::new(Self { socket, longest_silence, request, has_request: Notify::new() })
    }

    /// A request has arrived whole.
    pub fn waits(&self) {
        let mut request = self.request.lock();
        // Its answer may have begun before.
        if request.phase == Phase::None {
            *request = Request::new(Phase::Waits { begun: 0 });
            self.has_request.notify_one();
        }
    }

    /// Its answer begins, which may be a stream of events.
    pub fn is_answered(&self, with_events: bool) {
        let events = || Phase::Events { is_to_be_asked: false, last_sent: Instant::now() };
        let phase = if with_events { events() } else { Phase::Answer };
        *self.request.lock() = Request::new(phase);
        self.has_request.notify_one();
    }

    /// Its answer was sent.
    pub fn ends(&self) {
        *self.request.lock() = Request::new(Phase::None);
    }

    /// Whether a comment is to be sent among events now, which is then taken for sent.
    pub fn takes_comment(&self) -> bool {
        match &mut self.request.lock().phase {
            Phase::Events { is_to_be_asked, last_sent } => {
                let is_due = std::mem::take(is_to_be_asked) || last_sent.elapsed() >= self.longest_silence;
                if is_due {
                    *last_sent = Instant::now();
                }
                is_due
            }
            _ => false,
        }
    }

    /// An event is sent.
    pub fn is_sent_event(&self) {
        if let Phase::Events { last_sent, .. } = &mut self.request.lock().phase {
            *last_sent = Instant::now();
        }
    }

    /// Waits until the client of a request is gone. In the task of the connection, between whose writes it asks, and which looks
    /// each time whether a comment is due.
    pub async fn is_gone(&self) {
        loop {
            if self.request.lock().phase == Phase::None {
                self.has_request.notified().await;
            }
            sleep(LOOK_INTERVAL).await;
            match self.socket.peer() {
                Peer::Gone => return,
                Peer::Finished if self.ask().is_err() => return,
                Peer::Finished | Peer::Open => {}
            }
        }
    }

    /// Sends the client something, if it is time to.
    fn ask(&self) -> std::io::Result<()> {
        let mut request = self.request.lock();
        request.looks += 1;
        if request.looks < request.asks_at {
            return Ok(());
        }
        let is_asked = match &mut request.phase {
            Phase::Waits { begun } => match BEGINNING.get(*begun..*begun + 1) {
                Some(byte) if self.socket.send_ahead(byte)? => {
                    *begun += 1;
                    true
                }
                _ => false,
            },
            Phase::Events { is_to_be_asked, .. } => {
                *is_to_be_asked = true;
                true
            }
            Phase::None | Phase::Answer => false,
        };
        if is_asked {
            request.asks_at = request.asks_at.saturating_mul(ASKING_FACTOR);
        }
        Ok(())
    }
}

impl Request {
    fn new(phase: Phase) -> Self {
        Self { phase, looks: 0, asks_at: 1 }
    }
}
