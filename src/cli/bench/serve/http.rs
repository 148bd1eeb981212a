//! A client of HTTP/1.1 for one thread, which sees each line of a response as it arrives.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, ErrorCode, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest silence of a server that computes.
const READ_TIMEOUT: Duration = Duration::from_secs(600);

/// Most bytes of a line, and of the headers together.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Most bytes of a body that is read whole.
const MAX_BODY_BYTES: u64 = 16 << 20;

/// Where a server is: `http://HOST:PORT`, perhaps with a path before that of its routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct ServerUrl {
    host: String,
    port: u16,
    path: String,
}

impl FromStr for ServerUrl {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let example = "write http://HOST:PORT, as in http://127.0.0.1:8000";
        let Some(rest) = text.strip_prefix("http://") else { return Err(example.to_owned()) };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        // An address of IPv6 has colons of its own, in brackets.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| example.to_owned())?),
            _ => (authority, 80),
        };
        if host.is_empty()
            || authority.contains(['@', '?', '#', ' '])
            || path.contains(|c: char| c.is_control() || c == ' ')
        {
            return Err(example.to_owned());
        }
        // Clients of OpenAI's API are given the address with the version.
        let path = path.trim_end_matches('/').trim_end_matches("v1").trim_end_matches('/');
        let path = if path.is_empty() { String::new() } else { format!("/{path}") };
        Ok(Self { host: host.to_owned(), port, path })
    }
}

impl std::fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}:{}{}", self.host, self.port, self.path)
    }
}

/// A connection to a server, which is used for one request after the other.
pub(super) struct Client {
    url: ServerUrl,
    key: Option<String>,
    stream: Option<BufReader<TcpStream>>,
}

/// Status and framing of a response.
struct Head {
    status: u16,
    framing: Framing,
    keeps_connection: bool,
}

/// Where a body ends.
enum Framing {
    /// After this many bytes.
    Length(u64),
    /// After a chunk of no bytes; this many are left of the current one, `None` between chunks.
    Chunked(Option<u64>),
    /// Where the server closes the connection.
    Close,
    /// Here.
    Ended,
}

/// A body that is being read.
struct Body<'a> {
    reader: &'a mut BufReader<TcpStream>,
    framing: Framing,
}

impl Client {
    /// A client that shows this key.
    pub(super) fn new(url: ServerUrl, key: Option<String>) -> Self {
        Self { url, key, stream: None }
    }

    /// The body of a response to GET.
    ///
    /// # Errors
    /// `io_failed`: the server cannot be reached, or refuses.
    pub(super) fn get(&mut self, path: &str) -> Result<String> {
        let mut text = String::new();
        self.request("GET", path, "", &mut |line| {
            text += line;
            text.push('\n');
        })?;
        Ok(text)
    }

    /// Posts JSON; `on_line` gets each line of the response when it arrives.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(super) fn post(&mut self, path: &str, body: &str, on_line: &mut dyn FnMut(&str)) -> Result<()> {
        self.request("POST", path, body, on_line)
    }

    fn request(&mut self, method: &str, path: &str, body: &str, on_line: &mut dyn FnMut(&str)) -> Result<()> {
        let url = self.url.clone();
        let failed = |error: io::Error| {
            Error::new(ErrorCode::IoFailed, format!("{method} {url}{path} failed: {error}"))
                .with_hint("check that a server listens there")
        };
        let request = self.head(method, path, body.len()) + body;
        let kept = self.stream.take().map(|kept| send(kept, &request)).transpose();
        let mut reader = match kept {
            Ok(Some(reader)) => reader,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(failed(error)),
            // A server may close a connection while no request runs on it, which shows only when the next one is sent.
            Ok(None) | Err(_) => send(BufReader::new(self.connect().map_err(failed)?), &request).map_err(failed)?,
        };
        let Head { status, framing, keeps_connection } = read_head(&mut reader).map_err(failed)?;
        let mut body = Body { reader: &mut reader, framing };
        if status != 200 {
            let mut text = Vec::new();
            body.take(MAX_BODY_BYTES).read_to_end(&mut text).map_err(failed)?;
            let text = String::from_utf8_lossy(&text);
            return Err(Error::new(ErrorCode::IoFailed, format!("{method} {url}{path} has the status {status}"))
                .with_found(text.trim()));
        }
        let mut lines = BufReader::new(&mut body);
        while let Some(line) = read_line(&mut lines).map_err(failed)? {
            on_line(&line);
        }
        if keeps_connection && matches!(body.framing, Framing::Ended | Framing::Length(0)) {
            self.stream = Some(reader);
        }
        Ok(())
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let host = self.url.host.trim_start_matches('[').trim_end_matches(']');
        let mut last = io::Error::new(ErrorKind::NotFound, "the host has no address");
        for address in (host, self.url.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(READ_TIMEOUT))?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn head(&self, method: &str, path: &str, body_bytes: usize) -> String {
        let ServerUrl { host, port, path: prefix } = &self.url;
        let mut head = format!("{method} {prefix}{path} HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: */*\r\n");
        if let Some(key) = &self.key {
            head += &format!("Authorization: Bearer {key}\r\n");
        }
        if body_bytes > 0 {
            head += &format!("Content-Type: application/json\r\nContent-Length: {body_bytes}\r\n");
        }
        head + "\r\n"
    }
}

