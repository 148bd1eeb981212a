//! Problems of adapter_config.json.

use exlora::ErrorCode;
use serde_json::{Value, json};

use super::{EMBEDDING, Q_PROJ, codes, refusal, refusals_on, refused};
use support::adapters::{Adapter, Folder, HIDDEN, sites};

#[test]
fn unsupported_features_are_refused_by_name() {
    let table = [
        ("target_parameters", json!(["mlp.experts.down_proj"]), "target_parameters"),
        ("arrow_config", json!({"top_k": 3}), "Arrow"),
        ("task_type", json!("SEQ_CLS"), "task_type"),
        ("init_lora_weights", json!("brand_new"), "brand_new"),
        ("use_brand_new", json!(true), "'use_brand_new' is unknown"),
        ("brand_new_config", json!({"a": 1}), "'brand_new_config' is unknown"),
        ("brand_new_tokens", json!([1]), "'brand_new_tokens' is unknown"),
        ("scaling_mode", json!("spectral"), "'scaling_mode' is unknown"),
        ("conversion", json!("name"), "'conversion' is unknown"),
    ];
    for (field, value, named) in table {
        let error = refusal(&Adapter::on_q_proj().set(field, value.clone()).write());
        assert_eq!(error.code(), ErrorCode::AdapterFeatureUnsupported, "{field} = {value}: {error}");
        let text = error.to_string();
        assert!(text.contains(named) && text.contains(field), "{text}");
    }
}

#[test]
fn an_initialization_that_changed_the_base_is_refused_with_a_remedy() {
    for name in ["pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga"] {
        let error = refusal(&Adapter::on_q_proj().set("init_lora_weights", json!(name)).write());
        assert_eq!(error.code(), ErrorCode::AdapterBaseChanged, "{name}");
        assert!(error.to_string().contains(name) && !error.remedy().is_empty(), "{error}");
    }
}

#[test]
fn a_rank_that_no_adapter_has_is_refused_with_the_largest_one() {
    let error = refusal(&Adapter::on_q_proj().set("r", json!(1u64 << 40)).write());
    assert_eq!(
        (error.code(), error.expected()),
        (ErrorCode::AdapterConfigInvalid, Some("an integer from 1 to 1048576"))
    );
    let error = refusal(&Adapter::on_q_proj().set("r", json!(1 << 19)).write());
    assert_eq!(error.code(), ErrorCode::AdapterRankMismatch);
    assert!(error.to_string().contains("r = 524288 in adapter_config.json"), "{error}");
}

