//! Vectors in place of a prompt, over HTTP: those of the embedding table give the text of the ids.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use exlora::EngineOptions;
use exlora::checkpoint::Checkpoint;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

use super::{Answer, Running, adapters_dir, engine, fixture, options};

/// The base64 of a safetensors file with what the embedding table has for some ids.
fn rows_of_the_table(ids: &[u32]) -> Value {
    let checkpoint = Checkpoint::open(fixture("quill-4m").as_ref()).expect("opens");
    let table = checkpoint.tensor("model.embed_tokens.weight").expect("a table");
    let (values, width) = (table.to_f32(), table.shape()[1]);
    let rows = ids.iter().flat_map(|&id| &values[id as usize * width..][..width]);
    file(&[ids.len(), width], &rows.flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
}

fn file(shape: &[usize], bytes: &[u8]) -> Value {
    let tensor = TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("a tensor");
    json!(STANDARD.encode(serialize([("prompt_embeds", tensor)], None).expect("a file")))
}

fn complete(server: &Running, mut fields: Value) -> Answer {
    fields["max_tokens"] = json!(8);
    fields["temperature"] = json!(0);
    server.post("/v1/completions", &fields)
}

fn texts(answer: &Answer) -> Vec<Value> {
    answer.ok()["choices"].as_array().expect("choices").iter().map(|choice| choice["text"].clone()).collect()
}

#[test]
fn vectors_take_the_place_of_ids() {
    let dir = adapters_dir();
    let server = Running::start(&engine(EngineOptions::default()), options(&dir));
    let (one, other): (Vec<u32>, Vec<u32>) = ((100..120).collect(), (300..307).collect());
    for model in ["base", "sqlite"] {
        let ids = complete(&server, json!({"model": model, "prompt": [one, other]}));
        let embeds = json!([rows_of_the_table(&one), rows_of_the_table(&other)]);
        let found = complete(&server, json!({"model": model, "prompt_embeds": embeds}));
        assert_eq!(texts(&found), texts(&ids), "{model}");
        assert_eq!(found.json()["usage"]["prompt_tokens"], 27);
        // vLLM's clients send an empty prompt beside them.
        for prompt in [json!(null), json!(""), json!([])] {
            let fields = json!({"model": model, "prompt_embeds": rows_of_the_table(&one), "prompt": prompt});
            assert_eq!(texts(&complete(&server, fields)), texts(&ids)[..1]);
        }
    }
}

#[test]
fn vectors_have_the_limits_of_prompts_and_a_format_that_runs_no_code() {
    let dir = adapters_dir();
    let limits = EngineOptions { max_seq_len: Some(64), ..EngineOptions::default() };
    let server = Running::start(&engine(limits), options(&dir));
    let rows = || rows_of_the_table(&[100, 101]);
    for (fields, param, code) in [
        (json!({"prompt_embeds": rows(), "prompt": "x"}), "prompt_embeds", "request_invalid"),
        (json!({"prompt_embeds": 3}), "prompt_embeds", "request_invalid"),
        (json!({"prompt_embeds": []}), "prompt_embeds", "request_invalid"),
        (json!({"prompt_embeds": "?"}), "prompt_embeds", "prompt_embeds_invalid"),
        (json!({"prompt_embeds": STANDARD.encode("PK\u{3}\u{4}")}), "prompt_embeds", "prompt_embeds_invalid"),
        (json!({"prompt_embeds": file(&[1, 2], &[0; 8])}), "prompt_embeds", "prompt_embeds_invalid"),
        (json!({"prompt_embeds": rows_of_the_table(&[100; 65])}), "prompt_embeds", "prompt_too_long"),
        (json!({"prompt_embeds": rows(), "echo": true}), "echo", "setting_unsupported"),
        (json!({}), "prompt", "request_invalid"),
    ] {
        let answer = complete(&server, fields);
        assert_eq!(answer.refusal(), (400, code.to_owned()), "{}", answer.body);
        assert_eq!(answer.json()["error"]["param"], param, "{}", answer.body);
    }
}
