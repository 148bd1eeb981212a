//! Adapter folders, from the files to a checked plan: what is served, and what is refused under which code.

#[path = "support/adapters.rs"]
mod adapter_files;

use std::collections::BTreeSet;

use adapter_files::{Adapter, Folder, HIDDEN, INNER, fixture, sites};
use exlora::adapter::AdapterFiles;
use exlora::adapter::delta::{LowRank, SiteDelta, scaling};
use exlora::sites::{Site, SiteTable};
use exlora::{Error, ErrorCode};
use serde_json::{Value, json};

const Q_A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const Q_B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";

/// Reads and plans a folder against the tiny model, and looks at the deltas: path, rank, scale.
fn planned(folder: &Folder) -> Result<Vec<(String, usize, f32)>, Error> {
    let (files, sites) = (AdapterFiles::read(folder.path())?, sites());
    let plan = files.plan(&sites)?;
    let rows = plan.deltas.iter().map(|d| {
        let low = low_rank(d);
        (sites.get(d.site).path.clone(), low.rank(), low.scale)
    });
    Ok(rows.collect())
}

fn low_rank<'d, 'a>(delta: &'d SiteDelta<'a>) -> &'d LowRank<'a> {
    delta.low_rank.as_ref().expect("a low-rank part")
}

fn refusal(folder: &Folder) -> Error {
    planned(folder).expect_err("refused")
}

/// All codes of an error, in its order.
fn codes(error: &Error) -> Vec<&'static str> {
    [error].into_iter().chain(error.others()).map(|e| e.code().as_str()).collect()
}

// --- what is served

/// The linears the fixtures act on, with the shapes that the `safetensors` crate reads from one of them.
fn quill_sites() -> SiteTable {
    let text = std::fs::read(fixture("jargon-lora-r8/adapter_model.safetensors")).expect("the fixture");
    let file = safetensors::SafeTensors::deserialize(&text).expect("valid");
    let mut sites = SiteTable::default();
    for name in file.names().into_iter().filter(|name| name.contains("lora_A")) {
        let shape = |name: &str| file.tensor(name).expect("a pair").shape().to_vec();
        sites.push(Site::linear(
            name.trim_start_matches("base_model.model.").trim_end_matches(".lora_A.weight"),
            shape(name)[1],
            shape(&name.replace("lora_A", "lora_B"))[0],
        ));
    }
    sites
}

#[test]
fn the_real_adapters_are_planned_whole() {
    let sites = quill_sites();
    for (name, rank, scale) in [("jargon-lora-r8", 8, 2.0), ("sqlite-rslora-r16", 16, 4.0)] {
        let files = AdapterFiles::read(&fixture(name)).expect("a right adapter");
        let plan = files.plan(&sites).expect("a right adapter");
        assert_eq!(plan.deltas.len(), sites.len(), "{name}");
        assert!(plan.deltas.is_sorted_by_key(|delta| delta.site));
        for delta in &plan.deltas {
            let LowRank { a, b, scale: found, .. } = low_rank(delta);
            let site = sites.get(delta.site);
            assert_eq!((a.shape(), b.shape()), (&[rank, site.in_features][..], &[site.out_features, rank][..]));
            assert_eq!(*found, scale, "{name}");
        }
        let summary = &plan.summary;
        assert_eq!((summary.rank, summary.max_rank, summary.sites), (rank, rank, sites.len()));
        assert_eq!((summary.alpha, summary.use_rslora), (16.0, name.contains("rslora")));
        assert_eq!(summary.target_modules.iter().collect::<BTreeSet<_>>().len(), 7);
        let stored = plan.deltas.iter().map(|d| {
            let low = low_rank(d);
            low.a.bytes().len() + low.b.bytes().len()
        });
        assert_eq!(summary.bytes, stored.sum::<usize>());
    }
}

#[test]
fn the_real_dora_adapter_is_refused_by_name() {
    let error = AdapterFiles::read(&fixture("devil-dora-r8")).expect_err("DoRA");
    assert_eq!(error.code(), ErrorCode::AdapterFeatureUnsupported);
    let text = error.to_string();
    assert!(text.contains("adapter 'devil-dora-r8'") && text.contains("use_dora = true"), "{text}");
}

