//! `exlora chat`, scripted through a pipe. What needs a terminal is tested from Python.

use std::io::Write;

use serde_json::{Value, json};

use super::{BASE, Outcome, SQL, WIT, command, exlora_reading, finish, start};

#[test]
fn a_chat_is_scripted_through_stdin() {
    let (sql, wit) = (format!("sql={SQL}"), format!("wit={WIT}"));
    let args = ["chat", "-m", BASE, "--adapter", &sql, "--adapter", &wit, "--max-new-tokens", "6"];
    let script = "Hello\n/reset\nHello\nHello\n/adapter wit*0.5+sql*0.5\n/reset\nHello\n/adapter none\n/reset\nHello\n/exit\nno\n";
    let lines = exlora_reading(script, &[&args[..], &["--json"]].concat()).lines();
    assert_eq!(lines.len(), 5);
    assert_eq!(lines[0]["token_ids"], lines[1]["token_ids"], "a reset forgets");
    let prompt_tokens = |i: usize| lines[i]["usage"]["prompt_tokens"].as_u64();
    assert!(prompt_tokens(2) > prompt_tokens(1), "a conversation grows");
    assert_eq!(lines[3]["adapter"], json!({"wit": 0.5, "sql": 0.5}));
    assert_eq!((&lines[4]["adapter"], &lines[4]["token_ids"]), (&Value::Null, &lines[0]["token_ids"]));

    let plain = exlora_reading("Hello\n", &args);
    assert_eq!(plain.stdout, lines[0]["text"].as_str().expect("a text").to_owned() + "\n");

    let error = exlora_reading("/adapter nope\nHello\n", &[&args[..], &["--json"]].concat()).error();
    assert_eq!(error["code"], "adapter_not_found");
    let error = exlora_reading("/adaptor wit\n", &[&args[..], &["--json"]].concat()).error();
    assert_eq!(error["code"], "request_invalid");
}

fn chat(script: &str, more: &[&str]) -> Outcome {
    let sql = format!("sql={SQL}");
    exlora_reading(script, &[&["chat", "-m", BASE, "--adapter", &sql, "--max-new-tokens", "6"], more].concat())
}

#[test]
fn commands_change_adapters_settings_and_the_conversation() {
    let script = format!(
        "Hello\n/load wit={WIT}\n/adapter wit\n/reset\nHello\n/adapters\n/undo\n/adapter none\n/unload wit\n/retry\n"
    );
    let error = chat(&script, &["--json"]);
    assert_eq!((error.status, &error.error()["message"]), (1, &json!("there is no message to answer again")));
    let lines = error.json();
    assert_eq!((&lines[0]["adapter"], &lines[1]["adapter"]), (&Value::Null, &json!("wit")));
    assert!(error.stderr.contains("wit: rank 8"), "{}", error.stderr);

    let lines =
        chat("Hello\n/retry\n/set max-new-tokens=2\n/retry\n/set max_new_tokens=default\n/retry\n", &["--json"])
            .lines();
    let tokens: Vec<_> = lines.iter().map(|line| line["usage"]["completion_tokens"].as_u64()).collect();
    assert_eq!(tokens, [6, 6, 2, 6].map(Some));
    assert!(lines.iter().all(|line| line["usage"]["prompt_tokens"] == lines[0]["usage"]["prompt_tokens"]));

    let lines = chat("/system Be brief.\nHello\n/system none\n/retry\n", &["--json"]).lines();
    assert!(lines[0]["usage"]["prompt_tokens"].as_u64() > lines[1]["usage"]["prompt_tokens"].as_u64());
    for (line, message) in [
        ("/unload sql", "'sql' is in use"),
        ("/set temprature=1", "did you mean 'temperature'"),
        ("/set top-k=x", "invalid value 'x'"),
        ("/load sql", "write NAME=DIR"),
        ("/sytem x", "did you mean '/system'"),
        ("/reset now", "takes no argument"),
        ("/set n=2", "a chat has one answer"),
    ] {
        let outcome = chat(&format!("{line}\n"), &["--use", "sql"]);
        assert_eq!(outcome.status, 1, "{line}");
        assert!(outcome.stderr.contains(message), "{line}: {}", outcome.stderr);
    }
}

