//! EXL2 weights against a writer that packs bit by bit, against values computed by another program, and as a whole model.

use std::fs;
use std::path::Path;

use exlora::checkpoint::Checkpoint;
use exlora::quant::{QuantConfig, StoredWeight, open_bias, open_linear};
use exlora::{Device, Engine, EngineOptions, Error, ErrorCode, KvDType, Request, Result};
use half::f16;
use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use support::exl2::{Exl2Module, random_groups};
use support::gptq::{GptqModule, GptqSpec};
use support::model::{Plain, TinyModel};
use support::{Rng, StoredTensor, fixtures, safetensors};

const PATH: &str = "model.layers.0.mlp.up_proj";
const MODEL: &str = "quill-4m-exl2-mixed";

fn checkpoint(tensors: &[StoredTensor]) -> Checkpoint {
    Checkpoint::from_bytes(safetensors(tensors), Path::new("memory.safetensors")).expect("a valid file")
}

/// Groups of `(width, inputs)`.
fn module(groups: &[(usize, usize)], out_features: usize) -> Exl2Module {
    Exl2Module::random(groups.to_vec(), out_features, &mut Rng(7))
}

fn open(tensors: &[StoredTensor], in_features: usize, out_features: usize) -> Result<Vec<f32>> {
    let checkpoint = checkpoint(tensors);
    let weight = open_linear(&checkpoint, None, PATH, in_features, out_features)?;
    assert!(matches!(weight, StoredWeight::Quantized(_)));
    Ok(weight.dequantize(0..out_features))
}

fn read(module: &Exl2Module) -> Vec<f32> {
    open(&module.tensors(PATH), module.in_features, module.out_features).expect("readable")
}

/// The error for a module with 64 inputs at 5 bits, 64 at 4 and 40 outputs, after a change to its tensors.
fn refusal(change: impl FnOnce(&mut Vec<StoredTensor>)) -> Error {
    let mut tensors = module(&[(5, 64), (4, 64)], 40).tensors(PATH);
    change(&mut tensors);
    let error = open(&tensors, 128, 40).expect_err("refused");
    assert_eq!(error.path(), Some(Path::new("memory.safetensors")));
    error
}

/// The error for the groups in `q_groups`.
fn refusal_of_groups(q_groups: &[i16]) -> Error {
    let error = refusal(|tensors| {
        let tensor = part(tensors, "q_groups");
        tensor.shape = vec![q_groups.len()];
        tensor.bytes = q_groups.iter().flat_map(|v| v.to_le_bytes()).collect();
    });
    assert_eq!(error.tensor(), Some(&*format!("{PATH}.q_groups")));
    error
}

fn part<'a>(tensors: &'a mut [StoredTensor], name: &str) -> &'a mut StoredTensor {
    tensors.iter_mut().find(|tensor| tensor.name.ends_with(name)).expect("there")
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// `[out, in]` transposed to `[in, out]`, in float16.
fn stored_bytes(values: &[f32], in_features: usize) -> Vec<u8> {
    let outs = values.len() / in_features;
    let places = (0..in_features).flat_map(|i| (0..outs).map(move |n| n * in_features + i));
    places.flat_map(|at| f16::from_f32(values[at]).to_le_bytes()).collect()
}

// What is accepted.

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reading_returns_what_was_packed(blocks in 1usize..20, outs in 1usize..100, seed in any::<u64>()) {
        let random = &mut Rng(seed);
        let module = Exl2Module::random(random_groups(blocks, random), outs, random);
        prop_assert_eq!(bits(&read(&module)), bits(&module.dequantize()));
    }

    #[test]
    fn reading_a_range_of_codes_equals_that_range_of_all_codes(
        seed in any::<u64>(),
        (inputs, outputs) in ((0usize..=320, 0usize..=320), (0usize..=40, 0usize..=40)),
    ) {
        let random = &mut Rng(seed);
        let module = Exl2Module::random(random_groups(10, random), 40, random);
        let checkpoint = checkpoint(&module.tensors(PATH));
        let weight = open_linear(&checkpoint, None, PATH, 320, 40).expect("readable");
        let StoredWeight::Quantized(weight) = &weight else { panic!("quantized") };
        let inputs = inputs.0.min(inputs.1)..inputs.0.max(inputs.1);
        let outputs = outputs.0.min(outputs.1)..outputs.0.max(outputs.1);
        let mut codes = vec![0; inputs.len() * outputs.len()];
        weight.read_codes(inputs.clone(), outputs.clone(), &mut codes);
        let whole = inputs.flat_map(|k| outputs.clone().map(move |n| (k, n)));
        prop_assert_eq!(codes, whole.map(|(k, n)| module.codes[k * 64 + n]).collect::<Vec<u8>>());
    }

    /// With any one bit flipped, the weight is refused or finite.
    #[test]
    fn no_flipped_bit_makes_it_panic(tensor in 0usize..5, at in any::<prop::sample::Index>(), bit in 0u32..8) {
        let mut tensors = module(&[(8, 32), (3, 96)], 40).tensors(PATH);
        let bytes = &mut tensors[tensor].bytes;
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(values) = open(&tensors, 128, 40) {
            prop_assert!(values.iter().all(|value| value.is_finite()));
        }
    }
}

