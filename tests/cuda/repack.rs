//! Weights packed on the device from the bytes of a checkpoint: the same words as packed on the host.

use std::path::Path;
use std::sync::Arc;

use ::support::exl2::{Exl2Module, random_groups};
use ::support::gptq::{GptqModule, GptqSpec, GroupOrder};
use ::support::harness::{FLOATS, Tensor};
use ::support::random_weights::RandomCodes;
use ::support::{Rng, StoredTensor, safetensors};
use exlora::ErrorCode;
use exlora::backend::cuda::driver::Device;
use exlora::backend::cuda::layout::{ElementType, WeightLayout, pack_codes, pack_dense};
use exlora::backend::cuda::ops::repack::Repacker;
use exlora::checkpoint::Checkpoint;
use exlora::quant::{QuantConfig, QuantGroup, StoredWeight, open_linear};
use exlora::tensor::DType;

use crate::packed::groups;
use crate::support::{device, download};

/// Fails unless a weight has the same words packed in parts of at most `staging_bytes` on the device and at once on the host.
fn assert_same(
    device: &Arc<Device>,
    element: ElementType,
    weight: &StoredWeight<'_>,
    staging_bytes: usize,
    what: &str,
) {
    let layout = WeightLayout::of(weight).expect("it can be packed");
    let expected = match weight {
        StoredWeight::Dense(view) => pack_dense(&layout, *view, element, 0..layout.strips()),
        StoredWeight::Quantized(codes) => pack_codes(&layout, &**codes, 0..layout.strips()),
    };
    let memory = device.allocate(size_of_val(&*expected)).expect("allocated");
    let mut repacker = Repacker::new(device, element, staging_bytes).expect("compiled");
    repacker.repack(&layout, weight, memory.address()).expect("packed");
    assert!(download::<u32>(&memory) == expected, "{what}");
}

#[test]
fn codes_of_every_width_are_packed_as_on_the_host() {
    let (device, mut rng) = (device(), Rng(1));
    for bits in [2u8, 3, 4, 5, 6, 8] {
        let irregular = [40, 7, 64, 33].map(|inputs| QuantGroup { bits, inputs }).to_vec();
        for (case, groups) in [groups(bits, 160, 32), groups(bits, 200, 200), irregular].into_iter().enumerate() {
            let weight = RandomCodes::new(&mut rng, 53, groups, true, case != 1);
            let weight = StoredWeight::Quantized(Box::new(weight));
            // Room for one strip at a time, and for all of them.
            for staging_bytes in [0, 1 << 20] {
                let what = format!("{bits} bits, case {case}, staged in {staging_bytes} bytes");
                assert_same(&device, ElementType::F16, &weight, staging_bytes, &what);
            }
        }
    }
}

#[test]
fn floats_of_every_type_are_packed_as_on_the_host() {
    let (device, mut rng) = (device(), Rng(2));
    for (outputs, inputs) in [(32, 64), (53, 100), (1, 1), (16, 65)] {
        for dtype in FLOATS {
            let weight = Tensor::new(dtype, &[outputs, inputs], &rng.normals(outputs * inputs, 1.0));
            for element in [ElementType::F16, ElementType::Bf16] {
                let what = format!("{dtype} [{outputs}, {inputs}] as {element:?}");
                assert_same(&device, element, &StoredWeight::Dense(weight.view()), 20_000, &what);
            }
        }
    }
}

#[test]
fn rows_of_more_units_than_a_grid_has_warps_are_packed_as_on_the_host() {
    let (device, mut rng) = (device(), Rng(5));
    // 516 units; the grid covers 512 at a time.
    let inputs = 33_000;
    let codes = RandomCodes::new(&mut rng, 16, groups(4, inputs, 128), true, false);
    assert_same(&device, ElementType::F16, &StoredWeight::Quantized(Box::new(codes)), 1 << 20, "codes");
    let floats = Tensor::new(DType::F16, &[2, inputs], &rng.normals(2 * inputs, 1.0));
    assert_same(&device, ElementType::F16, &StoredWeight::Dense(floats.view()), 1 << 20, "floats");
}

fn checkpoint(tensors: &[StoredTensor]) -> Checkpoint {
    Checkpoint::from_bytes(safetensors(tensors), Path::new("memory.safetensors")).expect("a valid file")
}

#[test]
fn gptq_files_are_packed_as_on_the_host() {
    let (device, mut rng) = (device(), Rng(3));
    for bits in [2, 3, 4, 8] {
        for order in [GroupOrder::InOrder, GroupOrder::ActOrder, GroupOrder::Irregular] {
            let spec = GptqSpec { order, ..GptqSpec::new(bits, 32) };
            let tensors = GptqModule::random(spec, 160, 64, &mut rng).tensors("up");
            let checkpoint = checkpoint(&tensors);
            let config = QuantConfig::from_json(&spec.config()).expect("a valid config");
            let weight = open_linear(&checkpoint, Some(&config), "up", 160, 64).expect("readable");
            assert_same(&device, ElementType::F16, &weight, 4096, &format!("{bits} bits, {order:?}"));
        }
    }
}

#[test]
fn exl2_files_are_packed_as_on_the_host() {
    let (device, mut rng) = (device(), Rng(4));
    for _ in 0..4 {
        let groups = random_groups(12, &mut rng);
        let tensors = Exl2Module::random(groups.clone(), 40, &mut rng).tensors("up");
        let checkpoint = checkpoint(&tensors);
        let weight = open_linear(&checkpoint, None, "up", 12 * 32, 40).expect("readable");
        assert_same(&device, ElementType::F16, &weight, 4096, &format!("{groups:?}"));
    }
}

#[test]
fn a_weight_beyond_the_element_type_is_refused() {
    let device = device();
    let weight = Tensor::new(DType::F32, &[1, 2], &[1.0, 70_000.0]);
    let layout = WeightLayout::dense(1, 2);
    let memory = device.allocate(layout.strip_words * 4).expect("allocated");
    let repack = |element| {
        let mut repacker = Repacker::new(&device, element, 64).expect("compiled");
        repacker.repack(&layout, &StoredWeight::Dense(weight.view()), memory.address())
    };
    let error = repack(ElementType::F16).expect_err("f16 ends at 65504");
    assert_eq!(error.code(), ErrorCode::CheckpointDtypeUnsupported);
    repack(ElementType::Bf16).expect("bf16 has the range of f32");
}
