//! What holds for every command: help, wrong usage, errors.

use serde_json::json;

use super::{BASE, SQL, command, exlora, finish, start};

#[test]
fn help_names_the_commands_and_the_exit_status() {
    let help = exlora(&["--help"]);
    assert_eq!(help.status, 0);
    insta::assert_snapshot!(help.stdout, @"
    Any PEFT LoRA, on any quantized LLM, chosen per request

    Usage: exlora [OPTIONS] <COMMAND>

    Commands:
      generate     Complete a prompt, or a file of requests in one batch, each with its own adapters
      chat         Chat with a model; adapters can change between turns
      serve        Serve a model over HTTP as OpenAI does; every adapter is a model of its own
      inspect      Describe an adapter or model folder, and check whether it can be used
      doctor       Report what this build and this machine support, and check a device's kernels
      bench        Measure prefill and batched decode, with and without adapters; or a running server
      completions  Print a script that completes this command in a shell
      help         Print this message or the help of the given subcommand(s)

    Options:
          --json           Print JSON lines on stdout instead of text
          --config <FILE>  Defaults of the options; ./exlora.toml, if there is one
      -h, --help           Print help
      -V, --version        Print version

    Exit status: 0 success, 1 failure, 2 wrong usage, 3 some requests of a batch failed, 130 Ctrl-C.
    EXLORA_LOG sets the log level on stderr, as in EXLORA_LOG=info; EXLORA_LOG_FORMAT=json writes JSON
    lines.
    ");
    assert_eq!(exlora(&["--version"]).stdout.trim(), format!("exlora {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_exits_with_2_and_names_the_right_usage() {
    for (args, right) in [
        (&["generate", "-m", BASE][..], "--prompt <TEXT>, --file <FILE> or --requests <FILE>"),
        (&["generate", "--prompt", "a"], "--model <DIR>"),
        (&["generate", "-m", BASE, "--prompt", "a", "--output", "b"], "cannot be used with"),
        (&["generate", "-m", BASE, "--ordered"], "--requests <FILE>"),
        (&["generate", "-m", BASE, "--requests", "a", "--resume"], "--output <FILE>"),
        (&["generate", "-m", BASE, "--prompt", "a", "--requests", "b"], "cannot be used with"),
        (&["generate", "-m", BASE, "--prompt", "a", "--adapter", "sql"], "write NAME=DIR"),
        (&["generate", "-m", BASE, "--prompt", "a", "--use", "sql*x"], "'x' is not a finite weight"),
        (&["generate", "-m", BASE, "--prompt", "a", "--threads", "0"], "a number from 1 to 1024"),
        (&["generate", "-m", BASE, "--prompt", "a", "--head", "int4"], "[possible values: stored, int8]"),
        (&["generate", "-m", BASE, "--prompt", "a", "--activations", "int4"], "[possible values: f32, int8]"),
        (&["generate", "-m", BASE, "--prompt", "a", "--kv-dtype", "f8"], "[possible values: f16, f32, q8, q6, q4]"),
        (&["inspect"], "<DIR>"),
        (&["bench", "-m", BASE, "--mixture", "sql*0.5", "--distinct-adapters", "2"], "cannot be used with"),
        (&["server"], "unrecognized subcommand"),
    ] {
        let outcome = exlora(args);
        assert_eq!((outcome.status, outcome.stdout.as_str()), (2, ""), "{args:?}");
        assert!(outcome.stderr.contains(right), "{args:?}: {}", outcome.stderr);
    }
}

#[test]
fn a_text_may_begin_with_a_hyphen() {
    for (option, text) in
        [("--prompt", "-5"), ("--prompt", "--json"), ("--stop", "-x"), ("--banned-strings", "--"), ("--choices", "-1")]
    {
        let mut args = vec!["generate", "-m", BASE, "--max-new-tokens", "2", "--json", option, text];
        if option != "--prompt" {
            args.extend(["--prompt", "a"]);
        }
        let outcome = exlora(&args);
        assert_eq!(outcome.status, 0, "{option} {text}: {}", outcome.stderr);
        assert_eq!(outcome.json().len(), 1);
    }
}

#[test]
fn the_help_of_serve_is_wrapped_once() {
    for width in [80, 120] {
        let help = finish(start(command().args(["serve", "--help"]).env("COLUMNS", width.to_string()))).stdout;
        let (_, after) = help.split_once("Ask the base model").expect("examples");
        let (examples, rules) = after.rsplit_once("\n\n").expect("examples, then rules");
        let example = "  curl localhost:8000/v1/completions -H 'Content-Type: application/json' \\\n      -d '{\"model\": \"base\", ";
        assert!(examples.contains(example), "{examples}");
        let lines: Vec<&str> = rules.trim_end().lines().collect();
        assert!(lines.iter().all(|line| line.len() <= width), "{rules}");
        for pair in lines.windows(2) {
            let next = pair[1].split(' ').next().expect("a word");
            assert!(pair[0].len() + 1 + next.len() > width, "{next} has room in the line before:\n{rules}");
        }
    }
}

#[test]
fn a_pinned_adapter_needs_a_folder_to_be_loaded_from() {
    let error = exlora(&["serve", "-m", "no/such/model", "--port", "0", "--pin", "sql", "--json"]).error();
    assert_eq!(error["code"], "request_invalid", "before the model is looked at");
    let (message, hint) = (error["message"].to_string(), error["hint"].to_string());
    assert!(message.contains("--pin sql") && message.contains("no --adapters-dir"), "{error}");
    assert!(hint.contains("--adapters-dir DIR") && hint.contains("--adapter sql=DIR"), "{error}");
    let named = format!("sql={SQL}");
    let error =
        exlora(&["serve", "-m", "no/such/model", "--port", "0", "--pin", "sql", "--adapter", &named, "--json"]).error();
    assert_eq!(error["code"], "checkpoint_not_found");
}

#[test]
fn doctor_reports_build_and_machine() {
    let report = exlora(&["doctor", "--json"]).lines().remove(0);
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["cuda"]["built"], cfg!(feature = "cuda"));
    assert!(report["device"].as_str().is_some_and(|device| device.starts_with("cpu (")), "{report}");
    assert!(report["cpu"]["threads"].as_u64() >= Some(1));
    assert!(exlora(&["doctor"]).stdout.contains("device"));
}

#[test]
fn a_variable_forces_an_instruction_set() {
    let report =
        |isa: &str| finish(start(command().args(["doctor", "--json"]).env("EXLORA_ISA", isa))).lines().remove(0);
    assert!(report("scalar")["device"].as_str().is_some_and(|device| device.starts_with("cpu (scalar, ")));
    let refused = report("sse9")["device"].as_str().expect("a text").to_owned();
    assert!(refused.contains("EXLORA_ISA") && refused.contains("sse9"), "{refused}");
}

#[test]
fn doctor_checks_the_kernels_of_a_device() {
    let report = exlora(&["doctor", "--device", "cpu", "--json"]).lines().remove(0);
    let checks = report["kernels"].as_array().expect("a list");
    assert!(report["version"].is_string() && checks.len() > 30, "{report}");
    assert!(checks.iter().all(|check| check["passed"] == true && check["activations"] == "f32"), "{checks:?}");

    let text = exlora(&["doctor", "--device", "cpu"]).stdout;
    let last = text.lines().last().expect("a line");
    assert_eq!(last, format!("{0} of {0} kernel checks passed", checks.len()));
    assert!(text.contains("device ") && text.lines().filter(|line| line.starts_with("ok ")).count() == checks.len());

    let error = exlora(&["doctor", "--device", "tpu", "--json"]).error();
    assert_eq!(error["code"], "device_unavailable");
}

#[test]
fn errors_have_code_path_and_remedy() {
    let error = exlora(&["generate", "-m", "no/such/model", "--prompt", "a", "--json"]).error();
    assert_eq!((&error["code"], &error["path"]), (&json!("checkpoint_not_found"), &json!("no/such/model")));
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("config.json")));

    let plain = exlora(&["generate", "-m", BASE, "--prompt", "a", "--adapter", "x=no/such/adapter"]);
    assert_eq!((plain.status, plain.stdout.as_str()), (1, ""));
    assert!(
        plain.stderr.contains("no/such/adapter") && plain.stderr.contains("[adapter_config_not_found]"),
        "{}",
        plain.stderr
    );

    let error = exlora(&["generate", "-m", BASE, "--prompt", "a", "--temperature", "-1", "--json"]);
    assert_eq!(error.status, 2, "a negative number looks like a flag: {}", error.stderr);
    let error = exlora(&["generate", "-m", BASE, "--prompt", "a", "--top-p=2", "--json"]).error();
    assert_eq!(error["code"], "sampling_invalid");
    let error = exlora(&["generate", "-m", BASE, "--prompt", "a", "--device", "tpu", "--json"]).error();
    assert_eq!((&error["code"], &error["found"]), (&json!("device_unavailable"), &json!("tpu")));
    let error = exlora(&["generate", "-m", BASE, "--prompt", "a", "--device", "cuda:999", "--json"]).error();
    assert_eq!(error["code"], "cuda_unavailable");
}

