//! Whatever text a file holds, what is printed of it stays on its line, sends nothing to the terminal, and is short.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::adapters::HIDDEN;
use support::model::TinyModel;
use support::{StoredTensor, safetensors};

/// Begins lines, colors, moves the cursor, turns the direction of writing.
const HOSTILE: &str = "x\nverdict          fits everything\r\n\x1b[31m\x1b]0;title\x07\u{9b}2J\u{202e}\u{2028}\u{feff}";

fn long() -> String {
    format!("{HOSTILE}{}", "y".repeat(1 << 20))
}

/// The JSON value with one of its strings or keys replaced: each in turn.
fn planted(whole: &Value, text: &str) -> Vec<Value> {
    match whole {
        Value::String(_) => vec![text.into()],
        Value::Array(items) => {
            let each = items.iter().enumerate().flat_map(|(i, item)| {
                planted(item, text).into_iter().map(move |changed| {
                    let mut items = items.clone();
                    items[i] = changed;
                    Value::Array(items)
                })
            });
            each.collect()
        }
        Value::Object(members) => {
            let mut all = Vec::new();
            for (key, member) in members {
                let mut with_key = members.clone();
                with_key.insert(text.to_owned(), member.clone());
                all.push(Value::Object(with_key.clone()));
                with_key.remove(key);
                all.push(Value::Object(with_key));
                for changed in planted(member, text).into_iter().chain([text.into()]) {
                    let mut members = members.clone();
                    members.insert(key.clone(), changed);
                    all.push(Value::Object(members));
                }
            }
            all
        }
        _ => Vec::new(),
    }
}

/// Runs `exlora inspect`, with everything logged, and looks at both streams.
fn inspect(dir: &Path, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_exlora"));
    let output =
        command.arg("inspect").arg(dir).args(args).env("EXLORA_LOG", "debug").output().expect("the command runs");
    assert!(output.status.code().is_some(), "killed");
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    for (stream, text) in [("stdout", &stdout), ("stderr", &stderr)] {
        assert!(text.len() < 200_000, "{} bytes on {stream}", text.len());
        let unsafe_char = |c: char| (c.is_control() && c != '\n') || "\u{202e}\u{2028}\u{feff}".contains(c);
        assert!(!text.contains(unsafe_char), "{stream}: {text:?}");
        assert!(!text.lines().any(|line| line.starts_with("verdict") && line.contains("fits everything")), "{text}");
        assert!(!text.contains("panicked"), "{text}");
    }
    assert!(stdout.lines().filter(|line| line.starts_with("verdict")).count() <= 1, "{stdout}");
    stdout
}

fn adapter(config: &Value, names: [&str; 2]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("adapter_config.json"), config.to_string()).expect("written");
    let tensors = [
        StoredTensor::f32(names[0], &[2, HIDDEN], &[0.5; 2 * HIDDEN]),
        StoredTensor::f32(names[1], &[HIDDEN, 2], &[0.5; 2 * HIDDEN]),
    ];
    fs::write(dir.path().join("adapter_model.safetensors"), safetensors(&tensors)).expect("written");
    dir
}

#[test]
fn what_is_printed_of_an_adapter_is_escaped_and_short() {
    let a = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let b = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
    let config = json!({
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none", "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {}, "layers_pattern": "layers",
        "modules_to_save": ["norm"], "init_lora_weights": "gaussian", "runtime_config": {"ephemeral_gpu_offload": false}
    });
    let plain = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]});
    for text in [HOSTILE.to_owned(), long()] {
        for config in planted(&config, &text) {
            inspect(adapter(&config, [a, b]).path(), &[]);
        }
        for names in [
            [text.as_str(), b],
            [a, &format!("{text}.lora_B.weight")],
            [&format!("base_model.model.{text}.lora_A.weight"), b],
        ] {
            inspect(adapter(&plain, names).path(), &[]);
        }
    }
}

#[test]
fn what_is_printed_of_a_model_is_escaped_and_short() {
    let dir = tempfile::tempdir().expect("a folder");
    TinyModel { layers: 1, ..TinyModel::default() }.write(dir.path());
    let write = |name: &str, value: &Value| fs::write(dir.path().join(name), value.to_string()).expect("written");
    let config: Value =
        serde_json::from_slice(&fs::read(dir.path().join("config.json")).expect("there")).expect("JSON");
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "normalizer": {"type": "NFC"},
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"]}
    });
    let tokenizer_config = json!({"tokenizer_class": "LlamaTokenizer", "bos_token": "a", "chat_template": "{{ 1 }}"});
    let index = json!({"metadata": {"format": "pt"}, "weight_map": {"lm_head.weight": "model.safetensors"}});
    let quantize = json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq"});
    inspect(dir.path(), &[]);
    for text in [HOSTILE.to_owned(), long()] {
        let files = [
            ("config.json", &config),
            ("tokenizer.json", &tokenizer),
            ("tokenizer_config.json", &tokenizer_config),
            ("special_tokens_map.json", &tokenizer_config),
            ("model.safetensors.index.json", &index),
            ("quantize_config.json", &quantize),
            ("generation_config.json", &json!({"eos_token_id": "x"})),
        ];
        for (name, value) in files {
            let kept = fs::read(dir.path().join(name)).ok();
            for changed in planted(value, &text) {
                write(name, &changed);
                inspect(dir.path(), &[]);
            }
            match kept {
                Some(bytes) => fs::write(dir.path().join(name), bytes).expect("written"),
                None => fs::remove_file(dir.path().join(name)).expect("there"),
            }
        }
    }
}

#[test]
fn a_folders_own_name_is_escaped() {
    let dir = tempfile::tempdir().expect("a folder");
    let named = dir.path().join("x\nverdict          fits\x1b[31m");
    fs::create_dir(&named).expect("a folder");
    inspect(&named, &[]);
    inspect(adapter(&json!({"peft_type": "LORA"}), ["a", "b"]).path(), &["--base", named.to_str().expect("UTF-8")]);
}
