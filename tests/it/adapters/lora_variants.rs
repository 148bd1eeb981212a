//! Variants of LoRA: DoRA, lora_bias, QA-LoRA, BD-LoRA, activated LoRA, KaSA.

use exlora::ErrorCode;
use exlora::adapter::delta::scaling;
use serde_json::{Value, json};

use super::{EMBEDDING, HEAD, K_PROJ, Q_PROJ, counting, plan, refusals_on, refused};
use support::adapters::{Adapter, HIDDEN, INNER, VOCAB, sites};

fn on_q() -> Adapter {
    Adapter::empty().pair(Q_PROJ, 2, HIDDEN, HIDDEN)
}

// --- DoRA

#[test]
fn a_magnitude_is_read_under_both_of_its_names() {
    for name in ["lora_magnitude_vector", "lora_magnitude_vector.weight"] {
        let adapter = on_q().set("use_dora", json!(true)).part(Q_PROJ, name, &[HIDDEN], &counting(&[HIDDEN]));
        let planned = plan(&adapter);
        assert_eq!(planned.at(Q_PROJ).magnitude, Some((vec![HIDDEN], counting(&[HIDDEN]))), "{name}");
        assert_eq!((planned.constraints.rescaled.len(), planned.constraints.is_replacing()), (1, false));
    }
}

#[test]
fn dora_is_scaled_by_root_and_pattern_like_lora() {
    let adapter = Adapter::empty()
        .set("use_dora", json!(true))
        .set("use_rslora", json!(true))
        .set("rank_pattern", json!({"q_proj": 4}))
        .pair(Q_PROJ, 4, HIDDEN, HIDDEN)
        .filled(Q_PROJ, "lora_magnitude_vector", &[HIDDEN]);
    assert_eq!(plan(&adapter).at(Q_PROJ).scale, Some(scaling(4.0, 4, true) as f32));
}

#[test]
fn the_magnitude_of_an_embedding_has_its_width() {
    let embedding = |width: usize| {
        Adapter::empty()
            .set("use_dora", json!(true))
            .filled(EMBEDDING, "lora_embedding_A", &[2, VOCAB])
            .filled(EMBEDDING, "lora_embedding_B", &[HIDDEN, 2])
            .filled(EMBEDDING, "lora_magnitude_vector", &[width])
    };
    assert_eq!(plan(&embedding(HIDDEN)).at(EMBEDDING).magnitude, Some((vec![HIDDEN], vec![1.0; HIDDEN])));
    let error = refused(&embedding(VOCAB));
    assert_eq!(error.code(), ErrorCode::AdapterShapeMismatch);
    assert_eq!((error.expected(), error.found()), (Some("[6]"), Some("[32]")));
}

#[test]
fn a_vector_is_there_exactly_where_its_field_says() {
    for (field, suffix) in [("use_dora", "lora_magnitude_vector"), ("lora_bias", "lora_B.bias")] {
        let name = format!("base_model.model.{Q_PROJ}.{suffix}");
        let missing = refused(&on_q().set(field, json!(true)));
        assert_eq!((missing.code(), missing.tensor()), (ErrorCode::AdapterTensorMissing, Some(name.as_str())));
        let unexpected = refused(&on_q().filled(Q_PROJ, suffix, &[HIDDEN]));
        assert_eq!(unexpected.code(), ErrorCode::AdapterTensorUnexpected);
        assert_eq!(unexpected.tensor(), Some(name.as_str()));
        let long = refused(&on_q().set(field, json!(true)).filled(Q_PROJ, suffix, &[HIDDEN + 1]));
        assert_eq!(long.code(), ErrorCode::AdapterShapeMismatch);
        assert_eq!((long.expected(), long.found()), (Some("[6]"), Some("[7]")));
        let nan = refused(&on_q().set(field, json!(true)).part(Q_PROJ, suffix, &[HIDDEN], &[f32::NAN; HIDDEN]));
        assert_eq!((nan.code(), nan.tensor()), (ErrorCode::AdapterNotFinite, Some(name.as_str())));
    }
}

// --- B's bias

#[test]
fn the_bias_of_b_is_read_on_linears_with_and_without_a_bias() {
    let adapter = Adapter::empty().set("lora_bias", json!(true));
    let adapter = [Q_PROJ, K_PROJ].into_iter().fold(adapter, |adapter, module| {
        adapter.pair(module, 2, HIDDEN, HIDDEN).part(module, "lora_B.bias", &[HIDDEN], &counting(&[HIDDEN]))
    });
    let planned = plan(&adapter);
    for module in [Q_PROJ, K_PROJ] {
        assert_eq!(planned.at(module).b_bias, Some((vec![HIDDEN], counting(&[HIDDEN]))));
    }
    assert!(!planned.constraints.is_replacing());
}

