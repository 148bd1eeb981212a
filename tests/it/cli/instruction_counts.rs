//! How many instructions the CPU backend takes for a step, counted by valgrind: a guard against slow code that no clock can give
//! on a shared machine. Valgrind knows AVX2 at most, so that is what runs; the binary is that of the tests, not of a release.

use std::process::{Command, Stdio};

const MODEL: &str = "tests/fixtures/quill-4m-gptq-4bit-g128-sym";
const ADAPTER: &str = "sql=tests/fixtures/adapters/sqlite-rslora-r16";
/// Rows of the prefill chunk that is counted.
const CHUNK: usize = 128;
/// Decoded tokens over which a step is averaged.
const STEPS: usize = 8;

/// Most instructions of decoding one token, and of a prefill chunk; each without and with an adapter. The counts when this was
/// last changed, rounded up by a few percent: they are the same in each run but for what depends on the time that it takes. The
/// tests' build inlines little across the parts of a crate.
const LARGEST_STEP: [u64; 2] = [6_400_000, 7_460_000];
const LARGEST_CHUNK: [u64; 2] = [393_000_000, 498_000_000];

/// Instructions of `exlora generate` with such a prompt and so many new tokens; `None` without valgrind.
fn instructions(with_adapter: bool, prompt: usize, new_tokens: usize) -> Option<u64> {
    let request = format!(
        r#"{{"prompt": {:?}, "max_new_tokens": {new_tokens}, "min_new_tokens": {new_tokens}, "temperature": 0}}"#,
        vec![100; prompt]
    );
    let folder = tempfile::tempdir().expect("a folder");
    let requests = folder.path().join("requests.jsonl");
    std::fs::write(&requests, request).expect("a file");
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", env!("CARGO_BIN_EXE_exlora")]);
    command.args(["generate", "--model", MODEL, "--threads", "1", "--adapter", ADAPTER, "--requests"]).arg(&requests);
    if with_adapter {
        command.args(["--use", "sql"]);
    }
    let output = command.env("EXLORA_ISA", "avx2").stdin(Stdio::null()).output().ok()?;
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    let count = log.lines().find_map(|line| line.split_once("Collected : "));
    Some(count.expect(&log).1.trim().parse().expect("a count"))
}

#[test]
#[ignore = "runs under valgrind: make test-long"]
fn a_decode_step_and_a_prefill_chunk_take_few_instructions() {
    for with_adapter in [false, true] {
        let Some(short) = instructions(with_adapter, CHUNK, 1) else {
            println!("skipped: valgrind is not installed");
            return;
        };
        let more = |prompt, tokens| instructions(with_adapter, prompt, tokens).expect("valgrind ran before") - short;
        let (step, chunk) = (more(CHUNK, 1 + STEPS) / STEPS as u64, more(2 * CHUNK, 1));
        println!("adapter: {with_adapter}; {step} instructions for a step, {chunk} for a chunk");
        let (most_step, most_chunk) =
            (LARGEST_STEP[usize::from(with_adapter)], LARGEST_CHUNK[usize::from(with_adapter)]);
        assert!(step <= most_step, "decoding a token takes {step} instructions, more than {most_step}");
        assert!(chunk <= most_chunk, "a prefill chunk takes {chunk} instructions, more than {most_chunk}");
    }
}
