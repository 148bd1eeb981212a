//! Both files of an adapter's folder, all the way: loaded into an engine of a tiny model beside other adapters and used by a
//! request; a result or an error, in memory that the input's size justifies, never a panic.
//!
//! The input is the config's length in two bytes, the config, and the weights.

#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::{LazyLock, Once};

use exlora::{Engine, EngineOptions, ErrorCode, Request};
use libfuzzer_sys::fuzz_target;
use support::allocator::{self, CountingAllocator};
use support::model::TinyModel;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Memory that the compiled regular expressions of a config may take, and a step.
const SMALL_CHANGE: usize = 256 << 20;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("exlora-adapter-upload-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a folder for temporary files");
    dir
});

static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    let model =
        TinyModel { hidden: 4, intermediate: 6, heads: 2, kv_heads: 1, head_dim: 2, vocab: 5, ..TinyModel::default() };
    model.write(&FOLDER.join("model"));
    let options = EngineOptions { threads: Some(1), kv_tokens: Some(256), ..EngineOptions::default() };
    Engine::load(FOLDER.join("model"), options).expect("a right model")
});

fn run(config: &[u8], weights: &[u8]) -> exlora::Result<()> {
    fs::write(FOLDER.join("adapter_config.json"), config).expect("a writable folder");
    fs::write(FOLDER.join("adapter_model.safetensors"), weights).expect("a writable folder");
    ENGINE.load_adapter("a", &*FOLDER)?;
    let prompts = [vec![1, 2, 3], vec![3, 0]];
    let requests = prompts.map(|prompt| Request::new(prompt).adapter("a", 0.5).max_new_tokens(2));
    let outcome = ENGINE.generate(&requests).map(drop);
    ENGINE.unload_adapter("a")?;
    outcome
}

/// libFuzzer's hook ends the process at any panic, also at one that is turned into an error.
static HOOK: Once = Once::new();

fuzz_target!(|bytes: &[u8]| {
    HOOK.call_once(exlora::guard::silence_guarded_panics);
    let Some((length, bytes)) = bytes.split_first_chunk() else { return };
    let (config, weights) = bytes.split_at(bytes.len().min(u16::from_le_bytes(*length).into()));
    LazyLock::force(&ENGINE);
    let (outcome, peak) = allocator::with_peak(|| run(config, weights));
    if let Err(error) = outcome {
        assert_ne!(error.code(), ErrorCode::Internal, "{error}");
    }
    assert!(peak <= 64 * bytes.len() + SMALL_CHANGE, "{peak} bytes for {}", bytes.len());
    assert!(ENGINE.adapters().is_empty());
});
