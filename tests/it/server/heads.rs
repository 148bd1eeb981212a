//! Requests that are refused for what their heads say, before anything of their bodies is read.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use exlora::EngineOptions;
use exlora::server::ServeOptions;
use serde_json::json;

use super::{Answer, LIMIT, Running, adapters_dir, engine, options};

const HEAD: &str = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";

/// The answer to bytes, after which the client only reads.
fn answer(server: &Running, text: &str) -> Answer {
    let mut stream = TcpStream::connect(server.address).expect("it listens");
    stream.set_read_timeout(Some(LIMIT)).expect("set");
    stream.write_all(text.as_bytes()).expect("sent");
    let mut answer = Vec::new();
    // The connection may be reset behind the answer, since the body never comes.
    let mut part = [0; 4096];
    while let Ok(bytes @ 1..) = stream.read(&mut part) {
        answer.extend_from_slice(&part[..bytes]);
        if answer.ends_with(b"}}") {
            break;
        }
    }
    Answer::read(&String::from_utf8(answer).expect("text"))
}

#[test]
fn a_body_that_is_too_large_is_refused_before_it_is_sent() {
    let dir = adapters_dir();
    let server = Running::start(&engine(EngineOptions::default()), options(&dir));
    let start = Instant::now();
    for length in [(16_u64 << 20) + 1, 100 << 30, 1 << 60] {
        for waits in ["", "Expect: 100-continue\r\n"] {
            let answer = answer(&server, &format!("{HEAD}{waits}Content-Length: {length}\r\n\r\n"));
            assert_eq!(answer.refusal(), (413, "request_too_large".to_owned()), "{length} {waits}");
        }
    }
    assert!(start.elapsed() < Duration::from_secs(30), "it waited for the bodies");
    // Whoever sends all of it before looking at the answer gets that too.
    let body = "x".repeat((16 << 20) + 1);
    assert_eq!(server.send("POST", "/v1/completions", "", &body).refusal(), (413, "request_too_large".to_owned()));
}

#[test]
fn connections_of_refused_bodies_give_way_to_others() {
    let dir = adapters_dir();
    let server =
        Running::start(&engine(EngineOptions::default()), ServeOptions { max_connections: 4, ..options(&dir) });
    let head = format!("{HEAD}Content-Length: {}\r\n\r\n", 100 << 20);
    let mut silent = Vec::new();
    for _ in 0..12 {
        let mut stream = TcpStream::connect(server.address).expect("it listens");
        stream.set_read_timeout(Some(LIMIT)).expect("set");
        stream.write_all(head.as_bytes()).expect("sent");
        let mut first = [0; 12];
        stream.read_exact(&mut first).expect("an answer");
        assert_eq!(&first, b"HTTP/1.1 413");
        silent.push(stream);
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_request_of_http_1_1_names_one_host() {
    let dir = adapters_dir();
    let server = Running::start(&engine(EngineOptions::default()), options(&dir));
    let status = |version: &str, hosts: &str| {
        let text = format!("GET /health HTTP/{version}\r\n{hosts}Connection: close\r\n\r\n");
        let mut stream = TcpStream::connect(server.address).expect("it listens");
        stream.set_read_timeout(Some(LIMIT)).expect("set");
        stream.write_all(text.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        Answer::read(&answer).status
    };
    let host = "Host: localhost\r\n";
    assert_eq!([status("1.1", ""), status("1.1", host), status("1.1", &host.repeat(2))], [400, 200, 400]);
    assert_eq!([status("1.0", ""), status("1.0", host), status("1.0", &host.repeat(2))], [200, 200, 400]);
    assert_eq!(status("1.1", "Host:\r\n"), 200, "as of a client that has no name for the server");
}

#[test]
fn a_body_is_plain_utf_8() {
    let dir = adapters_dir();
    let server = Running::start(&engine(EngineOptions::default()), options(&dir));
    let body = json!({"prompt": "Once", "max_tokens": 1}).to_string();
    let send = |kind: &str, header: &str| {
        let length = body.len();
        let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close";
        answer(&server, &format!("{head}\r\nContent-Type: {kind}\r\n{header}Content-Length: {length}\r\n\r\n{body}"))
    };
    for (kind, header) in [
        ("application/json", "Content-Encoding: gzip\r\n"),
        ("application/json", "Content-Encoding: br\r\n"),
        ("application/json; charset=latin1", ""),
        ("application/json; charset=\"utf-16\"", ""),
    ] {
        let answer = send(kind, header);
        assert_eq!(answer.refusal(), (415, "request_invalid".to_owned()), "{kind} {header}");
        assert_eq!(answer.header("accept-encoding"), Some("identity"));
    }
    for (kind, header) in [
        ("application/json; charset=utf-8", ""),
        ("application/json;charset=\"UTF-8\"", "Content-Encoding: identity\r\n"),
    ] {
        assert_eq!(send(kind, header).status, 200, "{kind} {header}");
    }
}
