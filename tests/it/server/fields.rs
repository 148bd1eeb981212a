//! What the server makes of the fields of a request: errors in the client's words, and nothing dropped in silence.

use std::fs;

use exlora::server::{ServeOptions, ToolCallFormat};
use exlora::{EngineOptions, ErrorCode};
use serde_json::{Value, json};

use super::{Answer, Running, adapters_dir, engine, options, place};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";

/// Fields whose errors have the name of an adapter or say what is wrong with a string, and have the field in `param` alone.
const SAID_OTHERWISE: [&str; 6] = ["model", "adapters", "lora", "stop", "banned_strings", "bad_words"];

/// A request that works, with these fields instead of its own.
fn body(route: &str, fields: &Value) -> Value {
    let mut body = match route {
        COMPLETIONS => json!({"prompt": "Once upon a time", "max_tokens": 4}),
        CHAT => json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}),
        _ => json!({"input": "Hello", "max_output_tokens": 4}),
    };
    let limits = ["max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens"];
    if limits.iter().any(|limit| fields.get(limit).is_some()) {
        limits.iter().for_each(|limit| drop(body.as_object_mut().expect("an object").remove(*limit)));
    }
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("fields").clone());
    body
}

fn ask(server: &Running, route: &str, fields: &Value) -> Answer {
    server.post(route, &body(route, fields))
}

/// The message of an error about this field. It speaks of the client's JSON, not of types of Rust.
fn message_about(answer: &Answer, param: &str) -> String {
    assert!((400..=404).contains(&answer.status), "{param}: {} {}", answer.status, answer.body);
    let error = &answer.json()["error"];
    assert_eq!(error["param"], param, "{error}");
    let message = error["message"].as_str().expect("a text").to_owned();
    let words: Vec<&str> = message.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    for word in ["u8", "u32", "u64", "usize", "i64", "f32", "f64", "struct", "enum", "variant", "sequence", "map"] {
        assert!(!words.contains(&word), "{word}: {message}");
    }
    assert!(!message.contains("see the message") && !message.contains("()"), "{message}");
    message
}

#[test]
fn more_new_tokens_than_a_negative_prompt_leaves_room_for_are_refused() {
    let dir = adapters_dir();
    let engine = engine(EngineOptions { max_seq_len: Some(64), ..EngineOptions::default() });
    let server = Running::start(&engine, options(&dir));
    let fields = |max_tokens: u64, scale: f64| json!({"prompt": [5, 6], "max_tokens": max_tokens, "negative_prompt": vec![7; 40], "cfg_scale": scale, "ignore_eos": true});
    // The last token is never computed, so it needs no position.
    let message = message_about(&ask(&server, COMPLETIONS, &fields(26, 2.0)), "max_tokens");
    assert!(message.contains("a negative prompt of 40 tokens") && message.contains("at most 25"), "{message}");
    for (max_tokens, scale) in [(25, 2.0), (63, 1.0)] {
        let answer = ask(&server, COMPLETIONS, &fields(max_tokens, scale)).ok();
        assert_eq!(answer["usage"]["completion_tokens"], max_tokens);
    }
    let message = message_about(&ask(&server, COMPLETIONS, &fields(64, 1.0)), "max_tokens");
    assert!(!message.contains("negative"), "{message}");
}

#[test]
fn too_many_choices_are_said_of_the_field_that_has_too_much() {
    let dir = adapters_dir();
    let server = Running::start(&engine(EngineOptions::default()), options(&dir));
    let prompts = vec!["a"; 5000];
    let message = message_about(&ask(&server, COMPLETIONS, &json!({"prompt": prompts})), "prompt");
    assert!(message.contains("found 5000 prompts"), "{message}");
    let message = message_about(&ask(&server, COMPLETIONS, &json!({"prompt": prompts, "n": 2})), "prompt");
    assert!(message.contains("5000 prompts, n = 2 of each"), "{message}");
    message_about(&ask(&server, COMPLETIONS, &json!({"prompt": ["a", "b"], "n": 1000})), "n");
}

#[test]
fn one_text_is_as_good_as_a_list_and_the_base_is_no_misspelling_of_itself() {
    let dir = adapters_dir();
    let server = Running::start(&engine(EngineOptions::default()), options(&dir));
    for (route, fields) in [(COMPLETIONS, json!({"choices": "yes"})), (CHAT, json!({"guided_choice": "yes"}))] {
        let answer = ask(&server, route, &fields).ok();
        let choice = &answer["choices"][0];
        assert_eq!(choice["text"].as_str().or(choice["message"]["content"].as_str()), Some("yes"), "{answer}");
    }
    assert_eq!(ask(&server, COMPLETIONS, &json!({"banned_strings": "zq"})).status, 200);
    let message = message_about(&ask(&server, COMPLETIONS, &json!({"choices": 3})), "choices");
    assert!(message.contains("a string or an array of strings"), "{message}");
    for name in ["base", "quill-4m"] {
        let message = message_about(&ask(&server, COMPLETIONS, &json!({"adapters": {name: 1}})), "adapters");
        assert!(message.contains(&format!("'{name}' is the base model and no adapter")), "{message}");
    }
}

