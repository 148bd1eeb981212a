//! The fast paths against the reference, and against themselves in every batch composition.
//!
//! Agreement is within 1e-5 of a row's largest value (f32 sums of up to a few hundred terms). Batch invariance, that rows are
//! independent, is an equality of bits.

use std::sync::Arc;

use exlora::ErrorCode;
use exlora::adapter::batch::{AdapterBatch, SlotId};
use exlora::backend::cpu::Isa;
use exlora::backend::{
    Activation, AttentionSpec, HeadNorm, HeadNormScope, HeadSpec, KvDType, KvShape, LogitRows, MlpShape, NormKind,
    NormSpec, QueryTemperature, Rope, RopeLayout, StepRows, Write,
};
use exlora::quant::QuantGroup;
use exlora::tensor::DType;
use proptest::prelude::*;
use support::Rng;
use support::deltas::{Change, Low, random_low};
use support::harness::{
    Device, FLOATS, Harness, Member, Mixture, Tensor, Weight, assert_close, bits, fast, isas, oracle, random_member,
    route,
};
use support::random_weights::RandomCodes;

const TOLERANCE: f32 = 1e-5;

/// A group of linears, adapters on it, and rows with their mixtures.
#[derive(Clone)]
struct Case {
    inputs: usize,
    outputs: usize,
    members: Vec<Member>,
    adapters: Vec<(SlotId, Vec<Change>)>,
    x: Vec<f32>,
    y: Vec<f32>,
    mixtures: Vec<Mixture>,
    write: Write,
}

impl Case {
    /// A random case, from one seed.
    fn random(seed: u64, inputs: usize, rows: usize) -> Self {
        let mut rng = Rng(seed);
        let rng = &mut rng;
        let widths: Vec<usize> = (0..1 + rng.below(3)).map(|_| 1 + rng.below(90)).collect();
        let outputs = widths.iter().sum();
        let members = widths.iter().map(|&width| random_member(rng, inputs, width)).collect();
        let slots: Vec<SlotId> = (0..rng.below(4)).map(|i| SlotId(2 * i as u32 + 1)).collect();
        let adapters = slots.iter().map(|&slot| (slot, random_adapter(rng, inputs, &widths))).collect();
        let mixtures = (0..rows).map(|_| random_mixture(rng, &slots)).collect();
        let write = [Write::Replace, Write::ADD, Write::Add { factor: 0.22 }][rng.below(3)];
        let (x, y) = (rng.normals(rows * inputs, 1.0), rng.normals(rows * outputs, 1.0));
        Self { inputs, outputs, members, adapters, x, y, mixtures, write }
    }

    fn rows(&self) -> usize {
        self.mixtures.len()
    }

    /// The rows in another selection and order.
    fn pick(&self, rows: &[usize]) -> Self {
        let select = |values: &[f32], width: usize| {
            rows.iter().flat_map(|&row| values[row * width..(row + 1) * width].to_vec()).collect()
        };
        Self {
            x: select(&self.x, self.inputs),
            y: select(&self.y, self.outputs),
            mixtures: rows.iter().map(|&row| self.mixtures[row].clone()).collect(),
            ..self.clone()
        }
    }

    fn run(&self, device: Device) -> Vec<f32> {
        let mut harness = Harness::open(device);
        let (group, sites) = harness.group(&self.members);
        for (slot, changes) in &self.adapters {
            harness.upload(*slot, &sites, changes).expect("the adapter uploads");
        }
        let x = harness.put(self.inputs, &self.x);
        let y = harness.put(self.outputs, &self.y);
        harness
            .compute()
            .linear(group, x, self.rows(), &route(&self.mixtures), y, self.write)
            .expect("the linear runs");
        harness.get(y, self.outputs, self.rows())
    }
}

/// Factors at some of the members, of ranks of their own.
fn random_adapter(rng: &mut Rng, inputs: usize, widths: &[usize]) -> Vec<Change> {
    let dtype = FLOATS[rng.below(3)];
    let mut all = Vec::new();
    for (member, &outputs) in widths.iter().enumerate() {
        if rng.below(4) > 0 {
            let rank = 1 + rng.below(40);
            all.push(Change::low(member, random_low(rng, dtype, rank, outputs, inputs)));
        }
    }
    all
}

