//! The answer to a client that there is no connection for: 503, and the end.

use std::io;
use std::time::Duration;

use axum::http::StatusCode;
use rustix::net::{Shutdown, shutdown};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::error::ApiError;
use crate::error::{Error, ErrorCode};

/// Most clients that are told so at a time, since each is an open file. What is beyond is closed without a word.
pub const MAX_TURNED_AWAY: usize = 32;

/// How long such a client has to read it.
const LIMIT: Duration = Duration::from_secs(2);

/// Tells a client that all of the server's `max_connections` have requests, and ends its connection.
pub async fn turn_away(stream: TcpStream, max_connections: usize) {
    // Who does not read has had the time to.
    let _ = timeout(LIMIT, tell(&stream, &answer(max_connections))).await;
}

async fn tell(stream: &TcpStream, answer: &str) -> io::Result<()> {
    stream.writable().await?;
    // The buffer of a socket that nothing was sent on yet takes it whole.
    stream.try_write(answer.as_bytes())?;
    shutdown(stream, Shutdown::Write)?;
    // Closing a socket with unread bytes would reset the connection, perhaps before the client has read the answer.
    let mut unread = [0; 4096];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut unread) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// The whole answer, as of any other error.
fn answer(max_connections: usize) -> String {
    let error = Error::new(ErrorCode::QueueFull, "all connections of the server have requests")
        .with_expected(format!("at most {max_connections} connections"))
        .with_hint("try again later, or start the server with a larger --max-connections");
    let error = ApiError::from(error).with_status(StatusCode::SERVICE_UNAVAILABLE);
    // It serializes, as all errors do.
    let body = serde_json::to_string(error.body()).unwrap_or_default();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {}\r\nRetry-After: 1\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}