#[test]
fn an_error_names_the_field_as_the_client_spelled_it() {
    let dir = adapters_dir();
    let server = Running::start(&engine(EngineOptions::default()), options(&dir));
    let unknown_type = json!({"type": "nothing"});
    for (fields, param) in [
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_completion_tokens": 0}), "max_completion_tokens"),
        (json!({"max_new_tokens": 0}), "max_new_tokens"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": "four"}), "max_tokens"),
        (json!({"max_tokens": 100_000}), "max_tokens"),
        (json!({"min_tokens": 0.5}), "min_tokens"),
        (json!({"n": 0}), "n"),
        (json!({"n": 10_000}), "n"),
        (json!({"temperature": -1}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": 2}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"seed": 1e30}), "seed"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"logit_bias": {"999999": 1}}), "logit_bias"),
        (json!({"logit_bias": {"3": true}}), "logit_bias.3"),
        (json!({"allowed_token_ids": []}), "allowed_token_ids"),
        (json!({"stop": [""]}), "stop"),
        (json!({"stop": ["a", []]}), "stop"),
        (json!({"stop_token_ids": [1, -1]}), "stop_token_ids[1]"),
        (json!({"banned_strings": [""]}), "banned_strings"),
        (json!({"bad_words": [""]}), "bad_words"),
        (json!({"regex": "("}), "regex"),
        (json!({"guided_regex": "("}), "guided_regex"),
        (json!({"structured_outputs": {"regex": "("}}), "structured_outputs.regex"),
        (json!({"json_schema": unknown_type}), "json_schema"),
        (json!({"guided_json": unknown_type}), "guided_json"),
        (json!({"guided_grammar": "root ::= nothing"}), "guided_grammar"),
        (json!({"guided_choice": []}), "guided_choice"),
        (json!({"cfg_scale": 2}), "cfg_scale"),
        (json!({"negative_prompt": "x"}), "negative_prompt"),
        (json!({"negative_prompt": 3}), "negative_prompt"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"stream": true, "stream_options": {"usage": true}}), "stream_options.usage"),
        (json!({"model": "nobody"}), "model"),
        (json!({"adapters": {"nobody": 1}}), "adapters"),
        (json!({"adapters": {"sqlite": "much"}}), "adapters.sqlite"),
        (json!({"lora": [{"id": 99, "scale": 1}]}), "lora"),
        (json!({"use_beam_search": true}), "use_beam_search"),
        (json!({"temprature": 1}), "temprature"),
    ] {
        let mut routes = vec![COMPLETIONS, CHAT];
        // A response has one output.
        if fields.get("n").is_none() {
            routes.push(RESPONSES);
        }
        for route in routes {
            let message = message_about(&ask(&server, route, &fields), param);
            let name = param.split(['.', '[']).next().expect("a name");
            assert!(message.contains(name) || SAID_OTHERWISE.contains(&name), "{route}: {message}");
        }
    }
    for (route, fields, param) in [
        (COMPLETIONS, json!({"prompt": ""}), "prompt"),
        (COMPLETIONS, json!({"prompt": [1_000_000]}), "prompt"),
        (COMPLETIONS, json!({"prompt": null}), "prompt"),
        (COMPLETIONS, json!({"logprobs": 1_000_000}), "logprobs"),
        (COMPLETIONS, json!({"logprobs": true}), "logprobs"),
        (COMPLETIONS, json!({"best_of": 2}), "best_of"),
        (CHAT, json!({"messages": []}), "messages"),
        (CHAT, json!({"messages": "Hello"}), "messages"),
        (CHAT, json!({"messages": [{"content": "x"}]}), "messages[0].role"),
        (CHAT, json!({"chat_template": "{{ raise_exception('no') }}"}), "messages"),
        (CHAT, json!({"logprobs": 3}), "logprobs"),
        (CHAT, json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (CHAT, json!({"functions": []}), "functions"),
        (CHAT, json!({"tools": [{"type": "function", "function": {}}]}), "tools[0].function.name"),
        (CHAT, json!({"response_format": "json"}), "response_format"),
        (CHAT, json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (CHAT, json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (
            CHAT,
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}}),
            "response_format.json_schema.name",
        ),
        (
            CHAT,
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": unknown_type}}}),
            "response_format",
        ),
        (RESPONSES, json!({"input": ""}), "input"),
        (RESPONSES, json!({"input": 3}), "input"),
        (RESPONSES, json!({"max_output_tokens": 0}), "max_output_tokens"),
        (RESPONSES, json!({"max_output_tokens": 100_000}), "max_output_tokens"),
        (RESPONSES, json!({"n": 2}), "n"),
        (
            RESPONSES,
            json!({"text": {"format": {"type": "json_schema", "name": "n", "schema": unknown_type}}}),
            "text.format",
        ),
    ] {
        // A chat without text has the tokens of its template.
        if route == RESPONSES && fields["input"] == "" {
            continue;
        }
        message_about(&ask(&server, route, &fields), param);
    }
    let missing = server.post(CHAT, &json!({"model": "base"}));
    assert!(message_about(&missing, "messages").starts_with("messages is missing"));
    let text = message_about(&ask(&server, COMPLETIONS, &json!({"max_tokens": 0})), "max_tokens");
    assert_eq!(text, "max_tokens is 0: expected at least 1, found 0 [request_invalid]");
}

#[test]
fn what_vllms_clients_send_by_default_is_accepted() {
    let dir = adapters_dir();
    let server = Running::start(&engine(EngineOptions::default()), options(&dir));
    let defaults = json!({
        "use_beam_search": false, "best_of": 1, "n": 1, "length_penalty": 1.0, "early_stopping": false, "detokenize": true,
        "skip_special_tokens": true, "spaces_between_special_tokens": true, "echo": false, "min_p": 0, "top_k": -1,
        "prompt_logprobs": null, "allowed_token_ids": null, "logit_bias": null, "priority": 0, "user": "me",
        "metadata": {"a": "b"}, "store": false, "service_tier": "auto", "parallel_tool_calls": true, "min_tokens": 0,
        "include_stop_str_in_output": false, "truncate_prompt_tokens": null, "stop_token_ids": [], "guided_json": null,
        "stream": false, "stream_options": null, "repetition_penalty": 1.0, "temperature": 0.0, "seed": -7,
    });
    let text = |answer: Value| answer["choices"][0].clone();
    let plain = json!({"temperature": 0, "seed": u64::MAX - 6});
    for route in [COMPLETIONS, CHAT] {
        assert_eq!(text(ask(&server, route, &defaults).ok()), text(ask(&server, route, &plain).ok()), "{route}");
    }
    let chosen = ask(&server, COMPLETIONS, &json!({"structured_outputs": {"choice": ["yes"]}, "max_tokens": 8})).ok();
    assert_eq!(chosen["choices"][0]["text"], "yes");
    // The same seed in two spellings.
    let sampled = |seed: Value| text(ask(&server, COMPLETIONS, &json!({"temperature": 1.5, "seed": seed})).ok());
    assert_eq!(sampled(json!(-7)), sampled(json!(u64::MAX - 6)));
}

#[test]
fn more_tokens_than_the_context_leaves_are_refused_if_they_are_asked_for() {
    let dir = adapters_dir();
    let limits = EngineOptions { max_seq_len: Some(64), ..EngineOptions::default() };
    let server = Running::start(&engine(limits), options(&dir));
    let prompt = json!((0..20).map(|i| 100 + i).collect::<Vec<_>>());
    let complete = |fields: Value| ask(&server, COMPLETIONS, &fields);
    let tokens = |answer: &Answer| answer.ok()["usage"]["completion_tokens"].as_u64().expect("a number");
    // The last token is never computed, so it needs no position.
    let all = complete(json!({"prompt": prompt, "max_tokens": 45, "ignore_eos": true}));
    assert_eq!(tokens(&all), 45);
    for field in ["max_tokens", "max_completion_tokens", "max_new_tokens"] {
        for stream in [false, true] {
            let refused = complete(json!({"prompt": prompt, field: 46, "stream": stream}));
            let text = message_about(&refused, field);
            assert!(text.contains("a prompt of 20 tokens") && text.contains("expected at most 45, found 46"), "{text}");
        }
    }
    // One of several prompts.
    let refused = complete(json!({"prompt": [[5], prompt], "max_tokens": 60}));
    message_about(&refused, "max_tokens");
    // Where nobody says, a chat goes on to the end of the context.
    let chat = json!({"messages": [{"role": "user", "content": "Hello"}], "ignore_eos": true});
    let usage = server.post(CHAT, &chat).ok()["usage"].clone();
    assert_eq!(usage["total_tokens"], 65, "{usage}");
}

#[test]
fn clients_see_no_path_of_the_servers_disk() {
    let dir = adapters_dir();
    place(dir.path(), "team/broken", "jargon-lora-r8");
    fs::write(dir.path().join("team/broken/adapter_config.json"), "{").expect("written");
    place(dir.path(), "damaged", "jargon-lora-r8");
    fs::write(dir.path().join("damaged/adapter_model.safetensors"), "x").expect("written");
    fs::create_dir(dir.path().join("empty")).expect("created");
    let server = Running::start(&engine(EngineOptions::default()), options(&dir));
    let load = |path: &str| server.admin("/v1/load_lora_adapter", &json!({"lora_name": "other", "lora_path": path}));
    let root = dir.path().canonicalize().expect("exists");
    for (name, file) in [
        ("team/broken", "team/broken/adapter_config.json"),
        ("damaged", "damaged/adapter_model.safetensors"),
        ("empty", "empty"),
    ] {
        for answer in [ask(&server, COMPLETIONS, &json!({"model": name})), load(name)] {
            let message = answer.json()["error"]["message"].as_str().expect("a text").to_owned();
            assert!(message.contains(file), "{message}");
            for folder in [root.as_path(), dir.path()] {
                assert!(!message.contains(folder.to_str().expect("text")), "{message}");
            }
        }
    }
}

/// The message of a choice, whole and as the pieces of a stream, and why it ended.
fn chat_with_tools(server: &Running, max_tokens: usize, stream: bool) -> (String, Vec<(String, String)>, String) {
    let function = json!({"name": "get_weather", "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"],
        "additionalProperties": false,
    }});
    let fields = json!({
        "tools": [{"type": "function", "function": function}], "tool_choice": "required", "parallel_tool_calls": false,
        "max_tokens": max_tokens, "stream": stream, "temperature": 0,
    });
    let answer = ask(server, CHAT, &fields);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let (mut content, mut calls, mut reason) = (String::new(), Vec::new(), String::new());
    let bodies: Vec<Value> = match stream {
        false => vec![answer.json()],
        true => {
            let lines = answer.body.lines().filter_map(|line| line.strip_prefix("data: "));
            lines.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).expect("JSON")).collect()
        }
    };
    for body in bodies {
        let choice = &body["choices"][0];
        let message = if stream { &choice["delta"] } else { &choice["message"] };
        content += message["content"].as_str().unwrap_or_default();
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            if let Some(name) = call["function"]["name"].as_str() {
                calls.push((name.to_owned(), String::new()));
            }
            calls.last_mut().expect("a call began").1 += call["function"]["arguments"].as_str().expect("a text");
        }
        reason = choice["finish_reason"].as_str().map_or(reason, str::to_owned);
    }
    (content, calls, reason)
}