#[test]
fn malformed_fields_are_refused_with_the_expected_form() {
    let table = [
        ("r", json!(0)),
        ("r", json!(8.0)),
        ("r", json!("8")),
        ("r", json!(-1)),
        ("r", json!(true)),
        ("r", json!(1u64 << 40)),
        ("r", Value::Null),
        ("lora_alpha", json!("16")),
        ("lora_alpha", json!(true)),
        ("lora_alpha", Value::Null),
        ("use_rslora", json!("false")),
        ("use_dora", json!("false")),
        ("use_dora", json!(0)),
        ("lora_bias", json!("true")),
        ("bias", json!("some")),
        ("bias", Value::Null),
        ("rank_pattern", json!([])),
        ("rank_pattern", json!({"q_proj": 0})),
        ("rank_pattern", json!({"q_proj": 8.0})),
        ("alpha_pattern", json!({"q_proj": "8"})),
        ("alpha_pattern", json!(3)),
        ("target_modules", json!(3)),
        ("target_modules", json!(["q_proj", 3])),
        ("exclude_modules", json!({"a": 1})),
        ("layers_to_transform", json!("3")),
        ("layers_to_transform", json!([1.5])),
        ("layers_to_transform", json!([-1])),
        ("layers_pattern", json!([3])),
        ("modules_to_save", json!("lm_head")),
        ("modules_to_save", json!([""])),
        ("layer_replication", json!(true)),
        ("layer_replication", json!([[0]])),
        ("layer_replication", json!([[0, -1]])),
        ("trainable_token_indices", json!("all")),
        ("trainable_token_indices", json!([-1])),
        ("trainable_token_indices", json!({"embed_tokens": 3})),
        ("trainable_token_indices", json!([3, 7, 3])),
        ("trainable_token_indices", json!({"": [3]})),
        ("target_modules", json!(vec!["a"; 20_000])),
        ("modules_to_save", json!(vec!["a"; 5000])),
        ("alora_invocation_tokens", json!("go")),
        ("alora_invocation_tokens", json!([1.5])),
        ("alora_invocation_tokens", json!(vec![1; 1025])),
        ("ensure_weight_tying", json!("false")),
        ("use_qalora", json!(1)),
        ("qalora_group_size", json!(0)),
        ("use_bdlora", json!(true)),
        ("use_bdlora", json!({"nblocks": 0})),
        ("use_bdlora", json!({"target_modules_bd_a": "q_proj"})),
        ("kasa_config", json!(true)),
        ("task_type", json!(3)),
        ("init_lora_weights", json!(3)),
        ("fan_in_fan_out", json!("no")),
        ("peft_type", json!(3)),
    ];
    for (field, value) in table {
        let error = refusal(&Adapter::on_q_proj().set(field, value.clone()).write());
        assert_eq!(error.code(), ErrorCode::AdapterConfigInvalid, "{field} = {value}: {error}");
        assert!(error.message().contains(field) && error.expected().is_some(), "{error}");
        assert!(error.path().is_some_and(|path| path.ends_with("sql/adapter_config.json")), "{error}");
        assert_eq!(error.others().len(), 0, "{field} = {value}: {error}");
    }
}

#[test]
fn a_config_that_is_not_a_plain_json_object_is_refused_with_the_position() {
    let table = [
        ("", "line 1"),
        ("{", "line 1"),
        ("[1, 2]", "not a JSON object"),
        ("\u{feff}{}", "byte order mark"),
        ("{\"peft_type\": \"LORA\",}", "line 1 column 22"),
        ("{\"peft_type\": \"LORA\",\n \"r\": 8, \"r\": 16}", "line 2"),
        ("{\"peft_type\": \"LORA\", \"lora_alpha\": NaN}", "line 1 column"),
        ("{\"peft_type\": \"LORA\", \"lora_alpha\": Infinity}", "line 1 column"),
        ("{\"peft_type\": \"LORA\", \"lora_alpha\": 1e999}", "out of range"),
        ("{\"peft_type\": \"LORA\", \"rank_pattern\": {\"a\": 1, \"a\": 2}}", "rank_pattern"),
        ("{'peft_type': 'LORA'}", "line 1 column 2"),
    ];
    let deep = format!("{{\"a\": {}1{}}}", "[".repeat(5000), "]".repeat(5000));
    for (text, position) in table.into_iter().chain([(deep.as_str(), "recursion limit")]) {
        let folder = Folder::new();
        folder.file("adapter_config.json", text);
        let error = refusal(&folder);
        assert_eq!(error.code(), ErrorCode::AdapterConfigInvalid, "{text}");
        assert!(error.message().contains(position), "{text}: {error}");
    }
    let folder = Folder::new();
    folder.file("adapter_config.json", b"{\"a\": \"\xff\"}");
    assert!(refusal(&folder).message().contains("not UTF-8 at byte 7"));
}

#[test]
fn other_adapter_types_and_tools_are_recognized() {
    let folder = |text: Value| {
        let folder = Folder::new();
        folder.file("adapter_config.json", text.to_string());
        folder
    };
    let error = refusal(&folder(json!({"peft_type": "ADALORA", "use_dora": true})));
    assert_eq!(codes(&error), ["adapter_type_unsupported"]);
    assert!(error.to_string().contains("'ADALORA'"));
    assert_eq!(codes(&refusal(&folder(json!({"peft_type": "lora"})))), ["adapter_type_unsupported"]);
    let error = refusal(&folder(json!({"fine_tune_type": "lora", "lora_parameters": {"rank": 8}})));
    assert_eq!(codes(&error), ["adapter_format_unsupported"]);
    assert!(error.message().contains("mlx-lm"));
    assert_eq!(codes(&refusal(&folder(json!({"r": 8})))), ["adapter_config_invalid"]);
}