#[test]
fn the_content_hash_tells_config_and_weights_apart() {
    let hash = |adapter: Adapter| AdapterFiles::read(adapter.write().path()).expect("right").content_hash().to_owned();
    let base = hash(Adapter::on_q_proj());
    assert_eq!(base, hash(Adapter::on_q_proj()));
    assert_eq!(base.len(), 64);
    assert_ne!(base, hash(Adapter::on_q_proj().set("lora_alpha", json!(5))));
    assert_ne!(base, hash(Adapter::on_q_proj().ones("base_model.model.lm_head.lora_A.weight", &[2, HIDDEN])));
}

#[test]
fn any_mix_of_targets_layers_and_float_types_is_served() {
    let module = "base_model.model.model.layers.1.mlp.down_proj";
    let (a, b): (Vec<f32>, Vec<f32>) = ((0..INNER).map(|i| i as f32 - 4.5).collect(), vec![0.25; HIDDEN]);
    let folder = Adapter::empty()
        .set("r", json!(1))
        .pair("lm_head", 1, HIDDEN, 32)
        .values(&format!("{module}.lora_A.weight"), "BF16", &[1, INNER], &a)
        .values(&format!("{module}.lora_B.weight"), "F16", &[HIDDEN, 1], &b)
        .write();
    let (files, sites) = (AdapterFiles::read(folder.path()).expect("right"), sites());
    let plan = files.plan(&sites).expect("right");
    assert_eq!(plan.deltas.len(), 2);
    let low = low_rank(&plan.deltas[0]);
    assert_eq!(sites.get(plan.deltas[0].site).path, "model.layers.1.mlp.down_proj");
    assert_eq!((low.a.view().to_f32(), low.b.view().to_f32()), (a, b));
}

#[test]
fn spellings_of_wrapped_models_are_served() {
    let renames: [fn(&str) -> String; 5] = [
        |name| name.replace(".weight", ".default.weight"),
        |name| name.replace(".weight", ".my_adapter.weight"),
        |name| name.replace("base_model.model.", ""),
        |name| format!("module.{name}"),
        |name| name.replace(".layers.", "._orig_mod.layers."),
    ];
    for rename in renames {
        let rows = planned(&Adapter::on_q_proj().rename(rename).write()).expect("one spelling");
        assert_eq!(rows.len(), 2);
    }
}

#[test]
fn an_adapter_larger_than_its_linear_is_served() {
    let rows = planned(&Adapter::empty().set("r", json!(513)).pair("lm_head", 513, HIDDEN, 32).write());
    assert_eq!(rows.expect("any rank")[0].1, 513);
}

/// The file's `r`, `lora_alpha`, patterns and `use_rslora` against the scale of layers 0 and 1, by PEFT's rule.
#[test]
fn scales_follow_rank_alpha_and_patterns_in_file_order() {
    let q0 = "layers.0.self_attn.q_proj";
    let table = [
        (json!({}), [(2, 2.0), (2, 2.0)]),
        (json!({"lora_alpha": 3}), [(2, 1.5), (2, 1.5)]),
        (json!({"lora_alpha": 0.5}), [(2, 0.25), (2, 0.25)]),
        (json!({"lora_alpha": 0}), [(2, 0.0), (2, 0.0)]),
        (json!({"lora_alpha": -4}), [(2, -2.0), (2, -2.0)]),
        (json!({"lora_alpha": 1e6}), [(2, 5e5), (2, 5e5)]),
        (json!({"use_rslora": true}), [(2, scaling(4.0, 2, true)), (2, scaling(4.0, 2, true))]),
        // Rank alone changes the scale too, since alpha stays.
        (json!({"rank_pattern": {q0: 8}}), [(8, 0.5), (2, 2.0)]),
        (json!({"rank_pattern": {q0: 8}, "use_rslora": true}), [(8, 4.0 / 8f64.sqrt()), (2, 4.0 / 2f64.sqrt())]),
        (json!({"alpha_pattern": {q0: 8}}), [(2, 4.0), (2, 2.0)]),
        (json!({"alpha_pattern": {q0: 0.1}}), [(2, 0.05), (2, 2.0)]),
        (json!({"rank_pattern": {q0: 8}, "alpha_pattern": {r"layers\.1\..*": 32}}), [(8, 0.5), (2, 16.0)]),
        (
            json!({"rank_pattern": {q0: 8}, "alpha_pattern": {"q_proj": 32}, "use_rslora": true}),
            [(8, 32.0 / 8f64.sqrt()), (2, 32.0 / 2f64.sqrt())],
        ),
        // The first in the order of the file counts, sorted or not.
        (json!({"alpha_pattern": {"q_proj": 6, q0: 8}}), [(2, 3.0), (2, 3.0)]),
        (json!({"alpha_pattern": {q0: 8, "q_proj": 6}}), [(2, 4.0), (2, 3.0)]),
        (json!({"alpha_pattern": {"^q_proj": 8, "v_proj": 6}}), [(2, 2.0), (2, 2.0)]),
        (json!({"r": null, "rank_pattern": null, "alpha_pattern": {}}), [(2, 2.0), (2, 2.0)]),
    ];
    for (fields, expected) in table {
        let mut adapter = Adapter::empty();
        for (name, value) in fields.as_object().expect("fields") {
            adapter = match value.is_null() && name == "r" {
                true => adapter.unset(name),
                false => adapter.set(name, value.clone()),
            };
        }
        for (layer, (rank, _)) in expected.iter().enumerate() {
            adapter = adapter.pair(&format!("model.layers.{layer}.self_attn.q_proj"), *rank, HIDDEN, HIDDEN);
        }
        let rows = planned(&adapter.write()).unwrap_or_else(|error| panic!("{fields}: {error}"));
        let found: Vec<_> = rows.iter().map(|(_, rank, scale)| (*rank, *scale)).collect();
        assert_eq!(found, expected.map(|(rank, scale)| (rank, scale as f32)), "{fields}");
    }
}

