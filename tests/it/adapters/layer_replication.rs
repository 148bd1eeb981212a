//! Layer maps (`layer_replication`): which repeat of a base layer the tensors act on.

use exlora::ErrorCode;
use serde_json::{Value, json};

use super::{Planned, plan, refusals_on, refused};
use support::adapters::{Adapter, HIDDEN, sites};

fn q_proj(layer: usize) -> String {
    format!("model.layers.{layer}.self_attn.q_proj")
}

/// Factors on the q_proj of these layers of the adapter, each B filled with the layer's number.
fn on(ranges: Value, layers: &[usize]) -> Adapter {
    layers.iter().fold(Adapter::empty().set("layer_replication", ranges), |adapter, &layer| {
        adapter.filled(&q_proj(layer), "lora_A.weight", &[2, HIDDEN]).part(
            &q_proj(layer),
            "lora_B.weight",
            &[HIDDEN, 2],
            &[layer as f32; 2 * HIDDEN],
        )
    })
}

/// The adapter's layer whose B acts on a base layer in a repeat.
fn layer_at(planned: &Planned, layer: usize, repeat: u32) -> f32 {
    planned.in_repeat(&q_proj(layer), repeat).b.as_ref().expect("factors").1[0]
}

#[test]
fn each_repeat_of_a_layer_has_its_own_deltas() {
    let planned = plan(&on(json!([[0, 2], [1, 2], [0, 1]]), &[0, 1, 2, 3]));
    assert_eq!(planned.constraints.layers.as_deref(), Some(&[0, 1, 1, 0][..]));
    assert_eq!(planned.paths(), [(&*q_proj(0), 0), (&*q_proj(0), 1), (&*q_proj(1), 0), (&*q_proj(1), 1)]);
    let found = [(0, 0), (1, 0), (1, 1), (0, 1)].map(|(layer, repeat)| layer_at(&planned, layer, repeat));
    assert_eq!(found, [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(planned.sites, 4);
}

#[test]
fn a_repeat_without_tensors_has_no_delta() {
    let planned = plan(&on(json!([[0, 2], [0, 2]]), &[3]));
    assert_eq!(planned.paths(), [(&*q_proj(1), 1)]);
}

#[test]
fn patterns_and_targets_apply_to_the_adapters_layers() {
    let adapter = on(json!([[0, 2], [0, 2]]), &[1, 3])
        .set("alpha_pattern", json!({"layers.3.self_attn.q_proj": 8}))
        .set("target_modules", json!(["q_proj"]))
        .set("layers_to_transform", json!([1, 3]));
    let planned = plan(&adapter);
    assert_eq!(planned.in_repeat(&q_proj(1), 0).scale, Some(2.0));
    assert_eq!(planned.in_repeat(&q_proj(1), 1).scale, Some(4.0));
    let error = refused(&adapter.set("layers_to_transform", json!([1])));
    assert_eq!(error.code(), ErrorCode::AdapterSiteExcluded);
    assert!(error.message().contains("model.layers.3."), "{error}");
}

#[test]
fn a_layer_outside_the_map_is_refused() {
    let error = refused(&on(json!([[0, 1]]), &[0, 1]));
    assert_eq!(error.code(), ErrorCode::AdapterSiteNotFound);
    assert!(error.message().contains("model.layers.1."), "{error}");
}

#[test]
fn ranges_are_checked_against_the_base() {
    for (ranges, expected, found) in [
        (json!([[0, 3]]), "0 <= start <= end <= 2", "[0, 3]"),
        (json!([[0, 2], [2, 1]]), "0 <= start <= end <= 2", "[2, 1]"),
        (json!(vec![[0, 2]; 17]), "at most 32", "34 and more"),
        (json!([[0, 2], [4_000_000_000u32, 4_000_000_001u32]]), "0 <= start <= end <= 2", "[4000000000, 4000000001]"),
    ] {
        let error = refused(&on(ranges.clone(), &[0]));
        assert_eq!(error.code(), ErrorCode::AdapterConfigInvalid, "{ranges}");
        assert_eq!((error.expected(), error.found()), (Some(expected), Some(found)), "{ranges}");
    }
}

#[test]
fn tensors_that_the_config_requires_are_required_for_each_repeat() {
    let adapter = on(json!([[0, 1], [0, 2]]), &[0])
        .set("modules_to_save", json!(["input_layernorm"]))
        .set("bias", json!("all"))
        .filled("model.layers.1.input_layernorm", "weight", &[HIDDEN])
        .filled("model.layers.0.self_attn.k_proj", "bias", &[HIDDEN]);
    let names: Vec<_> = refusals_on(&adapter, &sites()).iter().filter_map(|e| e.tensor().map(str::to_owned)).collect();
    let expected = [
        "model.layers.0.input_layernorm.weight",
        "model.layers.2.input_layernorm.weight",
        "model.layers.1.self_attn.k_proj.base_layer.bias",
        "model.layers.2.self_attn.k_proj.base_layer.bias",
    ];
    assert_eq!(names, expected.map(|name| format!("base_model.model.{name}")));
}
