//! Fused projections: a fused adapter on a split model, and a split adapter on a fused model.

use exlora::ErrorCode;
use serde_json::json;

use super::{K_PROJ, Planned, Q_PROJ, counting, plan, plan_on, refusals_on, refused};
use support::adapters::{Adapter, HIDDEN, INNER, fused_sites, sites};

const QKV: &str = "model.layers.0.self_attn.qkv_proj";
const V_PROJ: &str = "model.layers.0.self_attn.v_proj";

// --- fused in the file, split in the model

#[test]
fn parts_of_a_fused_module_share_a_and_split_b_by_rows() {
    let rows = 3 * HIDDEN;
    let adapter = Adapter::empty()
        .set("lora_bias", json!(true))
        .part(QKV, "lora_A.weight", &[2, HIDDEN], &counting(&[2, HIDDEN]))
        .part(QKV, "lora_B.weight", &[rows, 2], &counting(&[rows, 2]))
        .part(QKV, "lora_B.bias", &[rows], &counting(&[rows]));
    let planned = plan(&adapter);
    for (part, module) in [Q_PROJ, K_PROJ, V_PROJ].into_iter().enumerate() {
        let (change, start) = (planned.at(module), part * HIDDEN);
        assert_eq!(change.a, Some((vec![2, HIDDEN], counting(&[2, HIDDEN]))), "{module}");
        let b = counting(&[rows, 2])[2 * start..][..2 * HIDDEN].to_vec();
        assert_eq!(change.b, Some((vec![HIDDEN, 2], b)), "{module}");
        let bias = counting(&[rows])[start..][..HIDDEN].to_vec();
        assert_eq!(change.b_bias, Some((vec![HIDDEN], bias)), "{module}");
    }
}

#[test]
fn a_fused_magnitude_and_weight_are_split_by_rows() {
    let gate_up = "model.layers.1.mlp.gate_up_proj";
    let adapter = Adapter::empty()
        .set("use_dora", json!(true))
        .pair(QKV, 2, HIDDEN, 3 * HIDDEN)
        .part(QKV, "lora_magnitude_vector", &[3 * HIDDEN], &counting(&[3 * HIDDEN]))
        .part(gate_up, "weight", &[2 * INNER, HIDDEN], &counting(&[2 * INNER, HIDDEN]));
    let planned = plan(&adapter);
    let magnitude = counting(&[3 * HIDDEN])[2 * HIDDEN..].to_vec();
    assert_eq!(planned.at(V_PROJ).magnitude, Some((vec![HIDDEN], magnitude)));
    let up = counting(&[2 * INNER, HIDDEN])[INNER * HIDDEN..].to_vec();
    assert_eq!(planned.at("model.layers.1.mlp.up_proj").weight, Some((vec![INNER, HIDDEN], up)));
}

#[test]
fn patterns_apply_to_the_modules_of_the_file() {
    let adapter = Adapter::empty()
        .set("rank_pattern", json!({"qkv_proj": 3, "q_proj": 5}))
        .set("target_modules", json!(["qkv_proj"]))
        .pair(QKV, 3, HIDDEN, 3 * HIDDEN);
    assert_eq!(plan(&adapter).at(Q_PROJ).a.as_ref().map(|a| a.0[0]), Some(3));
}

#[test]
fn a_saved_fused_module_is_required_and_split_into_its_parts() {
    let saved = |name: &str| Adapter::empty().set("modules_to_save", json!([name]));
    let gate_up = |layer: usize| format!("model.layers.{layer}.mlp.gate_up_proj");
    let whole = (0..2).fold(saved("gate_up_proj"), |a, l| a.filled(&gate_up(l), "weight", &[2 * INNER, HIDDEN]));
    assert_eq!(plan(&whole).sites, 4);
    let error = &refusals_on(&saved("gate_up_proj").filled(&gate_up(0), "weight", &[2 * INNER, HIDDEN]), &sites())[0];
    assert_eq!(error.code(), ErrorCode::AdapterTensorMissing);
    assert!(error.tensor().is_some_and(|name| name.contains("layers.1.mlp.gate_up_proj")), "{error}");
}

#[test]
fn a_fused_module_and_a_part_of_it_in_one_file_are_refused() {
    let error = refused(&Adapter::empty().pair(QKV, 2, HIDDEN, 3 * HIDDEN).pair(K_PROJ, 2, HIDDEN, HIDDEN));
    assert_eq!(error.code(), ErrorCode::AdapterTensorUnexpected);
    assert!(error.message().contains(K_PROJ) && error.message().contains(QKV), "{error}");
}

