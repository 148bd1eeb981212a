//! The layout of weights on a CUDA device, read as a warp reads it.

use exlora::backend::cuda::layout::{
    ElementType, PADDING, ScaleRows, WeightLayout, pack_codes, pack_dense, unpack_codes, unpack_dense,
};
use exlora::quant::{QuantGroup, QuantizedWeight, StoredWeight};
use exlora::tensor::DType;
use half::{bf16, f16};
use support::harness::Tensor;
use support::random_weights::RandomCodes;
use support::{Rng, harness};

const WIDTHS: [u8; 6] = [2, 3, 4, 5, 6, 8];

/// Groups of one width and size, the last one perhaps smaller.
fn groups(bits: u8, inputs: usize, size: usize) -> Vec<QuantGroup> {
    (0..inputs).step_by(size).map(|first| QuantGroup { bits, inputs: size.min(inputs - first) }).collect()
}

/// Every shape of groups that the layout distinguishes.
fn all_groups(bits: u8) -> Vec<Vec<QuantGroup>> {
    let odd = [7, 40, 1, 64, 33, 20].map(|inputs| QuantGroup { bits, inputs }).to_vec();
    let mixed = [2u8, 8, 3, 8, 5, 4, 6].map(|bits| QuantGroup { bits, inputs: 32 }).to_vec();
    let sizes = [32, 64, 96, 128, 160].map(|size| groups(bits, 320, size));
    sizes.into_iter().chain([groups(bits, 160, 64), groups(bits, 100, 100), groups(bits, 77, 32), odd, mixed]).collect()
}

/// The rows of a weight on a device: element `[output][input of the model]`.
fn unpacked(layout: &WeightLayout, weight: &dyn QuantizedWeight) -> Vec<f32> {
    let scales = ScaleRows::of(layout, weight).expect("the scales fit");
    let first = pack_codes(layout, weight, 0..1);
    let rest = pack_codes(layout, weight, 1..layout.strips());
    let mut rows = unpack_codes(layout, &scales, 0, &first);
    rows.extend(unpack_codes(layout, &scales, 1, &rest));
    rows
}

#[test]
fn codes_of_every_width_and_group_size_come_back() {
    let mut rng = Rng(1);
    for bits in WIDTHS {
        for (case, groups) in all_groups(bits).into_iter().enumerate() {
            for (half, shuffled) in [(true, false), (false, true)] {
                let weight = RandomCodes::new(&mut rng, 37, groups.clone(), half, shuffled);
                let layout = WeightLayout::quantized(&weight).unwrap();
                let found = unpacked(&layout, &weight);
                let expected = StoredWeight::Quantized(Box::new(weight)).dequantize(0..37);
                assert_eq!(harness::bits(&found), harness::bits(&expected), "{bits} bits, case {case}");
            }
        }
    }
}

#[test]
fn floats_are_rounded_to_the_element_type_once() {
    let mut rng = Rng(2);
    for (outputs, inputs) in [(16, 64), (37, 100), (1, 1), (48, 33)] {
        let values = rng.normals(outputs * inputs, 1.0);
        let weight = Tensor::new(DType::F32, &[outputs, inputs], &values);
        let layout = WeightLayout::dense(outputs, inputs);
        for element in [ElementType::F16, ElementType::Bf16] {
            let rounded = |&value: &f32| match element {
                ElementType::F16 => f16::from_f32(value).to_f32(),
                ElementType::Bf16 => bf16::from_f32(value).to_f32(),
            };
            let words = pack_dense(&layout, weight.view(), element, 0..layout.strips());
            let expected: Vec<f32> = values.iter().map(rounded).collect();
            assert_eq!(unpack_dense(&layout, element, 0, &words), expected);
        }
    }
}

/// The A operand of mma.m16n8k16 as a warp's lanes hold it, from the tables of the PTX ISA: row and column of the two halves
/// of a register.
fn fragment(lane: usize, register: usize) -> [(usize, usize); 2] {
    let (group, thread) = (lane / 4, lane % 4);
    let row = group + 8 * (register % 2);
    let column = 2 * thread + 8 * (register / 2);
    [(row, column), (row, column + 1)]
}