// --- QA-LoRA

#[test]
fn a_pooled_a_is_expanded_to_all_inputs() {
    let pooled = Adapter::empty()
        .set("use_qalora", json!(true))
        .set("qalora_group_size", json!(3))
        .part(Q_PROJ, "lora_A.weight", &[2, 2], &[3.0, 6.0, 9.0, -3.0])
        .filled(Q_PROJ, "lora_B.weight", &[HIDDEN, 2]);
    // Two groups of three inputs: the mean is a third of the sum, multiplied by the number of groups.
    let expected = [2.0, 2.0, 2.0, 4.0, 4.0, 4.0, 6.0, 6.0, 6.0, -2.0, -2.0, -2.0];
    assert_eq!(plan(&pooled).at(Q_PROJ).a, Some((vec![2, HIDDEN], expected.to_vec())));
}

#[test]
fn an_a_that_is_not_pooled_is_read_unchanged() {
    // The 10 inputs of down_proj are not divisible by 3.
    let down = "model.layers.0.mlp.down_proj";
    let adapter = on_q().pair(down, 2, INNER, HIDDEN).set("use_qalora", json!(true)).set("qalora_group_size", json!(3));
    let planned = plan(&adapter);
    assert_eq!(planned.at(Q_PROJ).a, Some((vec![2, HIDDEN], vec![1.0; 2 * HIDDEN])));
    assert_eq!(planned.at(down).a, Some((vec![2, INNER], vec![1.0; 2 * INNER])));
}

#[test]
fn a_pooled_a_is_no_larger_than_the_bases_weight() {
    let adapter = Adapter::empty()
        .set("r", json!(7))
        .set("use_qalora", json!(true))
        .set("qalora_group_size", json!(6))
        .filled(Q_PROJ, "lora_A.weight", &[7, 1])
        .filled(Q_PROJ, "lora_B.weight", &[HIDDEN, 7]);
    let error = refused(&adapter);
    assert_eq!(error.code(), ErrorCode::AdapterFeatureUnsupported);
    assert_eq!((error.expected(), error.found()), (Some("at most 36 values"), Some("7 x 6")));
}

// --- BD-LoRA

fn blocks(a: &[&str], b: &[&str], count: usize) -> Value {
    json!({"target_modules_bd_a": a, "target_modules_bd_b": b, "nblocks": count, "match_strict": true})
}

