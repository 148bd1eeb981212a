//! `exlora bench`.

use super::{BASE, Outcome, SQL, WIT, exlora};
use serde_json::json;

#[test]
fn bench_measures_base_and_adapter_interleaved() {
    let sql = format!("sql={SQL}");
    let args = ["bench", "-m", BASE, "--threads", "2", "--prompt", "40", "--decode", "8", "--rounds", "1"];
    let line = exlora(&[&args[..], &["--adapter", &sql, "--json"]].concat()).lines().remove(0);
    assert_eq!((&line["engine"], &line["model"]), (&json!("exlora"), &json!("quill-4m-gptq-4bit-g128-sym")));
    assert_eq!(line["threads"], 2);
    for variant in ["base", "lora"] {
        for speed in ["prefill_tps", "decode_tps"] {
            assert!(line[variant][speed].as_f64() > Some(0.0), "{variant} {speed}: {line}");
        }
    }
    for key in ["load_s", "lora_load_s", "file_mib", "peak_rss_mib", "loadavg"] {
        assert!(line[key].is_number(), "{key}: {line}");
    }
    let counts = ["batch", "distinct_adapters", "max_rank", "prompt", "context", "decode", "rounds"];
    assert_eq!(counts.map(|key| line[key].as_u64()), [1, 1, 16, 40, 40, 8, 1].map(Some), "{line}");
    assert_eq!((&line["kv_dtype"], &line["prefill_chunk"]), (&json!("f16"), &json!(512)));
    let table = exlora(&args);
    assert_eq!(table.status, 0, "{}", table.stderr);
    assert!(table.stdout.contains("base") && !table.stdout.contains("lora"), "{}", table.stdout);
    let error = exlora(&["bench", "-m", BASE, "--prompt", "4096", "--json"]).error();
    assert_eq!(error["code"], "prompt_too_long");
}

#[test]
fn bench_measures_generation_with_and_without_drafts() {
    let short = ["bench", "-m", BASE, "--threads", "2", "--prompt", "5", "--decode", "16", "--rounds", "2"];
    for (draft, source) in [(&["--ngram-draft"][..], "ngram"), (&["--draft-model", BASE], "model")] {
        let line = exlora(&[&short[..], draft, &["--batch", "2", "--json"]].concat()).lines().remove(0);
        let drafts = &line["drafts"];
        assert_eq!((&drafts["source"], &drafts["num_draft_tokens"]), (&json!(source), &json!(4)));
        for speed in ["tps", "tps_without", "tokens_per_step"] {
            assert!(drafts[speed].as_f64() > Some(0.0), "{line}");
        }
        if source == "model" {
            assert_eq!(drafts["rejected_draft_tokens"], 0);
            // The first step yields one token, and each after that five.
            assert_eq!((&drafts["accepted_draft_tokens"], &drafts["tokens_per_step"]), (&json!(48), &json!(4.0)));
        }
        let table = exlora(&[&short[..], draft].concat()).stdout;
        assert!(table.contains("without drafts") && table.contains("of the drafted tokens accepted"), "{table}");
    }
}

#[test]
fn bench_measures_generation_with_and_without_a_schema() {
    let short = ["--json-schema", "--batch", "2", "--mixture", "sql*0.5+wit"];
    let line = bench(&[&short[..], &["--json"]].concat()).lines().remove(0);
    for speed in ["tps", "tps_min", "tps_without", "tps_without_max"] {
        assert!(line["structured"][speed].as_f64() > Some(0.0), "{line}");
    }
    let table = bench(&short).stdout;
    assert!(table.contains("without a schema") && table.contains("with a schema"), "{table}");
    let error = bench(&["--json-schema", "[", "--batch", "2", "--json"]).error();
    assert_eq!(error["code"], "constraint_invalid");
}

/// `bench` on short prompts, with both adapters.
fn bench(more: &[&str]) -> Outcome {
    let (sql, wit) = (format!("sql={SQL}"), format!("wit={WIT}"));
    let short = ["--prompt", "5", "--decode", "3", "--rounds", "2", "--threads", "2"];
    exlora(&[&["bench", "-m", BASE, "--adapter", &sql, "--adapter", &wit], &short[..], more].concat())
}

#[test]
fn bench_decodes_a_batch_over_more_adapters_than_folders_after_a_longer_context() {
    let line = bench(&["--batch", "5", "--distinct-adapters", "3", "--context", "70", "--json"]).lines().remove(0);
    let counts = ["batch", "distinct_adapters", "max_rank", "prompt", "context", "decode", "rounds"];
    assert_eq!(counts.map(|key| line[key].as_u64()), [5, 3, 16, 5, 70, 3, 2].map(Some), "{line}");
    for variant in ["base", "lora"] {
        for speed in ["prefill_tps", "decode_tps"] {
            let at = |end: &str| line[variant][format!("{speed}{end}")].as_f64().expect("a number");
            assert!(0.0 < at("_min") && at("_min") <= at("") && at("") <= at("_max"), "{variant} {speed}: {line}");
        }
    }
    let table = bench(&["--batch", "2"]).stdout;
    assert!(table.contains("batch 2, 2 distinct adapters, prompt 5, decode 3 after 5 tokens, 2 rounds"), "{table}");
}

#[test]
fn bench_runs_with_a_quantized_cache() {
    let line = bench(&["--batch", "2", "--kv-dtype", "q4", "--json"]).lines().remove(0);
    assert_eq!(line["kv_dtype"], json!("q4"));
    assert!(bench(&["--kv-dtype", "q5"]).stderr.contains("q8, q6, q4"));
}

#[test]
fn bench_runs_every_sequence_with_a_mixture() {
    let settings = ["--kv-dtype", "f32", "--prefill-chunk", "3", "--head", "int8", "--activations", "int8"];
    let args = [&["--batch", "2", "--mixture", "sql*0.5+wit*0.5", "--json"][..], &settings].concat();
    let line = bench(&args).lines().remove(0);
    assert_eq!((&line["kv_dtype"], &line["prefill_chunk"]), (&json!("f32"), &json!(3)));
    assert_eq!((&line["mixture"], &line["distinct_adapters"]), (&json!({"sql": 0.5, "wit": 0.5}), &json!(2)));
    let table = bench(&["--mixture", "wit*0.25"]).stdout;
    assert!(table.contains("every sequence with wit*0.25"), "{table}");
    assert_eq!(bench(&["--mixture", "nope", "--json"]).error()["code"], "adapter_not_found");
}

#[test]
fn bench_refuses_what_it_cannot_measure() {
    let sql = format!("sql={SQL}");
    for (args, message) in [
        (&["--adapter", &sql, "--batch", "4", "--distinct-adapters", "5"][..], "more distinct adapters than sequences"),
        (&["--adapter", &sql, "--adapter", "wit=x"], "more distinct adapters than sequences"),
        (&["--distinct-adapters", "1"], "distinct adapters need a folder"),
        (&["--batch", "0"], "batch must be at least 1"),
        (&["--decode", "0"], "decode must be at least 1"),
    ] {
        let error = exlora(&[&["bench", "-m", BASE], args, &["--json"]].concat()).error();
        assert_eq!(error["code"], "request_invalid");
        assert!(error["message"].as_str().is_some_and(|text| text.contains(message)), "{args:?}: {error}");
    }
    let error = bench(&["--batch", "2", "--context", "1022", "--json"]).error();
    assert_eq!((&error["code"], &error["found"]), (&json!("prompt_too_long"), &json!("1025 tokens")));
}