#[test]
fn every_shell_gets_a_script_of_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let script = exlora(&["completions", shell]);
        assert_eq!(script.status, 0, "{}", script.stderr);
        for word in ["generate", "chat", "max-new-tokens", "kv-tokens"] {
            assert!(script.stdout.contains(word), "{shell}: {word}");
        }
    }
    assert_eq!(exlora(&["completions", "tcsh"]).status, 2);
}

/// The reference of the command line names everything that can be typed.
#[test]
fn the_reference_lists_every_option_command_and_key() {
    let reference = std::fs::read_to_string("docs/cli.md").expect("is there");
    for command in ["generate", "chat", "serve", "inspect", "doctor", "bench", "completions"] {
        let help = exlora(&[command, "--help"]).stdout;
        assert!(reference.contains(&format!("exlora {command}")), "{command}");
        for word in help.split(|c: char| c.is_whitespace() || c == ',') {
            let is_option = word.starts_with("--") && word.len() > 2 && word != "--help";
            // A value that may be left out follows in brackets.
            let name = word.split('[').next().unwrap_or(word).trim_end_matches(['.', ']']);
            assert!(!is_option || reference.contains(&format!("`{name}")), "{command} {name}");
        }
        let keys = help.split_once("may have these keys: ").map(|(_, keys)| keys.split('.').next().unwrap_or_default());
        for key in keys.unwrap_or_default().split(',').map(str::trim).filter(|key| !key.is_empty()) {
            assert!(reference.contains(&format!("`{key}`")), "the key {key}");
        }
    }
}