/// Sends a request, and waits until a response begins.
fn send(mut reader: BufReader<TcpStream>, request: &str) -> io::Result<BufReader<TcpStream>> {
    reader.get_mut().write_all(request.as_bytes())?;
    if reader.fill_buf()?.is_empty() {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(reader)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("this is no HTTP/1.1 response: {what}"))
}

/// The next line without its end; `None` at the end.
fn read_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    reader.take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.pop_if(|byte| *byte == b'\n').is_none() && line.len() as u64 == MAX_LINE_BYTES {
        return Err(invalid("a line is too long"));
    }
    line.pop_if(|byte| *byte == b'\r');
    String::from_utf8(line).map(Some).map_err(|_| invalid("a line is not UTF-8"))
}

fn read_head(reader: &mut impl BufRead) -> io::Result<Head> {
    loop {
        let first = read_line(reader)?.ok_or_else(|| io::Error::from(ErrorKind::UnexpectedEof))?;
        let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
        let status: u16 = status.ok_or_else(|| invalid("it has no status"))?;
        let mut head = Head { status, framing: Framing::Close, keeps_connection: !first.starts_with("HTTP/1.0") };
        let mut bytes = 0;
        loop {
            let line = read_line(reader)?.ok_or_else(|| io::Error::from(ErrorKind::UnexpectedEof))?;
            bytes += line.len() as u64;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| invalid("a header has no colon"))?;
            if bytes > MAX_LINE_BYTES {
                return Err(invalid("its headers are too long"));
            }
            head.note(name.trim(), value.trim())?;
        }
        // 1xx announce the response.
        if status >= 200 {
            return Ok(head);
        }
    }
}

impl Head {
    fn note(&mut self, name: &str, value: &str) -> io::Result<()> {
        let is_chunked = matches!(self.framing, Framing::Chunked(_));
        if name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
            self.framing = Framing::Chunked(None);
        } else if name.eq_ignore_ascii_case("content-length") && !is_chunked {
            self.framing = Framing::Length(value.parse().map_err(|_| invalid("its length is no number"))?);
        } else if name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close") {
            self.keeps_connection = false;
        }
        Ok(())
    }
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Framing::Chunked(None) = self.framing {
            self.framing = self.begin_chunk()?;
        }
        let left = match &mut self.framing {
            Framing::Ended | Framing::Length(0) => return Ok(0),
            Framing::Close => return self.reader.read(buffer),
            Framing::Length(left) => left,
            // `begin_chunk` has found its size.
            Framing::Chunked(left) => left.get_or_insert(0),
        };
        let most = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.reader.read(&mut buffer[..most])?;
        if read == 0 && most > 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        *left -= read as u64;
        if let Framing::Chunked(Some(0)) = self.framing {
            read_line(self.reader)?;
            self.framing = Framing::Chunked(None);
        }
        Ok(read)
    }
}

