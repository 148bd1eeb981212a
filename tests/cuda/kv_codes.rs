//! Quantized KV caches: codes and scales bit for bit as they are defined, attention over them against the reference backend.
#![allow(clippy::single_range_in_vec_init, reason = "a sequence is a range of positions, and some tests have one")]

use ::support::Rng;
use exlora::backend::cuda::layout::ElementType;
use exlora::backend::cuda::ops::attention::SPLIT_TOKENS;
use exlora::backend::kv_quant::{group_width, quantize, rotate_to_store};
use exlora::backend::{KvDType, StepRows};
use half::f16;

use crate::attention::{
    Layer, OnDevice, Oracle, SHORT_STEPS, assert_attends_as_the_reference, assert_overflows_as_the_reference,
    assert_same_bits_in_any_grid_batch_and_chunk, long_layer,
};
use crate::emulated;

const QUANTIZED: [KvDType; 3] = [KvDType::Q8, KvDType::Q6, KvDType::Q4];

/// The code of each channel, and its scale.
type Codes = Vec<(u8, f16)>;

/// Codes of that many bits of a head, as they are defined.
fn defined(bits: u32, head: &[f32]) -> Codes {
    let width = group_width(head.len()).expect("whole groups");
    let mut rotated = head.to_vec();
    rotate_to_store(&mut rotated, width);
    let of_group = |group: &[f32]| {
        let mut codes = vec![0; width];
        let scale = quantize(group, bits, &mut codes);
        codes.into_iter().map(move |code| (code, scale))
    };
    rotated.chunks(width).flat_map(of_group).collect()
}

/// The keys (0) or values (1) of a head at a position of a page.
fn stored(on_device: &OnDevice, layer: &Layer, part: usize, [page, head, slot]: [usize; 3]) -> Codes {
    let (layout, bytes) = (&on_device.layout, on_device.layer_bytes());
    let bits = layer.kv.code_bits().expect("codes")[part];
    let places = |channel| match part {
        0 => (layout.key_bit(page, head, slot, channel), layout.key_scale_byte(page, head, slot, channel)),
        _ => (layout.value_bit(page, head, slot, channel), layout.value_scale_byte(page, head, slot, channel)),
    };
    (0..layer.head_dim)
        .map(|channel| {
            let (bit, scale) = places(channel);
            let code = u32::from(bytes[bit / 8]) >> (bit % 8) & ((1 << bits) - 1);
            (code as u8, f16::from_le_bytes([bytes[scale], bytes[scale + 1]]))
        })
        .collect()
}

/// q, k, v of sizes from far below the smallest scale to the largest that f16 holds, and of zeros.
fn inputs(layer: &Layer, rows: &StepRows) -> Vec<f32> {
    let mut qkv = layer.inputs(rows);
    for (row, values) in qkv.chunks_exact_mut(layer.width()).enumerate() {
        let factor = if row == 3 { 0.0 } else { 2f32.powi(4 * row as i32 - 30) };
        values.iter_mut().for_each(|value| *value *= factor);
    }
    qkv
}

fn assert_codes_are_those_of_the_definition(layer: &Layer) {
    let rows = layer.rows(&[0..7, 0..3]);
    let qkv = inputs(layer, &rows);
    let on_device = OnDevice::new(layer);
    on_device.attend(&rows, &qkv, &on_device.plan(&rows));
    // What a cache of f32 stores is what is quantized here.
    let unquantized = OnDevice::new(&Layer { kv: KvDType::F32, ..layer.clone() });
    unquantized.attend(&rows, &qkv, &unquantized.plan(&rows));
    let (floats, layout) = (unquantized.layer_elements(), &unquantized.layout);
    let bits = layer.kv.code_bits().expect("codes");
    for (&position, &sequence) in rows.positions.iter().zip(&rows.sequences) {
        let (position, table) = (position as usize, &rows.block_tables[sequence as usize]);
        let (page, slot) = (table[position / layer.page_tokens] as usize, position % layer.page_tokens);
        for head in 0..layer.kv_heads {
            let key = |channel| floats[layout.key_bit(page, head, slot, channel) / 32];
            let value = |channel| floats[layout.value_bit(page, head, slot, channel) / 32];
            let heads: [Vec<f32>; 2] =
                [(0..layer.head_dim).map(key).collect(), (0..layer.head_dim).map(value).collect()];
            for part in 0..2 {
                let what = format!("{:?} of {}, part {part}, position {position}", layer.kv, layer.head_dim);
                let found = stored(&on_device, layer, part, [page, head, slot]);
                assert_eq!(found, defined(bits[part], &heads[part]), "{what}");
            }
        }
    }
}

