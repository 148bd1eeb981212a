//! Clients that go away, that wait with half a connection, or that send the next request early.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use exlora::{Engine, EngineOptions};
use rustix::net::sockopt::set_socket_linger;
use serde_json::{Value, json};

use super::{Answer, LIMIT, Running, adapters_dir, engine, expect_no_leases, options};

/// New tokens of each of the choices of [`long`].
const TOKENS: u64 = 900;
const CHOICES: u64 = 16;

/// Versions of HTTP, and headers that say whether the connection stays open.
const CLIENTS: [(&str, &str); 4] =
    [("1.1", ""), ("1.1", "Connection: close\r\n"), ("1.0", ""), ("1.0", "Connection: keep-alive\r\n")];

fn long_engine() -> Engine {
    engine(EngineOptions { max_seq_len: Some(1024), ..EngineOptions::default() })
}

/// A request that takes seconds.
fn long(fields: Value) -> Value {
    let mut body = json!({"model": "jargon", "prompt": "Once", "max_tokens": TOKENS, "n": CHOICES, "ignore_eos": true});
    for (name, value) in fields.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

fn request(version: &str, headers: &str, body: &Value) -> String {
    let body = body.to_string();
    let length = body.len();
    format!(
        "POST /v1/completions HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

fn connect(server: &Running, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).expect("it listens");
    stream.set_read_timeout(Some(LIMIT)).expect("set");
    stream.write_all(text.as_bytes()).expect("sent");
    stream
}

fn rest(mut stream: &TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn running(engine: &Engine) -> usize {
    engine.stats().rows_running
}

/// No request runs or waits, and none has left a lease or a page.
fn wait_until_nothing_runs(engine: &Engine, what: &str) {
    wait_until(what, || {
        let stats = engine.stats();
        let pages_in_use = stats.kv_pages_total - stats.kv_pages_free;
        [stats.rows_running, stats.rows_waiting, stats.leases, pages_in_use] == [0; 4]
    });
}

#[test]
fn a_client_that_is_gone_ends_its_request() {
    let (engine, dir) = (long_engine(), adapters_dir());
    let server = Running::start(&engine, options(&dir));
    server.text(json!({"model": "jargon"}));
    for (version, headers) in CLIENTS {
        for is_stream in [false, true] {
            // What follows the body may be the next request, or nothing at all.
            for behind in ["", "\n", "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
                for is_reset in [false, true] {
                    let what = format!(
                        "HTTP/{version} {headers:?}, stream: {is_stream}, behind: {behind:?}, reset: {is_reset}"
                    );
                    let before = engine.stats().tokens_generated;
                    let body = long(json!({"stream": is_stream}));
                    let stream = connect(&server, &(request(version, headers, &body) + behind));
                    wait_until(&what, || running(&engine) > 0);
                    if is_reset {
                        set_socket_linger(&stream, Some(Duration::ZERO)).expect("set");
                    }
                    drop(stream);
                    wait_until_nothing_runs(&engine, &what);
                    let generated = engine.stats().tokens_generated - before;
                    assert!(generated < TOKENS * CHOICES / 2, "{what}: {generated} tokens were generated");
                }
            }
        }
    }
}

#[test]
fn a_client_that_leaves_while_it_waits_with_half_a_connection_ends_its_request() {
    let (engine, dir) = (long_engine(), adapters_dir());
    let server = Running::start(&engine, options(&dir));
    for (version, headers) in CLIENTS {
        for is_stream in [false, true] {
            let what = format!("HTTP/{version} {headers:?}, stream: {is_stream}");
            let before = engine.stats().tokens_generated;
            let body = long(json!({"stream": is_stream}));
            let mut stream = connect(&server, &request(version, headers, &body));
            stream.shutdown(Shutdown::Write).expect("shut down");
            // It was there when it was asked first.
            let mut first = [0; 1];
            stream.read_exact(&mut first).expect("a beginning");
            assert_eq!(&first, b"H", "{what}");
            wait_until(&what, || running(&engine) > 0);
            drop(stream);
            wait_until_nothing_runs(&engine, &what);
            let generated = engine.stats().tokens_generated - before;
            assert!(generated < TOKENS * CHOICES / 2, "{what}: {generated} tokens were generated");
        }
    }
}

#[test]
fn a_client_that_is_gone_leaves_the_queue() {
    let dir = adapters_dir();
    let options_of_engine = EngineOptions { max_seq_len: Some(1024), max_rows: 1, ..EngineOptions::default() };
    let engine = engine(options_of_engine);
    let server = Running::start(&engine, options(&dir));
    let first = connect(&server, &request("1.1", "", &long(json!({"n": 1, "model": "base"}))));
    wait_until("it runs", || running(&engine) == 1);
    for (version, headers) in CLIENTS {
        for is_stream in [false, true] {
            let body = long(json!({"n": 1, "model": "base", "stream": is_stream}));
            let mut waiting = connect(&server, &request(version, headers, &body));
            if is_stream {
                // The head of the answer is all there is to read so far.
                let mut head = [0; 64];
                assert!(waiting.read(&mut head).expect("a head") > 0);
            }
            wait_until("it waits", || engine.stats().rows_waiting == 1 || running(&engine) == 0);
            drop(waiting);
            wait_until("it is gone", || engine.stats().rows_waiting == 0);
        }
    }
    drop(first);
    wait_until_nothing_runs(&engine, "all are gone");
}

#[test]
fn a_client_that_has_closed_its_own_direction_gets_its_answer() {
    let (engine, dir) = (long_engine(), adapters_dir());
    let server = Running::start(&engine, options(&dir));
    // Long enough to be looked at many times.
    let body = |is_stream: bool| long(json!({"max_tokens": 200, "n": 4, "stream": is_stream}));
    let expected = server.post("/v1/completions", &body(false)).ok();
    let texts = |answer: &Value| -> Vec<Value> {
        answer["choices"].as_array().expect("choices").iter().map(|choice| choice["text"].clone()).collect()
    };
    for (version, headers) in CLIENTS {
        let stream = connect(&server, &request(version, headers, &body(false)));
        stream.shutdown(Shutdown::Write).expect("shut down");
        assert_eq!(texts(&Answer::read(&rest(&stream)).ok()), texts(&expected), "HTTP/{version}");

        let stream = connect(&server, &request(version, headers, &body(true)));
        stream.shutdown(Shutdown::Write).expect("shut down");
        let text = rest(&stream);
        assert_eq!(Answer::read(&text).status, 200);
        assert!(text.contains("data: [DONE]\n\n"), "HTTP/{version}: {}", &text[text.len().saturating_sub(300)..]);
        let lines = text.lines().filter(|line| line.starts_with("data: {")).count();
        assert!(lines > 8, "{lines}");
    }
}

#[test]
fn requests_that_were_sent_early_are_answered_in_order() {
    let dir = adapters_dir();
    let server = Running::start(&engine(EngineOptions::default()), options(&dir));
    let models = ["jargon", "base", "sqlite", "jargon"];
    let bodies =
        models.map(|model| json!({"model": model, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}));
    let expected = models.map(|model| server.text(json!({"model": model})));
    for is_half_closed in [false, true] {
        let text: Vec<String> =
            (0..4).map(|i| request("1.1", if i == 3 { "Connection: close\r\n" } else { "" }, &bodies[i])).collect();
        let stream = connect(&server, &text.concat());
        if is_half_closed {
            stream.shutdown(Shutdown::Write).expect("shut down");
        }
        let answers = rest(&stream);
        let found: Vec<String> = answers
            .split("HTTP/1.1 200 OK\r\n")
            .skip(1)
            .map(|answer| Answer::read(&format!("HTTP/1.1 200 OK\r\n{answer}")).ok()["choices"][0]["text"].to_string())
            .collect();
        assert_eq!(found, expected.clone().map(|text| json!(text).to_string()), "half closed: {is_half_closed}");
    }
}

#[test]
fn a_request_counts_once_however_often_it_keeps_its_leases() {
    let (engine, dir) = (long_engine(), adapters_dir());
    let server = Running::start(&engine, options(&dir));
    for (fields, leases) in [
        (json!({"model": "jargon", "n": 1}), 1),
        (json!({"model": "jargon"}), 1),
        (json!({"model": "base", "adapters": {"jargon": 0.5, "sqlite": 0.5}}), 2),
        (
            json!({"model": "base", "adapters": [{"name": "jargon", "scale": 0.5}, {"name": "jargon", "scale": 0.25}]}),
            1,
        ),
        (json!({"model": "base", "adapters": {"sqlite": 0.5}, "prompt": ["Once", "Twice", "Thrice"]}), 1),
        (json!({"model": "base"}), 0),
    ] {
        expect_no_leases(&engine);
        let stream = connect(&server, &request("1.1", "", &long(fields.clone())));
        wait_until("it runs", || running(&engine) > 0);
        assert_eq!(engine.stats().leases, leases, "{fields}");
        let listed = server.get("/v1/adapters").ok();
        let counted =
            listed["data"].as_array().expect("a list").iter().filter_map(|adapter| adapter["leases"].as_u64());
        assert_eq!(counted.sum::<u64>(), leases as u64, "{listed}");
        drop(stream);
        wait_until("it ends", || running(&engine) == 0 && engine.stats().rows_waiting == 0);
    }
}
