//! GPTQ weights against a writer that packs bit by bit, and against values computed by another program.

use std::path::Path;

use exlora::checkpoint::Checkpoint;
use exlora::quant::{QuantConfig, StoredWeight, open_bias, open_linear};
use exlora::{ErrorCode, Result};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use support::gptq::{GptqModule, GptqSpec, GroupOrder};
use support::model::{Plain, TinyModel};
use support::{Rng, StoredTensor, fixtures, safetensors};

const PATH: &str = "model.layers.0.mlp.up_proj";

fn checkpoint(tensors: &[StoredTensor]) -> Checkpoint {
    Checkpoint::from_bytes(safetensors(tensors), Path::new("memory.safetensors")).expect("a valid file")
}

fn config(spec: GptqSpec) -> QuantConfig {
    QuantConfig::from_json(&spec.config()).expect("a valid config")
}

fn module(spec: GptqSpec, in_features: usize, out_features: usize) -> GptqModule {
    GptqModule::random(spec, in_features, out_features, &mut Rng(7))
}

/// Dequantizes the module as stored, or fails.
fn read(module: &GptqModule, tensors: &[StoredTensor]) -> Result<Vec<f32>> {
    let checkpoint = checkpoint(tensors);
    let weight = open_linear(&checkpoint, Some(&config(module.spec)), PATH, module.in_features, module.out_features)?;
    Ok(weight.dequantize(0..module.out_features))
}

/// The error for the module after a change to its tensors.
fn refusal(spec: GptqSpec, change: impl FnOnce(&mut Vec<StoredTensor>)) -> exlora::Error {
    let module = module(spec, 128, 32);
    let mut tensors = module.tensors(PATH);
    change(&mut tensors);
    read(&module, &tensors).expect_err("refused")
}

fn part<'a>(tensors: &'a mut [StoredTensor], name: &str) -> &'a mut StoredTensor {
    tensors.iter_mut().find(|tensor| tensor.name.ends_with(name)).expect("there")
}

fn specs() -> impl Strategy<Value = GptqSpec> {
    let orders =
        [GroupOrder::InOrder, GroupOrder::Absent, GroupOrder::AllZero, GroupOrder::ActOrder, GroupOrder::Irregular];
    (
        prop::sample::select(vec![2, 3, 4, 8]),
        prop::sample::select(vec![32, 64, 128, -1]),
        prop::sample::select(orders.to_vec()),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(bits, group_size, order, v2, sym)| GptqSpec { bits, group_size, order, v2, sym })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Exact: one multiplication in f32 on either side.
    #[test]
    fn reading_returns_what_was_packed(spec in specs(), ins in 1usize..9, outs in 1usize..7, seed in any::<u64>()) {
        let module = GptqModule::random(spec, ins * 32, outs * 32, &mut Rng(seed));
        prop_assert_eq!(read(&module, &module.tensors(PATH)).expect("readable"), module.dequantize());
    }

    #[test]
    fn reading_a_range_of_codes_equals_that_range_of_all_codes(
        spec in specs(),
        (inputs, outputs) in ((0usize..=96, 0usize..=96), (0usize..=64, 0usize..=64)),
    ) {
        let module = module(spec, 96, 64);
        let checkpoint = checkpoint(&module.tensors(PATH));
        let weight = open_linear(&checkpoint, Some(&config(spec)), PATH, 96, 64).expect("readable");
        let StoredWeight::Quantized(weight) = &weight else { panic!("quantized") };
        let inputs = inputs.0.min(inputs.1)..inputs.0.max(inputs.1);
        let outputs = outputs.0.min(outputs.1)..outputs.0.max(outputs.1);
        let mut codes = vec![0; inputs.len() * outputs.len()];
        weight.read_codes(inputs.clone(), outputs.clone(), &mut codes);
        let order = weight.layout().permutation.clone().unwrap_or((0..96).collect());
        let whole = inputs.flat_map(|k| outputs.clone().map(move |n| (k, n)));
        let expected: Vec<u8> = whole.map(|(k, n)| module.codes[order[k] as usize * 64 + n]).collect();
        prop_assert_eq!(codes, expected);
    }

    #[test]
    fn a_layout_covers_each_input_once_in_contiguous_groups(spec in specs(), seed in any::<u64>()) {
        let module = GptqModule::random(spec, 160, 32, &mut Rng(seed));
        let checkpoint = checkpoint(&module.tensors(PATH));
        let weight = open_linear(&checkpoint, Some(&config(spec)), PATH, 160, 32).expect("readable");
        let StoredWeight::Quantized(weight) = &weight else { panic!("quantized") };
        let layout = weight.layout();
        let order = layout.permutation.clone().unwrap_or((0..160).collect());
        let mut sorted = order.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, (0..160).collect::<Vec<u32>>());
        let mut stored = order.iter();
        for group in &layout.groups {
            prop_assert!(group.inputs > 0);
            let members: Vec<i32> = stored.by_ref().take(group.inputs).map(|&i| module.g_idx[i as usize]).collect();
            prop_assert!(members.iter().all(|&g| g == members[0]), "{:?}", members);
        }
        prop_assert!(stored.next().is_none());
    }
}