#[test]
fn codes_and_scales_are_those_of_the_definition() {
    for kv in QUANTIZED {
        for (head_dim, page_tokens) in [(16, 8), (32, 5), (48, 1), (64, 8), (80, 3), (256, 8)] {
            let rope_pairs = head_dim / 2 - head_dim % 32 / 4;
            assert_codes_are_those_of_the_definition(&Layer {
                head_dim,
                rope_pairs,
                page_tokens,
                has_norms: head_dim % 32 == 0,
                kv,
                ..Layer::default()
            });
        }
    }
}

#[test]
fn a_group_that_overflows_on_the_way_or_is_not_a_number_has_no_scale() {
    for kv in QUANTIZED {
        let layer = Layer { heads: 1, kv_heads: 1, head_dim: 64, rope_pairs: 0, kv, ..Layer::default() };
        let rows = layer.rows(&[0..5]);
        let mut qkv = layer.inputs(&rows);
        let mut set = |row: usize, channel: usize, value: f32| {
            let width = layer.width();
            [1, 2].into_iter().for_each(|part| qkv[row * width + part * 64 + channel] = value);
        };
        // Infinite, or not a number, only in half of a group's sums.
        [0, 8, 16, 24].into_iter().for_each(|channel| set(1, 32 + channel, 3e38));
        set(2, 40, f32::NAN);
        // An overflow beside what was not finite before is none.
        set(3, 0, 3e38);
        set(3, 33, f32::INFINITY);
        let on_device = OnDevice::new(&layer);
        let got = on_device.attend(&rows, &qkv, &on_device.plan(&rows));
        let (_, expected) = Oracle::new(&layer).attend(&rows, &qkv);
        assert_eq!((got.kv_overflow_rows, expected), (vec![1], vec![1]));
        let pages = layer.block_table(0, 5);
        for part in 0..2 {
            let is_nan = |row: usize, channel: usize| {
                let codes = stored(&on_device, &layer, part, [pages[0] as usize, 0, row]);
                codes[channel].1.is_nan()
            };
            let found: Vec<[bool; 2]> = (0..5).map(|row| [is_nan(row, 0), is_nan(row, 63)]).collect();
            assert_eq!(found, [[false, false], [false, true], [false, true], [true, true], [false, false]]);
        }
    }
}

#[test]
fn heads_of_any_width_and_group_attend_as_the_reference() {
    for (index, head_dim) in [16, 32, 48, 64, 80, 128, 144, 256].into_iter().enumerate() {
        let kv = QUANTIZED[index % 3];
        let layer = Layer { head_dim, rope_pairs: head_dim / 2, kv, ..Layer::default() };
        assert_attends_as_the_reference(&layer, SHORT_STEPS);
    }
}

#[test]
fn grouped_heads_norms_pages_windows_and_element_types_are_those_of_the_reference() {
    let narrow = Layer { head_dim: 48, rope_pairs: 8, ..Layer::default() };
    let layers = [
        Layer { heads: 1, kv_heads: 1, kv: KvDType::Q4, ..Layer::default() },
        Layer { heads: 9, kv_heads: 1, kv: KvDType::Q8, ..narrow.clone() },
        Layer { heads: 5, kv_heads: 1, kv: KvDType::Q6, ..Layer::default() },
        Layer { has_norms: true, kv: KvDType::Q4, ..Layer::default() },
        Layer { page_tokens: 1, pages: 32, kv: KvDType::Q6, ..narrow.clone() },
        Layer { page_tokens: 5, kv: KvDType::Q4, ..narrow },
        Layer { element: ElementType::Bf16, kv: KvDType::Q8, ..Layer::default() },
        Layer { window: Some(1), kv: KvDType::Q8, ..Layer::default() },
        Layer { window: Some(4), kv: KvDType::Q4, ..Layer::default() },
    ];
    for layer in &layers {
        assert_attends_as_the_reference(layer, SHORT_STEPS);
    }
}

