//! KV caches of any shape, filled, read and copied through the backend traits.

use std::ops::Range;

use exlora::adapter::batch::AdapterBatch;
use exlora::backend::kv_quant::{dequantize, group_width, quantize, rotate_to_read, rotate_to_store};
use exlora::backend::{AttentionSpec, KvDType, KvId, KvPositions, KvShape, StepRows};
use half::f16;

use super::Rng;
use super::harness::{Device, Harness, bits};

const LAYERS: usize = 2;
/// Query heads of a key/value head.
const GROUP_HEADS: usize = 2;

/// What a cache keeps of a head's key (part 0) or value (part 1), by the definition of its type.
pub fn kept(dtype: KvDType, part: usize, head: &[f32]) -> Vec<f32> {
    let Some(bits) = dtype.code_bits().map(|bits| bits[part]) else {
        let rounded = |&x: &f32| if dtype == KvDType::F16 { f16::from_f32(x).to_f32() } else { x };
        return head.iter().map(rounded).collect();
    };
    let (mut rotated, width) = (head.to_vec(), group_width(head.len()).expect("whole groups"));
    rotate_to_store(&mut rotated, width);
    for group in rotated.chunks_exact_mut(width) {
        let mut codes = vec![0; width];
        let scale = quantize(group, bits, &mut codes);
        group.iter_mut().zip(codes).for_each(|(x, code)| *x = dequantize(code, bits, scale));
    }
    rotate_to_read(&mut rotated, width);
    rotated
}

/// Caches of one shape, and a sequence of two whole pages and one position more.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub dtype: KvDType,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub page_tokens: usize,
    pub seed: u64,
}

impl Case {
    fn shape(&self, pages: usize) -> KvShape {
        let Self { dtype, kv_heads, head_dim, page_tokens, .. } = *self;
        KvShape { layers: LAYERS, pages, page_tokens, kv_heads, head_dim, dtype }
    }

    fn spec(&self, layer: usize) -> AttentionSpec {
        AttentionSpec {
            layer,
            heads: GROUP_HEADS * self.kv_heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 0.25,
            window: None,
            q_norm: None,
            k_norm: None,
            score_cap: None,
            query_temperature: None,
            // So keys are stored as they are given.
            rope: None,
        }
    }

    /// Positions of the sequence.
    fn len(&self) -> usize {
        2 * self.page_tokens + 1
    }

    fn width(&self) -> usize {
        (GROUP_HEADS + 2) * self.kv_heads * self.head_dim
    }

    /// q, k, v of a layer at some positions, in one of several versions of the sequence.
    fn inputs(&self, version: u64, layer: usize, positions: Range<usize>) -> Vec<f32> {
        let of = |position: usize| {
            let seed = self.seed.wrapping_mul(31).wrapping_add(version * 100_003 + (1000 * layer + position) as u64);
            Rng(seed).normals(self.width(), 1.0)
        };
        positions.flat_map(of).collect()
    }

    /// The keys and values that the cache keeps of those.
    fn kept(&self, version: u64, layer: usize, positions: Range<usize>) -> [Vec<f32>; 2] {
        let (inputs, kv_width) = (self.inputs(version, layer, positions), self.kv_heads * self.head_dim);
        [0, 1].map(|part| {
            let of_row = |row: &[f32]| {
                let first = (GROUP_HEADS + part) * kv_width;
                row[first..first + kv_width]
                    .chunks(self.head_dim)
                    .flat_map(|head| kept(self.dtype, part, head))
                    .collect()
            };
            inputs.chunks(self.width()).flat_map::<Vec<f32>, _>(of_row).collect()
        })
    }

    /// Computes positions of the sequence that has those pages, and returns what they attend to in each layer.
    fn attend(
        &self,
        harness: &mut Harness,
        kv: KvId,
        pages: &[u32],
        positions: Range<usize>,
        version: u64,
    ) -> Vec<u32> {
        let mut rows = StepRows::default();
        rows.push(positions.clone(), pages.iter().copied());
        let out_width = GROUP_HEADS * self.kv_heads * self.head_dim;
        let mut all = Vec::new();
        for layer in 0..LAYERS {
            let [qkv, out] = [self.width(), out_width].map(|width| harness.buffer(width, rows.len()));
            harness.compute().write_rows(qkv, 0, &self.inputs(version, layer, positions.clone())).expect("rows fit");
            let (spec, base) = (self.spec(layer), AdapterBatch::default());
            harness.compute().attend(&spec, kv, &rows, &base, qkv, out).expect("the rows attend");
            all.extend(bits(&harness.get(out, out_width, rows.len())));
        }
        all
    }