#[test]
fn groups_in_file_order_need_no_permutation() {
    for order in [GroupOrder::InOrder, GroupOrder::Absent, GroupOrder::AllZero] {
        let module = module(GptqSpec { order, ..GptqSpec::new(4, 32) }, 96, 32);
        let checkpoint = checkpoint(&module.tensors(PATH));
        let weight = open_linear(&checkpoint, Some(&config(module.spec)), PATH, 96, 32).expect("readable");
        let StoredWeight::Quantized(weight) = &weight else { panic!("quantized") };
        assert_eq!(weight.layout().permutation, None);
        assert_eq!(weight.layout().groups.iter().map(|g| g.inputs).collect::<Vec<_>>(), [32, 32, 32]);
    }
}

#[test]
fn a_last_group_may_be_short() {
    let module = module(GptqSpec { order: GroupOrder::Absent, ..GptqSpec::new(4, 64) }, 160, 32);
    assert_eq!(module.scales.len() / 32, 3);
    assert_eq!(read(&module, &module.tensors(PATH)).expect("readable"), module.dequantize());
}

#[test]
fn a_format_1_field_of_all_ones_is_a_zero_point_of_2_to_the_bits_and_leaves_its_neighbor_alone() {
    for bits in [2, 3, 4, 8] {
        let mut module = module(GptqSpec::new(bits, 32), 32, 32);
        for (n, zero) in module.zeros.iter_mut().enumerate() {
            *zero = if n % 3 == 0 { 1 << bits } else { 1 };
        }
        assert_eq!(read(&module, &module.tensors(PATH)).expect("readable"), module.dequantize(), "{bits} bits");
    }
}

#[test]
fn a_format_2_zero_point_of_0_is_0() {
    let mut module = module(GptqSpec { v2: true, ..GptqSpec::new(4, 32) }, 32, 32);
    module.zeros.fill(0);
    assert_eq!(read(&module, &module.tensors(PATH)).expect("readable"), module.dequantize());
}

#[test]
fn symmetric_zeros_of_format_2_are_recognized_in_a_file_that_declares_format_1() {
    for bits in [2, 3, 4, 8] {
        let spec = GptqSpec { sym: true, v2: true, ..GptqSpec::new(bits, 32) };
        let mut module = module(spec, 64, 64);
        let tensors = module.tensors(PATH);
        module.spec.v2 = false;
        assert_eq!(read(&module, &tensors).expect("readable"), module.dequantize(), "{bits} bits");
    }
}

#[test]
fn an_asymmetric_file_is_read_in_the_declared_format() {
    let mut module = module(GptqSpec::new(4, 32), 64, 64);
    module.zeros.fill(9);
    assert_eq!(read(&module, &module.tensors(PATH)).expect("readable"), module.dequantize());
}

