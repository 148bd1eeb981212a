//! Plain LoRA: which files are supported, with which ranks and scales.

use std::collections::BTreeSet;

use exlora::adapter::AdapterFiles;
use exlora::adapter::delta::{LowRank, scaling};
use exlora::sites::{Site, SiteTable};
use serde_json::{Value, json};

use super::{low_rank, planned};
use support::adapters::{Adapter, HIDDEN, INNER, VOCAB, fixture, sites};

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
fn the_real_adapters_are_read_completely() {
    let sites = quill_sites();
    for (name, rank, scale) in [("jargon-lora-r8", 8, 2.0), ("sqlite-rslora-r16", 16, 4.0)] {
        let files = AdapterFiles::read(&fixture(name)).expect("a valid adapter");
        let adapter = files.check(&sites).expect("a valid adapter").without_copies(|_, _, _| false);
        let deltas: Vec<_> = adapter.deltas().collect();
        assert_eq!(deltas.len(), sites.len(), "{name}");
        assert!(deltas.is_sorted_by_key(|delta| delta.site));
        for delta in &deltas {
            let LowRank { a, b, scale: found, .. } = low_rank(delta);
            let site = sites.get(delta.site);
            assert_eq!((a.shape(), b.shape()), (&[rank, site.in_features][..], &[site.out_features, rank][..]));
            assert_eq!(*found, scale, "{name}");
        }
        let summary = adapter.summary();
        assert_eq!((summary.rank, summary.max_rank, summary.sites), (rank, rank, sites.len()));
        assert_eq!((summary.alpha, summary.use_rslora), (16.0, name.contains("rslora")));
        assert_eq!(summary.target_modules.iter().collect::<BTreeSet<_>>().len(), 7);
        let stored = deltas.iter().map(|d| {
            let low = low_rank(d);
            low.a.bytes().len() + low.b.bytes().len()
        });
        assert_eq!(summary.bytes, stored.sum::<usize>());
    }
}

#[test]
fn the_real_dora_adapter_is_read_completely() {
    let files = AdapterFiles::read(&fixture("devil-dora-r8")).expect("a valid adapter");
    let sites = files.inferred_sites();
    let adapter = files.check(&sites).expect("a valid adapter").without_copies(|_, _, _| false);
    assert_eq!((adapter.deltas().len(), adapter.summary().constraints.rescaled.len()), (16, 16));
    for delta in adapter.deltas() {
        let magnitude = low_rank(delta).magnitude.as_ref().expect("DoRA");
        assert_eq!(magnitude.shape(), [sites.get(delta.site).out_features]);
    }
}

#[test]
fn the_content_hash_covers_config_and_weights() {
    let hash = |adapter: Adapter| AdapterFiles::read(adapter.write().path()).expect("valid").content_hash().to_owned();
    let base = hash(Adapter::on_q_proj());
    assert_eq!(base, hash(Adapter::on_q_proj()));
    assert_eq!(base.len(), 64);
    assert_ne!(base, hash(Adapter::on_q_proj().set("lora_alpha", json!(5))));
    assert_ne!(base, hash(Adapter::on_q_proj().ones("base_model.model.lm_head.lora_A.weight", &[2, HIDDEN])));
}

#[test]
fn any_mix_of_targets_layers_and_float_types_is_supported() {
    let module = "base_model.model.model.layers.1.mlp.down_proj";
    let (a, b): (Vec<f32>, Vec<f32>) = ((0..INNER).map(|i| i as f32 - 4.5).collect(), vec![0.25; HIDDEN]);
    let folder = Adapter::empty()
        .set("r", json!(1))
        .pair("lm_head", 1, HIDDEN, VOCAB)
        .values(&format!("{module}.lora_A.weight"), "BF16", &[1, INNER], &a)
        .values(&format!("{module}.lora_B.weight"), "F16", &[HIDDEN, 1], &b)
        .write();
    let (files, sites) = (AdapterFiles::read(folder.path()).expect("valid"), sites());
    let checked = files.check(&sites).expect("valid");
    assert_eq!(checked.deltas().len(), 2);
    let delta = &checked.deltas()[0].delta;
    let low = low_rank(delta);
    assert_eq!(sites.get(delta.site).path, "model.layers.1.mlp.down_proj");
    assert_eq!((low.a.view().to_f32(), low.b.view().to_f32()), (a, b));
}

#[test]
fn spellings_of_wrapped_models_are_supported() {
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
fn an_adapter_larger_than_its_linear_is_supported() {
    let rows = planned(&Adapter::empty().set("r", json!(513)).pair("lm_head", 513, HIDDEN, VOCAB).write());
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
        // The rank alone changes the scale too, since alpha stays.
        (json!({"rank_pattern": {q0: 8}}), [(8, 0.5), (2, 2.0)]),
        (json!({"rank_pattern": {q0: 8}, "use_rslora": true}), [(8, 4.0 / 8f64.sqrt()), (2, 4.0 / 2f64.sqrt())]),
        (json!({"alpha_pattern": {q0: 8}}), [(2, 4.0), (2, 2.0)]),
        (json!({"alpha_pattern": {q0: 0.1}}), [(2, 0.05), (2, 2.0)]),
        (json!({"rank_pattern": {q0: 8}, "alpha_pattern": {r"layers\.1\..*": 32}}), [(8, 0.5), (2, 16.0)]),
        (
            json!({"rank_pattern": {q0: 8}, "alpha_pattern": {"q_proj": 32}, "use_rslora": true}),
            [(8, 32.0 / 8f64.sqrt()), (2, 32.0 / 2f64.sqrt())],
        ),
        // The first in the order of the file applies, sorted or not.
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
        let files = AdapterFiles::read(folder.path()).expect("valid");
        let adapter = files.check(&sites()).expect("valid").without_copies(|_, _, _| false);
        adapter.summary().target_modules.clone()
    };
    assert_eq!(targets(json!(["v_proj", "q_proj"])), ["v_proj", "q_proj"]);
    assert_eq!(targets(json!(".*q_proj")), [".*q_proj"]);
    assert_eq!(targets(json!("all-linear")), ["all-linear"]);
    assert!(targets(Value::Null).is_empty());
}

#[test]
fn fields_without_effect_are_ignored() {
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
        // Unknown, but not switched on.
        ("enable_lora", Value::Null),
        ("merge_weights", json!(false)),
        ("lorap_lr_ratio", json!(16.0)),
        ("lora_dtype", json!("float32")),
        ("transformers_version", json!("5.23.0")),
        ("tokenizer_name_or_path", json!("org/model")),
        ("model_name", json!("my adapter")),
        ("router", json!("")),
        ("router", json!("None")),
        ("something", json!([])),
        ("something", json!({})),
    ];
    for (field, value) in table {
        let rows = planned(&Adapter::on_q_proj().set(field, value.clone()).write());
        assert_eq!(rows.unwrap_or_else(|error| panic!("{field} = {value}: {error}")).len(), 2);
    }
}

#[test]
fn training_state_of_variants_is_ignored() {
    let adapter = Adapter::on_q_proj()
        .ones("base_model.model.model.layers.0.self_attn.q_proj.lora_velora_embed", &[3])
        .ones("base_model.model.model.layers.0.self_attn.q_proj.lora_monteclora_sampler.std", &[3]);
    assert_eq!(planned(&adapter.write()).expect("plain LoRA").len(), 2);
}
