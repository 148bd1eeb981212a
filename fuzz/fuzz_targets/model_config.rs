//! Any config.json, as it is and as each served family's: a decoder or an error, in memory that the file's size justifies.

#![no_main]

use exlora::model::config::DecoderConfig;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use support::allocator::{self, CountingAllocator};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const FAMILIES: [(&str, &str); 5] = [
    ("LlamaForCausalLM", "llama"),
    ("MistralForCausalLM", "mistral"),
    ("MinistralForCausalLM", "ministral"),
    ("Qwen2ForCausalLM", "qwen2"),
    ("Qwen3ForCausalLM", "qwen3"),
];

/// Tables for as many layers, and as wide heads, as a config may have.
const TABLE_BYTES: usize = 16 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Ok(config) = serde_json::from_slice::<Value>(bytes) else { return };
    let mut configs = vec![config.clone()];
    if config.is_object() {
        for (architecture, model_type) in FAMILIES {
            let mut config = config.clone();
            config["architectures"] = json!([architecture]);
            config["model_type"] = json!(model_type);
            configs.push(config);
        }
    }
    for config in &configs {
        let (outcome, peak) = allocator::with_peak(|| DecoderConfig::from_json(config));
        if let Err(error) = outcome {
            assert!(error.code().as_str().starts_with("model_"), "{error}");
        }
        assert!(peak <= 32 * bytes.len() + TABLE_BYTES, "{peak} bytes for {}", bytes.len());
    }
});