#[test]
fn scales_may_be_float32_or_bfloat16() {
    let module = module(GptqSpec::new(4, 32), 64, 32);
    let scales: Vec<f32> = module.scales.iter().map(|scale| scale.to_f32()).collect();
    let mut tensors = module.tensors(PATH);
    *part(&mut tensors, "scales") = StoredTensor::f32(&format!("{PATH}.scales"), &[2, 32], &scales);
    assert_eq!(read(&module, &tensors).expect("readable"), module.dequantize());

    let coarse: Vec<f32> = scales.iter().map(|&scale| half::bf16::from_f32(scale).to_f32()).collect();
    *part(&mut tensors, "scales") = StoredTensor::bf16(&format!("{PATH}.scales"), &[2, 32], &coarse);
    let weight = read(&module, &tensors).expect("readable");
    let steps = i32::from(module.codes[0]) - module.zeros[0];
    assert_eq!(weight[0], coarse[0] * steps as f32);
}

#[test]
fn a_head_may_be_quantized_too() {
    let dir = tempfile::tempdir().expect("a folder");
    let tiny = TinyModel { gptq: Some(GptqSpec::new(3, 32)), gptq_head: true, ..TinyModel::default() };
    let values = tiny.write(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).expect("readable");
    let config = QuantConfig::read(dir.path(), &tiny.config()).expect("valid");
    let head = open_linear(&checkpoint, config.as_ref(), "lm_head", tiny.hidden, tiny.vocab).expect("readable");
    assert!(matches!(head, StoredWeight::Quantized(_)));
    assert_eq!(head.dequantize(0..tiny.vocab), values["lm_head.weight"]);
}

#[test]
fn dense_weights_next_to_quantized_ones_are_read() {
    for plain in [Plain::F32, Plain::F16, Plain::BF16] {
        let dir = tempfile::tempdir().expect("a folder");
        let tiny =
            TinyModel { gptq: Some(GptqSpec::new(4, -1)), plain, qkv_biases: true, shards: 3, ..Default::default() };
        let values = tiny.write(dir.path());
        let checkpoint = Checkpoint::open(dir.path()).expect("readable");
        let config = QuantConfig::read(dir.path(), &tiny.config()).expect("valid");
        let head = open_linear(&checkpoint, config.as_ref(), "lm_head", 64, 96).expect("readable");
        assert!(matches!(head, StoredWeight::Dense(_)));
        assert_eq!(head.dequantize(0..96), values["lm_head.weight"]);
        assert_eq!(head.dequantize(5..7), values["lm_head.weight"][5 * 64..7 * 64]);
        let bias = open_bias(&checkpoint, "model.layers.1.self_attn.k_proj", 32).expect("readable").expect("there");
        assert_eq!(bias.to_f32(), values["model.layers.1.self_attn.k_proj.bias"]);
        assert!(open_bias(&checkpoint, "lm_head", 96).expect("no error").is_none());
    }
}

/// SHA-256 over the float32 values of all 84 modules, computed by make/gptq_format.py in numpy.
#[test]
fn the_fixtures_dequantize_as_computed_by_another_program() {
    let golden = std::fs::read(fixtures().join("golden/gptq_dequantised.json")).expect("there");
    let golden: serde_json::Value = serde_json::from_slice(&golden).expect("valid");
    let mut modules = 0;
    for (folder, expected) in golden.as_object().expect("a map") {
        let dir = fixtures().join(folder);
        let checkpoint = Checkpoint::open(&dir).expect("readable");
        let json = std::fs::read(dir.join("config.json")).expect("there");
        let json = serde_json::from_slice(&json).expect("valid");
        let config = QuantConfig::read(&dir, &json).expect("valid").expect("quantized");
        let beside = QuantConfig::read(&dir, &serde_json::json!({})).expect("valid").expect("quantize_config.json");
        let params = |config: &QuantConfig| config.gptq().expect("gptq").params();
        assert_eq!(params(&config), params(&beside));
        for (path, expected) in expected.as_object().expect("a map") {
            let size = |i: usize| expected["shape"][i].as_u64().expect("a size") as usize;
            let weight = open_linear(&checkpoint, Some(&config), path, size(1), size(0)).expect("readable");
            let values = weight.dequantize(0..size(0));
            for value in expected["values"].as_array().expect("a list") {
                let at = |i: usize| value[i].as_u64().expect("an index") as usize;
                let golden = value[2].as_f64().expect("a number") as f32;
                assert_eq!(values[at(0) * size(1) + at(1)], golden, "{folder} {path} {value}");
            }
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(expected["sha256"], hash, "{folder} {path}");
            modules += 1;
        }
    }
    assert_eq!(modules, 84);
}