#[test]
fn the_summary_keeps_target_modules_as_written() {
    let targets = |value: Value| {
        let folder = Adapter::on_q_proj().set("target_modules", value).write();
        AdapterFiles::read(folder.path()).expect("right").plan(&sites()).expect("right").summary.target_modules
    };
    assert_eq!(targets(json!(["v_proj", "q_proj"])), ["v_proj", "q_proj"]);
    assert_eq!(targets(json!(".*q_proj")), [".*q_proj"]);
    assert_eq!(targets(json!("all-linear")), ["all-linear"]);
    assert!(targets(Value::Null).is_empty());
}

#[test]
fn fields_that_change_no_result_are_ignored() {
    let table = [
        ("base_model_name_or_path", json!("C:\\models\\unsloth/llama-bnb-4bit")),
        ("lora_dropout", json!(0.1)),
        ("fan_in_fan_out", json!(true)),
        ("init_lora_weights", json!("gaussian")),
        ("init_lora_weights", json!("eva")),
        ("init_lora_weights", json!(false)),
        ("loftq_config", json!({"loftq_bits": 4})),
        ("eva_config", json!({"rho": 2.0})),
        ("megatron_config", json!({"hidden_size": 8})),
        ("megatron_core", json!("megatron.core")),
        ("qalora_group_size", json!(16)),
        ("velora_config", json!({"rank": 1})),
        ("task_type", json!("CAUSAL_LM")),
        ("alora_invocation_tokens", json!([])),
        ("layer_replication", json!([])),
        ("modules_to_save", json!([])),
        ("trainable_token_indices", json!({})),
        ("use_bdlora", Value::Null),
        ("runtime_config", json!({"ephemeral_gpu_offload": true})),
        ("auto_mapping", json!({"base_model_class": "LlamaForCausalLM"})),
        // Unknown, but not a switch that is on.
        ("enable_lora", Value::Null),
        ("merge_weights", json!(false)),
        ("lorap_lr_ratio", json!(16.0)),
        ("lora_dtype", json!("float32")),
        ("something", json!([])),
        ("something", json!({})),
    ];
    for (field, value) in table {
        let rows = planned(&Adapter::on_q_proj().set(field, value.clone()).write());
        assert_eq!(rows.unwrap_or_else(|error| panic!("{field} = {value}: {error}")).len(), 2);
    }
}

#[test]
fn training_state_of_variants_is_left_out() {
    let adapter = Adapter::on_q_proj()
        .ones("base_model.model.model.layers.0.self_attn.q_proj.lora_velora_embed", &[3])
        .ones("base_model.model.model.layers.0.self_attn.q_proj.lora_monteclora_sampler.std", &[3]);
    assert_eq!(planned(&adapter.write()).expect("plain LoRA").len(), 2);
}

// --- what the config is refused for

