//! `exlora generate` with one prompt.

use std::io::Read;

use serde_json::{Value, json};

use super::{BASE, command, exlora, exlora_reading, finish, generate, interrupt, start, stored};

#[test]
fn a_prompt_is_completed_as_in_the_stored_reference() {
    let stored = stored(None, 1.0, "sqlite");
    let args = ["--prompt", &stored.prompt, "--max-new-tokens", "48"];
    let plain = generate("", &args);
    assert_eq!(plain.status, 0, "{}", plain.stderr);
    assert_eq!(plain.stdout, stored.text.clone() + "\n");
    assert!(plain.stderr.contains("tokens/s"), "{}", plain.stderr);

    let line = generate("", &[&args[..], &["--json"]].concat()).lines().remove(0);
    assert_eq!((&line["text"], &line["token_ids"]), (&json!(stored.text), &json!(stored.ids)));
    assert_eq!((&line["finish_reason"], &line["adapter"]), (&json!("length"), &Value::Null));
    assert_eq!(line["usage"]["completion_tokens"], 48);
}

#[test]
fn use_names_the_mixture_of_the_prompt() {
    let half = stored(Some("sqlite-rslora-r16"), 0.5, "genesis");
    let args = ["--prompt", &half.prompt, "--max-new-tokens", "48", "--json"];
    let line = generate("", &[&args[..], &["--use", "sql*0.5"]].concat()).lines().remove(0);
    assert_eq!((&line["token_ids"], &line["adapter"]), (&json!(half.ids), &json!({"sql": 0.5})));
    let joined = generate("", &[&args[..], &["--use", "wit*0.25+sql*0.5"]].concat()).lines();
    let apart = generate("", &[&args[..], &["--use", "wit*0.25", "--use", "sql*0.5"]].concat()).lines();
    assert_eq!(joined, apart);
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let args = ["--prompt", "Emma was", "--max-new-tokens", "12", "--temperature", "1.5", "--top-p", "0.95", "--json"];
    let line = |more: &[&str]| generate("", &[&args[..], more].concat()).lines().remove(0);
    let text = |seed: &str| line(&["--seed", seed])["token_ids"].clone();
    assert_eq!(text("7"), text("7"));
    assert_ne!(text("7"), text("8"));
    let (random, other) = (line(&[]), line(&[]));
    assert_ne!(random["token_ids"], other["token_ids"], "a random seed by default");
    assert_eq!(text(&random["seed"].to_string()), random["token_ids"], "which is reported");
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let stored = stored(None, 1.0, "sqlite");
    let line = generate("", &["--prompt", &stored.prompt, "--stop", "interface", "--json"]).lines().remove(0);
    let expected = stored.text.split("interface").next().expect("a part");
    assert_eq!((&line["text"], &line["finish_reason"]), (&json!(expected), &json!("stop")));
}

#[test]
fn a_closed_stdout_does_not_crash_the_command() {
    let mut child = start(command().args(["generate", "-m", BASE, "--prompt", "Emma was", "--max-new-tokens", "64"]));
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the binary ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(!stderr.contains("panicked") && !stderr.contains("["), "{stderr}");
}

#[test]
fn a_prompt_comes_from_an_option_a_file_or_a_pipe() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("prompt.txt");
    std::fs::write(&file, "Emma was\n").expect("written");
    let more = ["--max-new-tokens", "4", "--json"];
    let ids = |stdin: &str, prompt: &[&str]| {
        let line = generate(stdin, &[prompt, &more[..]].concat()).lines().remove(0);
        (line["usage"]["prompt_tokens"].clone(), line["token_ids"].clone())
    };
    let option = ids("", &["--prompt", "Emma was"]);
    assert_eq!(ids("", &["--file", file.to_str().expect("UTF-8")]), option);
    assert_eq!(ids("Emma was\n", &[]), option, "a pipe");
    assert_eq!(ids("Emma was", &["--prompt", "-"]), option, "stdin by name");
    assert_ne!(ids("Emma was\n\n", &[]), option, "one newline alone is not part of the prompt");
}

#[test]
fn several_samples_have_seeds_of_their_own() {
    let args = ["--prompt", "Emma was", "--temperature", "1.5", "--max-new-tokens", "8", "--seed", "3", "--n", "3"];
    let lines = generate("", &[&args[..], &["--json"]].concat()).lines();
    let sorted = |key: &str| {
        let mut values: Vec<String> = lines.iter().map(|line| line[key].to_string()).collect();
        values.sort();
        values
    };
    assert_eq!(sorted("sample"), ["0", "1", "2"]);
    assert!(sorted("seed").windows(2).all(|pair| pair[0] != pair[1]));
    assert!(sorted("token_ids").windows(2).any(|pair| pair[0] != pair[1]));
    let text = generate("", &args).stdout;
    assert_eq!(text.matches("== sample ").count(), 3, "{text}");
}