#[test]
fn a_missing_alpha_is_not_guessed() {
    let error = refusal(&Adapter::on_q_proj().unset("lora_alpha").write());
    assert_eq!(codes(&error), ["adapter_config_invalid"]);
    assert!(error.message().contains("lora_alpha is missing") && error.remedy().contains("PEFT would assume 8"));
}

#[test]
fn unusable_patterns_are_refused() {
    let huge = format!("{}|x", "x".repeat(5000));
    // Backtracks practically forever on any path without a 'Z'.
    let endless = r"(?:(?=(.*))(?:.|.)*)*Z\1";
    for (field, value) in [
        ("rank_pattern", json!({"(q_proj": 8})),
        ("alpha_pattern", json!({"q_proj": 1, "[": 8})),
        ("alpha_pattern", json!({&huge: 8})),
        ("target_modules", json!("(")),
        ("target_modules", json!(endless)),
        ("exclude_modules", json!(endless)),
        ("alpha_pattern", json!({endless: 8})),
        ("exclude_modules", json!("*")),
    ] {
        let error = refusal(&Adapter::on_q_proj().set(field, value.clone()).write());
        assert_eq!(error.code(), ErrorCode::AdapterPatternInvalid, "{field} = {value}: {error:?}");
        assert!(error.message().contains(field), "{error}");
        assert!(error.path().is_some_and(|path| path.ends_with("sql/adapter_config.json")), "{error}");
        assert_eq!(error.others().len(), 0, "{error}");
    }
}

#[test]
fn problems_of_config_and_tensors_are_reported_together() {
    let adapter =
        Adapter::on_q_proj().set("r", json!("8")).set("arrow_config", json!({})).set("bias", json!("some")).rename(
            |name| if name.contains("layers.1.self_attn.q_proj.lora_B") { String::new() } else { name.to_owned() },
        );
    let expected =
        ["adapter_config_invalid", "adapter_feature_unsupported", "adapter_config_invalid", "adapter_tensor_missing"];
    assert_eq!(codes(&refusal(&adapter.write())), expected);
}

#[test]
fn a_broken_config_is_reported_together_with_broken_weights() {
    let folder = Adapter::on_q_proj().set("r", json!("8")).write();
    folder.file("adapter_model.safetensors", [0u8; 4]);
    assert_eq!(codes(&refusal(&folder)), ["adapter_config_invalid", "checkpoint_truncated"]);
}

