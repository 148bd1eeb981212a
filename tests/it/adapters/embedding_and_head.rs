//! Embedding and head: factors, replaced rows, tied heads.

use exlora::ErrorCode;
use serde_json::{Value, json};

use super::{EMBEDDING, HEAD, Planned, counting, plan, plan_on, refused};
use support::adapters::{Adapter, HIDDEN, VOCAB, sites, tied_sites};

const ROWS: &str = "token_adapter.trainable_tokens_delta";

fn plan_tied(adapter: &Adapter) -> Planned {
    plan_on(adapter, &tied_sites()).unwrap_or_else(|error| panic!("{error}"))
}

/// Factors on the embedding: A counts up, B counts up.
fn on_embedding() -> Adapter {
    Adapter::empty().part(EMBEDDING, "lora_embedding_A", &[2, VOCAB], &counting(&[2, VOCAB])).part(
        EMBEDDING,
        "lora_embedding_B",
        &[HIDDEN, 2],
        &counting(&[HIDDEN, 2]),
    )
}

// --- factors

#[test]
fn factors_of_an_embedding_are_read_unchanged() {
    let planned = plan(&on_embedding().set("rank_pattern", json!({"q_proj": 9})));
    let change = planned.at(EMBEDDING);
    assert_eq!(change.a, Some((vec![2, VOCAB], counting(&[2, VOCAB]))));
    assert_eq!(change.b, Some((vec![HIDDEN, 2], counting(&[HIDDEN, 2]))));
    assert_eq!(change.scale, Some(2.0));
    assert_eq!(planned.paths(), [(EMBEDDING, 0)]);
}

#[test]
fn config_cross_checks_cover_embedding_and_head() {
    let both = || on_embedding().pair(HEAD, 2, HIDDEN, VOCAB);
    for (field, value, excluded) in [
        ("target_modules", json!(["embed_tokens"]), &[HEAD][..]),
        ("target_modules", json!(["q_proj"]), &[HEAD, EMBEDDING]),
        ("target_modules", json!("all-linear"), &[HEAD, EMBEDDING]),
        ("target_modules", json!("lm_head|.*embed_tokens"), &[]),
        ("exclude_modules", json!(["embed_tokens"]), &[EMBEDDING]),
        ("exclude_modules", json!("lm_.*"), &[HEAD]),
    ] {
        let outcome = plan_on(&both().set(field, value.clone()), &sites());
        let errors = outcome.err().map(|error| error.into_list()).unwrap_or_default();
        assert!(errors.iter().all(|error| error.code() == ErrorCode::AdapterSiteExcluded), "{errors:?}");
        let named: Vec<_> =
            excluded.iter().filter(|path| errors.iter().any(|e| e.message().contains(**path))).collect();
        assert_eq!((named.len(), errors.len()), (excluded.len(), excluded.len()), "{field} = {value}: {errors:?}");
    }
}

#[test]
fn an_embeddings_factors_must_fit_its_rows_and_its_width() {
    let embedding = |a: &[usize], b: &[usize]| {
        Adapter::empty().filled(EMBEDDING, "lora_embedding_A", a).filled(EMBEDDING, "lora_embedding_B", b)
    };
    for (a, b, code, expected, found) in [
        ([2, VOCAB + 1], [HIDDEN, 2], ErrorCode::AdapterShapeMismatch, "[2, 32]", "[2, 33]"),
        ([2, VOCAB], [HIDDEN + 1, 2], ErrorCode::AdapterShapeMismatch, "[6, 2]", "[7, 2]"),
        ([2, VOCAB], [HIDDEN, 3], ErrorCode::AdapterRankMismatch, "[6, 2]", "[6, 3]"),
    ] {
        let error = refused(&embedding(&a, &b));
        assert_eq!((error.code(), error.expected(), error.found()), (code, Some(expected), Some(found)));
    }
    let alone = refused(&Adapter::empty().filled(EMBEDDING, "lora_embedding_B", &[HIDDEN, 2]));
    assert_eq!(alone.tensor(), Some("base_model.model.model.embed_tokens.lora_embedding_A"));
}

// --- replaced rows

fn rows(indices: Value, modules: &[(&str, &[usize])]) -> Adapter {
    let adapter = Adapter::on_q_proj().set("trainable_token_indices", indices);
    modules.iter().fold(adapter, |adapter, (module, shape)| adapter.part(module, ROWS, shape, &counting(shape)))
}

#[test]
fn rows_follow_the_order_of_the_config_and_are_sorted_by_token() {
    let sorted = [
        counting(&[3, HIDDEN])[6..12].to_vec(),
        counting(&[3, HIDDEN])[..6].to_vec(),
        counting(&[3, HIDDEN])[12..].to_vec(),
    ];
    let planned = plan(&rows(json!([7, 3, 30]), &[(EMBEDDING, &[3, HIDDEN])]));
    assert_eq!(planned.at(EMBEDDING).rows, Some((vec![3, 7, 30], (vec![3, HIDDEN], sorted.concat()))));
    assert_eq!(planned.constraints.replaced_rows.len(), 1);
    assert_eq!(planned.constraints.replaced_rows[0].1, [3, 7, 30]);
    assert!(planned.constraints.is_replacing());
}

