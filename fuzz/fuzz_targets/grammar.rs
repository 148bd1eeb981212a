//! Any text as a grammar of any kind, of a request to a tiny model: a text or an error, in bounded time and memory, never a panic.
//!
//! The first byte chooses the kind, the second the seed; the rest is the grammar, of which choices are separated by zero bytes.

#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::{LazyLock, Once};

use exlora::{Engine, EngineOptions, ErrorCode, Grammar, Request, SamplingParams};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};
use support::allocator::{self, CountingAllocator};
use support::model::TinyModel;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// What llguidance's own limits allow.
const SMALL_CHANGE: usize = 1 << 30;

/// Tokens beside those of single bytes.
const WORDS: [&str; 10] = ["<unk>", "</s>", "true", "null", "ab", "abc", "\":", "{\"", "12", "é"];

static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    let dir: PathBuf = std::env::temp_dir().join(format!("exlora-grammar-{}", std::process::id()));
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let tokens = WORDS.map(str::to_owned).into_iter().chain(bytes);
    let vocab: Map<String, Value> = tokens.zip(0..).map(|(token, id): (String, u32)| (token, id.into())).collect();
    let model = TinyModel {
        hidden: 4,
        intermediate: 6,
        heads: 2,
        kv_heads: 1,
        head_dim: 2,
        vocab: vocab.len(),
        ..TinyModel::default()
    };
    model.write(&dir);
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [{"id": 1, "content": "</s>", "special": true, "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false}],
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>", "byte_fallback": true},
    });
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).expect("a writable folder");
    let options = EngineOptions { threads: Some(1), kv_tokens: Some(256), ..EngineOptions::default() };
    Engine::load(&dir, options).expect("a right model")
});

fn run(grammar: Grammar, seed: u8) -> exlora::Result<()> {
    let sampling = SamplingParams { temperature: 2.0, seed: Some(seed.into()), ..SamplingParams::default() };
    let request = Request::new(vec![20, 30]).sampling(sampling).grammar(grammar).max_new_tokens(8);
    ENGINE.generate(&[request]).map(drop)
}

/// libFuzzer's hook ends the process at any panic, also at one that is turned into an error.
static HOOK: Once = Once::new();

fuzz_target!(|bytes: &[u8]| {
    HOOK.call_once(exlora::guard::silence_guarded_panics);
    let [kind, seed, text @ ..] = bytes else { return };
    let text = String::from_utf8_lossy(text).into_owned();
    let grammar = match kind % 5 {
        0 => Grammar::JsonSchema(text),
        1 => Grammar::Regex(text),
        2 => Grammar::Lark(text),
        3 => Grammar::Gbnf(text),
        _ => Grammar::Choices(text.split('\0').map(str::to_owned).collect()),
    };
    LazyLock::force(&ENGINE);
    let (outcome, peak) = allocator::with_peak(|| run(grammar, *seed));
    if let Err(error) = outcome {
        assert!(matches!(error.code(), ErrorCode::ConstraintInvalid | ErrorCode::ConstraintFailed), "{error}");
    }
    assert!(peak <= SMALL_CHANGE, "{peak} bytes for {}", bytes.len());
});