#[test]
fn consequences_of_a_reported_problem_are_not_reported_again() {
    let magnitude = Adapter::on_q_proj().filled(Q_PROJ, "lora_magnitude_vector", &[HIDDEN]);
    let bias = Adapter::on_q_proj().filled(Q_PROJ, "lora_B.bias", &[HIDDEN]);
    let rows = Adapter::on_q_proj().filled(EMBEDDING, "token_adapter.trainable_tokens_delta", &[1, HIDDEN]);
    let rank_4 = Adapter::empty().pair(Q_PROJ, 4, HIDDEN, HIDDEN);
    let arrow = Adapter::on_q_proj().filled(Q_PROJ, "lora_arrow.weight", &[2, 2]).set("arrow_config", json!({}));
    assert_eq!(refused(&arrow).code(), ErrorCode::AdapterFeatureUnsupported);
    let experts = Adapter::empty().pair("model.layers.0.mlp.experts", 4, HIDDEN, HIDDEN);
    for (field, value) in [("target_parameters", json!(["mlp.experts.up_proj"])), ("task_type", json!("SEQ_CLS"))] {
        let error = refused(&experts.clone().set(field, value));
        assert_eq!(error.code(), ErrorCode::AdapterFeatureUnsupported, "{error}");
    }
    let pooled =
        Adapter::empty().filled(Q_PROJ, "lora_A.weight", &[2, 2]).filled(Q_PROJ, "lora_B.weight", &[HIDDEN, 2]);
    let saved = Adapter::on_q_proj().set("modules_to_save", json!(["input_layernorm"]));
    let repeated = Adapter::empty().pair("model.layers.3.self_attn.q_proj", 2, HIDDEN, HIDDEN);
    for (field, value, adapter) in [
        ("use_dora", json!("true"), magnitude),
        ("lora_bias", json!(1), bias),
        ("trainable_token_indices", json!("3"), rows),
        ("rank_pattern", json!({"q_proj": "4"}), rank_4),
        ("alpha_pattern", json!({"q_proj": "4"}), Adapter::on_q_proj()),
        ("lora_alpha", json!("4"), Adapter::on_q_proj()),
        ("layer_replication", json!([[0, 2], [0, 9]]), repeated),
        ("layer_replication", json!([[0, 9]]), saved),
        ("use_qalora", json!("true"), pooled.clone()),
        ("use_bdlora", json!({"nblocks": "3"}), pooled),
    ] {
        let error = refused(&adapter.set(field, value));
        assert_eq!(error.code(), ErrorCode::AdapterConfigInvalid, "{error}");
        assert!(error.message().contains(field), "{error}");
    }
}

#[test]
fn factors_are_not_expanded_if_the_field_that_says_how_they_are_stored_was_refused() {
    // Fewer rows than blocks.
    let blocks = json!({"target_modules_bd_a": ["q_proj"], "target_modules_bd_b": [], "nblocks": 3});
    let adapter =
        Adapter::empty().filled(Q_PROJ, "lora_A.weight", &[2, 2]).filled(Q_PROJ, "lora_B.weight", &[HIDDEN, 2]);
    for (field, value) in [("use_qalora", json!("true")), ("qalora_group_size", json!("2"))] {
        let error = refused(&adapter.clone().set("use_bdlora", blocks.clone()).set(field, value));
        assert_eq!(error.code(), ErrorCode::AdapterConfigInvalid, "{error}");
        assert!(error.message().contains(field), "{error}");
    }
}

#[test]
fn combinations_that_peft_refuses_are_refused() {
    let variants = [
        ("use_dora", json!(true)),
        ("use_bdlora", json!({"nblocks": 2, "match_strict": false})),
        ("alora_invocation_tokens", json!([5])),
        ("kasa_config", json!({})),
        ("velora_config", json!({"num_groups": 2})),
        ("monteclora_config", json!({})),
        ("init_lora_weights", json!("mica")),
    ];
    let mut pairs = Vec::new();
    for (i, first) in variants.iter().enumerate() {
        pairs.extend(variants[i + 1..].iter().map(|second| (first.clone(), second.clone())));
    }
    pairs.extend([
        (("use_dora", json!(true)), ("lora_bias", json!(true))),
        (("use_dora", json!(true)), ("megatron_config", json!({"a": 1}))),
        (("lora_bias", json!(true)), ("init_lora_weights", json!("gaussian"))),
        (("target_modules", json!(".*q_proj")), ("layers_to_transform", json!([0, 1]))),
        (("target_modules", json!(".*q_proj")), ("layers_pattern", json!("layers"))),
    ]);
    for ((first, a), (second, b)) in pairs {
        let adapter = Adapter::on_q_proj().set(first, a).set(second, b);
        let error = &refusals_on(&adapter, &sites())[0];
        assert_eq!(error.code(), ErrorCode::AdapterConfigInvalid, "{error}");
        assert!(error.message().contains(first) && error.message().contains(second), "{error}");
    }
    let pattern_alone = refused(&Adapter::on_q_proj().set("layers_pattern", json!("layers")));
    assert!(pattern_alone.message().contains("needs layers_to_transform"), "{pattern_alone}");
}
