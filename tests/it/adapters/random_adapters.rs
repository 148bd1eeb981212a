//! Random adapters of valid and invalid parts: accepted or refused, never a panic.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{EMBEDDING, HEAD, K_PROJ, Q_PROJ, plan_on};
use support::adapters::{Adapter, HIDDEN, VOCAB, fused_sites, sites, tied_sites};

const SUFFIXES: [&str; 16] = [
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "lora_magnitude_vector",
    "lora_embedding_A",
    "lora_embedding_B",
    "weight",
    "bias",
    "base_layer.weight",
    "base_layer.bias",
    "modules_to_save.weight",
    "modules_to_save.a.b.weight",
    "original_module.weight",
    "token_adapter.trainable_tokens_delta",
    "token_adapter.base_layer.weight",
    "lora_diag",
];

fn module() -> impl Strategy<Value = String> {
    let fixed =
        [Q_PROJ, K_PROJ, EMBEDDING, HEAD, "model.norm", "model.layers.0.self_attn.qkv_proj", "model.layers.0.mlp"];
    let layer = (0usize..5).prop_map(|layer| format!("model.layers.{layer}.self_attn.v_proj"));
    prop_oneof![prop::sample::select(fixed.to_vec()).prop_map(str::to_owned), layer]
}

fn shape() -> impl Strategy<Value = Vec<usize>> {
    let extent = prop::sample::select(vec![0, 1, 2, 3, 4, HIDDEN, 3 * HIDDEN, VOCAB, VOCAB + 1]);
    prop::collection::vec(extent, 0..=3)
}

fn field() -> impl Strategy<Value = (&'static str, Value)> {
    prop::sample::select(vec![
        ("r", json!(1)),
        ("r", json!(1 << 20)),
        ("r", json!("2")),
        ("use_dora", json!(true)),
        ("use_rslora", json!(true)),
        ("lora_bias", json!(true)),
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("modules_to_save", json!(["norm", "mlp", "lm_head"])),
        ("modules_to_save", json!(["q_proj"])),
        ("trainable_token_indices", json!([1, 0])),
        ("trainable_token_indices", json!({"lm_head": [4_000_000_000u32], "embed_tokens": [1]})),
        ("ensure_weight_tying", json!(true)),
        ("layer_replication", json!([[0, 1], [0, 1], [0, 1]])),
        ("layer_replication", json!([[0, 4_000_000_000u32]])),
        ("alora_invocation_tokens", json!([40])),
        ("use_qalora", json!(true)),
        ("qalora_group_size", json!(1 << 20)),
        ("qalora_group_size", json!(2)),
        ("use_bdlora", json!({"target_modules_bd_a": ["q_proj", ""], "nblocks": 1 << 20})),
        ("use_bdlora", json!({"target_modules_bd_b": ["_proj"], "nblocks": 2})),
        ("use_bdlora", json!({"target_modules_bd_a": ["qkv"], "target_modules_bd_b": ["q_proj"], "nblocks": 3})),
        ("rank_pattern", json!({"v_proj": 3, ".*k_proj": 1})),
        ("alpha_pattern", json!({"v_proj": 1e38})),
        ("target_parameters", json!(["mlp.experts"])),
        ("kasa_config", json!({})),
        // Values that are refused: what depends on them must not be computed from a guess.
        ("use_qalora", json!("true")),
        ("qalora_group_size", json!([])),
        ("use_bdlora", json!({"nblocks": "3"})),
        ("use_dora", json!("true")),
        ("lora_bias", json!(1)),
        ("kasa_config", json!(1)),
        ("rank_pattern", json!({"q_proj": "4"})),
    ])
}

proptest! {
    #![proptest_config(support::cases(2000))]

    #[test]
    fn any_adapter_is_accepted_or_refused_without_a_panic(
        fields in prop::collection::vec(field(), 0..4),
        tensors in prop::collection::vec((module(), prop::sample::select(SUFFIXES.to_vec()), shape()), 0..8),
        pairs in prop::collection::vec((module(), 1usize..4), 0..4),
    ) {
        let adapter = fields.into_iter().fold(Adapter::empty(), |adapter, (field, value)| adapter.set(field, value));
        let adapter = pairs.into_iter().fold(adapter, |adapter, (module, rank)| adapter.pair(&module, rank, HIDDEN, HIDDEN));
        let mut adapter = tensors.into_iter().fold(adapter, |adapter, (module, suffix, shape)| {
            adapter.filled(&module, suffix, &shape)
        });
        let mut seen = std::collections::HashSet::new();
        adapter.tensors.retain(|tensor| seen.insert(tensor.name.clone()));
        for sites in [sites(), tied_sites(), fused_sites(true)] {
            match plan_on(&adapter, &sites) {
                Ok(planned) => prop_assert!(!planned.changes.is_empty()),
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
