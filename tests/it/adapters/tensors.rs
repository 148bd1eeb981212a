//! Problems of the tensors: names, shapes, ranks, data types, values.

use exlora::ErrorCode;
use serde_json::{Value, json};

use super::{codes, refusal};
use support::adapters::{Adapter, HIDDEN, VOCAB};

const Q_A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const Q_B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";

#[test]
fn invalid_tensors_are_refused_each_under_its_code() {
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
        ("DoRA", add("lora_magnitude_vector"), &["adapter_tensor_unexpected"]),
        ("B's bias", add("lora_B.bias"), &["adapter_tensor_unexpected"]),
        ("a bias that the base does not have", add("base_layer.bias"), &["adapter_tensor_unexpected"]),
        ("a replaced weight's shape", add("weight"), &["adapter_shape_mismatch"]),
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
        let named = expected == ["adapter_tensor_missing"] || error.tensor().is_some() || what == "a huge scale";
        assert!(named && error.path().is_some(), "{what}: {error}");
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
    assert_eq!(refusal(&adapter.write()).tensor(), Some(Q_B));
}

#[test]
fn a_rank_mismatch_names_the_rank_of_the_config() {
    let adapter = Adapter::empty().set("r", json!(16)).ones(Q_A, &[16, HIDDEN]).ones(Q_B, &[HIDDEN, 8]);
    let error = refusal(&adapter.write());
    assert_eq!((error.expected(), error.found()), (Some("[6, 16]"), Some("[6, 8]")));
    assert!(error.remedy().contains("r = 16 in adapter_config.json; a rank_pattern would have to name this module"));
}

#[test]
fn values_that_are_not_finite_are_counted() {
    let mut values = vec![1.0; 2 * HIDDEN];
    (values[5], values[7], values[8]) = (f32::NEG_INFINITY, f32::NAN, f32::NAN);
    for dtype in ["F32", "F16", "BF16"] {
        let adapter = Adapter::empty().values(Q_A, dtype, &[2, HIDDEN], &values).ones(Q_B, &[HIDDEN, 2]);
        let error = refusal(&adapter.write());
        assert_eq!((error.code(), error.tensor()), (ErrorCode::AdapterNotFinite, Some(Q_A)));
        assert_eq!(error.found(), Some("2 NaN and 1 infinite of 12, the first at index 5"), "{dtype}");
    }
}

#[test]
fn tensors_that_are_not_plain_floats_are_refused() {
    for (dtype, bytes) in [("I32", 4), ("I64", 8), ("F8_E4M3", 1), ("F64", 8), ("U8", 1)] {
        let a = vec![0; 2 * HIDDEN * bytes];
        let error = refusal(&Adapter::empty().raw(Q_A, dtype, &[2, HIDDEN], a).ones(Q_B, &[HIDDEN, 2]).write());
        assert_eq!((error.code(), error.tensor()), (ErrorCode::AdapterDtypeUnsupported, Some(Q_A)), "{dtype}");
    }
}

#[test]
fn a_file_without_any_matching_module_is_one_error() {
    let adapter = Adapter::on_q_proj().rename(|name| name.replace("model.layers", "model.other_model.layers"));
    let error = refusal(&adapter.write());
    assert_eq!(codes(&error), ["adapter_site_not_found"]);
    assert_eq!(error.message(), "0 of 4 tensors match the model");
    assert!(error.expected().is_some_and(|text| text.contains("'model.layers.0.self_attn.q_proj'")));
    let found = error.found().expect("a module of the file");
    assert!(found.contains("'model.other_model.layers.0.self_attn.q_proj'"), "{found}");
}

#[test]
fn names_of_other_tools_are_refused_as_another_format() {
    for name in ["lora_unet_mid_block_proj.lora_down.weight", "model.layers.0.self_attn.q_proj.lora_a"] {
        let error = refusal(&Adapter::on_q_proj().ones(name, &[2, HIDDEN]).write());
        assert_eq!(codes(&error), ["adapter_format_unsupported"], "{name}");
        assert_eq!(error.tensor(), Some(name));
    }
}

#[test]
fn all_problems_of_the_tensors_are_reported_at_once() {
    let adapter = Adapter::on_q_proj()
        .pair("model.layers.7.self_attn.q_proj", 2, HIDDEN, HIDDEN)
        .pair("model.layers.0.self_attn.k_proj", 3, HIDDEN, HIDDEN)
        .ones("base_model.model.lm_head.lora_A.weight", &[2, HIDDEN])
        .values("base_model.model.lm_head.lora_B.weight", "F32", &[VOCAB, 2], &[f32::NAN; 2 * VOCAB])
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
fn a_problem_of_a_thousand_tensors_is_reported_once_with_their_number() {
    let adapter = (0..1000).fold(Adapter::on_q_proj(), |adapter, i| adapter.ones(&format!("rubbish.{i}"), &[1]));
    let error = refusal(&adapter.write());
    assert_eq!(error.others().len(), 0, "{error}");
    assert!(error.message().ends_with("(and 999 more like it)"), "{error}");
}

#[test]
fn a_file_of_empty_tensors_is_one_problem() {
    // As DeepSpeed ZeRO-3 leaves it where the weights were not gathered.
    let paths = (0..2).flat_map(|layer| ["q_proj", "k_proj", "v_proj", "o_proj"].map(|name| (layer, name)));
    let adapter = paths.fold(Adapter::empty(), |adapter, (layer, name)| {
        let path = format!("model.layers.{layer}.self_attn.{name}");
        adapter.filled(&path, "lora_A.weight", &[0]).filled(&path, "lora_B.weight", &[0])
    });
    let error = refusal(&adapter.write());
    assert_eq!((error.code(), error.others().len()), (ErrorCode::AdapterShapeMismatch, 0), "{error}");
    assert!(error.message().ends_with("(and 15 more like it)") && error.remedy().contains("ZeRO-3"), "{error}");
}