#[test]
fn the_fixture_dequantizes_as_in_exllamav2() {
    let golden = fs::read(fixtures().join("reference/exl2_dequantised_sha256.json")).expect("there");
    let golden: Value = serde_json::from_slice(&golden).expect("valid");
    let checkpoint = Checkpoint::open(&fixtures().join(MODEL)).expect("readable");
    let golden = golden["tensors"].as_object().expect("a map");
    assert_eq!(golden.len(), 29);
    for (path, expected) in golden {
        let size = |i: usize| expected["shape"][i].as_u64().expect("a size") as usize;
        let weight = open_linear(&checkpoint, None, path, size(0), size(1)).expect("readable");
        let bytes = stored_bytes(&weight.dequantize(0..size(1)), size(0));
        let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(expected["sha256"], hash, "{path}");
    }
}

#[test]
fn cases_absent_from_the_fixture_are_bit_equal_too() {
    let edges = Checkpoint::read_file(&fixtures().join("reference/exl2_edges.safetensors")).expect("readable");
    for name in ["w2", "w3", "w4", "w5", "w6", "w8", "all", "long", "padded"] {
        let expected = edges.tensor(&format!("{name}.expected")).expect("there");
        let (ins, columns) = (expected.shape()[0], expected.shape()[1]);
        // All columns, then as a module whose last columns are padding.
        for outs in [columns, columns - 24] {
            let weight = open_linear(&edges, None, name, ins, outs).expect("readable").dequantize(0..outs);
            let expected: Vec<u8> =
                expected.bytes().chunks(columns * 2).flat_map(|row| row[..outs * 2].to_vec()).collect();
            assert!(stored_bytes(&weight, ins) == expected, "{name}, {outs} outputs");
        }
    }
}

#[test]
fn the_identity_order_needs_no_permutation() {
    let mut module = module(&[(6, 32), (2, 64)], 32);
    let is_permuted = |module: &Exl2Module| {
        let checkpoint = checkpoint(&module.tensors(PATH));
        match open_linear(&checkpoint, None, PATH, 96, 32).expect("readable") {
            StoredWeight::Quantized(weight) => weight.layout().permutation.is_some(),
            StoredWeight::Dense(_) => panic!("quantized"),
        }
    };
    assert!(is_permuted(&module));
    module.order.sort_unstable();
    assert!(!is_permuted(&module));
    assert_eq!(read(&module), module.dequantize());
}

#[test]
fn the_tensors_take_precedence_over_the_config() {
    let module = module(&[(4, 128)], 32);
    let checkpoint = checkpoint(&module.tensors(PATH));
    for config in [None, Some(json!({"quant_method": "exl2"})), Some(json!({"bits": 4, "group_size": 128}))] {
        let config = config.map(|config| QuantConfig::from_json(&config).expect("valid"));
        let weight = open_linear(&checkpoint, config.as_ref(), PATH, 128, 32).expect("readable");
        assert_eq!(weight.dequantize(0..32), module.dequantize());
    }
}

// What is refused.

#[test]
fn each_missing_tensor_is_named() {
    for name in ["q_groups", "q_scale", "q_scale_max", "q_invperm"] {
        let full = format!("{PATH}.{name}");
        let error = refusal(|tensors| tensors.retain(|tensor| tensor.name != full));
        assert_eq!((error.code(), error.tensor()), (ErrorCode::CheckpointTensorMissing, Some(&*full)));
    }
}

