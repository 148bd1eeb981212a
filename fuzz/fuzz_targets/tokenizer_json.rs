//! Any tokenizer.json: it loads or is an error; texts and ids go through it or are errors; in bounded time and memory, never with
//! a panic.
//!
//! The file ends at the first zero byte; each further text up to a zero byte is encoded and decoded.

#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::{LazyLock, Once};

use exlora::{ErrorCode, Tokenizer};
use libfuzzer_sys::fuzz_target;
use support::allocator::{self, CountingAllocator};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// What compiled patterns, the tables of added tokens and the steps of a short text may take.
const SMALL_CHANGE: usize = 64 << 20;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("exlora-tokenizer-json-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a folder for temporary files");
    dir
});

fn run(parts: &[&[u8]]) -> exlora::Result<()> {
    fs::write(FOLDER.join("tokenizer.json"), parts[0]).expect("a writable folder");
    let tokenizer = Tokenizer::open(&FOLDER)?.expect("the file is there");
    for text in parts[1..].iter().copied().chain([&b"a b\xC3\xA9 <s> \xF0\x9F\x91\xA9"[..]]) {
        let text = String::from_utf8_lossy(text);
        for special in [true, false] {
            let ids = tokenizer.encode(&text, special, !special)?;
            tokenizer.decode(&ids, special)?;
        }
    }
    (0..64)
        .filter(|&id| tokenizer.token_of(id).is_some())
        .try_for_each(|id| tokenizer.decode(&[id, id], false).map(drop))
}

/// libFuzzer's hook ends the process at any panic, also at one that is turned into an error.
static HOOK: Once = Once::new();

fuzz_target!(|bytes: &[u8]| {
    HOOK.call_once(exlora::guard::silence_guarded_panics);
    let parts: Vec<&[u8]> = bytes.split(|&byte| byte == 0).collect();
    let (outcome, peak) = allocator::with_peak(|| run(&parts));
    if let Err(error) = outcome {
        assert!(matches!(error.code(), ErrorCode::TokenizerInvalid | ErrorCode::TokenOutOfRange), "{error}");
    }
    assert!(peak <= 64 * bytes.len() + SMALL_CHANGE, "{peak} bytes for {}", bytes.len());
});