#[test]
fn a_tool_call_that_max_tokens_cuts_off_is_no_content() {
    let engine = engine(EngineOptions::default());
    for format in ToolCallFormat::ALL {
        let dir = adapters_dir();
        let server = Running::start(&engine, ServeOptions { tool_call_parser: Some(format), ..options(&dir) });
        let (_, whole, reason) = chat_with_tools(&server, 200, false);
        assert_eq!((whole.len(), reason.as_str()), (1, "tool_calls"), "{format:?}");
        for max_tokens in [1, 2, 3, 5, 8, 12, 17, 23] {
            let (content, calls, reason) = chat_with_tools(&server, max_tokens, false);
            assert_eq!(chat_with_tools(&server, max_tokens, true), (content.clone(), calls.clone(), reason.clone()));
            assert_eq!(content, "", "{format:?} after {max_tokens} tokens");
            match reason.as_str() {
                "length" => {
                    assert!(calls.iter().all(|(name, text)| *name == whole[0].0 && whole[0].1.starts_with(text)))
                }
                _ => assert_eq!((reason.as_str(), &calls), ("tool_calls", &whole)),
            }
        }
        let tool = json!({"type": "function", "name": "get_weather"});
        let fields = json!({"tools": [tool], "tool_choice": "required", "max_output_tokens": 3});
        let response = ask(&server, RESPONSES, &fields).ok();
        assert_eq!(
            (&response["status"], &response["output"][0]["content"][0]["text"]),
            (&json!("incomplete"), &json!(""))
        );
    }
}

#[test]
fn an_error_of_the_engine_keeps_its_code() {
    let dir = adapters_dir();
    let server = Running::start(&engine(EngineOptions::default()), options(&dir));
    for (fields, code) in [
        (json!({"guided_regex": "("}), ErrorCode::ConstraintInvalid),
        (json!({"temperature": -1}), ErrorCode::SamplingInvalid),
        (json!({"prompt": ""}), ErrorCode::PromptEmpty),
        (json!({"use_beam_search": true}), ErrorCode::SettingUnsupported),
        (json!({"regex": "a", "guided_json": "{}"}), ErrorCode::RequestInvalid),
    ] {
        assert_eq!(ask(&server, COMPLETIONS, &fields).refusal(), (400, code.as_str().to_owned()), "{fields}");
    }
}
