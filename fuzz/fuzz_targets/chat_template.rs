//! Any text as a template, rendered with any messages: a prompt or an error, in bounded time and memory, never a panic.
//!
//! The template ends at the first zero byte; each further text up to a zero byte is a message.

#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use exlora::{ChatMessage, ChatOptions, Tokenizer};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

/// More than these messages and the budget of a rendering can produce.
const MAX_PROMPT_BYTES: usize = 32 << 20;

/// A folder of this process with a tokenizer, but without a template.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("exlora-chat-template-{}", std::process::id()));
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"},
    });
    fs::create_dir_all(&dir).expect("a folder for temporary files");
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).expect("a writable folder");
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}});
    fs::write(dir.join("tokenizer_config.json"), config.to_string()).expect("a writable folder");
    dir
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut parts = text.split('\0');
    let template = parts.next().unwrap_or_default();
    let roles = ["system", "user", "assistant", "tool"].into_iter().cycle();
    let mut messages: Vec<ChatMessage> = roles.zip(parts).map(|(role, text)| ChatMessage::new(role, text)).collect();
    // What a template reads beside role and text.
    let function = json!({"function": {"name": "f", "arguments": {"z": [1, 2.5, null], "a": "ü<\n"}}});
    if let Some(message) = messages.pop() {
        messages.push(message.with("tool_calls", json!([function])));
    }
    let options = ChatOptions { tools: Some(vec![function]), ..ChatOptions::default() };
    fs::write(FOLDER.join("chat_template.jinja"), template).expect("a writable folder");
    let tokenizer = Tokenizer::open(&FOLDER).expect("right files").expect("a tokenizer");
    match tokenizer.apply_chat_template(&messages, &options) {
        Ok(prompt) => assert!(prompt.len() <= MAX_PROMPT_BYTES),
        Err(error) => assert!(error.code().as_str().starts_with("chat_template_")),
    }
});
