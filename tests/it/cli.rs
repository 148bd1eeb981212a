//! The command, run as users run it: the built binary, its three streams and its exit status.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

const BASE: &str = "tests/fixtures/quill-4m-gptq-4bit-g128-sym";
const SQL: &str = "tests/fixtures/adapters/sqlite-rslora-r16";
const WIT: &str = "tests/fixtures/adapters/jargon-lora-r8";
const DORA: &str = "tests/fixtures/adapters/devil-dora-r8";

struct Outcome {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Outcome {
    /// The lines of stdout as JSON, of a command that succeeded.
    fn lines(&self) -> Vec<Value> {
        assert_eq!(self.status, 0, "{}", self.stderr);
        self.json()
    }

    fn json(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// The error that a failed command put on stdout.
    fn error(&self) -> Value {
        assert_eq!(self.status, 1, "{}{}", self.stdout, self.stderr);
        self.json().last().expect("a line")["error"].clone()
    }
}

fn exlora(args: &[&str]) -> Outcome {
    exlora_reading("", args)
}

fn exlora_reading(stdin: &str, args: &[&str]) -> Outcome {
    let mut child = Command::new(env!("CARGO_BIN_EXE_exlora"))
        .args(args)
        .env_remove("COLUMNS")
        .env_remove("EXLORA_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // A command that does not read may have ended already.
    let _ = child.stdin.take().expect("piped").write_all(stdin.as_bytes());
    let output = child.wait_with_output().expect("the binary ends");
    Outcome {
        status: output.status.code().expect("it was not killed"),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// A stored greedy continuation whose smallest margin is far above any rounding of this crate.
struct Stored {
    prompt: String,
    ids: Vec<u64>,
    text: String,
}

fn stored(adapter: Option<&str>, scaling: f64, prompt: &str) -> Stored {
    let text = std::fs::read_to_string("tests/fixtures/reference/reference.json").expect("is there");
    let reference: Value = serde_json::from_str(&text).expect("is JSON");
    let item = reference["items"].as_array().expect("a list").iter().find(|item| {
        item["model"] == "quill-4m-gptq-4bit-g128-sym"
            && item["adapter"].as_str() == adapter
            && item["lora_scaling"] == scaling
            && item["prompt"] == prompt
    });
    let item = item.expect("is stored");
    assert!(item["min_margin"].as_f64() > Some(0.03));
    Stored {
        prompt: reference["prompts"][prompt]["text"].as_str().expect("a text").to_owned(),
        ids: item["ids"].as_array().expect("a list").iter().filter_map(Value::as_u64).collect(),
        text: item["text"].as_str().expect("a text").to_owned(),
    }
}

/// `generate` with both adapters loaded.
fn generate(stdin: &str, more: &[&str]) -> Outcome {
    let (sql, wit) = (format!("sql={SQL}"), format!("wit={WIT}"));
    let mut args = vec!["generate", "-m", BASE, "--adapter", &sql, "--adapter", &wit, "--threads", "2"];
    args.extend(more);
    exlora_reading(stdin, &args)
}

#[test]
fn help_names_the_commands_and_the_exit_status() {
    let help = exlora(&["--help"]);
    assert_eq!(help.status, 0);
    insta::assert_snapshot!(help.stdout, @"
    Any PEFT LoRA, on any quantized LLM, chosen per request

    Usage: exlora [OPTIONS] <COMMAND>

    Commands:
      generate  Complete a prompt, or a file of requests in one batch, each with its own adapters
      chat      Chat with a model; adapters can change between turns
      inspect   Describe an adapter or model folder, and check whether it can be used
      doctor    Report what this build and this machine support
      bench     Measure prefill and batched decode, with and without adapters
      help      Print this message or the help of the given subcommand(s)

    Options:
          --json     Print JSON lines on stdout instead of text
      -h, --help     Print help
      -V, --version  Print version

    Exit status: 0 success, 1 failure, 2 wrong usage. EXLORA_LOG sets the log level on stderr, as in
    EXLORA_LOG=info.
    ");
    assert_eq!(exlora(&["--version"]).stdout.trim(), format!("exlora {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_exits_with_2_and_names_the_right_usage() {
    for (args, right) in [
        (&["generate", "-m", BASE][..], "--prompt <TEXT>|--requests <FILE>"),
        (&["generate", "-m", BASE, "--prompt", "a", "--requests", "b"], "cannot be used with"),
        (&["generate", "-m", BASE, "--prompt", "a", "--adapter", "sql"], "write NAME=DIR"),
        (&["generate", "-m", BASE, "--prompt", "a", "--use", "sql*x"], "'x' is not a finite weight"),
        (&["generate", "-m", BASE, "--prompt", "a", "--threads", "0"], "a number from 1 to 1024"),
        (&["generate", "-m", BASE, "--prompt", "a", "--kv-dtype", "f8"], "[possible values: f16, f32]"),
        (&["inspect"], "<DIR>"),
        (&["bench", "-m", BASE, "--mixture", "sql*0.5", "--distinct-adapters", "2"], "cannot be used with"),
        (&["serve"], "unrecognized subcommand"),
    ] {
        let outcome = exlora(args);
        assert_eq!((outcome.status, outcome.stdout.as_str()), (2, ""), "{args:?}");
        assert!(outcome.stderr.contains(right), "{args:?}: {}", outcome.stderr);
    }
}

#[test]
fn doctor_reports_build_and_machine() {
    let report = exlora(&["doctor", "--json"]).lines().remove(0);
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["cuda"], json!({"built": false}));
    assert!(report["device"].as_str().is_some_and(|device| device.starts_with("cpu (")), "{report}");
    assert!(report["cpu"]["threads"].as_u64() >= Some(1));
    assert!(exlora(&["doctor"]).stdout.contains("device"));
}

#[test]
fn inspect_describes_a_model() {
    insta::assert_snapshot!(exlora(&["inspect", "tests/fixtures/quill-4m-gptq-4bit-g32-asym-actorder"]).stdout, @"
    model            tests/fixtures/quill-4m-gptq-4bit-g32-asym-actorder
    architecture     LlamaForCausalLM
    parameters       4.2 M
    quantization     gptq 4 bits, groups of 32, asymmetric, act-order
    bits per weight  6.33 in all linears, 16 in lm_head; otherwise float16
    files            3.8 MiB
    layers           4, 29 sites
    widths           hidden 256, mlp 768, vocabulary 2048
    heads            8 of width 32, 4 for keys and values
    context          1024 tokens, 2048 bytes of f16 cache each
    tokenizer        yes
    chat template    yes
    stored as        bits:inputs x groups  bits per weight
                     4:32x8                 4.750  8 linears
                     4:32x8                 4.875  8 linears
                     4:32x8                 4.667  8 linears
                     4:32x24                4.750  4 linears
                     not quantized         16.000  lm_head
    ");
    let report = exlora(&["inspect", "tests/fixtures/quill-4m", "--json"]).lines().remove(0);
    assert_eq!((&report["kind"], &report["parameters"]), (&json!("model"), &json!(4_196_608)));
    assert_eq!((&report["quantization"], &report["bits_per_weight"]), (&Value::Null, &json!(16.0)));
}

#[test]
fn inspect_lists_how_each_linear_of_an_exl2_model_is_stored() {
    insta::assert_snapshot!(exlora(&["inspect", "tests/fixtures/quill-4m-exl2-mixed"]).stdout, @"
    model            tests/fixtures/quill-4m-exl2-mixed
    architecture     LlamaForCausalLM
    parameters       4.2 M
    quantization     exl2 8, 6, 5, 4, 3, 2 bits, groups of 32, 64, 128
    bits per weight  4.885 in all linears, 7.047 in lm_head; otherwise float16
    files            3.2 MiB
    layers           4, 29 sites
    widths           hidden 256, mlp 768, vocabulary 2048
    heads            8 of width 32, 4 for keys and values
    context          1024 tokens, 2048 bytes of f16 cache each
    tokenizer        yes
    chat template    yes
    stored as        bits:inputs x groups       bits per weight
                     5:128 4:128                 4.658  model.layers.0.self_attn.q_proj
                     5:128 4:128                 4.784  model.layers.0.self_attn.k_proj
                     5:64 4:64x3                 4.568  model.layers.0.self_attn.v_proj
                     6:128 5:128                 5.658  2 linears
                     4:32x8                      4.169  model.layers.0.mlp.gate_proj
                     5:32x2 4:32x6               4.419  model.layers.0.mlp.up_proj
                     8:32x2 5:128 4:128x4 4:64   4.669  model.layers.0.mlp.down_proj
                     4:64x4                      4.190  model.layers.1.self_attn.q_proj
                     4:64x4                      4.318  model.layers.1.self_attn.k_proj
                     5:32x8                      5.387  model.layers.1.self_attn.v_proj
                     4:128x2                     4.158  model.layers.1.self_attn.o_proj
                     4:128 3:128                 3.573  model.layers.1.mlp.gate_proj
                     4:32x2 3:32x6               3.419  model.layers.1.mlp.up_proj
                     8:32x2 4:128 3:128x4 3:64   3.752  model.layers.1.mlp.down_proj
                     6:32 5:32x7                 5.512  model.layers.2.self_attn.k_proj
                     6:128x2                     6.284  model.layers.2.self_attn.v_proj
                     5:64x4                      5.190  model.layers.2.self_attn.o_proj
                     3:64 2:64x3                 2.355  model.layers.2.mlp.gate_proj
                     3:64x2 2:64x2               2.605  model.layers.2.mlp.up_proj
                     6:32x2 3:64x3 2:64x8        2.779  model.layers.2.mlp.down_proj
                     6:32x8                      6.256  model.layers.3.self_attn.q_proj
                     6:32x8                      6.387  model.layers.3.self_attn.k_proj
                     8:32x8                      8.387  model.layers.3.self_attn.v_proj
                     6:128x2                     6.158  model.layers.3.self_attn.o_proj
                     8:128 6:128                 7.073  model.layers.3.mlp.gate_proj
                     8:32 6:32x7                 6.419  model.layers.3.mlp.up_proj
                     8:32x2 6:128 5:128x4 5:64   5.585  model.layers.3.mlp.down_proj
                     8:128 6:128                 7.047  lm_head
    ");
    let report = exlora(&["inspect", "tests/fixtures/quill-4m-exl2-mixed", "--json"]).lines().remove(0);
    let (widths, sizes) = (json!([8, 6, 5, 4, 3, 2]), json!([32, 64, 128]));
    assert_eq!(report["quantization"], json!({"method": "exl2", "widths": widths, "group_sizes": sizes}));
    let linears = report["linears"].as_array().expect("a list");
    assert_eq!(linears.len(), 29);
    let down = linears.iter().find(|linear| linear["path"] == "model.layers.1.mlp.down_proj").expect("there");
    let run = |bits: u8, inputs: u16, count: u8| json!({"bits": bits, "inputs": inputs, "count": count});
    assert_eq!(down["groups"], json!([run(8, 32, 2), run(4, 128, 1), run(3, 128, 4), run(3, 64, 1)]));
    let head = linears.iter().find(|linear| linear["path"] == "lm_head").expect("there");
    assert_eq!(head["groups"], json!([run(8, 128, 1), run(6, 128, 1)]));
    assert_eq!(report["head_bits_per_weight"], head["bits_per_weight"]);
}

#[test]
fn inspect_describes_an_adapter_and_whether_it_fits_the_base() {
    for base in [None, Some(BASE)] {
        let mut args = vec!["inspect", SQL, "--json"];
        args.extend(base.iter().flat_map(|base| ["--base", base]));
        let report = exlora(&args).lines().remove(0);
        assert_eq!((&report["kind"], &report["base"]), (&json!("adapter"), &json!(base)));
        assert_eq!(report["problems"], json!([]));
        let contents = &report["contents"];
        assert_eq!(contents["groups"], json!([{"rank": 16, "alpha": 16.0, "scale": 4.0, "sites": 28}]));
        assert_eq!((&contents["use_rslora"], &contents["dtypes"]), (&json!(true), &json!(["bfloat16"])));
        assert_eq!(contents["target_modules"].as_array().map(Vec::len), Some(7));
        assert_eq!(contents["content_hash"].as_str().map(str::len), Some(64));
    }
    let text = exlora(&["inspect", WIT, "--base", BASE]).stdout;
    assert!(text.contains("rank 8, alpha 16, scale 2: 28 sites"), "{text}");
    assert!(text.contains(&format!("fits {BASE}")), "{text}");
}

#[test]
fn inspect_lists_every_problem_of_an_adapter_besides_its_contents() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::copy(format!("{DORA}/adapter_model.safetensors"), dir.path().join("adapter_model.safetensors"))
        .expect("copied");
    let config = std::fs::read_to_string(format!("{DORA}/adapter_config.json")).expect("the fixture");
    let mut config: Value = serde_json::from_str(&config).expect("valid");
    (config["use_dora"], config["arrow_config"]) = (json!(false), json!({}));
    std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).expect("written");
    let refused = exlora(&["inspect", dir.path().to_str().expect("UTF-8"), "--base", BASE, "--json"]);
    assert_eq!(refused.status, 1);
    let report = refused.json().remove(0);
    let codes: Vec<_> = report["problems"].as_array().expect("a list").iter().map(|p| p["code"].clone()).collect();
    assert_eq!(codes.len(), 17);
    assert!(
        codes.contains(&json!("adapter_feature_unsupported")) && codes.contains(&json!("adapter_tensor_unexpected"))
    );
    assert_eq!((&report["contents"]["rank"], &report["contents"]["alpha"]), (&json!(8), &json!(16.0)));
    assert!(refused.stderr.contains("[adapter_feature_unsupported]"), "{}", refused.stderr);
    let fits = exlora(&["inspect", DORA, "--base", BASE, "--json"]).lines().remove(0);
    assert_eq!((&fits["problems"], &fits["contents"]["features"]), (&json!([]), &json!(["use_dora"])));
    assert_eq!(fits["contents"]["sites"], json!(16));
}

#[test]
fn inspect_refuses_by_name_what_it_cannot_read() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = std::fs::read_to_string("tests/fixtures/quill-4m-exl2-mixed/config.json").expect("there");
    std::fs::write(dir.path().join("config.json"), config.replace("\"exl2\"", "\"exl3\"")).expect("written");
    let error = exlora(&["inspect", &dir.path().display().to_string(), "--json"]).error();
    assert_eq!((&error["code"], &error["found"]), (&json!("quant_format_unsupported"), &json!("exl3")));
    let error = exlora(&["inspect", "src", "--json"]).error();
    assert_eq!((&error["code"], &error["path"]), (&json!("checkpoint_not_found"), &json!("src")));
}

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
    let lines = generate(&requests, &["--requests", "-", "--max-new-tokens", "48", "--json"]).lines();
    let of = |key: &str| lines.iter().map(|line| line[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("id"), [json!("w"), Value::Null, json!([2]), Value::Null]);
    assert_eq!(of("adapter"), [json!({"wit": 1.0}), Value::Null, json!({"sql": 0.5}), json!({"wit": 0.5, "sql": 0.5})]);
    assert_eq!(of("token_ids")[..3], [json!(wit.ids), json!(base.ids), json!(half.ids)]);
    assert_eq!(lines[3]["usage"]["completion_tokens"], 3);

    let text = generate(&requests, &["--requests", "-", "--max-new-tokens", "4"]).stdout;
    assert!(text.contains("== w [wit] 4 tokens, length\n"), "{text}");
    assert!(text.contains("== 3 [wit*0.5 + sql*0.5] 3 tokens, length\n"), "{text}");
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
    let text = |seed| generate("", &[&args[..], &["--seed", seed]].concat()).lines()[0]["token_ids"].clone();
    assert_eq!(text("7"), text("7"));
    assert_ne!(text("7"), text("8"));
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let stored = stored(None, 1.0, "sqlite");
    let line = generate("", &["--prompt", &stored.prompt, "--stop", "interface", "--json"]).lines().remove(0);
    let expected = stored.text.split("interface").next().expect("a part");
    assert_eq!((&line["text"], &line["finish_reason"]), (&json!(expected), &json!("stop")));
}

#[test]
fn an_adapter_that_is_not_loaded_is_an_error_never_the_base() {
    let error = generate("", &["--prompt", "a", "--use", "nope", "--json"]).error();
    assert_eq!(error["code"], "adapter_not_found");
    let requests = "{\"prompt\": \"a\"}\n{\"prompt\": \"a\", \"adapter\": \"nope\"}\n";
    let outcome = generate(requests, &["--requests", "-", "--json"]);
    assert_eq!(outcome.error()["code"], "adapter_not_found");
    assert_eq!(outcome.stdout.lines().count(), 1, "no request was run");
}

#[test]
fn a_bad_request_is_named_by_its_line() {
    let requests = "{\"prompt\": \"a\"}\n{\"prompt\": \"a\", \"temprature\": 1}\n";
    let outcome = generate(requests, &["--requests", "-", "--json"]);
    let error = outcome.error();
    assert_eq!((&error["code"], &error["subject"]), (&json!("request_invalid"), &json!("line 2")));
    assert!(outcome.stderr.contains("line 2: unknown field `temprature`"), "{}", outcome.stderr);
    let error = exlora(&["generate", "-m", BASE, "--requests", "no/such/file", "--json"]).error();
    assert_eq!((&error["code"], &error["path"]), (&json!("io_failed"), &json!("no/such/file")));
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
    let error = exlora(&["generate", "-m", BASE, "--prompt", "a", "--device", "cuda", "--json"]).error();
    assert_eq!((&error["code"], &error["found"]), (&json!("device_unavailable"), &json!("cuda")));
}

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
    let table = exlora(&args);
    assert_eq!(table.status, 0, "{}", table.stderr);
    assert!(table.stdout.contains("base") && !table.stdout.contains("lora"), "{}", table.stdout);
    let error = exlora(&["bench", "-m", BASE, "--prompt", "4096", "--json"]).error();
    assert_eq!(error["code"], "prompt_too_long");
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
fn bench_runs_every_sequence_with_a_mixture() {
    let line = bench(&["--batch", "2", "--mixture", "sql*0.5+wit*0.5", "--json"]).lines().remove(0);
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

#[test]
fn a_closed_stdout_does_not_crash_the_command() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_exlora"))
        .args(["generate", "-m", BASE, "--prompt", "Emma was", "--max-new-tokens", "64"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the binary ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(!stderr.contains("panicked") && !stderr.contains("["), "{stderr}");
}