fn random_mixture(rng: &mut Rng, slots: &[SlotId]) -> Mixture {
    if slots.is_empty() {
        return Vec::new();
    }
    (0..rng.below(4)).map(|_| (slots[rng.below(slots.len())], rng.below(9) as f32 * 0.25 - 0.5)).collect()
}

proptest! {
    #![proptest_config(support::cases(64))]

    #[test]
    fn every_instruction_set_agrees_with_the_oracle(seed: u64, inputs in 32usize..300, rows in 1usize..40) {
        let case = Case::random(seed, inputs, rows);
        let expected = case.run(oracle());
        for isa in isas() {
            let found = case.run(fast(isa, 2));
            assert_close(&isa.to_string(), case.outputs, &found, &expected, TOLERANCE);
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_in_a_batch(seed: u64, inputs in 32usize..300, rows in 2usize..40) {
        let case = Case::random(seed, inputs, rows);
        let mut order: Vec<usize> = (0..rows).collect();
        Rng(seed ^ 1).shuffle(&mut order);
        for isa in isas() {
            let together = case.run(fast(isa, 2));
            let shuffled = case.pick(&order).run(fast(isa, 2));
            for (place, &row) in order.iter().enumerate() {
                let expected = bits(&together[row * case.outputs..(row + 1) * case.outputs]);
                prop_assert_eq!(&bits(&shuffled[place * case.outputs..(place + 1) * case.outputs]), &expected);
                if place < 4 {
                    prop_assert_eq!(bits(&case.pick(&[row]).run(fast(isa, 1))), expected);
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_does_not_change_bits(seed: u64, inputs in 32usize..300, rows in 1usize..40) {
        let case = Case::random(seed, inputs, rows);
        for isa in isas() {
            prop_assert_eq!(bits(&case.run(fast(isa, 1))), bits(&case.run(fast(isa, 3))));
        }
    }

    #[test]
    fn avx2_and_avx512_give_the_same_bits(seed: u64, inputs in 32usize..300, rows in 1usize..20) {
        let case = Case::random(seed, inputs, rows);
        // With VNNI wide codes are multiplied in integers, without it in floats.
        for pair in [[Isa::Avx2, Isa::Avx512], [Isa::AvxVnni, Isa::Avx512Vnni]] {
            if pair.iter().all(|isa| isa.is_available()) {
                prop_assert_eq!(bits(&case.run(fast(pair[0], 2))), bits(&case.run(fast(pair[1], 2))));
            }
        }
    }

    #[test]
    fn a_base_row_has_the_same_bits_with_resident_adapters_and_without(seed: u64, inputs in 32usize..300, rows in 1usize..20) {
        let mut case = Case::random(seed, inputs, rows);
        let row = seed as usize % rows;
        case.mixtures[row].clear();
        let bare = Case { adapters: Vec::new(), mixtures: vec![Vec::new(); rows], ..case.clone() };
        let width = case.outputs;
        for isa in isas() {
            let among = case.run(fast(isa, 2));
            let alone = bare.run(fast(isa, 2));
            prop_assert_eq!(
                bits(&among[row * width..(row + 1) * width]), bits(&alone[row * width..(row + 1) * width])
            );
        }
    }

    #[test]
    fn a_head_over_picked_rows_equals_the_linear_of_these_rows(seed: u64, inputs in 32usize..300, rows in 1usize..20) {
        let mut case = Case::random(seed, inputs, rows);
        case.write = Write::Replace;
        let mut rng = Rng(seed ^ 2);
        let picked: Vec<usize> = (0..1 + rng.below(rows)).map(|_| rng.below(rows)).collect();
        for isa in isas() {
            let mut harness = Harness::open(fast(isa, 2));
            let (group, sites) = harness.group(&case.members);
            for (slot, changes) in &case.adapters {
                harness.upload(*slot, &sites, changes).expect("the adapter uploads");
            }
            let x = harness.put(case.inputs, &case.x);
            let chosen = case.pick(&picked);
            let ids: Vec<u32> = picked.iter().map(|&row| row as u32).collect();
            let mut logits = vec![f32::NAN; picked.len() * case.outputs];
            let batch = route(&chosen.mixtures);
            let rows = LogitRows::all(&ids, &batch);
            harness.compute().head(&HeadSpec::of(group), x, rows, &mut logits, case.outputs).expect("the head runs");
            prop_assert_eq!(bits(&logits), bits(&chosen.run(fast(isa, 1))));
        }
    }

    #[test]
    fn norm_gate_and_embedding_agree_with_the_oracle(seed: u64, width in 1usize..300, rows in 1usize..20) {
        let mut rng = Rng(seed);
        let (x, weight) = (rng.normals(rows * width, 2.0), rng.normals(width, 1.0));
        let gate_up = rng.normals(rows * 2 * width, 3.0);
        let table = Tensor::new(FLOATS[rng.below(3)], &[50, width], &rng.normals(50 * width, 1.0));
        let tokens: Vec<u32> = (0..rows).map(|_| rng.below(50) as u32).collect();
        let run = |device: Device| {
            let mut harness = Harness::open(device);
            let ((weight, _), (table, _)) = (harness.norm_weight(&weight), harness.table(&table));
            let (x, gate_up) = (harness.put(width, &x), harness.put(2 * width, &gate_up));
            let out = [(); 3].map(|()| harness.buffer(width, rows));
            let base = AdapterBatch::default();
            harness.compute().norm(&NormSpec::rms(weight, 1e-5), x, rows, &base, out[0], Write::Replace).expect("the norm runs");
            harness.compute().activate(Activation::Silu, MlpShape::Gated, gate_up, rows, out[1]).expect("the gate runs");
            harness.compute().embed(table, &tokens, 1.25, &base, out[2]).expect("tokens embed");
            out.map(|out| harness.get(out, width, rows))
        };
        let expected = run(oracle());
        for isa in isas() {
            let found = run(fast(isa, 2));
            assert_close("norm", width, &found[0], &expected[0], 1e-6);
            assert_close("gate", width, &found[1], &expected[1], 1e-6);
            prop_assert_eq!(bits(&found[2]), bits(&expected[2]));
        }
    }
}

/// Norms of queries and keys, and their weights.
#[derive(Clone)]
struct HeadNorms {
    kind: NormKind,
    scope: HeadNormScope,
    q: Tensor,
    k: Tensor,
    /// Of queries alone.
    bias: Option<Tensor>,
}

impl HeadNorms {
    fn random(rng: &mut Rng, heads: usize, kv_heads: usize, dim: usize) -> Self {
        let scope = [HeadNormScope::Head, HeadNormScope::HeadOwn, HeadNormScope::All][rng.below(3)];
        let mut tensor = |heads: usize| {
            let shape = scope.weight_shape(heads, dim);
            Tensor::new(DType::F32, &shape, &rng.normals(shape.iter().product(), 1.0))
        };
        let (q, k, bias) = (tensor(heads), tensor(kv_heads), tensor(heads));
        let kind = [NormKind::Rms, NormKind::Layer][rng.below(2)];
        Self { kind, scope, q, k, bias: (rng.below(2) == 0).then_some(bias) }
    }
}

/// Sequences of random length under one attention.
#[derive(Clone)]
struct Attention {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    window: Option<usize>,
    score_cap: Option<f32>,
    query_temperature: Option<QueryTemperature>,
    norms: Option<HeadNorms>,
    rope: Option<Arc<Rope>>,
    dtype: KvDType,
    /// q,k,v of each position of each sequence.
    sequences: Vec<Vec<f32>>,
}

impl Attention {
    fn random(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let rng = &mut rng;
        let kv_heads = 1 + rng.below(3);
        let heads = kv_heads * [1, 2, 3, 4, 5, 7, 8, 9][rng.below(8)];
        let dtype = KvDType::ALL[rng.below(KvDType::ALL.len())];
        let dim = match dtype.code_bits() {
            None => [8, 20, 64, 80][rng.below(4)],
            Some(_) => [16, 64, 80, 96, 128, 256][rng.below(6)],
        };
        let pairs = if rng.below(3) == 0 { dim / 4 } else { dim / 2 };
        // A key's last bit in f32 decides at times to which f16 it is rounded, and one unit of f16 can move a score by
        // more than any tolerance worth having; a code is decided alike. So keys that are rounded are those of both backends to the bit:
        // without norm, and turned by an angle of zero. What norms and angles do is seen where keys are stored as f32.
        let exact_keys = dtype != KvDType::F32;
        let frequency = |i| if exact_keys { 0.0 } else { 10000f32.powf(-(i as f32) / pairs as f32) };
        let layout = [RopeLayout::Halves, RopeLayout::Pairs][rng.below(2)];
        let rope = Rope { inv_freq: (0..pairs).map(frequency).collect(), factor: [1.0, 1.2][rng.below(2)], layout };
        let rope = (rng.below(5) > 0).then(|| Arc::new(rope));
        let width = (heads + 2 * kv_heads) * dim;
        Self {
            heads,
            kv_heads,
            dim,
            window: [None, Some(1), Some(7), Some(40)][rng.below(4)],
            score_cap: [None, None, Some(1.5), Some(20.0)][rng.below(4)],
            query_temperature: (rng.below(3) == 0).then_some(QueryTemperature { beta: 0.3, positions: 8.0 }),
            norms: (!exact_keys && rng.below(3) > 0).then(|| HeadNorms::random(rng, heads, kv_heads, dim)),
            rope,
            dtype,
            sequences: (0..1 + rng.below(3))
                .map(|_| {
                    let tokens = 1 + rng.below(70);
                    rng.normals(tokens * width, 1.0)
                })
                .collect(),
        }
    }

    /// As [`Attention::random`], with a sequence of several segments and perhaps a second one.
    fn long(seed: u64) -> Self {
        let mut rng = Rng(seed ^ 3);
        let case = Self::random(seed);
        let window = [None, None, Some(40), Some(256), Some(300)][rng.below(5)];
        let lengths = [200 + rng.below(600), 1 + rng.below(300)];
        let sequences = lengths[..1 + rng.below(2)].iter().map(|tokens| rng.normals(tokens * case.width(), 1.0));
        Self { sequences: sequences.collect(), window, ..case }
    }

    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.dim
    }

    /// Outputs of each sequence. Each step takes at most `chunk` positions of each sequence that has some left.
    fn run(&self, device: Device, chunk: usize, page_tokens: usize) -> Vec<Vec<f32>> {
        self.run_after(device, chunk, page_tokens, None)
    }

    /// As [`Attention::run`], on pages whose positions had keys and values of `stale` before.
    fn run_after(&self, device: Device, chunk: usize, page_tokens: usize, stale: Option<f32>) -> Vec<Vec<f32>> {
        let mut harness = Harness::open(device);
        let (width, out_width) = (self.width(), self.heads * self.dim);
        let norms = self.norms.as_ref().map(|HeadNorms { kind, scope, q, k, bias }| {
            [(q, bias.as_ref()), (k, None)].map(|(weight, bias)| {
                let (id, _) = harness.norm_with(weight, bias, 0.0);
                HeadNorm { norm: NormSpec { id, kind: *kind, eps: 1e-6 }, scope: *scope }
            })
        });
        let spec = AttentionSpec {
            layer: 1,
            score_cap: self.score_cap,
            window: self.window,
            q_norm: norms.map(|[q, _]| q),
            k_norm: norms.map(|[_, k]| k),
            rope: self.rope.clone(),
            query_temperature: self.query_temperature,
            ..AttentionSpec::new(self.heads, self.kv_heads, self.dim)
        };
        // Pages of the sequences are interleaved and run backwards, so that no order is taken for granted.
        let tokens = |sequence: &Vec<f32>| sequence.len() / width;
        let each = self.sequences.iter().map(tokens).max().unwrap_or(0).div_ceil(page_tokens);
        let count = self.sequences.len();
        let (layers, pages) = (2, each * count);
        let (kv_heads, head_dim, dtype) = (self.kv_heads, self.dim, self.dtype);
        let kv = harness.compute().create_kv(KvShape { layers, pages, page_tokens, kv_heads, head_dim, dtype });
        let kv = kv.expect("the cache fits");
        let tables: Vec<Vec<u32>> =
            (0..count).map(|s| (0..each).map(|page| (pages - 1 - page * count - s) as u32).collect()).collect();

        if let Some(value) = stale {
            let mut rows = StepRows::default();
            tables.iter().for_each(|table| rows.push(0..each * page_tokens, table.iter().copied()));
            let x = harness.put(width, &vec![value; rows.len() * width]);
            let y = harness.buffer(out_width, rows.len());
            harness.compute().attend(&spec, kv, &rows, &AdapterBatch::default(), x, y).expect("attention runs");
        }
        let mut out = vec![Vec::new(); count];
        let mut done = vec![0; count];
        loop {
            let mut rows = StepRows { block_tables: tables.clone(), ..StepRows::default() };
            let mut qkv = Vec::new();
            for (s, sequence) in self.sequences.iter().enumerate() {
                let end = tokens(sequence).min(done[s] + chunk);
                rows.positions.extend(done[s] as u32..end as u32);
                rows.sequences.extend((done[s]..end).map(|_| s as u32));
                qkv.extend_from_slice(&sequence[done[s] * width..end * width]);
                done[s] = end;
            }
            if rows.is_empty() {
                return out;
            }
            let (x, y) = (harness.put(width, &qkv), harness.buffer(out_width, rows.len()));
            harness.compute().attend(&spec, kv, &rows, &AdapterBatch::default(), x, y).expect("attention runs");
            let result = harness.get(y, out_width, rows.len());
            for (row, &s) in result.chunks(out_width).zip(&rows.sequences) {
                out[s as usize].extend_from_slice(row);
            }
        }
    }
}

proptest! {
    #![proptest_config(support::cases(48))]

    #[test]
    fn attention_agrees_with_the_oracle(seed: u64, chunk in 1usize..80, page_tokens in 1usize..40) {
        let case = Attention::random(seed);
        let expected = case.run(oracle(), chunk, page_tokens);
        for isa in isas() {
            let found = case.run(fast(isa, 2), chunk, page_tokens);
            for (found, expected) in found.iter().zip(&expected) {
                assert_close(&isa.to_string(), case.heads * case.dim, found, expected, TOLERANCE);
            }
        }
    }

    #[test]
    fn attention_agrees_across_instruction_sets_with_fused_sums(seed: u64) {
        let case = Attention::random(seed);
        let fused: Vec<Isa> = isas().filter(|isa| *isa != Isa::Scalar).collect();
        for pair in fused.windows(2) {
            prop_assert_eq!(case.run(fast(pair[0], 2), 30, 16), case.run(fast(pair[1], 1), 30, 16));
        }
    }

    #[test]
    fn chunks_pages_other_rows_and_threads_do_not_change_bits(seed: u64, chunk in 1usize..20, page_tokens in 1usize..40) {
        let case = Attention::random(seed);
        for isa in isas() {
            let whole = case.run(fast(isa, 3), 1000, 16);
            prop_assert_eq!(&case.run(fast(isa, 1), chunk, page_tokens), &whole);
            let alone = Attention { sequences: vec![case.sequences[0].clone()], ..case.clone() };
            prop_assert_eq!(&alone.run(fast(isa, 2), chunk, page_tokens)[0], &whole[0]);
        }
    }

    #[test]
    fn what_pages_held_before_does_not_matter(seed: u64, chunk in 1usize..20, page_tokens in 1usize..40) {
        let case = Attention::random(seed);
        for isa in isas() {
            let expected = case.run(fast(isa, 2), chunk, page_tokens);
            prop_assert_eq!(&case.run_after(fast(isa, 2), chunk, page_tokens, Some(f32::NAN)), &expected);
        }
    }
}

/// Long cases, with random numbers for what is done with each.
fn long_cases() -> impl Iterator<Item = (Attention, Rng)> {
    (0..u64::from(support::cases(6).cases)).map(|seed| (Attention::long(seed), Rng(seed ^ 0xC0FFEE)))
}

#[test]
fn attention_over_several_segments_agrees_with_the_oracle() {
    for (case, mut rng) in long_cases() {
        let (chunk, page_tokens) = (1 + rng.below(300), 8 + rng.below(32));
        let expected = case.run(oracle(), chunk, page_tokens);
        for isa in isas() {
            let found = case.run(fast(isa, 2), chunk, page_tokens);
            for (found, expected) in found.iter().zip(&expected) {
                assert_close(&isa.to_string(), case.heads * case.dim, found, expected, TOLERANCE);
            }
        }
    }
}

#[test]
fn dividing_segments_among_threads_does_not_change_bits() {
    for (case, mut rng) in long_cases() {
        let (chunk, threads) = (1 + rng.below(40), 2 + rng.below(5));
        for isa in isas() {
            let whole = case.run(fast(isa, 1), 1000, 32);
            assert_eq!(&case.run(fast(isa, threads), chunk, 32), &whole, "{isa}, chunks of {chunk}, {threads} threads");
            assert_eq!(&case.run(fast(isa, threads), 200, 24), &whole, "{isa}, {threads} threads");
        }
    }
}

#[test]
fn a_row_of_nan_does_not_change_other_rows() {
    for isa in isas() {
        let case = Case::random(11, 200, 9);
        let clean = case.run(fast(isa, 2));
        let mut corrupted = case.clone();
        corrupted.x[3 * case.inputs..4 * case.inputs].fill(f32::NAN);
        let found = corrupted.run(fast(isa, 2));
        for row in (0..9).filter(|&row| row != 3) {
            let range = row * case.outputs..(row + 1) * case.outputs;
            assert_eq!(bits(&found[range.clone()]), bits(&clean[range]));
        }
        assert!(found[3 * case.outputs..4 * case.outputs].iter().all(|value| value.is_nan()));
    }
}

#[test]
fn resident_bytes_return_to_what_they_were() {
    for device in [Device::CPU, oracle()] {
        let case = Case::random(5, 256, 1);
        let mut harness = Harness::open(device);
        let (_, sites) = harness.group(&case.members);
        let before = harness.memory();
        assert!(before.weights_bytes > 0 && before.adapters_bytes == 0 && before.kv_bytes == 0);
        let widest = random_low(&mut Rng(1), DType::F32, 64, rows_of(&case.members[0]), 256);
        let bytes = harness.upload(SlotId(9), &sites, &[Change::low(0, widest)]).expect("the adapter uploads");
        assert!(bytes >= 64 * 256 * 4);
        assert_eq!(harness.memory().adapters_bytes, bytes);
        let shape = KvShape { layers: 2, pages: 8, page_tokens: 16, kv_heads: 2, head_dim: 64, dtype: KvDType::F32 };
        let kv = harness.compute().create_kv(shape).unwrap();
        assert!(harness.memory().kv_bytes >= shape.bytes().unwrap());
        harness.compute().drop_kv(kv);
        harness.compute().drop_kv(kv);
        harness.compute().drop_adapter(SlotId(9));
        harness.compute().drop_adapter(SlotId(1000));
        assert_eq!(harness.memory(), before);
    }
}

fn rows_of(member: &Member) -> usize {
    use exlora::quant::QuantizedWeight;
    match &member.weight {
        Weight::Dense(tensor) => tensor.shape[0],
        Weight::Coded(codes) => codes.out_features(),
    }
}

#[test]
fn packed_codes_take_little_more_than_their_bits() {
    for (bits, per_weight) in [(2, 2.25), (3, 3.25), (4, 4.25), (5, 5.25), (6, 6.25), (8, 8.25)] {
        let groups = vec![QuantGroup { bits, inputs: 128 }; 4];
        let weight = Weight::Coded(RandomCodes::new(&mut Rng(3), 256, groups, true, false));
        let mut harness = Harness::open(Device::CPU);
        harness.group(&[Member { weight, bias: None }]);
        assert_eq!(harness.memory().weights_bytes as f64 * 8.0 / (256.0 * 512.0), per_weight);
    }
}

#[test]
fn an_empty_slot_is_an_error_and_never_the_base() {
    for device in [Device::CPU, oracle()] {
        let mut case = Case::random(7, 64, 2);
        case.adapters.clear();
        let mut harness = Harness::open(device);
        let (group, _) = harness.group(&case.members);
        let (x, y) = (harness.put(64, &case.x), harness.put(case.outputs, &case.y));
        let batch = route(&[vec![], vec![(SlotId(0), 1.0)]]);
        let error = harness.compute().linear(group, x, 2, &batch, y, Write::Replace).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Internal);
    }
}

#[test]
fn a_mixture_is_added_in_the_order_of_its_request() {
    // Base 1, deltas of 2^40 and 3: what is added before the 2^40 that come and go is lost, what comes after remains.
    let single = |value: f32| Tensor::new(DType::F32, &[1, 1], &[value]);
    let delta = |value: f32| [Change::low(0, Low::of(&[&[1.0]], &[&[value]], 1.0))];
    let (huge, three) = (SlotId(5), SlotId(2));
    for device in isas().map(|isa| fast(isa, 2)).chain([oracle()]) {
        let mut harness = Harness::open(device);
        let (group, sites) = harness.group(&[Member { weight: Weight::Dense(single(1.0)), bias: None }]);
        harness.upload(huge, &sites, &delta(2f32.powi(40))).expect("the adapter uploads");
        harness.upload(three, &sites, &delta(3.0)).expect("the adapter uploads");
        let (x, y) = (harness.put(1, &[1.0, 1.0]), harness.buffer(1, 2));
        let batch =
            route(&[vec![(huge, 1.0), (huge, -1.0), (three, 1.0)], vec![(three, 1.0), (huge, 1.0), (huge, -1.0)]]);
        harness.compute().linear(group, x, 2, &batch, y, Write::Replace).unwrap();
        assert_eq!(harness.get(y, 1, 2), [3.0, 0.0]);
    }
}

#[test]
fn a_token_outside_the_table_is_an_error() {
    for device in [Device::CPU, oracle()] {
        let mut harness = Harness::open(device);
        let (table, _) = harness.table(&Tensor::new(DType::F16, &[3, 4], &[1.0; 12]));
        let out = harness.buffer(4, 1);
        assert_eq!(
            harness.compute().embed(table, &[3], 1.0, &AdapterBatch::default(), out).unwrap_err().code(),
            ErrorCode::TokenOutOfRange
        );
    }
}

#[test]
fn a_cache_larger_than_memory_is_an_error() {
    let shape =
        |pages| KvShape { layers: 64, pages, page_tokens: 256, kv_heads: 64, head_dim: 128, dtype: KvDType::F32 };
    let mut harness = Harness::open(Device::CPU);
    for pages in [1 << 40, usize::MAX] {
        assert_eq!(harness.compute().create_kv(shape(pages)).unwrap_err().code(), ErrorCode::MemoryExhausted);
    }
}

#[test]
fn pages_outside_the_cache_are_an_error() {
    let case = Attention { window: None, norms: None, ..Attention::random(1) };
    let (kv_heads, head_dim) = (case.kv_heads, case.dim);
    let spec = AttentionSpec { rope: case.rope.clone(), ..AttentionSpec::new(case.heads, kv_heads, head_dim) };
    for device in [Device::CPU, oracle()] {
        let mut harness = Harness::open(device);
        let shape = KvShape { layers: 1, pages: 2, page_tokens: 16, kv_heads, head_dim, dtype: KvDType::F16 };
        let kv = harness.compute().create_kv(shape).unwrap();
        let (x, y) = (harness.put(case.width(), &vec![0.5; case.width()]), harness.buffer(case.heads * case.dim, 1));
        for (position, table) in [(0, vec![2]), (16, vec![0]), (0, vec![])] {
            let rows = StepRows { positions: vec![position], sequences: vec![0], block_tables: vec![table] };
            assert_eq!(
                harness.compute().attend(&spec, kv, &rows, &AdapterBatch::default(), x, y).unwrap_err().code(),
                ErrorCode::Internal
            );
        }
        let rows = StepRows { positions: vec![31], sequences: vec![0], block_tables: vec![vec![1, 0]] };
        harness
            .compute()
            .attend(&spec, kv, &rows, &AdapterBatch::default(), x, y)
            .expect("an error left the cache as it was");
    }
}

#[test]
fn a_backend_describes_its_device() {
    let backend = fast(Isa::Scalar, 3).open().finish().unwrap();
    assert_eq!(backend.description, "cpu (scalar, 3 threads)");
    let backend = oracle().open().finish().unwrap();
    assert_eq!(backend.description, "cpu (reference, 1 thread)");
}