#[test]
fn rows_can_be_selected_by_the_suffix_of_a_path() {
    let indices = json!({"embed_tokens": [1, 2], "lm_head": [5]});
    let planned = plan(&rows(indices, &[(EMBEDDING, &[2, HIDDEN]), (HEAD, &[1, HIDDEN])]));
    assert_eq!(planned.at(EMBEDDING).rows.as_ref().map(|rows| &rows.0[..]), Some(&[1, 2][..]));
    assert_eq!(planned.at(HEAD).rows.as_ref().map(|rows| &rows.0[..]), Some(&[5][..]));
}

#[test]
fn rows_of_a_resized_embedding_replace_those_of_its_new_weight() {
    let grown = VOCAB + 5;
    let adapter = rows(json!([VOCAB + 4]), &[(EMBEDDING, &[1, HIDDEN])]).filled(
        EMBEDDING,
        "token_adapter.base_layer.weight",
        &[grown, HIDDEN],
    );
    let planned = plan(&adapter);
    assert_eq!(planned.at(EMBEDDING).rows.as_ref().map(|rows| rows.0[0] as usize), Some(VOCAB + 4));
    assert_eq!(planned.constraints.embedding_rows, Some(grown));
}

#[test]
fn invalid_rows_are_refused() {
    let one = |indices: Value, shape: &[usize]| refused(&rows(indices, &[(EMBEDDING, shape)]));
    let error = one(json!([VOCAB]), &[1, HIDDEN]);
    assert_eq!((error.code(), error.found()), (ErrorCode::AdapterConfigInvalid, Some("32")));
    let error = one(json!([1, 2]), &[3, HIDDEN]);
    assert_eq!(error.code(), ErrorCode::AdapterShapeMismatch);
    assert_eq!((error.expected(), error.found()), (Some("[2, 6]"), Some("[3, 6]")));
    assert_eq!(one(Value::Null, &[1, HIDDEN]).code(), ErrorCode::AdapterTensorUnexpected);
    let missing = refused(&rows(json!([1]), &[]));
    assert_eq!(missing.code(), ErrorCode::AdapterTensorMissing);
    assert_eq!(missing.tensor(), Some("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"));
    let elsewhere = rows(json!({"q_proj": [1]}), &[("model.layers.0.self_attn.q_proj", &[1, HIDDEN])]);
    assert_eq!(refused(&elsewhere).code(), ErrorCode::AdapterFeatureUnsupported);
}

#[test]
fn factors_and_rows_on_one_module_are_refused() {
    let adapter = on_embedding().set("trainable_token_indices", json!([1])).filled(EMBEDDING, ROWS, &[1, HIDDEN]);
    assert_eq!(refused(&adapter).code(), ErrorCode::AdapterFeatureUnsupported);
}

// --- tied heads

#[test]
fn only_replaced_rows_of_an_embedding_reach_a_tied_head() {
    assert_eq!(plan_tied(&on_embedding()).paths(), [(EMBEDDING, 0)]);
    let saved =
        Adapter::empty().set("modules_to_save", json!(["embed_tokens"])).filled(EMBEDDING, "weight", &[VOCAB, HIDDEN]);
    assert_eq!(plan_tied(&saved).paths(), [(EMBEDDING, 0)]);
    let planned = plan_tied(&rows(json!([7, 3]), &[(EMBEDDING, &[2, HIDDEN])]));
    assert_eq!(planned.at(HEAD).rows, planned.at(EMBEDDING).rows);
    assert_eq!(planned.constraints.replaced_rows.len(), 2);
    let untied = plan(&rows(json!([7, 3]), &[(EMBEDDING, &[2, HIDDEN])]));
    assert_eq!(untied.constraints.replaced_rows.len(), 1);
}

#[test]
fn a_replaced_shared_weight_applies_to_embedding_and_head_under_either_name() {
    for (named, other) in [(EMBEDDING, HEAD), (HEAD, EMBEDDING)] {
        let shape = [VOCAB + 2, HIDDEN];
        let adapter = Adapter::on_q_proj().part(named, "base_layer.weight", &shape, &counting(&shape));
        let planned = plan_tied(&adapter);
        assert_eq!(planned.at(other).weight, Some((shape.to_vec(), counting(&shape))));
        assert_eq!(planned.at(named).weight, planned.at(other).weight);
        assert_eq!(
            (planned.constraints.embedding_rows, planned.constraints.head_rows),
            (Some(VOCAB + 2), Some(VOCAB + 2))
        );
        // A saved module keeps its own weight.
        let saved = adapter.set("modules_to_save", json!([named]));
        if named == EMBEDDING {
            assert!(plan_tied(&saved).paths().iter().all(|(path, _)| *path != HEAD));
        }
    }
}

