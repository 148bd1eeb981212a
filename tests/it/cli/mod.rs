//! The command, run as users run it: the built binary, its three streams and its exit status.

mod batch;
mod bench;
mod chat;
mod config_file;
mod generate;
mod inspect;
mod instruction_counts;
mod usage;

use std::io::Write;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

const BASE: &str = "tests/fixtures/quill-4m-gptq-4bit-g128-sym";
const SQL: &str = "tests/fixtures/adapters/sqlite-rslora-r16";
const WIT: &str = "tests/fixtures/adapters/jargon-lora-r8";
const DORA: &str = "tests/fixtures/adapters/devil-dora-r8";

struct Outcome {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Outcome {
    /// The lines of stdout as JSON, of a command that succeeded.
    fn lines(&self) -> Vec<Value> {
        assert_eq!(self.status, 0, "{}", self.stderr);
        self.json()
    }

    fn json(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// The error that a failed command put on stdout.
    fn error(&self) -> Value {
        assert_eq!(self.status, 1, "{}{}", self.stdout, self.stderr);
        self.json().last().expect("a line")["error"].clone()
    }
}

fn exlora(args: &[&str]) -> Outcome {
    exlora_reading("", args)
}

fn exlora_reading(stdin: &str, args: &[&str]) -> Outcome {
    let mut child = start(command().args(args));
    // A command that does not read may have ended already.
    let _ = child.stdin.take().expect("piped").write_all(stdin.as_bytes());
    finish(child)
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_exlora"));
    command.env_remove("COLUMNS").env_remove("EXLORA_LOG");
    command
}

fn start(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts")
}

fn finish(child: Child) -> Outcome {
    let output = child.wait_with_output().expect("the binary ends");
    Outcome {
        status: output.status.code().expect("it was not killed"),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// What Ctrl-C does to a process.
fn interrupt(child: &Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
}

/// A stored greedy continuation whose smallest margin is far above any rounding of this crate.
struct Stored {
    prompt: String,
    ids: Vec<u64>,
    text: String,
}

fn stored(adapter: Option<&str>, scaling: f64, prompt: &str) -> Stored {
    let text = std::fs::read_to_string("tests/fixtures/reference/reference.json").expect("is there");
    let reference: Value = serde_json::from_str(&text).expect("is JSON");
    let item = reference["items"].as_array().expect("a list").iter().find(|item| {
        item["model"] == "quill-4m-gptq-4bit-g128-sym"
            && item["adapter"].as_str() == adapter
            && item["lora_scaling"] == scaling
            && item["prompt"] == prompt
    });
    let item = item.expect("is stored");
    assert!(item["min_margin"].as_f64() > Some(0.03));
    Stored {
        prompt: reference["prompts"][prompt]["text"].as_str().expect("a text").to_owned(),
        ids: item["ids"].as_array().expect("a list").iter().filter_map(Value::as_u64).collect(),
        text: item["text"].as_str().expect("a text").to_owned(),
    }
}

/// `generate` with both adapters loaded.
fn generate(stdin: &str, more: &[&str]) -> Outcome {
    let (sql, wit) = (format!("sql={SQL}"), format!("wit={WIT}"));
    let mut args = vec!["generate", "-m", BASE, "--adapter", &sql, "--adapter", &wit, "--threads", "2"];
    args.extend(more);
    exlora_reading(stdin, &args)
}