#[test]
fn blocks_of_a_are_placed_on_the_diagonal() {
    let adapter = Adapter::empty()
        .set("use_bdlora", blocks(&["q_proj"], &[], 2))
        .part(Q_PROJ, "lora_A.weight", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        .filled(Q_PROJ, "lora_B.weight", &[HIDDEN, 2]);
    let expected = [1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0, 5.0, 6.0];
    assert_eq!(plan(&adapter).at(Q_PROJ).a, Some((vec![2, HIDDEN], expected.to_vec())));
}

#[test]
fn blocks_of_b_are_placed_on_the_diagonal_and_have_no_bias() {
    let adapter = Adapter::empty()
        .set("use_bdlora", blocks(&[], &["self_attn"], 2))
        .set("lora_bias", json!(true))
        .filled(Q_PROJ, "lora_A.weight", &[2, HIDDEN])
        .part(Q_PROJ, "lora_B.weight", &[HIDDEN, 1], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let expected = [1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 0.0, 4.0, 0.0, 5.0, 0.0, 6.0];
    let planned = plan(&adapter);
    assert_eq!(planned.at(Q_PROJ).b, Some((vec![HIDDEN, 2], expected.to_vec())));
    assert_eq!(planned.at(Q_PROJ).b_bias, None);
}

#[test]
fn block_diagonal_files_that_contradict_their_config_are_refused() {
    let with = |value: Value| on_q().set("use_bdlora", value);
    for (value, code) in [
        (blocks(&["q_proj"], &["self_attn"], 2), ErrorCode::AdapterConfigInvalid),
        (blocks(&["k_proj"], &[], 2), ErrorCode::AdapterConfigInvalid),
        // A is not stored in blocks.
        (blocks(&["q_proj"], &[], 2), ErrorCode::AdapterShapeMismatch),
        (blocks(&[], &["q_proj"], 2), ErrorCode::AdapterRankMismatch),
    ] {
        assert_eq!(refused(&with(value.clone())).code(), code, "{value}");
    }
    let uneven = Adapter::empty()
        .set("use_bdlora", blocks(&["q_proj"], &[], 4))
        .filled(Q_PROJ, "lora_A.weight", &[2, 1])
        .filled(Q_PROJ, "lora_B.weight", &[HIDDEN, 2]);
    let error = refused(&uneven);
    assert_eq!(error.code(), ErrorCode::AdapterShapeMismatch);
    assert_eq!(error.expected(), Some("rows and columns that are multiples of 4"));
}

#[test]
fn without_match_strict_other_modules_are_plain() {
    let adapter =
        on_q().set("use_bdlora", json!({"target_modules_bd_a": ["k_proj"], "nblocks": 2, "match_strict": false}));
    assert_eq!(plan(&adapter).at(Q_PROJ).a, Some((vec![2, HIDDEN], vec![1.0; 2 * HIDDEN])));
}

// --- activated LoRA

#[test]
fn the_invocation_is_a_constraint_of_the_adapter() {
    assert_eq!(plan(&on_q().set("alora_invocation_tokens", json!([7, 3, 7]))).constraints.invocation, [7, 3, 7]);
    assert!(plan(&on_q().set("alora_invocation_tokens", json!([]))).constraints.invocation.is_empty());
}

#[test]
fn an_invocation_outside_the_vocabulary_is_refused() {
    let error = refused(&on_q().set("alora_invocation_tokens", json!([3, VOCAB])));
    assert_eq!(error.code(), ErrorCode::AdapterConfigInvalid);
    assert_eq!((error.expected(), error.found()), (Some("ids below 32"), Some("32")));
}

#[test]
fn an_activated_adapter_on_an_embedding_is_refused() {
    let adapter = Adapter::empty()
        .set("alora_invocation_tokens", json!([3]))
        .filled(EMBEDDING, "lora_embedding_A", &[2, VOCAB])
        .filled(EMBEDDING, "lora_embedding_B", &[HIDDEN, 2]);
    assert_eq!(refused(&adapter).code(), ErrorCode::AdapterFeatureUnsupported);
    let head = Adapter::empty().set("alora_invocation_tokens", json!([3])).pair(HEAD, 2, HIDDEN, VOCAB);
    assert_eq!(plan(&head).paths(), [(HEAD, 0)]);
}

// --- factors of the wrong kind

#[test]
fn factors_of_another_kind_of_module_are_refused() {
    let on_embedding = Adapter::empty().pair(EMBEDDING, 2, VOCAB, HIDDEN);
    let codes: Vec<_> = refusals_on(&on_embedding, &sites()).iter().map(|error| error.code()).collect();
    assert!(codes.contains(&ErrorCode::AdapterTensorUnexpected), "{codes:?}");
    let on_norm = Adapter::empty().pair("model.norm", 2, HIDDEN, HIDDEN);
    assert_eq!(refused(&on_norm).code(), ErrorCode::AdapterTensorUnexpected);
}

// --- KaSA

fn kasa() -> Adapter {
    on_q().set("kasa_config", json!({}))
}

#[test]
fn a_diagonal_is_folded_into_b_and_the_weight_is_truncated_by_the_rank() {
    let adapter = kasa().part(Q_PROJ, "lora_diag", &[2], &[3.0, -0.5]);
    let planned = plan(&adapter);
    let b = [3.0, -0.5].repeat(HIDDEN);
    assert_eq!(planned.at(Q_PROJ).b, Some((vec![HIDDEN, 2], b)));
    assert_eq!((planned.constraints.truncated.len(), planned.constraints.is_replacing()), (1, false));
}

#[test]
fn a_diagonal_is_present_exactly_where_the_config_requires_it() {
    let name = format!("base_model.model.{Q_PROJ}.lora_diag");
    let missing = refused(&kasa());
    assert_eq!((missing.code(), missing.tensor()), (ErrorCode::AdapterTensorMissing, Some(name.as_str())));
    let unexpected = refused(&on_q().filled(Q_PROJ, "lora_diag", &[2]));
    assert_eq!(unexpected.code(), ErrorCode::AdapterTensorUnexpected);
    let short = refused(&kasa().filled(Q_PROJ, "lora_diag", &[1]));
    assert_eq!((short.code(), short.expected()), (ErrorCode::AdapterShapeMismatch, Some("[2]")));
}

#[test]
fn a_weight_must_keep_at_least_one_singular_value() {
    let adapter = Adapter::empty()
        .set("r", json!(HIDDEN))
        .set("kasa_config", json!({"beta": 0.1}))
        .pair(Q_PROJ, HIDDEN, HIDDEN, HIDDEN)
        .filled(Q_PROJ, "lora_diag", &[HIDDEN]);
    let error = refused(&adapter);
    assert_eq!((error.code(), error.found()), (ErrorCode::AdapterShapeMismatch, Some("6")));
}