#[test]
fn two_weights_for_the_shared_one_must_be_equal() {
    let both =
        |factor: f32| {
            let values: Vec<f32> = counting(&[VOCAB, HIDDEN]).iter().map(|value| factor * value).collect();
            Adapter::on_q_proj()
                .part(EMBEDDING, "base_layer.weight", &[VOCAB, HIDDEN], &counting(&[VOCAB, HIDDEN]))
                .part(HEAD, "base_layer.weight", &[VOCAB, HIDDEN], &values)
        };
    assert_eq!(plan_tied(&both(1.0)).at(HEAD).weight, plan_tied(&both(1.0)).at(EMBEDDING).weight);
    let error = plan_on(&both(2.0), &tied_sites()).err().map(|error| error.code());
    assert_eq!(error, Some(ErrorCode::AdapterTensorUnexpected));
    assert!(plan_on(&both(2.0), &sites()).is_ok());
}

#[test]
fn shared_rows_under_the_heads_name_must_equal_the_embeddings() {
    let shape = [2, HIDDEN];
    let both = |values: &[f32]| rows(json!([7, 3]), &[(EMBEDDING, &shape)]).part(HEAD, ROWS, &shape, values);
    let planned = plan_tied(&both(&counting(&shape)));
    assert_eq!(planned.at(HEAD).rows, planned.at(EMBEDDING).rows);
    let error = plan_on(&both(&[1.0; 2 * HIDDEN]), &tied_sites()).err().map(|error| error.code());
    assert_eq!(error, Some(ErrorCode::AdapterTensorUnexpected));
    assert_eq!(refused(&both(&counting(&shape))).code(), ErrorCode::AdapterTensorUnexpected);
}

#[test]
fn a_tied_head_can_have_its_own_rows() {
    let indices = json!({"embed_tokens": [1, 2], "lm_head": [5]});
    let planned = plan_tied(&rows(indices, &[(EMBEDDING, &[2, HIDDEN]), (HEAD, &[1, HIDDEN])]));
    assert_eq!(planned.at(HEAD).rows.as_ref().map(|rows| &rows.0[..]), Some(&[5][..]));
    // PEFT saves shared rows once.
    let shared = json!({"embed_tokens": [1, 2], "lm_head": [1, 2]});
    let planned = plan_tied(&rows(shared.clone(), &[(EMBEDDING, &[2, HIDDEN])]));
    assert_eq!(planned.at(HEAD).rows, planned.at(EMBEDDING).rows);
    assert_eq!(refused(&rows(shared, &[(EMBEDDING, &[2, HIDDEN])])).code(), ErrorCode::AdapterTensorMissing);
}

#[test]
fn tied_factors_are_transposed() {
    let adapter = on_embedding().set("ensure_weight_tying", json!(true)).set("alpha_pattern", json!({"lm_head": 6}));
    let planned = plan_tied(&adapter);
    let head = planned.at(HEAD);
    // B [6, 2] counts 0 1 / 2 3 / …: its columns are the even and the odd numbers.
    let a = [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 1.0, 3.0, 5.0, 7.0, 9.0, 11.0];
    assert_eq!(head.a, Some((vec![2, HIDDEN], a.to_vec())));
    let b: Vec<f32> = (0..VOCAB).flat_map(|token| [token as f32, (VOCAB + token) as f32]).collect();
    assert_eq!(head.b, Some((vec![VOCAB, 2], b)));
    assert_eq!(head.scale, Some(3.0));
    assert_eq!(plan(&adapter).paths(), [(EMBEDDING, 0)]);
}

#[test]
fn factors_of_a_tied_head_in_the_file_are_used_despite_the_targets() {
    let adapter = on_embedding()
        .set("ensure_weight_tying", json!(true))
        .set("target_modules", json!(["embed_tokens"]))
        .pair(HEAD, 2, HIDDEN, VOCAB);
    assert_eq!(plan_tied(&adapter).at(HEAD).a, Some((vec![2, HIDDEN], vec![1.0; 2 * HIDDEN])));
}

#[test]
fn a_saved_embedding_is_tied_if_the_config_requires_it() {
    let adapter = Adapter::empty()
        .set("modules_to_save", json!(["embed_tokens"]))
        .set("ensure_weight_tying", json!(true))
        .part(EMBEDDING, "weight", &[VOCAB + 1, HIDDEN], &counting(&[VOCAB + 1, HIDDEN]));
    let planned = plan_tied(&adapter);
    assert_eq!(planned.at(HEAD).weight, planned.at(EMBEDDING).weight);
    assert_eq!(planned.constraints.head_rows, Some(VOCAB + 1));
}