#[test]
fn features_that_are_not_served_are_refused_by_name() {
    let table = [
        ("use_dora", json!(true), "DoRA"),
        ("lora_bias", json!(true), "lora_bias"),
        ("bias", json!("all"), "trained base biases"),
        ("bias", json!("lora_only"), "trained base biases"),
        ("modules_to_save", json!(["lm_head"]), "modules_to_save"),
        ("trainable_token_indices", json!([1, 2]), "trainable_token_indices"),
        ("trainable_token_indices", json!({"embed_tokens": [1]}), "trainable_token_indices"),
        ("ensure_weight_tying", json!(true), "ensure_weight_tying"),
        ("layer_replication", json!([[0, 2], [1, 2]]), "layer_replication"),
        ("target_parameters", json!(["mlp.experts.down_proj"]), "target_parameters"),
        ("alora_invocation_tokens", json!([5]), "alora_invocation_tokens"),
        ("use_qalora", json!(true), "QA-LoRA"),
        ("use_bdlora", json!({"nblocks": 2}), "use_bdlora"),
        ("kasa_config", json!({}), "KaSA"),
        ("arrow_config", json!({"top_k": 3}), "Arrow"),
        ("task_type", json!("SEQ_CLS"), "task_type"),
        ("init_lora_weights", json!("brand_new"), "brand_new"),
        ("use_brand_new", json!(true), "'use_brand_new' is unknown"),
        ("brand_new_config", json!({"a": 1}), "'brand_new_config' is unknown"),
        ("brand_new_tokens", json!([1]), "'brand_new_tokens' is unknown"),
    ];
    for (field, value, named) in table {
        let error = refusal(&Adapter::on_q_proj().set(field, value.clone()).write());
        assert_eq!(error.code(), ErrorCode::AdapterFeatureUnsupported, "{field} = {value}: {error}");
        let text = error.to_string();
        assert!(text.contains(named) && text.contains(field), "{text}");
    }
}

#[test]
fn an_initialisation_that_changed_the_base_is_refused_with_its_remedy() {
    for name in ["pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga"] {
        let error = refusal(&Adapter::on_q_proj().set("init_lora_weights", json!(name)).write());
        assert_eq!(error.code(), ErrorCode::AdapterBaseChanged, "{name}");
        assert!(error.to_string().contains(name) && !error.remedy().is_empty(), "{error}");
    }
}

#[test]
fn malformed_fields_are_refused_with_what_was_expected() {
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
        ("layer_replication", json!(true)),
        ("kasa_config", json!(true)),
        ("task_type", json!(3)),
        ("init_lora_weights", json!(3)),
        ("fan_in_fan_out", json!("no")),
        ("peft_type", json!(3)),
    ];
    for (field, value) in table {
        let error = refusal(&Adapter::on_q_proj().set(field, value.clone()).write());
        assert_eq!(error.code(), ErrorCode::AdapterConfigInvalid, "{field} = {value}: {error}");
        assert!(error.message().contains(field) && error.expected_value().is_some(), "{error}");
        assert!(error.path_ref().is_some_and(|path| path.ends_with("sql/adapter_config.json")), "{error}");
        assert_eq!(error.others().len(), 0, "{field} = {value}: {error}");
    }
}

