//! `exlora generate --requests`: a file of requests.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::{BASE, SQL, command, exlora, finish, generate, interrupt, start, stored};

#[test]
fn every_request_of_a_batch_has_its_own_adapters() {
    let (base, wit) = (stored(None, 1.0, "sqlite"), stored(Some("jargon-lora-r8"), 1.0, "unicode"));
    let half = stored(Some("sqlite-rslora-r16"), 0.5, "genesis");
    let requests = [
        json!({"prompt": wit.prompt, "adapter": "wit", "id": "w"}),
        json!({"prompt": base.prompt}),
        json!({"prompt": half.prompt, "adapter": {"sql": 0.5}, "id": [2]}),
        json!({"prompt": base.prompt, "adapter": {"wit": 0.5, "sql": 0.5}, "max_new_tokens": 3}),
    ];
    let requests: String = requests.iter().map(|request| format!("{request}\n")).collect();
    let args = ["--requests", "-", "--ordered", "--max-new-tokens", "48", "--json"];
    let lines = generate(&requests, &args).lines();
    let of = |key: &str| lines.iter().map(|line| line[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("id"), [json!("w"), Value::Null, json!([2]), Value::Null]);
    assert_eq!(of("adapter"), [json!("wit"), Value::Null, json!({"sql": 0.5}), json!({"wit": 0.5, "sql": 0.5})]);
    assert_eq!(of("token_ids")[..3], [json!(wit.ids), json!(base.ids), json!(half.ids)]);
    assert_eq!(lines[3]["usage"]["completion_tokens"], 3);

    assert_eq!(of("index"), [json!(0), json!(1), json!(2), json!(3)]);

    let text = generate(&requests, &["--requests", "-", "--max-new-tokens", "4"]).stdout;
    assert!(text.contains("== w [wit] 4 tokens, length\n"), "{text}");
    assert!(text.contains("== 3 [wit*0.5 + sql*0.5] 3 tokens, length\n"), "{text}");
}

#[test]
fn results_are_written_as_they_complete_or_in_order() {
    let requests = "{\"prompt\": \"a\", \"max_new_tokens\": 40}\n{\"prompt\": \"b\", \"max_new_tokens\": 1}\n";
    let indices = |more: &[&str]| {
        let lines = generate(requests, &[&["--requests", "-", "--json"], more].concat()).lines();
        lines.iter().map(|line| line["index"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(indices(&[]), [1, 0]);
    assert_eq!(indices(&["--ordered"]), [0, 1]);
    assert_eq!(indices(&["--max-batch-size", "1"]), [0, 1]);
}

#[test]
fn a_request_that_fails_is_a_line_and_the_others_run() {
    let bad = [
        r#"{"prompt": "a", "temprature": 1, "id": "typo"}"#,
        r#"{"prompt": "a", "adapter": "nope", "custom_id": 7}"#,
        "not JSON",
        r#"{"prompt": "a", "adapter": {"sql": 0.5, "sql": -0.5}}"#,
        r#"{"prompt": "a", "top_p": 2}"#,
        r#"{"prompt": []}"#,
        r#"{"prompt": "a", "n": 0}"#,
        r#"{"prompt": "a", "logit_bias": {"99999999": 1}}"#,
    ];
    let good = r#"{"prompt": "Emma was", "max_new_tokens": 2}"#;
    let requests = format!("{good}\n{}\n\n{good}\n", bad.join("\n"));
    let alone = generate("", &["--prompt", "Emma was", "--max-new-tokens", "2", "--json"]).lines().remove(0);
    for order in [&[][..], &["--ordered"]] {
        let outcome = generate(&requests, &[&["--requests", "-", "--json"], order].concat());
        assert_eq!(outcome.status, 3, "{}", outcome.stderr);
        let mut lines = outcome.json();
        lines.sort_by_key(|line| line["index"].as_u64());
        let codes: Vec<&str> = lines.iter().filter_map(|line| line["error"]["code"].as_str()).collect();
        let (invalid, empty) = ("request_invalid", "prompt_empty");
        let expected = [invalid, "adapter_not_found", invalid, invalid, "sampling_invalid", empty];
        assert_eq!((&codes[..6], codes.len()), (&expected[..], 8));
        assert_eq!((&lines[1]["id"], &lines[2]["custom_id"]), (&json!("typo"), &json!(7)));
        assert_eq!(
            (&lines[1]["error"]["subject"], &lines[3]["error"]["subject"]),
            (&json!("line 2"), &json!("line 4"))
        );
        for index in [0, 9] {
            assert_eq!((&lines[index]["token_ids"], lines.len()), (&alone["token_ids"], 10));
        }
    }
    let outcome = generate(&requests, &["--requests", "-"]);
    assert_eq!((outcome.status, outcome.stdout.matches("== ").count()), (3, 2));
    for line in [
        "line 2: unknown field `temprature`; did you mean 'temperature'?",
        "line 4: the line cannot be read as JSON: expected ident",
        "line 5: the line cannot be read as JSON: 'sql' is there twice",
    ] {
        assert!(outcome.stderr.contains(line), "{}", outcome.stderr);
    }
}

#[test]
fn requests_that_cannot_be_read_fail_the_command() {
    let error = exlora(&["generate", "-m", BASE, "--requests", "no/such/file", "--json"]).error();
    assert_eq!((&error["code"], &error["path"]), (&json!("io_failed"), &json!("no/such/file")));
    let error = exlora(&["generate", "-m", BASE, "--requests", "src", "--json"]).error();
    assert_eq!(error["code"], "io_failed");
    assert_eq!(generate("", &["--requests", "-", "--json"]).lines(), Vec::<Value>::new());
}

#[test]
fn a_line_is_not_held_longer_than_allowed() {
    let requests =
        format!("{{\"prompt\": \"{}\"}}\n{{\"prompt\": \"a\", \"max_new_tokens\": 1}}\n", "x".repeat(17 << 20));
    let outcome = generate(&requests, &["--requests", "-", "--ordered", "--json"]);
    let lines = outcome.json();
    assert_eq!((outcome.status, lines.len(), &lines[0]["error"]["message"]), (3, 2, &json!("the line is too long")));
    assert_eq!(lines[1]["usage"]["completion_tokens"], 1);
}

#[test]
fn a_result_comes_before_the_next_request_is_written() {
    let mut child = start(command().args(["generate", "-m", BASE, "--requests", "-", "--json"]));
    let mut stdin = child.stdin.take().expect("piped");
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    for index in 0..3 {
        stdin.write_all(b"{\"prompt\": \"a\", \"max_new_tokens\": 2}\n").expect("written");
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        assert_eq!(serde_json::from_str::<Value>(&line).expect("JSON")["index"], index);
    }
    drop(stdin);
    assert_eq!(finish(child).status, 0);
}

/// The lines of a file of results by index.
fn results(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("is there");
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("is whole")).collect();
    lines.sort_by_key(|line| line["index"].as_u64());
    lines
}

#[test]
fn an_interrupted_batch_keeps_its_results_and_is_resumed() {
    let dir = tempfile::tempdir().expect("a folder");
    let (requests, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let line = |i: usize| match i % 3 {
        0 => format!("{{\"prompt\": \"a\", \"id\": {i}, \"max_new_tokens\": 1}}\n"),
        _ => format!("{{\"prompt\": \"b\", \"id\": {i}}}\n"),
    };
    std::fs::write(&requests, (0..12).map(line).collect::<String>()).expect("written");
    let files = [requests.to_str().expect("UTF-8"), "--output", output.to_str().expect("UTF-8")];
    let args =
        [&["generate", "-m", BASE, "--device", "reference", "--kv-tokens", "16384", "--requests"], &files[..]].concat();
    let mut child = start(command().args(&args).args(["--max-new-tokens", "1000", "--resume"]));
    while std::fs::read_to_string(&output).map_or(0, |text| text.lines().count()) < 4 {
        assert!(child.try_wait().expect("a child").is_none(), "it runs long");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    interrupt(&child);
    let outcome = finish(child);
    assert_eq!(outcome.status, 130, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("--resume runs the rest"), "{}", outcome.stderr);
    let first = results(&output);
    assert_eq!(first.iter().map(|line| line["id"].clone()).collect::<Vec<_>>(), [0, 3, 6, 9]);

    let refused = exlora(&args);
    assert_eq!(refused.status, 1, "an output is not overwritten");
    assert!(refused.stderr.contains("--resume"), "{}", refused.stderr);
    let resumed = exlora(&[&args[..], &["--max-new-tokens", "2", "--resume"]].concat());
    assert_eq!(resumed.status, 0, "{}", resumed.stderr);
    let all = results(&output);
    assert_eq!(all.iter().map(|line| line["index"].clone()).collect::<Vec<_>>(), (0..12).collect::<Vec<_>>());
    assert!(first.iter().all(|line| all.contains(line)), "what was there stays");
    let again = exlora(&[&args[..], &["--resume"]].concat());
    assert_eq!((again.status, results(&output)), (0, all));
}

#[test]
fn requests_that_failed_run_again_when_resumed() {
    let dir = tempfile::tempdir().expect("a folder");
    let (requests, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    std::fs::write(&requests, "{\"prompt\": \"a\", \"n\": 2}\n{\"prompt\": \"a\", \"adapter\": \"sql\"}\n")
        .expect("written");
    let files = [requests.to_str().expect("UTF-8"), "--output", output.to_str().expect("UTF-8")];
    let args = [&["generate", "-m", BASE, "--max-new-tokens", "2", "--resume", "--requests"], &files[..]].concat();
    assert_eq!(exlora(&args).status, 3);
    assert_eq!(results(&output)[2]["error"]["code"], "adapter_not_found");
    let sql = format!("sql={SQL}");
    assert_eq!(exlora(&[&args[..], &["--adapter", &sql]].concat()).status, 0);
    let lines = results(&output);
    assert_eq!((lines.len(), &lines[2]["adapter"]), (3, &json!("sql")));
    std::fs::write(&requests, "{\"prompt\": \"other\", \"id\": 1}\n").expect("written");
    let error = exlora(&[&args[..], &["--json"]].concat()).error();
    assert_eq!(error["code"], "request_invalid", "the output of other requests");
}