#[test]
fn every_sampling_option_reaches_the_engine() {
    let ids = |more: &[&str]| {
        let args = ["--prompt", "Emma was", "--max-new-tokens", "24", "--json"];
        generate("", &[&args[..], more].concat()).lines().remove(0)
    };
    let plain = ids(&[]);
    for more in [
        &["--frequency-penalty", "2"][..],
        &["--presence-penalty", "2.5"],
        &["--frequency-penalty", "-2"],
        &["--repetition-penalty", "1.5"],
        &["--repetition-penalty", "1.5", "--repetition-range", "4"],
        &["--temperature", "1.5", "--seed", "5", "--top-k", "50", "--min-p", "0.01"],
    ] {
        assert_ne!(ids(more)["token_ids"], plain["token_ids"], "{more:?}");
    }
    let first = plain["token_ids"][0].to_string();
    assert_ne!(ids(&["--logit-bias", &format!("{first}=-inf")])["token_ids"][0], plain["token_ids"][0]);
    let stopped = ids(&["--stop-token-ids", &first]);
    assert_eq!((&stopped["stop_match"], &stopped["usage"]["completion_tokens"]), (&plain["token_ids"][0], &json!(1)));
    assert_eq!(ids(&["--logprobs", "3"])["top_logprobs"][0].as_array().map(Vec::len), Some(3));
}

#[test]
fn engine_options_are_options_of_the_command() {
    let args = ["--prompt", "Emma was", "--max-new-tokens", "4", "--json"];
    let plain = generate("", &args).lines();
    let options = ["--kv-tokens", "512", "--max-batch-size", "2", "--prefill-chunk", "64", "--prefix-cache", "false"];
    let limits = ["--max-adapters", "2", "--max-adapter-bytes", "64MiB"];
    assert_eq!(generate("", &[&args[..], &options, &limits].concat()).lines(), plain);
    let error = generate("", &[&args[..], &["--max-adapters", "1"]].concat()).error();
    assert_eq!(error["code"], "adapter_budget_exceeded");
    let error = generate("", &["--prompt", &"word ".repeat(400), "--kv-tokens", "256", "--json"]).error();
    assert_eq!(error["code"], "prompt_too_long");
}

#[test]
fn ctrl_c_ends_a_text_with_what_there_is() {
    let args = ["generate", "-m", BASE, "--device", "reference", "--prompt", "Emma was", "--max-new-tokens", "1000"];
    let mut child = start(command().args(args));
    let mut stdout = child.stdout.take().expect("piped");
    let mut text = vec![0];
    stdout.read_exact(&mut text).expect("some text");
    interrupt(&child);
    stdout.read_to_end(&mut text).expect("the rest");
    let outcome = finish(child);
    assert_eq!(outcome.status, 130, "{}", outcome.stderr);
    assert!(text.ends_with(b"\n"));
    assert!(outcome.stderr.contains("ended by cancelled"), "{}", outcome.stderr);
}

#[test]
fn a_home_folder_is_expanded_and_a_name_on_the_hub_explained() {
    let home = std::env::current_dir().expect("a folder");
    let args = ["generate", "-m", "~/tests/fixtures/quill-4m", "--adapter"];
    let adapter = "sql=~/tests/fixtures/adapters/sqlite-rslora-r16";
    let more = [adapter, "--use", "sql", "--prompt", "a", "--max-new-tokens", "1", "--json"];
    let child = start(command().env("HOME", home).args(args).args(more));
    assert_eq!(finish(child).lines().len(), 1);
    let error = exlora(&["generate", "-m", "Qwen/Qwen2.5-0.5B", "--prompt", "a", "--json"]).error();
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("hf download Qwen/Qwen2.5-0.5B")), "{error}");
    let error = generate("", &["--prompt", "a", "--adapter", "x=owner/adapter", "--json"]).error();
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("hf download owner/adapter")), "{error}");
}

#[test]
fn without_a_prompt_nothing_is_loaded() {
    let outcome = exlora_reading("", &["generate", "-m", "no/such/model"]);
    assert_eq!((outcome.status, outcome.stdout.as_str()), (2, ""));
    assert!(outcome.stderr.contains("--prompt <TEXT>, --file <FILE> or --requests <FILE>"), "{}", outcome.stderr);
}