#[test]
fn a_config_that_is_no_plain_json_object_is_refused_with_the_position() {
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
fn other_types_and_tools_are_told_apart() {
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
fn patterns_that_can_not_be_used_are_refused() {
    let huge = format!("{}|x", "x".repeat(5000));
    // Backtracks without end on any path that has no 'Z'.
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
        assert!(error.path_ref().is_some_and(|path| path.ends_with("sql/adapter_config.json")), "{error}");
        assert_eq!(error.others().len(), 0, "{error}");
    }
}

#[test]
fn everything_wrong_with_a_config_is_told_at_once() {
    let folder =
        Adapter::on_q_proj().set("r", json!("8")).set("use_dora", json!(true)).set("bias", json!("all")).write();
    let error = refusal(&folder);
    assert_eq!(
        codes(&error),
        ["adapter_config_invalid", "adapter_feature_unsupported", "adapter_feature_unsupported"],
        "{error}"
    );
}

// --- what the folder is refused for

#[test]
fn a_folder_without_an_adapter_says_what_is_there() {
    let missing = AdapterFiles::read(Folder::new().path().join("nowhere").as_path()).expect_err("nothing there");
    assert_eq!(missing.code(), ErrorCode::AdapterConfigNotFound);
    assert!(missing.to_string().contains("adapter 'nowhere'"));

    let folder = Folder::new();
    assert_eq!(refusal(&folder).code(), ErrorCode::AdapterConfigNotFound);
    folder.file("checkpoint-500/adapter_config.json", "{}").file("default/adapter_config.json", "{}").file("x/y", "");
    let error = refusal(&folder);
    assert_eq!(error.code(), ErrorCode::AdapterConfigNotFound);
    assert!(error.to_string().contains("'checkpoint-500', 'default'") && !error.to_string().contains("'x'"), "{error}");

    folder.file("adapters.safetensors", "");
    assert_eq!(refusal(&folder).code(), ErrorCode::AdapterFormatUnsupported);

    let file = folder.path().join("adapters.safetensors");
    assert!(AdapterFiles::read(&file).expect_err("a file").message().contains("not an adapter's folder"));
}

#[test]
fn weights_in_another_form_are_refused_with_the_way_out() {
    let config = Value::Object(Adapter::on_q_proj().config).to_string();
    let with = |name: &str| {
        let folder = Folder::new();
        folder.file("adapter_config.json", &config).file(name, "x");
        refusal(&folder)
    };
    assert_eq!(with("README.md").code(), ErrorCode::AdapterWeightsNotFound);
    let pickle = with("adapter_model.bin");
    assert_eq!(pickle.code(), ErrorCode::AdapterFormatUnsupported);
    assert!(pickle.remedy().contains("weights_only=True"), "{pickle}");
    assert!(with("adapter_model-00001-of-00002.safetensors").message().contains("shards"));
    assert!(with("adapters.safetensors").message().contains("mlx-lm"));
}

#[test]
fn what_is_no_regular_file_can_not_make_the_process_wait() {
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        for fifo in [true, false] {
            let folder = Adapter::on_q_proj().write();
            let path = folder.path().join(name);
            std::fs::remove_file(&path).expect("it was written");
            if fifo {
                let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
                assert!(made.success());
            } else {
                std::fs::create_dir(&path).expect("a folder");
            }
            let error = refusal(&folder);
            let refused = [ErrorCode::AdapterConfigInvalid, ErrorCode::CheckpointUnreadable];
            assert!(refused.contains(&error.code()) && error.path_ref() == Some(&path), "{error}");
        }
    }
}

#[test]
fn a_config_of_more_than_four_mebibytes_is_not_read() {
    let folder = Folder::new();
    folder.file("adapter_config.json", vec![b' '; (4 << 20) + 1]);
    let error = refusal(&folder);
    assert_eq!(error.code(), ErrorCode::AdapterConfigInvalid);
    assert!(error.found_value().is_some_and(|found| found.contains("4194305")), "{error}");
}

#[test]
fn links_are_followed_as_in_a_hub_cache() {
    let (blobs, folder) = (Adapter::on_q_proj().write(), Folder::new());
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::os::unix::fs::symlink(blobs.path().join(name), folder.path().join(name)).expect("a link");
    }
    assert_eq!(planned(&folder).expect("followed").len(), 2);
}

#[test]
fn a_file_cut_short_is_refused_as_such() {
    let adapter = Adapter::on_q_proj();
    let bytes = adapter.safetensors();
    for length in [0, 4, 8, 100, bytes.len() - 1] {
        let folder = adapter.write();
        folder.file("adapter_model.safetensors", &bytes[..length]);
        let error = refusal(&folder);
        assert_eq!(error.code(), ErrorCode::CheckpointTruncated, "{length}: {error}");
        assert!(error.to_string().starts_with("adapter 'sql'"), "{error}");
    }
}

// --- what the tensors are refused for

