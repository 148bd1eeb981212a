//! The log of `exlora serve`, and the line that says that it is ready.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{LIMIT, fixture};

/// A server as a process of its own, and what it said when it was ready.
struct Process {
    child: Child,
    ready: String,
}

impl Process {
    fn start(options: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_exlora"));
        command.args(["serve", "-m", &fixture("quill-4m"), "--port", "0"]).args(options);
        for name in ["EXLORA_LOG", "EXLORA_LOG_FORMAT", "EXLORA_API_KEY", "EXLORA_ADMIN_KEY"] {
            command.env_remove(name);
        }
        command.envs(environment.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let mut ready = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut ready).expect("a line");
        Self { child, ready }
    }

    /// The port that it listens on, which follows the last colon before what serves it.
    fn address(&self) -> String {
        let url = self.ready.split("http://").nth(1).unwrap_or_else(|| panic!("no URL in {:?}", self.ready));
        url.chars().take_while(|c| !matches!(c, ',' | '"' | ' ')).collect()
    }

    fn ask(&self, head: &str) -> String {
        let mut stream = TcpStream::connect(self.address()).expect("it listens");
        stream.set_read_timeout(Some(LIMIT)).expect("set");
        let text = format!("{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nx-request-id: mine-7\r\n\r\n");
        stream.write_all(text.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    /// Stops it as its user would; all that it logged.
    fn log(mut self) -> String {
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
        let mut log = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut log).expect("text");
        assert!(self.child.wait().expect("it ends").success(), "{log}");
        log
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Where a test has failed; it has ended otherwise.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn requests_are_logged_with_time_id_and_code() {
    let server = Process::start(&[], &[("EXLORA_LOG", "info")]);
    assert!(server.ask("GET /health").starts_with("HTTP/1.1 200"));
    assert!(server.ask("GET /v1/models/nobody").starts_with("HTTP/1.1 404"));
    let log = server.log();
    let line = |path: &str| log.lines().find(|line| line.contains(path)).unwrap_or_else(|| panic!("{path} in {log}"));
    let (good, bad) = (line("/health"), line("/v1/models/nobody"));
    for line in [good, bad] {
        assert!(line.starts_with("20") && line.as_bytes()[10] == b'T', "a time: {line}");
        assert!(line.contains("mine-7") && line.contains("method=GET") && line.contains("milliseconds="), "{line}");
    }
    assert!(good.contains("status=200") && !good.contains("code="), "{good}");
    assert!(bad.contains("status=404") && bad.contains("code=\"adapter_not_found\""), "{bad}");
}

#[test]
fn the_log_can_be_json_lines() {
    let server = Process::start(&[], &[("EXLORA_LOG", "info"), ("EXLORA_LOG_FORMAT", "json")]);
    assert!(server.ask("GET /v1/models/nobody").starts_with("HTTP/1.1 404"));
    let log = server.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let answered = lines.iter().find(|line| line["message"] == "answered").unwrap_or_else(|| panic!("{log}"));
    assert_eq!((&answered["status"], &answered["code"]), (&404.into(), &"adapter_not_found".into()), "{answered}");
    let span = &answered["span"];
    assert_eq!((&span["id"], &span["path"]), (&"mine-7".into(), &"/v1/models/nobody".into()), "{answered}");
    assert!(answered["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{answered}");
    assert_eq!(answered["level"], "INFO");

    let mut wrong = Command::new(env!("CARGO_BIN_EXE_exlora"));
    let wrong = wrong.args(["doctor"]).env("EXLORA_LOG_FORMAT", "xml").output().expect("it ends");
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("text or json"));
}

#[test]
fn the_ready_line_names_the_model_as_clients_do() {
    let path = fixture("quill-4m");
    let server = Process::start(&["--served-model-name", "quill", "--served-model-name", "q"], &[]);
    let end = format!(", model quill ({path}), adapters: none\n");
    assert!(
        server.ready.starts_with("listening on http://127.0.0.1:") && server.ready.ends_with(&end),
        "{}",
        server.ready
    );
    assert!(server.log().is_empty(), "nothing went wrong");
    // Of the address in a URL, the host of IPv6 is in brackets.
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        for host in ["[::1]", "::1"] {
            let server = Process::start(&["--host", host], &[]);
            assert!(server.ready.starts_with("listening on http://[::1]:"), "{}", server.ready);
            assert!(server.ask("GET /health").starts_with("HTTP/1.1 200"));
        }
    }
}