#[test]
fn tensors_of_the_wrong_shape_are_refused() {
    for (name, element) in
        [("q_weight", 4 * 64), ("q_groups", 2), ("q_scale", 4 * 8), ("q_scale_max", 2), ("q_invperm", 4)]
    {
        let full = format!("{PATH}.{name}");
        let error = refusal(|tensors| {
            let tensor = tensors.iter_mut().find(|tensor| tensor.name == full).expect("there");
            tensor.shape[0] += 1;
            tensor.bytes.extend(vec![0; element]);
        });
        // One extra row of codes gives the last group an invalid size.
        let code = if name == "q_weight" { ErrorCode::QuantValueInvalid } else { ErrorCode::QuantShapeMismatch };
        assert_eq!(error.code(), code, "{name}");
        let full = if name == "q_weight" { format!("{PATH}.q_groups") } else { full };
        assert_eq!(error.tensor(), Some(&*full));
        assert!(error.expected().is_some() && error.found().is_some());
    }
}

#[test]
fn tensors_of_the_wrong_type_are_refused() {
    for (name, dtype) in
        [("q_weight", "F32"), ("q_groups", "F16"), ("q_scale", "U32"), ("q_scale_max", "BF16"), ("q_invperm", "F32")]
    {
        let full = format!("{PATH}.{name}");
        let error = refusal(|tensors| {
            tensors.iter_mut().find(|tensor| tensor.name == full).expect("there").dtype = dtype;
        });
        assert_eq!(error.code(), ErrorCode::CheckpointDtypeUnsupported, "{name}");
        assert_eq!(error.tensor(), Some(&*full));
    }
}

#[test]
fn weights_of_a_different_shape_are_refused() {
    let tensors = module(&[(5, 64), (4, 64)], 40).tensors(PATH);
    for (ins, outs) in [(96, 40), (160, 40), (128, 32), (128, 65), (128, 0), (0, 40), (100, 40), (128, usize::MAX)] {
        let error = open(&tensors, ins, outs).expect_err("refused");
        assert_eq!(error.code(), ErrorCode::QuantShapeMismatch, "{ins} {outs}");
        assert!(error.expected().is_some() && error.found().is_some());
    }
}

#[test]
fn more_inputs_than_65535_are_refused() {
    let groups = [(2, 65_536)];
    let error = open(&module(&groups, 32).tensors(PATH), 65_536, 32).expect_err("refused");
    assert_eq!(error.code(), ErrorCode::QuantShapeMismatch);
    assert_eq!(error.tensor(), Some(&*format!("{PATH}.q_invperm")));
    assert_eq!(error.found(), Some("65536"));
    assert_eq!(error.expected(), Some("a multiple of 32 up to 65535"));
}

#[test]
fn ascending_widths_are_refused() {
    let error = refusal_of_groups(&[4, 0, 5, 8]);
    assert_eq!(error.code(), ErrorCode::QuantValueInvalid);
    assert_eq!((error.expected(), error.found()), (Some("at most 4 bits"), Some("5 bits for group 1")));
}

#[test]
fn widths_outside_the_format_are_refused() {
    for width in [7, 1, 0, 9, 16, -4, i16::MIN, i16::MAX] {
        let error = refusal_of_groups(&[width, 0, 2, 14]);
        assert_eq!(error.code(), ErrorCode::QuantValueInvalid);
        assert_eq!(error.expected(), Some("8, 6, 5, 4, 3 or 2 bits"));
        assert_eq!(error.found(), Some(&*format!("{width} bits for group 0")));
    }
}

#[test]
fn groups_of_16_inputs_are_refused() {
    let error = refusal_of_groups(&[2, 0, 2, 1]);
    assert_eq!(error.code(), ErrorCode::QuantValueInvalid);
    assert_eq!(error.expected(), Some("a multiple of 2 rows of q_weight"));
    assert_eq!(error.found(), Some("1 rows, 16 inputs, for group 0"));
}

#[test]
fn groups_that_do_not_partition_the_rows_are_refused() {
    // There are 18 rows.
    for q_groups in [[5, 5, 4, 10], [5, 0, 4, 0], [5, 0, 4, 18], [5, 0, 4, 40], [5, -10, 4, 10], [5, 0, 4, i16::MIN]] {
        let error = refusal_of_groups(&q_groups);
        assert_eq!(error.code(), ErrorCode::QuantValueInvalid, "{q_groups:?}");
        assert!(error.expected().is_some() && error.found().is_some());
    }
}

#[test]
fn groups_that_do_not_sum_to_the_inputs_are_refused() {
    let error = refusal_of_groups(&[6, 0, 3, 6]);
    assert_eq!(error.code(), ErrorCode::QuantShapeMismatch);
    assert_eq!((error.expected(), error.found()), (Some("128"), Some("160")));
}

