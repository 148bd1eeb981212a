//! Both files of an adapter's folder, from bytes to checked deltas on a small model: an error or deltas, never a panic, and no
//! more memory than the input's size justifies.
//!
//! The first byte decides which file the input is (the other one is valid), or that it contains both.

#![no_main]

use std::path::Path;

use exlora::adapter::AdapterFiles;
use exlora::sites::{LayerList, Site, SiteTable};
use libfuzzer_sys::fuzz_target;
use support::allocator::{self, CountingAllocator};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const CONFIG: &[u8] = br#"{"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"]}"#;

/// Memory that the compiled regular expressions of a config may take: the size of each is capped, and their number per field.
const PATTERN_BYTES: usize = 256 << 20;

fn sites() -> SiteTable {
    let mut sites = SiteTable::default();
    let embedding = sites.push(Site::embedding("model.embed_tokens", 4, 2));
    for (path, out_features, has_bias) in [
        ("model.layers.0.self_attn.q_proj", 3, false),
        ("model.layers.1.self_attn.q_proj", 3, true),
        ("lm_head", 4, false),
    ] {
        sites.push(Site::linear(path, 2, out_features).with_bias(has_bias));
    }
    let parts = ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"];
    let parts = parts.map(|path| sites.push(Site::linear(path, 2, 3)));
    sites.add_fused_alias("model.layers.0.mlp.gate_up_proj", &parts);
    sites.push(Site::norm("model.norm", 2));
    sites.layers = LayerList { prefix: "model.layers".to_owned(), count: 2 };
    (sites.embedding, sites.head, sites.is_head_tied) = (Some(embedding), sites.find("lm_head"), true);
    sites
}

fn weights() -> Vec<u8> {
    let name = |factor| format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{factor}.weight");
    let header = format!(
        r#"{{"{}":{{"dtype":"F16","shape":[1,2],"data_offsets":[0,4]}},"{}":{{"dtype":"F16","shape":[3,1],"data_offsets":[4,10]}}}}"#,
        name("A"),
        name("B"),
    );
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&[0; 10]);
    file
}

fuzz_target!(|input: &[u8]| {
    let Some((mode, bytes)) = input.split_first() else { return };
    let (config, weights) = match mode % 3 {
        0 => (bytes, weights()),
        1 => (CONFIG, bytes.to_vec()),
        _ => {
            let Some((length, bytes)) = bytes.split_first_chunk() else { return };
            let (config, weights) = bytes.split_at(bytes.len().min(u16::from_le_bytes(*length).into()));
            (config, weights.to_vec())
        }
    };
    let ((), peak) = allocator::with_peak(|| match AdapterFiles::from_bytes(config, weights, Path::new("adapter")) {
        Ok(files) => match files.check(&sites()) {
            Ok(checked) => assert!(!checked.deltas().is_empty()),
            Err(error) => assert!(!error.to_string().is_empty()),
        },
        Err(error) => assert!(!error.to_string().is_empty()),
    });
    assert!(peak <= 32 * input.len() + PATTERN_BYTES, "{peak} bytes for {}", input.len());
});
