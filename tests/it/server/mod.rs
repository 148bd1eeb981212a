//! The HTTP server, over sockets.

mod adapter_names;
mod adapters;
mod bench;
mod clients;
mod fields;
mod heads;
mod limits;
mod logs;
mod metrics;
mod prompt_embeds;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use exlora::server::{Key, ServeOptions, Server, StopHandle};
use exlora::{Engine, EngineOptions};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Only there to fail instead of hanging.
const LIMIT: Duration = Duration::from_secs(60);

const ADMIN: &str = "admin-secret";

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn engine(options: EngineOptions) -> Engine {
    Engine::load(fixture("quill-4m"), options).expect("the bundled model loads")
}

/// The engine's thread lets go of a request just after its client has the answer.
fn expect_no_leases(engine: &Engine) {
    let start = Instant::now();
    while engine.stats().leases > 0 {
        assert!(start.elapsed() < LIMIT, "leases are left");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Makes `dir/name` a copy of a bundled adapter, its files replaced by renaming.
fn place(dir: &Path, name: &str, adapter: &str) {
    let folder = dir.join(name);
    fs::create_dir_all(&folder).expect("created");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let aside = dir.join("aside");
        fs::copy(format!("{}/{file}", fixture(&format!("adapters/{adapter}"))), &aside).expect("copied");
        fs::rename(&aside, folder.join(file)).expect("renamed");
    }
}

/// A folder with the bundled adapters `jargon` and `sqlite`.
fn adapters_dir() -> TempDir {
    let dir = TempDir::new().expect("a folder");
    place(dir.path(), "jargon", "jargon-lora-r8");
    place(dir.path(), "sqlite", "sqlite-rslora-r16");
    dir
}

/// A server on a free port, which ends with the test.
struct Running {
    address: SocketAddr,
    stop: StopHandle,
    thread: Option<JoinHandle<()>>,
}

/// What a server answered.
struct Answer {
    status: u16,
    headers: String,
    body: String,
}

impl Answer {
    /// What was read up to the end of a connection.
    fn read(text: &str) -> Self {
        assert!(text.starts_with("HTTP/1."), "{text:?}");
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Self { status, headers: head.to_lowercase(), body: body.to_owned() }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{} {}", self.status, self.body))
    }

    /// The JSON of a request that succeeded.
    fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()
    }

    /// Status and code of one that did not.
    fn refusal(&self) -> (u16, String) {
        (self.status, self.json()["error"]["code"].as_str().expect(&self.body).to_owned())
    }

    fn header(&self, name: &str) -> Option<&str> {
        let line = self.headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim)
    }
}

impl Running {
    fn start(engine: &Engine, options: ServeOptions) -> Self {
        let options = ServeOptions { port: 0, shutdown_timeout: Duration::from_secs(5), ..options };
        let server = Server::bind(engine.clone(), options).expect("it listens");
        let (address, stop) = (server.local_addr(), server.stop_handle());
        let thread = std::thread::spawn(move || server.serve().expect("it serves"));
        Self { address, stop, thread: Some(thread) }
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(LIMIT)).expect("set");
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n{headers}\r\n"
        );
        stream.write_all((head + body).as_bytes()).expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        Answer::read(&text)
    }

    fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "", "")
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, "", &body.to_string())
    }

    /// With the admin key.
    fn admin(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &format!("Authorization: Bearer {ADMIN}\r\n"), &body.to_string())
    }

    /// The text of a greedy completion of five tokens with these fields.
    fn text(&self, fields: Value) -> String {
        self.complete(fields).ok()["choices"][0]["text"].as_str().expect("a text").to_owned()
    }

    fn complete(&self, mut fields: Value) -> Answer {
        for (name, value) in
            [("prompt", json!("Once upon a time")), ("max_tokens", json!(8)), ("temperature", json!(0))]
        {
            fields[name] = value;
        }
        self.post("/v1/completions", &fields)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.stop();
        let thread = self.thread.take().expect("it runs");
        assert!(thread.join().is_ok() || std::thread::panicking(), "the server panicked");
    }
}

fn options(dir: &TempDir) -> ServeOptions {
    ServeOptions {
        adapters_dir: Some(dir.path().to_owned()),
        admin_key: Some(Key::new(ADMIN).expect("a key")),
        ..ServeOptions::default()
    }
}
