//! The stored results of transformers and peft for the bundled models, `tests/fixtures/reference`.

use std::collections::BTreeMap;

use exlora::checkpoint::Checkpoint;
use serde::Deserialize;

use crate::fixtures;

/// What is stored of all prompts, models and adapters.
#[derive(Deserialize)]
pub struct Reference {
    pub prompts: BTreeMap<String, Prompt>,
    pub items: Vec<Item>,
}

/// A prompt.
#[derive(Deserialize)]
pub struct Prompt {
    pub ids: Vec<u32>,
}

/// What a model says to a prompt with an adapter.
#[derive(Deserialize)]
pub struct Item {
    pub model: String,
    pub adapter: Option<String>,
    pub lora_scaling: f32,
    pub prompt: String,
    pub ids: Vec<u32>,
    pub min_margin: f32,
    /// The name of its logits, if they are stored.
    pub logits_key: Option<String>,
}

/// Reads it, and the logits.
///
/// # Panics
/// If it is not there.
pub fn reference() -> (Reference, Checkpoint) {
    let text = std::fs::read_to_string(fixtures().join("reference/reference.json")).expect("the reference");
    let logits = Checkpoint::read_file(&fixtures().join("reference/logits.safetensors")).expect("the logits");
    (serde_json::from_str(&text).expect("json"), logits)
}
