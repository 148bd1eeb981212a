//! Four requests in one batch: the base, one adapter, another one, and a mixture of both.
//!
//! ```text
//! cargo run --release --example batch        (at the root of the repository)
//! ```

use exlora::{Engine, EngineOptions, Request};

fn main() -> exlora::Result<()> {
    let engine = Engine::load("tests/fixtures/quill-4m-gptq-4bit-g128-sym", EngineOptions::default())?;
    let jargon = engine.load_adapter("jargon", "tests/fixtures/adapters/jargon-lora-r8")?;
    let sqlite = engine.load_adapter("sqlite", "tests/fixtures/adapters/sqlite-rslora-r16")?;

    let prompt = "The file";
    let outs = engine.generate(&[
        Request::new(prompt).max_new_tokens(24),
        Request::new(prompt).max_new_tokens(24).adapter(&jargon, 1.0),
        Request::new(prompt).max_new_tokens(24).adapter(&sqlite, 1.0),
        Request::new(prompt).max_new_tokens(24).adapter(&jargon, 0.5).adapter(&sqlite, 0.5),
    ])?;
    for out in outs {
        println!("{:?}: {prompt}{}", out.adapter, out.text);
    }
    Ok(())
}
