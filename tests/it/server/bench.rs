//! `exlora bench --serve`, against a server.

use std::process::{Command, Output};

use exlora::EngineOptions;
use exlora::server::{Key, ServeOptions};
use serde_json::{Value, json};

use super::{Running, adapters_dir, engine, options};

fn bench(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_exlora"));
    command.env_remove("EXLORA_LOG").env_remove("EXLORA_API_KEY").arg("bench").args(args).output().expect("it ends")
}

fn line(args: &[&str]) -> Value {
    let output = bench(&[args, &["--json"]].concat());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    serde_json::from_str(text.lines().last().expect("a line")).expect(&text)
}

#[test]
fn it_measures_latencies_overall_and_for_each_adapter() {
    let (engine, dir) = (engine(EngineOptions::default()), adapters_dir());
    let keys = vec![Key::new("client").expect("a key")];
    let server = Running::start(&engine, ServeOptions { api_keys: keys, ..options(&dir) });
    let url = format!("http://{}", server.address);
    let short = ["--serve", &url, "--api-key", "client", "--prompt", "40", "--decode", "6", "--concurrency", "4"];
    let adapters = ["--served-adapters", "jargon,sqlite", "--num-requests", "10", "--popularity", "distinct"];
    let found = line(&[&short[..], &adapters].concat());
    assert_eq!(
        (&found["requests"], &found["failed"], &found["tokens"]),
        (&json!(10), &json!(0), &json!(60)),
        "{found}"
    );
    assert_eq!((&found["model"], &found["popularity"]), (&json!("quill-4m"), &json!("distinct")));
    for part in [&found, &found["per_adapter"]["jargon"], &found["per_adapter"]["sqlite"]] {
        for latency in ["time_to_first_token_ms", "time_per_token_ms"] {
            let [p50, p90, p99] = ["p50", "p90", "p99"].map(|at| part[latency][at].as_f64().expect("a number"));
            assert!(0.0 < p50 && p50 <= p90 && p90 <= p99, "{found}");
        }
        assert!(part["tokens_per_s"].as_f64() > Some(0.0));
    }
    assert_eq!(found["per_adapter"]["jargon"]["requests"], 5);
    // The first ones, which load the adapters, are not measured.
    assert_eq!(engine.stats().tokens_generated, 60 + 3);

    let lora =
        ["--adapter-field", "lora", "--served-adapters", "0", "--popularity", "identical", "--num-requests", "3"];
    assert_eq!(line(&[&short[..], &lora].concat())["per_adapter"]["0"]["requests"], 3);
    let table = bench(&[&short[..], &["--num-requests", "3"]].concat());
    let table = String::from_utf8(table.stdout).expect("UTF-8");
    assert!(table.contains("the base alone") && table.contains("3 requests, 3 in flight"), "{table}");
}

#[test]
fn it_says_why_nothing_was_measured() {
    let (engine, dir) = (engine(EngineOptions::default()), adapters_dir());
    let server =
        Running::start(&engine, ServeOptions { api_keys: vec![Key::new("client").expect("a key")], ..options(&dir) });
    let url = format!("http://{}", server.address);
    let error = &line(&["--serve", &url])["error"];
    assert_eq!(error["code"], "io_failed");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("401")), "{error}");
    let error = &line(&["--serve", &url, "--api-key", "client", "--served-adapters", "nobody"])["error"];
    assert!(error["found"].as_str().is_some_and(|text| text.contains("adapter_not_found")), "{error}");
    drop(server);
    assert!(line(&["--serve", &url])["error"]["message"].as_str().is_some_and(|text| text.contains("failed")));
    for wrong in [
        &["--serve", &url, "-m", "tests/fixtures/quill-4m"][..],
        &["--serve", &url, "--batch", "3"],
        &["-m", "tests/fixtures/quill-4m", "--num-requests", "3"],
        &["--serve", "https://example.org"],
        &[],
    ] {
        assert_eq!(bench(wrong).status.code(), Some(2), "{wrong:?}");
    }
}