#[test]
fn splits_of_a_quantized_cache_are_added_as_the_reference_adds_positions() {
    let steps = [[0..SPLIT_TOKENS + 1, 0..40], [SPLIT_TOKENS + 1..SPLIT_TOKENS + 4, 40..41]];
    for (kv, window) in [(KvDType::Q8, None), (KvDType::Q4, Some(SPLIT_TOKENS + 2))] {
        assert_attends_as_the_reference(&Layer { window, kv, ..long_layer() }, &steps);
    }
}

#[test]
fn a_row_of_a_quantized_cache_has_the_same_bits_in_any_grid_batch_and_chunk() {
    for kv in QUANTIZED {
        assert_same_bits_in_any_grid_batch_and_chunk(&Layer { kv, ..long_layer() });
    }
}

#[test]
fn keys_and_values_beyond_a_quantized_cache_make_their_group_nan_and_nothing_else() {
    for kv in QUANTIZED {
        let layer = Layer { heads: 2, kv_heads: 2, head_dim: 64, rope_pairs: 32, kv, ..Layer::default() };
        assert_overflows_as_the_reference(&layer, [1e9, -1e9]);
    }
}

#[test]
fn a_row_reads_as_many_bytes_as_the_cache_holds_for_it() {
    // A row's queries, key and value, its tables, frequencies: the same for every type.
    const OTHERS: usize = 6 << 10;
    let last = SPLIT_TOKENS - 1;
    for (kv, head_dim) in
        [(KvDType::F16, 128), (KvDType::Q8, 128), (KvDType::Q6, 128), (KvDType::Q4, 128), (KvDType::Q4, 80)]
    {
        let (heads, kv_heads, rope_pairs) = (1, 1, head_dim / 2);
        let layer = Layer { heads, kv_heads, head_dim, rope_pairs, page_tokens: 32, kv, ..Layer::default() };
        let on_device = OnDevice::new(&layer);
        let (before, row) = (layer.rows(&[0..last]), layer.rows(&[last..last + 1]));
        on_device.attend(&before, &layer.inputs(&before), &on_device.plan(&before));
        emulated::set("stats", "on");
        let Some(read_before) = emulated::counter("unique_load_bytes") else { return };
        on_device.attend(&row, &layer.inputs(&row), &on_device.plan(&row));
        let read = (emulated::counter("unique_load_bytes").expect("counted") - read_before) as usize;
        let held = SPLIT_TOKENS * kv.head_bytes(head_dim);
        assert!((held..held + OTHERS).contains(&read), "{kv:?} of {head_dim}: {read} bytes of {held}");
    }
}

#[test]
#[ignore = "make test-slow"]
fn every_type_of_cache_attends_as_the_reference_in_random_layers() {
    let mut rng = Rng(11);
    for round in 0..60 {
        let head_dim = 16 * (1 + rng.below(16));
        let kv_heads = 1 + rng.below(3);
        let page_tokens = [1, 3, 8, 16][rng.below(4)];
        let layer = Layer {
            heads: kv_heads * (1 + rng.below(9)),
            kv_heads,
            head_dim,
            rope_pairs: rng.below(head_dim / 2 + 1),
            has_norms: rng.below(2) == 0,
            window: [None, Some(1 + rng.below(20))][rng.below(2)],
            page_tokens,
            pages: 2 * 32_usize.div_ceil(page_tokens),
            kv: QUANTIZED[round % 3],
            element: [ElementType::F16, ElementType::Bf16][rng.below(2)],
            ..Layer::default()
        };
        assert_attends_as_the_reference(&layer, SHORT_STEPS);
        assert_codes_are_those_of_the_definition(&layer);
    }
}