#[test]
fn a_line_that_is_no_text_does_not_end_the_chat() {
    let mut child = start(command().args(["chat", "-m", BASE, "--max-new-tokens", "6", "--json"]));
    child.stdin.take().expect("piped").write_all(b"Hello\nb\xffd\n/reset\nHello\n").expect("written");
    let outcome = finish(child);
    assert_eq!(outcome.status, 0, "{}", outcome.stderr);
    let lines = outcome.json();
    let answers: Vec<_> = lines.iter().filter(|line| line.get("error").is_none()).collect();
    assert_eq!((answers.len(), lines.len()), (2, 3));
    assert_eq!(answers[0]["token_ids"], answers[1]["token_ids"]);
    assert_eq!(lines[1]["error"]["code"], "request_invalid");
}

#[test]
fn a_chat_with_several_answers_is_refused_before_the_model_is_loaded() {
    let error = exlora_reading("", &["chat", "-m", "no/such/model", "--n", "2", "--json"]).error();
    assert_eq!((&error["code"], &error["setting"]), (&json!("request_invalid"), &json!("n")));
}

#[test]
fn a_message_can_have_several_lines_and_is_saved_as_typed() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("chat.json");
    let save = format!("/save {}\n", file.display());
    let script = format!("one\\\ntwo\n\"\"\"\n  three\n\nfour\n\"\"\"\n/undo\n /slash\n{save}");
    let lines = chat(&script, &["--system", "Be brief.", "--json"]).lines();
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(&file).expect("saved")).expect("JSON");
    let message = |role: &str, content: &Value| json!({"role": role, "content": content});
    assert_eq!(saved[0], message("system", &json!("Be brief.")));
    assert_eq!(saved[1], message("user", &json!("one\ntwo")));
    assert_eq!((&saved[2], &saved[3]), (&message("assistant", &lines[0]["text"]), &message("user", &json!("/slash"))));
    assert_eq!((lines.len(), saved.as_array().map(Vec::len)), (3, Some(5)));
    assert!(chat(&save, &[]).stderr.contains("[io_failed]"), "a file is not overwritten");
}

#[test]
fn an_answer_that_is_cut_says_so_and_runs_to_the_end_of_the_context_by_default() {
    assert!(chat("Hello\n", &[]).stderr.contains("[cut after 6 tokens"));
    let args = ["chat", "-m", BASE, "--stop-at-eos", "false", "--kv-tokens", "256", "--json"];
    let outcome = exlora_reading("Hello\n", &args);
    let usage = &outcome.lines()[0]["usage"];
    let total = usage["prompt_tokens"].as_u64().zip(usage["completion_tokens"].as_u64()).map(|(a, b)| a + b);
    assert_eq!(total, Some(257), "the last token needs no place in the context");
    assert!(outcome.stderr.contains("[cut: the context of 256 tokens (see --kv-tokens) is full"), "{}", outcome.stderr);
}

#[test]
fn a_full_context_leaves_the_oldest_turns_out_and_the_chat_goes_on() {
    let question = format!("{}\n", "tell me more about the king ".repeat(6));
    let args = ["--kv-tokens", "256", "--system", "Be brief.", "--json"];
    let outcome = chat(&question.repeat(8), &args);
    let lines = outcome.lines();
    let prompts: Vec<u64> = lines.iter().filter_map(|line| line["usage"]["prompt_tokens"].as_u64()).collect();
    assert_eq!(prompts.len(), 8);
    assert!(prompts.iter().all(|tokens| *tokens <= 256 - 6) && prompts[7] > prompts[0], "{prompts:?}");
    assert!(outcome.stderr.contains("is full: the oldest turn is left out from now on"), "{}", outcome.stderr);
    let too_long = chat(&format!("{}\n", "word ".repeat(400)), &args);
    assert_eq!(too_long.error()["code"], "prompt_too_long", "one message that does not fit is refused");
}