    fn assert_holds(&self, harness: &mut Harness, kv: KvId, pages: &[u32], positions: Range<usize>, version: u64) {
        for layer in 0..LAYERS {
            let found = harness.compute().read_kv(kv, layer, pages, positions.clone()).expect("it is read");
            let [keys, values] = self.kept(version, layer, positions.clone());
            let what = format!("{self:?}, layer {layer}, positions {positions:?}");
            assert!(bits(&found.keys) == bits(&keys), "{what}: keys\n{:?}\nfor\n{keys:?}", found.keys);
            assert!(bits(&found.values) == bits(&values), "{what}: values\n{:?}\nfor\n{values:?}", found.values);
        }
    }

    /// What is read is what was given, at every place of a page and in every page, and what is copied is the same: it is read
    /// and attended to alike, and neither changes with the other.
    pub fn check(&self, device: Device) {
        let mut harness = Harness::open(device);
        let [kv, other] = [8, 5].map(|pages| harness.compute().create_kv(self.shape(pages)).expect("a small cache"));
        let (pages, within, beyond) = ([6, 0, 3], [1, 7, 2], [4, 0, 2]);
        let (len, page) = (self.len(), self.page_tokens);
        self.attend(&mut harness, kv, &pages, 0..page, 0);
        self.attend(&mut harness, kv, &pages, page..len, 0);
        for positions in [0..len, 0..1, page - 1..page + 1, len - 1..len, page..len, 2..2] {
            self.assert_holds(&mut harness, kv, &pages, positions, 0);
        }

        harness.compute().copy_kv_pages(kv, &pages, kv, &within).expect("they fit");
        harness.compute().copy_kv_pages(kv, &pages, other, &beyond).expect("they fit");
        self.assert_holds(&mut harness, kv, &within, 0..len, 0);
        self.assert_holds(&mut harness, other, &beyond, 0..len, 0);
        // Without its last position: the next row is computed beside what is there.
        let copies = [(kv, &pages), (kv, &within), (other, &beyond)];
        let next = copies.map(|(kv, pages)| self.attend(&mut harness, kv, pages, len - 1..len, 1));
        assert!(next[1] == next[0] && next[2] == next[0], "{self:?}: copies are attended to alike");

        for (changed, (cache, pages)) in copies.into_iter().enumerate() {
            self.attend(&mut harness, cache, pages, 0..len, 2 + changed as u64);
        }
        for (changed, (cache, pages)) in copies.into_iter().enumerate() {
            self.assert_holds(&mut harness, cache, pages, 0..len, 2 + changed as u64);
        }
        self.check_positions(&mut harness, [(kv, &pages), (kv, &within), (other, &beyond)]);
    }

    /// Positions are copied bit for bit to others of any of the sequences, which overlap in the same one, and nothing else changes;
    /// or with other keys, which are kept as those that attention stores.
    fn check_positions(&self, harness: &mut Harness, sequences: [(KvId, &[u32; 3]); 3]) {
        let (len, page) = (self.len(), self.page_tokens);
        let mut rng = Rng(self.seed ^ 0x5eed);
        let read = |harness: &mut Harness, layer: usize| {
            sequences.map(|(kv, pages)| harness.compute().read_kv(kv, layer, pages, 0..len).expect("it is read"))
        };
        let width = self.kv_heads * self.head_dim;
        // To the right and the left in one sequence, within the same cache, and between caches.
        for (from, to, first, place) in
            [(0, 0, 0, 1), (0, 0, page - 1, page - 2), (0, 1, 1, page), (1, 2, page, 0), (2, 0, 0, 0)]
        {
            let count = 1 + rng.below((len - first).min(len - place));
            for (layer, has_keys) in [(0, false), (1, true)] {
                let before = [0, 1].map(|layer| read(harness, layer));
                let keys = rng.normals(count * width, 1.0);
                let positions = |sequence: usize, first: usize| {
                    let (kv, block_table) = (sequences[sequence].0, &sequences[sequence].1[..]);
                    KvPositions { kv, block_table, positions: first..first + count }
                };
                let fits = harness.compute().copy_kv_positions(
                    layer,
                    positions(from, first),
                    positions(to, place),
                    has_keys.then_some(&keys),
                );
                assert!(fits.expect("they fit each other"), "{self:?}: numbers of size 1 fit");
                let mut expected = before.clone();
                let source = &before[layer][from];
                let [source_range, target_range] = [first, place].map(|first| first * width..(first + count) * width);
                let heads = keys.chunks(self.head_dim).flat_map(|head| kept(self.dtype, 0, head));
                let keys: Vec<f32> =
                    if has_keys { heads.collect() } else { source.keys[source_range.clone()].to_vec() };
                expected[layer][to].keys[target_range.clone()].copy_from_slice(&keys);
                expected[layer][to].values[target_range].copy_from_slice(&source.values[source_range]);
                let found = [0, 1].map(|layer| read(harness, layer));
                for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
                    let what = format!("{self:?}: {count} positions from {first} of {from} to {place} of {to}");
                    assert!(bits(&found.keys) == bits(&expected.keys), "{what}: keys");
                    assert!(bits(&found.values) == bits(&expected.values), "{what}: values");
                }
            }
        }
    }
}