#[test]
fn wrong_tensors_are_refused_each_under_its_code() {
    let q = "base_model.model.model.layers.0.self_attn.q_proj";
    let other = |name: &str| name.replace("layers.0.", "layers.9.");
    let without = |part: &'static str| move |name: &str| if name == part { String::new() } else { name.to_owned() };
    let on_q = |a: &[usize], b: &[usize]| Adapter::empty().ones(Q_A, a).ones(Q_B, b);
    let add = |name: &str| Adapter::on_q_proj().ones(&format!("{q}.{name}"), &[HIDDEN]);
    let excluded = |field: &str, value: Value| Adapter::on_q_proj().set(field, value);
    let layers = |layers: Value| excluded("target_modules", json!(["q_proj"])).set("layers_to_transform", layers);
    let table: Vec<(&str, Adapter, &[&str])> = vec![
        ("no tensors at all", Adapter::empty(), &["adapter_tensor_missing"]),
        ("A alone", Adapter::on_q_proj().rename(without(Q_B)), &["adapter_tensor_missing"]),
        ("B alone", Adapter::on_q_proj().rename(without(Q_A)), &["adapter_tensor_missing"]),
        ("an unknown module", Adapter::on_q_proj().rename(other), &["adapter_site_not_found"]),
        ("rank of both", on_q(&[4, HIDDEN], &[HIDDEN, 4]), &["adapter_rank_mismatch", "adapter_rank_mismatch"]),
        ("rank of B", on_q(&[2, HIDDEN], &[HIDDEN, 4]), &["adapter_rank_mismatch"]),
        ("in_features", on_q(&[2, 5], &[HIDDEN, 2]), &["adapter_shape_mismatch"]),
        ("out_features", on_q(&[2, HIDDEN], &[5, 2]), &["adapter_shape_mismatch"]),
        ("transposed", on_q(&[HIDDEN, 2], &[2, HIDDEN]), &["adapter_shape_mismatch", "adapter_shape_mismatch"]),
        ("without r, A and B apart", on_q(&[2, HIDDEN], &[HIDDEN, 4]).unset("r"), &["adapter_rank_mismatch"]),
        ("rank_pattern", Adapter::on_q_proj().set("rank_pattern", json!({"q_proj": 4})), &["adapter_rank_mismatch"; 4]),
        ("not gathered", on_q(&[0], &[0]), &["adapter_shape_mismatch", "adapter_shape_mismatch"]),
        ("one dimension", on_q(&[2 * HIDDEN], &[HIDDEN, 2]), &["adapter_shape_mismatch"]),
        ("three dimensions", on_q(&[2, HIDDEN, 1], &[HIDDEN, 2]), &["adapter_shape_mismatch"]),
        ("a huge scale", Adapter::on_q_proj().set("lora_alpha", json!(1e300)), &["adapter_scale_invalid"; 2]),
        ("DoRA", add("lora_magnitude_vector"), &["adapter_feature_unsupported"]),
        ("B's bias", add("lora_B.bias"), &["adapter_feature_unsupported"]),
        ("a base bias", add("base_layer.bias"), &["adapter_feature_unsupported"]),
        ("a replaced weight", add("weight"), &["adapter_feature_unsupported"]),
        ("nested", add("base_layer.lora_A.weight"), &["adapter_feature_unsupported"]),
        ("unknown", add("lora_A.a.b.c"), &["adapter_tensor_unexpected"]),
        ("two spellings", add("lora_A.mine.weight"), &["adapter_tensor_unexpected", "adapter_tensor_unexpected"]),
        (
            "exclude_modules",
            excluded("exclude_modules", json!(["layers.0.self_attn.q_proj"])),
            &["adapter_site_excluded"],
        ),
        ("target_modules", excluded("target_modules", json!(["v_proj"])), &["adapter_site_excluded"; 2]),
        ("target_modules regex", excluded("target_modules", json!(r".*\.0\..*")), &["adapter_site_excluded"]),
        ("layers_to_transform", layers(json!([0])), &["adapter_site_excluded"]),
        ("layers_to_transform 1", layers(json!(1)), &["adapter_site_excluded"]),
    ];
    for (what, adapter, expected) in table {
        let error = refusal(&adapter.write());
        assert_eq!(codes(&error), expected, "{what}: {error}");
        let named = expected == ["adapter_tensor_missing"] || error.tensor_name().is_some() || what == "a huge scale";
        assert!(named && error.path_ref().is_some(), "{what}: {error}");
        assert!(error.to_string().starts_with("adapter 'sql': "), "{what}: {error}");
    }
}

#[test]
fn a_factor_that_was_not_gathered_is_explained() {
    let remedy = |shape: &[usize]| {
        let error = refusal(&Adapter::empty().ones(Q_A, shape).ones(Q_B, &[HIDDEN, 2]).write());
        error.remedy().to_owned()
    };
    assert!(remedy(&[0]).contains("ZeRO-3") && remedy(&[2 * HIDDEN]).contains("ZeRO-3"));
    assert!(!remedy(&[2, HIDDEN, 1]).contains("ZeRO-3"));
}

#[test]
fn a_missing_factor_is_named() {
    let adapter = Adapter::on_q_proj().rename(|name| if name == Q_B { String::new() } else { name.to_owned() });
    assert_eq!(refusal(&adapter.write()).tensor_name(), Some(Q_B));
}