#[test]
fn a_malformed_group_table_is_refused() {
    for q_groups in [&[][..], &[5], &[5, 0, 4]] {
        assert_eq!(refusal_of_groups(q_groups).code(), ErrorCode::QuantShapeMismatch);
    }
}

#[test]
fn an_input_order_that_is_not_a_permutation_is_refused() {
    for (stored, found) in [(128, "128 for input 5"), (-1, "-1 for input 5"), (i32::MIN, "-2147483648 for input 5")] {
        let error = refusal(|tensors| {
            part(tensors, "q_invperm").bytes[20..24].copy_from_slice(&stored.to_le_bytes());
        });
        assert_eq!((error.code(), error.found()), (ErrorCode::QuantValueInvalid, Some(found)));
        assert_eq!(error.expected(), Some("each of 0..128 once"));
    }
    let error = refusal(|tensors| {
        let bytes = &mut part(tensors, "q_invperm").bytes;
        bytes.copy_within(0..4, 20);
    });
    assert_eq!(error.code(), ErrorCode::QuantValueInvalid);
    assert!(error.found().is_some_and(|found| found.ends_with(", a second time, for input 5")), "{error}");
}

#[test]
fn scales_that_are_not_finite_are_refused() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = refusal(|tensors| {
            part(tensors, "q_scale_max").bytes[2..4].copy_from_slice(&f16::from_f32(bad).to_le_bytes());
        });
        assert_eq!(error.code(), ErrorCode::QuantValueInvalid);
        assert_eq!(error.tensor(), Some(&*format!("{PATH}.q_scale_max")));
        assert_eq!(error.found(), Some(&*format!("{bad} for group 1")));
    }
}

#[test]
fn finite_scales_that_make_infinite_weights_are_refused_except_in_padding() {
    let mut module = module(&[(8, 32)], 33);
    module.scale_max[0] = f16::from_f32(1024.0);
    module.fields.fill(0);
    // 1024 / 256 * 16^2 * 128 is beyond 65504; with the other fields it is 512.
    module.fields[40] = 15;
    assert_eq!(read(&module), module.dequantize());
    module.fields[32] = 15;
    let error = open(&module.tensors(PATH), 32, 33).expect_err("refused");
    assert_eq!(error.code(), ErrorCode::QuantValueInvalid);
    assert_eq!(error.found(), Some("a scale of 1024 for group 0, output 32"));
}

#[test]
fn a_module_with_two_weights_is_refused() {
    let plain = StoredTensor::f16(&format!("{PATH}.weight"), &[40, 128], &[0.0; 40 * 128]);
    assert_eq!(refusal(|tensors| tensors.push(plain)).code(), ErrorCode::QuantConfigInvalid);
    let gptq = GptqModule::random(GptqSpec::new(4, 32), 128, 64, &mut Rng(1)).tensors(PATH);
    assert_eq!(refusal(|tensors| tensors.extend(gptq)).code(), ErrorCode::QuantConfigInvalid);
}

#[test]
fn a_gptq_weight_under_an_exl2_config_is_refused() {
    let checkpoint = checkpoint(&GptqModule::random(GptqSpec::new(4, 32), 64, 32, &mut Rng(1)).tensors(PATH));
    let error = open_linear(&checkpoint, Some(&QuantConfig::Exl2), PATH, 64, 32).err().expect("refused");
    assert_eq!(error.code(), ErrorCode::QuantConfigInvalid);
}

// As a whole model.

fn options(device: Device) -> EngineOptions {
    EngineOptions { device, kv_dtype: KvDType::F32, ..EngineOptions::default() }
}

/// Logits of eight tokens after a prompt, with an adapter if one is named.
fn logits(engine: &Engine, adapter: Option<&str>) -> Vec<f32> {
    let mut request = Request::new(vec![5, 17, 3, 60]).max_new_tokens(8);
    if let Some(adapter) = adapter {
        request = request.adapter(adapter, 1.0);
    }
    (request.return_logits, request.stop_at_eos) = (true, false);
    engine.generate(&[request]).expect("runs").remove(0).logits
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(0f32, |most, value| most.max(value.abs()));
    a.iter().zip(b).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / scale
}

