//! Reports on adapters: contents and problems, with a base and without one.

use exlora::inspect::{AdapterReport, Report, inspect};
use serde_json::json;

use super::{EMBEDDING, HEAD, K_PROJ, Q_PROJ};
use support::adapters::{Adapter, Folder, HIDDEN, INNER, VOCAB};

fn report(folder: &Folder) -> AdapterReport {
    match inspect(folder.path(), None).expect("a report") {
        Report::Adapter(report) => report,
        other => panic!("{other:?}"),
    }
}

/// Features of an adapter that has no problems without a base.
fn features(adapter: &Adapter) -> Vec<&'static str> {
    let report = report(&adapter.write());
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    report.contents.expect("readable").features
}

#[test]
fn contents_are_reported_beside_problems() {
    let adapter = Adapter::on_q_proj().set("use_rslora", json!("yes")).ones("rubbish", &[1]).pair(
        "model.layers.0.mlp.up_proj",
        3,
        HIDDEN,
        INNER,
    );
    let report = report(&adapter.write());
    let codes: Vec<_> = report.problems.iter().map(|problem| problem.code().as_str()).collect();
    let rank = "adapter_rank_mismatch";
    assert_eq!(codes, ["adapter_config_invalid", "adapter_tensor_unexpected", rank, rank]);
    let contents = report.contents.expect("what could be read");
    assert_eq!((contents.sites, contents.rank, contents.alpha), (2, 2, Some(4.0)));
    assert_eq!(contents.groups.iter().map(|g| (g.rank, g.scale, g.sites)).collect::<Vec<_>>(), [(2, 2.0, 2)]);
}

#[test]
fn an_own_vocabulary_is_reported() {
    let adapter = Adapter::on_q_proj()
        .set("modules_to_save", json!(["embed_tokens", "lm_head"]))
        .filled(EMBEDDING, "weight", &[VOCAB + 3, HIDDEN])
        .filled(HEAD, "weight", &[VOCAB + 2, HIDDEN]);
    let contents = report(&adapter.write()).contents.expect("readable");
    assert_eq!((contents.embedding_rows, contents.head_rows), (Some(VOCAB + 3), Some(VOCAB + 2)));
    let contents = report(&Adapter::on_q_proj().write()).contents.expect("readable");
    assert_eq!((contents.embedding_rows, contents.head_rows), (None, None));
}

#[test]
fn an_unknown_alpha_is_reported_as_unknown() {
    let report = report(&Adapter::on_q_proj().unset("lora_alpha").write());
    assert_eq!(report.problems.len(), 1);
    assert_eq!(report.contents.expect("what could be read").alpha, None);
}

#[test]
fn features_are_named_and_checked_without_a_base() {
    assert!(features(&Adapter::on_q_proj()).is_empty());
    let dora = Adapter::on_q_proj().set("use_dora", json!(true)).set("use_rslora", json!(true));
    let magnitude = |adapter: Adapter, layer| {
        adapter.filled(&format!("model.layers.{layer}.self_attn.q_proj"), "lora_magnitude_vector", &[HIDDEN])
    };
    assert_eq!(features(&magnitude(magnitude(dora, 0), 1)), ["use_rslora", "use_dora"]);
    let replaced = Adapter::empty()
        .set("modules_to_save", json!(["norm", "embed_tokens"]))
        .set("bias", json!("all"))
        .filled("model.norm", "weight", &[HIDDEN])
        .filled(EMBEDDING, "weight", &[VOCAB, HIDDEN])
        .filled(K_PROJ, "bias", &[HIDDEN]);
    assert_eq!(features(&replaced), ["bias", "modules_to_save", "replaced weights"]);
    let ends = Adapter::empty()
        .filled(EMBEDDING, "lora_embedding_A", &[2, VOCAB])
        .filled(EMBEDDING, "lora_embedding_B", &[HIDDEN, 2])
        .pair(HEAD, 2, HIDDEN, VOCAB);
    assert_eq!(features(&ends), ["LoRA on the embedding", "LoRA on the head"]);
    let rows = Adapter::on_q_proj()
        .set("trainable_token_indices", json!([40, 3]))
        .set("alora_invocation_tokens", json!([50]))
        .filled(EMBEDDING, "token_adapter.trainable_tokens_delta", &[2, HIDDEN]);
    assert_eq!(features(&rows), ["trainable_token_indices", "alora_invocation_tokens"]);
}

#[test]
fn structured_factors_and_layer_maps_are_checked_without_a_base() {
    let repeated = Adapter::empty().set("layer_replication", json!([[0, 2], [0, 2]])).pair(
        "model.layers.3.self_attn.q_proj",
        2,
        HIDDEN,
        HIDDEN,
    );
    assert_eq!(features(&repeated), ["layer_replication"]);
    let endless = repeated.set("layer_replication", json!([[0, 4_000_000_000u32]]));
    assert_eq!(report(&endless.write()).problems.len(), 1);
    let pooled = Adapter::empty()
        .set("use_qalora", json!(true))
        .set("qalora_group_size", json!(3))
        .filled(Q_PROJ, "lora_A.weight", &[2, HIDDEN / 3])
        .filled(Q_PROJ, "lora_B.weight", &[HIDDEN, 2]);
    assert_eq!(features(&pooled), ["use_qalora"]);
    let blocks = Adapter::empty()
        .set("use_bdlora", json!({"target_modules_bd_a": ["q_proj"], "nblocks": 2}))
        .filled(Q_PROJ, "lora_A.weight", &[2, HIDDEN / 2])
        .filled(Q_PROJ, "lora_B.weight", &[HIDDEN, 2]);
    assert_eq!(features(&blocks), ["use_bdlora"]);
    let fused = Adapter::empty().pair("model.layers.0.self_attn.qkv_proj", 2, HIDDEN, 3 * HIDDEN);
    assert!(features(&fused).is_empty());
}
