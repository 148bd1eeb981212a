//! Whether the client of a request is still there.
//!
//! A client whose system has reset the connection is gone. One that sends nothing more may have closed the connection, or only its
//! own direction of it while it waits for the answer, as `nc -N` does: both look the same from here, until something is sent. So it
//! is sent what says nothing: an interim response (`100 Continue`) before its answer, or a comment among its events. The system of
//! a client that is gone answers that with a reset.
//!
//! The connection itself notices none of this while it waits for an answer: it reads nothing then, since that may be the next
//! request.

use std::sync::Arc;
use std::time::Duration;

use axum::http::Version;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::socket::{Peer, Socket};

/// How often a client that waits is looked at: about once a step, and seldom enough for a thousand of them.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// What says nothing before an answer.
const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What looks after the client of a connection, one request after the other.
pub struct ClientWatch {
    socket: Arc<Socket>,
    phase: Mutex<Phase>,
    has_request: Notify,
}

/// How far the request of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is none, or it has not arrived whole.
    None,
    /// The client waits for an answer.
    Waits {
        /// Whether it can be sent an interim response, which is not part of HTTP/1.0 and need not be repeated.
        can_ask: bool,
    },
    /// It is sent events.
    Events { is_asked: bool, is_to_be_asked: bool },
    /// It is sent an answer, whose own bytes tell whether it is there.
    Answer,
}

impl ClientWatch {
    /// Looks after the client at the other end of a socket.
    pub fn new(socket: Arc<Socket>) -> Arc<Self> {
        Arc::new(Self { socket, phase: Mutex::new(Phase::None), has_request: Notify::new() })
    }

    /// A request has arrived whole.
    pub fn waits(&self, version: Version) {
        let mut phase = self.phase.lock();
        // Its answer may have begun before.
        if *phase == Phase::None {
            *phase = Phase::Waits { can_ask: version >= Version::HTTP_11 };
            self.has_request.notify_one();
        }
    }

    /// Its answer begins, which may be a stream of events.
    pub fn is_answered(&self, with_events: bool) {
        *self.phase.lock() =
            if with_events { Phase::Events { is_asked: false, is_to_be_asked: false } } else { Phase::Answer };
        self.has_request.notify_one();
    }

    /// Its answer was sent.
    pub fn ends(&self) {
        *self.phase.lock() = Phase::None;
    }

    /// Whether a comment is to be sent among events now.
    pub fn takes_comment(&self) -> bool {
        match &mut *self.phase.lock() {
            Phase::Events { is_to_be_asked, .. } => std::mem::take(is_to_be_asked),
            _ => false,
        }
    }

    /// Waits until the client of a request is gone. In the task of the connection, between whose writes it asks.
    pub async fn is_gone(&self) {
        loop {
            if *self.phase.lock() == Phase::None {
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

    /// Sends the client something, once for each request.
    fn ask(&self) -> std::io::Result<()> {
        let mut phase = self.phase.lock();
        match &mut *phase {
            Phase::Waits { can_ask } if *can_ask => *can_ask = !self.socket.send_between(INTERIM)?,
            Phase::Events { is_asked, is_to_be_asked } if !*is_asked => (*is_asked, *is_to_be_asked) = (true, true),
            Phase::None | Phase::Waits { .. } | Phase::Events { .. } | Phase::Answer => {}
        }
        Ok(())
    }
}