/// An adapter with random factors on the named linears of each layer.
fn write_adapter(dir: &Path, tiny: &TinyModel, modules: &[&str]) {
    let random = &mut Rng(11);
    let mut tensors = Vec::new();
    for layer in 0..tiny.layers {
        for module in modules {
            let (ins, outs) = match *module {
                "down_proj" => (tiny.intermediate, tiny.hidden),
                _ => (tiny.hidden, tiny.intermediate),
            };
            let name =
                |factor: &str| format!("base_model.model.model.layers.{layer}.mlp.{module}.lora_{factor}.weight");
            tensors.push(StoredTensor::f32(&name("A"), &[4, ins], &random.uniforms(4 * ins, 0.2)));
            tensors.push(StoredTensor::f32(&name("B"), &[outs, 4], &random.uniforms(4 * outs, 0.2)));
        }
    }
    let config = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": modules});
    fs::write(dir.join("adapter_config.json"), config.to_string()).expect("written");
    fs::write(dir.join("adapter_model.safetensors"), safetensors(&tensors)).expect("written");
}

/// exllamav2's defect L1: it applies down's input order to the columns of gate and up, but not to the adapters on them.
#[test]
fn l1_adapters_on_gate_up_and_down_act_on_the_channels_of_the_dense_model() {
    let (base, twin) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let tiny = TinyModel { exl2: true, plain: Plain::F16, ..TinyModel::default() };
    tiny.write_dense_twin(twin.path(), Plain::F16, &tiny.write(base.path()));
    for modules in [&["gate_proj"][..], &["up_proj"], &["down_proj"], &["gate_proj", "up_proj", "down_proj"]] {
        let adapter = tempfile::tempdir().expect("a folder");
        write_adapter(adapter.path(), &tiny, modules);
        // The reference rounds each weight as the format does, so there the two are bit-identical.
        for (device, tolerance) in [(Device::Reference, 0.0), (Device::Cpu, 2e-3)] {
            let [base, twin] = [&base, &twin].map(|dir| {
                let engine = Engine::load(dir.path(), options(device)).expect("the model loads");
                engine.load_adapter("mlp", adapter.path()).expect("the adapter loads");
                engine
            });
            let (ours, expected) = (logits(&base, Some("mlp")), logits(&twin, Some("mlp")));
            let error = distance(&ours, &expected);
            assert!(error <= tolerance, "{modules:?} on {device:?}: {error:e}");
            assert!(distance(&expected, &logits(&twin, None)) > 0.02, "{modules:?} must matter");
        }
    }
}

#[test]
fn a_tied_model_uses_the_stored_head() {
    let (base, twin) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let tiny = TinyModel { exl2: true, tied: true, plain: Plain::F16, vocab: 72, ..TinyModel::default() };
    let values = tiny.write(base.path());
    TinyModel { tied: false, ..tiny }.write_dense_twin(twin.path(), Plain::F16, &values);
    let [base, twin] = [base, twin].map(|dir| Engine::load(dir.path(), options(Device::Reference)).expect("loads"));
    assert_eq!(logits(&base, None), logits(&twin, None));
}

#[test]
fn a_folder_may_have_shards_or_a_stale_index_of_the_original() {
    let dir = tempfile::tempdir().expect("a folder");
    let tiny = TinyModel { exl2: true, plain: Plain::F16, ..TinyModel::default() };
    tiny.write(dir.path());
    let expected = logits(&Engine::load(dir.path(), options(Device::Cpu)).expect("loads"), None);

    let stale = json!({"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}});
    fs::write(dir.path().join("model.safetensors.index.json"), stale.to_string()).expect("written");
    assert_eq!(logits(&Engine::load(dir.path(), options(Device::Cpu)).expect("loads"), None), expected);

    fs::remove_file(dir.path().join("output.safetensors")).expect("removed");
    TinyModel { shards: 3, ..tiny }.write(dir.path());
    assert_eq!(logits(&Engine::load(dir.path(), options(Device::Cpu)).expect("loads"), None), expected);
}

#[test]
fn a_bias_may_be_padded_like_the_columns() {
    let with_bias = |values: usize| {
        let mut tensors = module(&[(4, 64)], 40).tensors(PATH);
        tensors.push(StoredTensor::f16(&format!("{PATH}.bias"), &[values], &vec![0.5; values]));
        open_bias(&checkpoint(&tensors), PATH, 40).map(|bias| bias.expect("there").len())
    };
    assert_eq!(with_bias(40).expect("plain"), 40);
    assert_eq!(with_bias(64).expect("padded"), 64);
    assert_eq!(with_bias(48).expect_err("neither").code(), ErrorCode::CheckpointShapeMismatch);
}
