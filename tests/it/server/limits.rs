//! What clients cannot do to a server: keep others out, take its memory, or get the base where they named something else.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use exlora::server::{ServeOptions, Server};
use exlora::{EngineOptions, ErrorCode};
use serde_json::json;

use super::{LIMIT, Running, adapters_dir, engine, fixture, options};

#[test]
fn connections_whose_bodies_do_not_arrive_give_way_to_others() {
    let dir = adapters_dir();
    let server =
        Running::start(&engine(EngineOptions::default()), ServeOptions { max_connections: 4, ..options(&dir) });
    let head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n";
    let silent: Vec<TcpStream> = (0..6)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address).expect("it listens");
            stream.write_all(head).expect("sent");
            stream
        })
        .collect();
    let start = Instant::now();
    assert_eq!(server.get("/health").status, 200);
    assert!(!server.text(json!({"model": "jargon"})).is_empty());
    assert!(start.elapsed() < Duration::from_secs(30), "they waited for the bodies");
    drop(silent);
}

#[test]
fn a_client_beyond_the_connections_that_are_busy_is_told_so() {
    let dir = adapters_dir();
    let limits = EngineOptions { max_seq_len: Some(1024), ..EngineOptions::default() };
    let server = Running::start(&engine(limits), ServeOptions { max_connections: 2, ..options(&dir) });
    let body = json!({"prompt": "Once", "max_tokens": 1000, "n": 8, "ignore_eos": true, "stream": true}).to_string();
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let busy = || {
        let mut stream = TcpStream::connect(server.address).expect("it listens");
        stream.set_read_timeout(Some(LIMIT)).expect("set");
        stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).expect("sent");
        assert!(stream.read(&mut [0; 64]).expect("an answer") > 0);
        stream
    };
    let (first, second) = (busy(), busy());
    for path in ["/health", "/v1/models"] {
        let answer = server.get(path);
        assert_eq!(answer.refusal(), (503, "queue_full".to_owned()));
        assert_eq!(
            (answer.header("retry-after"), answer.json()["error"]["type"].as_str()),
            (Some("1"), Some("server_error"))
        );
        assert!(answer.body.contains("at most 2 connections"), "{}", answer.body);
    }
    drop(first);
    let start = Instant::now();
    while server.get("/health").status != 200 {
        assert!(start.elapsed() < LIMIT, "there is room again");
    }
    drop(second);
    let none = ServeOptions { port: 0, max_connections: 0, ..ServeOptions::default() };
    assert_eq!(Server::listen(&none).err().map(|error| error.code()), Some(ErrorCode::RequestInvalid));
}

#[test]
fn a_prompt_that_cannot_fit_is_refused_before_it_is_encoded() {
    let dir = adapters_dir();
    let server = Running::start(&engine(EngineOptions::default()), options(&dir));
    let long = "a".repeat(8 << 20);
    let start = Instant::now();
    for (path, body) in [
        ("/v1/completions", json!({"prompt": long})),
        ("/v1/completions", json!({"prompt": ["short", long]})),
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": long}]})),
    ] {
        assert_eq!(server.post(path, &body).refusal(), (400, "prompt_too_long".to_owned()));
    }
    assert!(start.elapsed() < Duration::from_secs(30), "they were encoded");
}

#[test]
fn no_name_but_the_bases_own_is_the_base() {
    let dir = adapters_dir();
    let engine = engine(EngineOptions::default());
    let server = Running::start(&engine, options(&dir));
    for name in ["", " ", "gpt-4o", "base:", "Base"] {
        let (status, _) = server.complete(json!({"model": name})).refusal();
        assert!((400..=404).contains(&status), "{name:?}");
    }
    assert_eq!(server.get("/v1/models/%ff").refusal(), (404, "adapter_not_found".to_owned()));
    drop(server);
    for name in ["base", "quill-4m", "base:z", "quill-4m:z"] {
        engine.load_adapter(name, fixture("adapters/jargon-lora-r8")).expect("loads");
        let error = Server::bind(engine.clone(), ServeOptions { port: 0, ..ServeOptions::default() }).err();
        assert_eq!(error.map(|error| error.code()), Some(ErrorCode::AdapterNameInvalid), "{name}");
        engine.unload_adapter(name).expect("unloads");
    }
}

#[test]
fn clients_are_told_when_their_requests_are_ended() {
    let dir = adapters_dir();
    let limits = EngineOptions { max_seq_len: Some(1024), ..EngineOptions::default() };
    let options = ServeOptions { port: 0, shutdown_timeout: Duration::ZERO, ..options(&dir) };
    let server = Server::bind(engine(limits), options).expect("it listens");
    let (address, stop) = (server.local_addr(), server.stop_handle());
    let thread = std::thread::spawn(move || server.serve().expect("it serves"));
    let body = json!({"prompt": "Once", "max_tokens": 1000, "n": 32, "ignore_eos": true, "stream": true}).to_string();
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(LIMIT)).expect("set");
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).expect("sent");
    let mut first = [0; 256];
    assert!(stream.read(&mut first).expect("an answer") > 0);
    stop.stop();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("the rest");
    assert!(rest.contains("server_stopping"), "{}", &rest[rest.len().saturating_sub(300)..]);
    thread.join().expect("it ends");
}

#[test]
fn connections_without_a_whole_request_do_not_hold_up_the_end() {
    let dir = adapters_dir();
    let limit = Duration::from_secs(2);
    let options = ServeOptions { port: 0, shutdown_timeout: limit, ..options(&dir) };
    let server = Server::bind(engine(EngineOptions::default()), options).expect("it listens");
    let (address, stop) = (server.local_addr(), server.stop_handle());
    let thread = std::thread::spawn(move || server.serve().expect("it serves"));
    let health = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let body = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{";
    let is_kept = |text: &str, answers: usize| {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(LIMIT)).expect("set");
        stream.write_all(text.as_bytes()).expect("sent");
        for _ in 0..answers {
            let mut answer = Vec::new();
            while !answer.ends_with(b"ok\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("an answer");
                answer.extend(byte);
            }
        }
        stream
    };
    let idle = [is_kept("", 0), is_kept(health, 1), is_kept(&health.repeat(2), 2)];
    let begun = [is_kept("GET /hea", 0), is_kept(body, 0)];
    let start = Instant::now();
    stop.stop();
    for mut stream in idle {
        assert_eq!(stream.read(&mut [0; 16]).expect("the end"), 0);
    }
    assert!(start.elapsed() < limit, "idle connections are closed at once");
    thread.join().expect("it ends");
    // Behind the limit come a second for last words and one for threads.
    assert!(start.elapsed() < limit + Duration::from_secs(10), "{:?}", start.elapsed());
    drop(begun);
}