#[test]
fn a_rank_mismatch_says_what_the_config_promised() {
    let adapter = Adapter::empty().set("r", json!(16)).ones(Q_A, &[16, HIDDEN]).ones(Q_B, &[HIDDEN, 8]);
    let error = refusal(&adapter.write());
    assert_eq!((error.expected_value(), error.found_value()), (Some("[6, 16]"), Some("[6, 8]")));
    assert!(error.remedy().contains("r = 16 in adapter_config.json; a rank_pattern would have to name this module"));
}

#[test]
fn values_that_are_not_finite_are_counted() {
    let mut values = vec![1.0; 2 * HIDDEN];
    (values[5], values[7], values[8]) = (f32::NEG_INFINITY, f32::NAN, f32::NAN);
    for dtype in ["F32", "F16", "BF16"] {
        let adapter = Adapter::empty().values(Q_A, dtype, &[2, HIDDEN], &values).ones(Q_B, &[HIDDEN, 2]);
        let error = refusal(&adapter.write());
        assert_eq!((error.code(), error.tensor_name()), (ErrorCode::AdapterNotFinite, Some(Q_A)));
        assert_eq!(error.found_value(), Some("2 NaN and 1 infinite of 12, the first at index 5"), "{dtype}");
    }
}

#[test]
fn types_that_are_no_plain_floats_are_refused() {
    for (dtype, bytes) in [("I32", 4), ("I64", 8), ("F8_E4M3", 1), ("F64", 8), ("U8", 1)] {
        let a = vec![0; 2 * HIDDEN * bytes];
        let error = refusal(&Adapter::empty().raw(Q_A, dtype, &[2, HIDDEN], a).ones(Q_B, &[HIDDEN, 2]).write());
        assert_eq!((error.code(), error.tensor_name()), (ErrorCode::AdapterDtypeUnsupported, Some(Q_A)), "{dtype}");
    }
}

#[test]
fn a_file_that_matches_nothing_is_one_clear_error() {
    let adapter = Adapter::on_q_proj().rename(|name| name.replace("model.layers", "model.language_model.layers"));
    let error = refusal(&adapter.write());
    assert_eq!(codes(&error), ["adapter_site_not_found"]);
    assert_eq!(error.message(), "0 of 4 tensors match the model");
    assert!(error.expected_value().is_some_and(|text| text.contains("'model.layers.0.self_attn.q_proj'")));
    let found = error.found_value().expect("a module of the file");
    assert!(found.contains("'model.language_model.layers.0.self_attn.q_proj'"), "{found}");
}

#[test]
fn names_of_other_tools_are_refused_as_a_format() {
    for name in ["lora_unet_mid_block_proj.lora_down.weight", "model.layers.0.self_attn.q_proj.lora_a"] {
        let error = refusal(&Adapter::on_q_proj().ones(name, &[2, HIDDEN]).write());
        assert_eq!(codes(&error), ["adapter_format_unsupported"], "{name}");
        assert_eq!(error.tensor_name(), Some(name));
    }
}

#[test]
fn everything_wrong_with_the_tensors_is_told_at_once() {
    let adapter = Adapter::on_q_proj()
        .pair("model.layers.7.self_attn.q_proj", 2, HIDDEN, HIDDEN)
        .pair("model.layers.0.self_attn.k_proj", 3, HIDDEN, HIDDEN)
        .ones("base_model.model.lm_head.lora_A.weight", &[2, HIDDEN])
        .values("base_model.model.lm_head.lora_B.weight", "F32", &[32, 2], &[f32::NAN; 64])
        .ones("rubbish", &[1]);
    let error = refusal(&adapter.write());
    let expected = [
        "adapter_tensor_unexpected",
        "adapter_not_finite",
        "adapter_rank_mismatch",
        "adapter_rank_mismatch",
        "adapter_site_not_found",
    ];
    assert_eq!(codes(&error), expected, "{error}");
}

#[test]
fn a_file_with_a_thousand_problems_tells_a_hundred_and_counts_the_rest() {
    let adapter = (0..1000).fold(Adapter::on_q_proj(), |adapter, i| adapter.ones(&format!("rubbish.{i}"), &[1]));
    let error = refusal(&adapter.write());
    assert_eq!(error.others().len(), 100);
    assert_eq!(error.others()[99].message(), "900 further problems");
}