#[test]
fn packed_tensors_of_the_wrong_shape_are_refused() {
    for name in ["qweight", "qzeros", "scales", "g_idx"] {
        let error = refusal(GptqSpec::new(4, 32), |tensors| {
            let tensor = part(tensors, name);
            let row: usize = tensor.shape[1..].iter().product::<usize>() * if name == "scales" { 2 } else { 4 };
            tensor.shape[0] += 1;
            tensor.bytes.extend(vec![0; row]);
        });
        assert_eq!(error.code(), ErrorCode::QuantShapeMismatch, "{name}");
        assert_eq!(error.tensor(), Some(&*format!("{PATH}.{name}")));
        assert!(error.expected().is_some() && error.found().is_some());
    }
}

#[test]
fn weights_that_contradict_the_config_are_refused() {
    let module = module(GptqSpec::new(4, 32), 128, 32);
    let checkpoint = checkpoint(&module.tensors(PATH));
    for spec in [GptqSpec::new(8, 32), GptqSpec::new(3, 32), GptqSpec::new(4, 64), GptqSpec::new(4, -1)] {
        let error = open_linear(&checkpoint, Some(&config(spec)), PATH, 128, 32).err().expect("refused");
        assert_eq!(error.code(), ErrorCode::QuantShapeMismatch);
    }
    for (ins, outs) in [(64, 32), (128, 64), (100, 32), (128, 20), (0, 32), (usize::MAX, 32)] {
        let error = open_linear(&checkpoint, Some(&config(module.spec)), PATH, ins, outs).err().expect("refused");
        assert_eq!(error.code(), ErrorCode::QuantShapeMismatch, "{ins} {outs}");
    }
}

#[test]
fn each_missing_tensor_is_named() {
    for name in ["qzeros", "scales"] {
        let error = refusal(GptqSpec::new(4, 32), |tensors| tensors.retain(|tensor| !tensor.name.ends_with(name)));
        assert_eq!(error.code(), ErrorCode::CheckpointTensorMissing);
        assert_eq!(error.tensor(), Some(&*format!("{PATH}.{name}")));
    }
    let error = refusal(GptqSpec::new(4, 32), |tensors| tensors.retain(|tensor| !tensor.name.ends_with("qweight")));
    assert_eq!(error.code(), ErrorCode::CheckpointTensorMissing);
}

#[test]
fn act_order_without_a_group_index_is_refused() {
    let spec = GptqSpec { order: GroupOrder::ActOrder, ..GptqSpec::new(4, 32) };
    let error = refusal(spec, |tensors| tensors.retain(|tensor| !tensor.name.ends_with("g_idx")));
    assert_eq!(error.code(), ErrorCode::CheckpointTensorMissing);
    assert_eq!(error.tensor(), Some(&*format!("{PATH}.g_idx")));
}

#[test]
fn a_group_index_out_of_range_is_refused() {
    for group in [4, -1, i32::MIN, i32::MAX] {
        let error = refusal(GptqSpec::new(4, 32), |tensors| {
            part(tensors, "g_idx").bytes[20..24].copy_from_slice(&group.to_le_bytes());
        });
        assert_eq!(error.code(), ErrorCode::QuantValueInvalid);
        assert_eq!(error.found(), Some(&*format!("{group} for input 5")));
    }
}