/// The pair of codes that a lane extracts for a register of a tile, from the words of its strip's unit.
fn extract(unit: &[u32], bits: usize, lane: usize, tile: usize, register: usize) -> u32 {
    let plane4 = |words: &[u32]| words[lane * 4 + tile] >> (4 * register) & 0x000f_000f;
    let plane2 = |words: &[u32]| words[lane * 2 + tile / 2] >> (8 * (tile % 2) + 2 * register) & 0x0003_0003;
    let plane1 = |words: &[u32]| words[lane] >> (4 * tile + register) & 0x0001_0001;
    match bits {
        2 => plane2(unit),
        3 => plane2(unit) | plane1(&unit[64..]) << 2,
        4 => plane4(unit),
        5 => plane4(unit) | plane1(&unit[128..]) << 4,
        6 => plane4(unit) | plane2(&unit[128..]) << 4,
        _ => unit[tile / 2 * 128 + lane * 4 + tile % 2 * 2 + register / 2] >> (8 * (register % 2)) & 0x00ff_00ff,
    }
}

#[test]
fn a_lane_finds_its_fragments_with_one_mask_and_one_subtraction() {
    let mut rng = Rng(3);
    for bits in WIDTHS {
        let weight = RandomCodes::new(&mut rng, 16, groups(bits, 128, 128), true, false);
        let layout = WeightLayout::quantized(&weight).unwrap();
        let words = pack_codes(&layout, &weight, 0..1);
        let mut codes = vec![0; 128 * 16];
        weight.read_codes(0..128, 0..16, &mut codes);
        let unit_words = usize::from(bits) * 32;
        assert_eq!(words.len(), 2 * unit_words);
        for (unit, words) in words.chunks_exact(unit_words).enumerate() {
            for (lane, tile, register) in (0..512).map(|i| (i / 16, i / 4 % 4, i % 4)) {
                let pair = extract(words, usize::from(bits), lane, tile, register);
                for (half, (row, column)) in [pair & 0xffff, pair >> 16].into_iter().zip(fragment(lane, register)) {
                    // An exponent of 2^10 makes an f16 of a code, one of 2^7 a bf16 of codes below 128.
                    let middle = f32::from(1u16 << (bits - 1));
                    let value = f16::from_bits(0x6400 | half as u16).to_f32() - 1024.0 - middle;
                    let expected = f32::from(codes[(unit * 64 + tile * 16 + column) * 16 + row]) - middle;
                    assert_eq!(value, expected, "{bits} bits, lane {lane}, tile {tile}, register {register}");
                    if bits < 8 {
                        assert_eq!(bf16::from_bits(0x4300 | half as u16).to_f32() - 128.0 - middle, expected);
                    }
                }
            }
        }
    }
}

#[test]
fn only_weights_with_an_order_of_their_own_store_one() {
    let mut rng = Rng(4);
    let order = |rng: &mut Rng, groups, shuffled| {
        WeightLayout::quantized(&RandomCodes::new(rng, 16, groups, true, shuffled)).unwrap().order
    };
    assert_eq!(order(&mut rng, groups(4, 160, 64), false), None, "padding at the end");
    let padded = order(&mut rng, groups(4, 160, 40), false).unwrap();
    assert_eq!((padded[39], padded[40], padded[63], padded[64]), (39, PADDING, PADDING, 40), "padding within");
    assert!(order(&mut rng, groups(4, 160, 32), true).is_some(), "act-order");
}

#[test]
fn zeros_in_the_middle_of_the_codes_are_not_stored() {
    let layout = |weight: &dyn QuantizedWeight| {
        let layout = WeightLayout::quantized(weight).unwrap();
        ScaleRows::of(&layout, weight).unwrap()
    };
    let asymmetric = RandomCodes::new(&mut Rng(5), 32, groups(4, 64, 32), true, false);
    assert!(layout(&asymmetric).zeros.is_some());
    assert!(layout(&asymmetric.symmetric()).zeros.is_none());
}