#[test]
fn a_fused_module_of_another_width_is_refused() {
    let error = refused(&Adapter::empty().pair(QKV, 2, HIDDEN, 2 * HIDDEN));
    assert_eq!(error.code(), ErrorCode::AdapterShapeMismatch);
    assert_eq!((error.expected(), error.found()), (Some("[18, 2]"), Some("[12, 2]")));
}

// --- split in the file, fused in the model: q has 2 outputs, k and v one each

fn plan_fused(adapter: &Adapter, has_bias: bool) -> Planned {
    plan_on(adapter, &fused_sites(has_bias)).unwrap_or_else(|error| panic!("{error}"))
}

/// Factors of rank 1 on each module: A filled with its number, B as given.
fn parts(modules: &[(&str, &[f32])]) -> Adapter {
    modules.iter().zip(1..).fold(Adapter::empty().set("r", json!(1)), |adapter, ((module, b), number)| {
        adapter.part(module, "lora_A.weight", &[1, HIDDEN], &[number as f32; HIDDEN]).part(
            module,
            "lora_B.weight",
            &[b.len(), 1],
            b,
        )
    })
}

#[test]
fn parts_of_a_fused_site_become_one_delta() {
    let adapter = parts(&[(Q_PROJ, &[1.0, 2.0]), (V_PROJ, &[3.0])]).set("alpha_pattern", json!({"v_proj": 10}));
    let planned = plan_fused(&adapter, false);
    let change = planned.at(QKV);
    let a = [[1.0; HIDDEN], [2.0; HIDDEN]].concat();
    assert_eq!(change.a, Some((vec![2, HIDDEN], a)));
    // q is scaled by 4, v by 10; k, the third output, has no delta.
    assert_eq!(change.b, Some((vec![4, 2], vec![4.0, 0.0, 8.0, 0.0, 0.0, 0.0, 0.0, 30.0])));
    assert_eq!((change.scale, &change.b_bias), (Some(1.0), &None));
}

#[test]
fn biases_of_parts_are_scaled_and_padded_with_zeros() {
    let adapter = parts(&[(Q_PROJ, &[1.0, 2.0]), (V_PROJ, &[3.0])])
        .set("lora_bias", json!(true))
        .part(Q_PROJ, "lora_B.bias", &[2], &[1.0, -1.0])
        .part(V_PROJ, "lora_B.bias", &[1], &[0.5]);
    assert_eq!(plan_fused(&adapter, false).at(QKV).b_bias, Some((vec![4], vec![4.0, -4.0, 0.0, 2.0])));
}

#[test]
fn magnitudes_and_replacements_must_cover_all_outputs() {
    let factors: [(&str, &[f32]); 3] = [(Q_PROJ, &[1.0, 2.0]), (K_PROJ, &[3.0]), (V_PROJ, &[4.0])];
    let with = |count: usize, suffix: &str, columns: Option<usize>| {
        factors[..count].iter().fold(parts(&factors[..count]), |adapter, (module, b)| {
            let shape: Vec<usize> = [b.len()].into_iter().chain(columns).collect();
            adapter.part(module, suffix, &shape, &vec![b[0]; shape.iter().product()])
        })
    };
    let dora = |count| with(count, "lora_magnitude_vector", None).set("use_dora", json!(true));
    let bias = |count| with(count, "base_layer.bias", None);
    let weight = |count| with(count, "base_layer.weight", Some(HIDDEN));
    let expected = Some((vec![4], vec![1.0, 1.0, 3.0, 4.0]));
    assert_eq!(plan_fused(&dora(3), true).at(QKV).magnitude, expected);
    assert_eq!(plan_fused(&bias(3), true).at(QKV).bias, expected);
    assert_eq!(plan_fused(&weight(3), true).at(QKV).weight.as_ref().map(|w| &w.0[..]), Some(&[4, HIDDEN][..]));
    for adapter in [dora(2), bias(2), weight(2)] {
        let errors = refusals_on(&adapter, &fused_sites(true));
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(errors[0].code(), ErrorCode::AdapterFeatureUnsupported);
        assert_eq!((errors[0].expected(), errors[0].found()), (Some("all 4 outputs of it"), Some("3 of them")));
    }
}