#[test]
fn scales_that_are_not_finite_are_refused() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = refusal(GptqSpec::new(4, 32), |tensors| {
            part(tensors, "scales").bytes[66..68].copy_from_slice(&half::f16::from_f32(bad).to_le_bytes());
        });
        assert_eq!(error.code(), ErrorCode::QuantValueInvalid);
        assert_eq!(error.found(), Some(&*format!("{bad} for group 1, output 1")));
    }
    let error = refusal(GptqSpec::new(4, 32), |tensors| {
        *part(tensors, "scales") = StoredTensor::f32(&format!("{PATH}.scales"), &[4, 32], &[1e38; 128]);
    });
    assert_eq!(error.code(), ErrorCode::QuantValueInvalid, "16e38 is no float32");
}

#[test]
fn codes_of_the_wrong_type_are_refused() {
    let error = refusal(GptqSpec::new(4, 32), |tensors| part(tensors, "qweight").dtype = "F32");
    assert_eq!(error.code(), ErrorCode::CheckpointDtypeUnsupported);
    let error = refusal(GptqSpec::new(4, 32), |tensors| part(tensors, "qweight").dtype = "U32");
    assert_eq!(error.code(), ErrorCode::CheckpointDtypeUnsupported);
    let error = refusal(GptqSpec::new(4, 32), |tensors| {
        *part(tensors, "scales") = StoredTensor::i32(&format!("{PATH}.scales"), &[4, 32], &[1; 128]);
    });
    assert_eq!(error.code(), ErrorCode::CheckpointDtypeUnsupported);
}

#[test]
fn a_module_with_two_weights_is_refused() {
    let error = refusal(GptqSpec::new(4, 32), |tensors| {
        tensors.push(StoredTensor::f32(&format!("{PATH}.weight"), &[32, 128], &[0.0; 32 * 128]));
    });
    assert_eq!(error.code(), ErrorCode::QuantConfigInvalid);
}

#[test]
fn a_quantized_weight_without_any_config_is_refused() {
    let module = module(GptqSpec::new(4, 32), 64, 32);
    let checkpoint = checkpoint(&module.tensors(PATH));
    let error = open_linear(&checkpoint, None, PATH, 64, 32).err().expect("refused");
    assert_eq!(error.code(), ErrorCode::QuantConfigInvalid);
}

#[test]
fn a_dense_weight_of_the_wrong_shape_or_type_is_refused() {
    let weight = format!("{PATH}.weight");
    let code =
        |tensor: StoredTensor| open_linear(&checkpoint(&[tensor]), None, PATH, 8, 4).err().expect("refused").code();
    assert_eq!(code(StoredTensor::f32(&weight, &[8, 4], &[0.0; 32])), ErrorCode::CheckpointShapeMismatch);
    assert_eq!(code(StoredTensor::f32(&weight, &[32], &[0.0; 32])), ErrorCode::CheckpointShapeMismatch);
    assert_eq!(code(StoredTensor::i32(&weight, &[4, 8], &[0; 32])), ErrorCode::CheckpointDtypeUnsupported);
    assert_eq!(
        code(StoredTensor::new(&weight, "F8_E4M3", &[4, 8], vec![0; 32])),
        ErrorCode::CheckpointDtypeUnsupported
    );
}

#[test]
fn dynamic_rules_change_the_width_and_group_of_modules() {
    let (a, b) = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj");
    let first = module(GptqSpec::new(4, 64), 128, 32);
    let second = module(GptqSpec::new(8, 32), 128, 32);
    let tensors = [first.tensors(a), second.tensors(b)].concat();
    let mut json = first.spec.config();
    json["dynamic"] = serde_json::json!({r"model\.layers\.1\..*": {"bits": 8, "group_size": 32}, r"-:lm_head": {}});
    let config = QuantConfig::from_json(&json).expect("valid");
    let checkpoint = checkpoint(&tensors);
    for (path, module) in [(a, first), (b, second)] {
        let weight = open_linear(&checkpoint, Some(&config), path, 128, 32).expect("readable");
        assert_eq!(weight.dequantize(0..32), module.dequantize());
    }
}