impl Body<'_> {
    fn begin_chunk(&mut self) -> io::Result<Framing> {
        let line = read_line(self.reader)?.ok_or_else(|| io::Error::from(ErrorKind::UnexpectedEof))?;
        let size = line.split(';').next().unwrap_or_default().trim();
        match u64::from_str_radix(size, 16).map_err(|_| invalid("a chunk has no size"))? {
            0 => {
                // Trailers.
                while read_line(self.reader)?.is_some_and(|line| !line.is_empty()) {}
                Ok(Framing::Ended)
            }
            size => Ok(Framing::Chunked(Some(size))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        let url = |text: &str| text.parse::<ServerUrl>().map(|url| url.to_string());
        for (text, same) in [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("http://host", "http://host:80"),
            ("http://[::1]:8000/", "http://[::1]:8000"),
            ("http://[::1]", "http://[::1]:80"),
            ("http://host:1/v1", "http://host:1"),
            ("http://host:1/api/v1/", "http://host:1/api"),
        ] {
            assert_eq!(url(text).as_deref(), Ok(same));
        }
        for text in
            ["", "host:1", "https://host", "http://", "http://:1", "http://host:x", "http://a@b", "http://a/\r\nb"]
        {
            assert!(url(text).is_err(), "{text}");
        }
    }

    /// What a client makes of these responses, all on one connection if they allow it.
    fn lines_of(responses: &[&str]) -> (Vec<Result<Vec<String>>>, usize) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url: ServerUrl = format!("http://{}", listener.local_addr().expect("bound")).parse().expect("an address");
        let responses: Vec<String> = responses.iter().map(|text| (*text).to_owned()).collect();
        let count = responses.len();
        let server = thread::spawn(move || {
            let (mut connections, mut stream) = (0, None::<TcpStream>);
            for response in responses {
                let mut open = stream.take().unwrap_or_else(|| {
                    connections += 1;
                    listener.accept().expect("a client").0
                });
                let mut request = BufReader::new(&mut open);
                while read_line(&mut request).expect("readable").is_some_and(|line| !line.is_empty()) {}
                open.write_all(response.as_bytes()).expect("written");
                if !response.contains("close") {
                    stream = Some(open);
                }
            }
            connections
        });
        let mut client = Client::new(url, Some("k".to_owned()));
        let read = |_| {
            let mut lines = Vec::new();
            client.post("/v1/x", "", &mut |line| lines.push(line.to_owned())).map(|()| lines)
        };
        let found = (0..count).map(read).collect();
        (found, server.join().expect("no panic"))
    }

    #[test]
    fn bodies_end_where_their_framing_says() {
        let (found, connections) = lines_of(&[
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\na\nb\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n3\r\none\r\n3;x=y\r\n\ntw\r\n2\r\no\n\r\n0\r\nt: v\r\n\r\n",
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end",
        ]);
        let found: Vec<Vec<String>> = found.into_iter().map(|lines| lines.expect("a response")).collect();
        assert_eq!(found, [vec!["a", "b"], vec!["one", "two"], vec!["until the end"]]);
        assert_eq!(connections, 1);
    }

    #[test]
    fn a_connection_that_the_server_closed_between_requests_is_made_anew() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url: ServerUrl = format!("http://{}", listener.local_addr().expect("bound")).parse().expect("an address");
        let server = thread::spawn(move || {
            // The last one closes in the middle of its response.
            for response in ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na\n", "HTTP/1.1 200 OK\r\n"] {
                let mut open = listener.accept().expect("a client").0;
                let mut request = BufReader::new(&mut open);
                while read_line(&mut request).expect("readable").is_some_and(|line| !line.is_empty()) {}
                open.write_all(response.as_bytes()).expect("written");
            }
        });
        let mut client = Client::new(url, None);
        let first = client.post("/v1/x", "", &mut |line| assert_eq!(line, "a"));
        let second = client.post("/v1/x", "", &mut |_| {});
        server.join().expect("a second connection");
        first.expect("a response");
        assert!(second.expect_err("half a response").to_string().contains("unexpected end of file"));
    }

    #[test]
    fn a_refusal_says_what_the_server_said_and_damage_is_an_error() {
        let refusal = "HTTP/1.1 429 Too Many\r\nContent-Length: 9\r\nConnection: close\r\n\r\nqueue_full";
        let cut = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nqueue";
        let none = "HELLO\r\nConnection: close\r\n\r\n";
        let (found, _) = lines_of(&[refusal, cut, none]);
        let texts: Vec<String> = found.into_iter().map(|found| found.expect_err("refused").to_string()).collect();
        assert!(texts[0].contains("429") && texts[0].contains("queue_ful"), "{texts:?}");
        assert!(texts[2].contains("no HTTP/1.1 response"), "{texts:?}");
    }
}
