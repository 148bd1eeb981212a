//! Rope, KV cache and attention against the reference backend's `attend`.
#![allow(clippy::single_range_in_vec_init, reason = "a sequence is a range of positions, and some tests have one")]

use std::sync::Arc;

use ::support::Rng;
use ::support::harness::Tensor;
use exlora::adapter::batch::AdapterBatch;
use exlora::backend::cuda::driver::{Device, DeviceMemory};
use exlora::backend::cuda::layout::ElementType;
use exlora::backend::cuda::ops::attention::{Attention, AttentionKernel, AttentionPlan, SPLIT_TOKENS};
use exlora::backend::cuda::ops::expand::{ExpandKernels, ExpandRopeKv, Projection};
use exlora::backend::cuda::ops::kv_layout::KvLayout;
use exlora::backend::cuda::tables::RoutedNorm;
use exlora::backend::{
    AttentionSpec, Backend, BufferId, HeadNorm, KvDType, KvId, KvShape, NormSource, Rope, StepRows, reference,
};
use exlora::sites::SiteId;
use exlora::tensor::DType;
use half::{bf16, f16};

use crate::step::{Step, assert_close, bits};
use crate::support::{device, download, upload};

/// A layer's attention, and the cache that it uses.
#[derive(Clone)]
pub struct Layer {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub rope_pairs: usize,
    pub has_norms: bool,
    pub window: Option<usize>,
    pub score_cap: f32,
    pub page_tokens: usize,
    pub pages: usize,
    pub kv: KvDType,
    pub element: ElementType,
}

impl Default for Layer {
    fn default() -> Self {
        Self {
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
            rope_pairs: 16,
            has_norms: false,
            window: None,
            score_cap: 0.0,
            page_tokens: 8,
            pages: 16,
            kv: KvDType::F16,
            element: ElementType::F16,
        }
    }
}

/// The layer of the cache that tests use; others must stay as they are.
const LAYER: usize = 1;
const NORM_EPS: f32 = 1e-5;
const ROPE_FACTOR: f32 = 1.25;

impl Layer {
    fn shape(&self) -> KvShape {
        KvShape {
            layers: 3,
            pages: self.pages,
            page_tokens: self.page_tokens,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            dtype: self.kv,
        }
    }

    fn inv_freq(&self) -> Vec<f32> {
        (0..self.rope_pairs).map(|pair| 10000f32.powf(-(pair as f32) / self.rope_pairs as f32)).collect()
    }

    fn norm_weights(&self) -> [Vec<f32>; 2] {
        [21, 22].map(|seed| Rng(seed).normals(self.head_dim, 0.5).into_iter().map(|weight| 1.0 + weight).collect())
    }

    fn scale(&self) -> f32 {
        1.5 / (self.head_dim as f32).sqrt()
    }

    pub fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// q, k, v of a position of a sequence: the same in whatever step it is computed.
    fn qkv(&self, sequence: usize, position: usize) -> Vec<f32> {
        Rng((sequence * 1_000_003 + position) as u64).normals(self.width(), 1.0)
    }

    /// Pages of a sequence, shuffled.
    pub fn block_table(&self, sequence: usize, positions: usize) -> Vec<u32> {
        let needed = positions.div_ceil(self.page_tokens);
        let mut pages: Vec<u32> = (0..self.pages as u32).collect();
        Rng(3).shuffle(&mut pages);
        pages.into_iter().skip(sequence * self.pages / 2).take(needed).collect()
    }

    /// The rows of those positions of each sequence.
    pub fn rows(&self, positions: &[std::ops::Range<usize>]) -> StepRows {
        let mut rows = StepRows::default();
        for (sequence, positions) in positions.iter().enumerate() {
            rows.push(positions.clone(), self.block_table(sequence, positions.end));
        }
        rows
    }

    /// q, k, v of a step's rows.
    pub fn inputs(&self, rows: &StepRows) -> Vec<f32> {
        let row = |(&position, &sequence): (&u32, &u32)| self.qkv(sequence as usize, position as usize);
        rows.positions.iter().zip(&rows.sequences).flat_map(row).collect()
    }
}

/// The layer on the reference backend.
pub struct Oracle {
    layer: Layer,
    backend: Backend,
    kv: KvId,
    spec: AttentionSpec,
    buffers: [BufferId; 2],
}

impl Oracle {
    pub fn new(layer: &Layer) -> Self {
        let mut builder = reference::open();
        let mut norm = |weight: &[f32], site| {
            let tensor = Tensor::new(DType::F32, &[layer.head_dim], weight);
            let source = NormSource::plain(SiteId(site), tensor.view());
            let id = layer.has_norms.then(|| builder.load_norm(&source).expect("loaded"));
            id.map(|id| HeadNorm::rms(id, NORM_EPS))
        };
        let [q, k] = layer.norm_weights();
        let (q_norm, k_norm) = (norm(&q, 0), norm(&k, 1));
        let mut backend = builder.finish().expect("finished");
        let kv = backend.compute.create_kv(layer.shape()).expect("created");
        let buffers = [layer.width(), layer.heads * layer.head_dim].map(|width| backend.compute.create_buffer(width));
        let spec = AttentionSpec {
            layer: LAYER,
            scale: layer.scale(),
            window: layer.window,
            q_norm,
            k_norm,
            rope: Some(Arc::new(Rope::halves(layer.inv_freq(), ROPE_FACTOR))),
            ..AttentionSpec::new(layer.heads, layer.kv_heads, layer.head_dim)
        };
        Self { layer: layer.clone(), backend, kv, spec, buffers }
    }

    /// `attend`, and the rows that overflowed the cache.
    pub fn attend(&mut self, rows: &StepRows, qkv: &[f32]) -> (Vec<f32>, Vec<u32>) {
        let compute = &mut self.backend.compute;
        let [input, output] = self.buffers;
        compute.reserve_rows(rows.len()).expect("reserved");
        compute.write_rows(input, 0, qkv).expect("written");
        compute.attend(&self.spec, self.kv, rows, &AdapterBatch::default(), input, output).expect("computed");
        let mut attended = vec![0.0; rows.len() * self.layer.heads * self.layer.head_dim];
        compute.read_rows(output, &mut attended).expect("read");
        (attended, compute.take_kv_overflows().expect("taken"))
    }
}

/// The layer on the device.
pub struct OnDevice {
    layer: Layer,
    device: Arc<Device>,
    expand: ExpandKernels,
    attention: AttentionKernel,
    cache: DeviceMemory,
    pub layout: KvLayout,
    constants: [DeviceMemory; 3],
}

/// What a step computed.
pub struct Attended {
    pub attended: Vec<f32>,
    /// Rows whose result is beyond the element type.
    pub overflow_rows: Vec<u32>,
    /// Rows with a key or value beyond the cache's.
    pub kv_overflow_rows: Vec<u32>,
}

impl OnDevice {
    pub fn new(layer: &Layer) -> Self {
        let device = device();
        let layout = KvLayout::new(layer.shape());
        let [q, k] = layer.norm_weights();
        Self {
            expand: ExpandKernels::load(&device, layer.element, layer.kv).expect("compiled"),
            attention: AttentionKernel::load(&device, layer.head_dim, layer.heads / layer.kv_heads, layer.kv)
                .expect("compiled"),
            cache: device.allocate(layout.bytes().expect("small")).expect("allocated"),
            constants: [upload(&device, &layer.inv_freq()), upload(&device, &q), upload(&device, &k)],
            layer: layer.clone(),
            layout,
            device,
        }
    }

    pub fn plan(&self, rows: &StepRows) -> AttentionPlan {
        let longest = rows.positions.iter().max().map_or(0, |&last| last as usize + 1);
        self.attention.plan(rows.len(), self.layer.kv_heads, longest, self.layer.window)
    }

    /// Stores keys and values of the rows; returns their queries and which of them overflowed.
    fn store(&self, step: &Step, rows: &StepRows, qkv: &[f32], is_interleaved: bool) -> (DeviceMemory, Vec<u32>) {
        let layer = &self.layer;
        let projected = upload(&self.device, qkv);
        let queries = self.device.allocate(rows.len() * layer.heads * layer.head_dim * 4).expect("allocated");
        let kv_overflow_rows = upload(&self.device, &vec![0u32; rows.len()]);
        let outputs = [layer.heads, layer.kv_heads, layer.kv_heads].map(|heads| heads * layer.head_dim);
        let [inv_freq, q_norm, k_norm] = &self.constants;
        let norm = |weight: &DeviceMemory| RoutedNorm {
            weight: if layer.has_norms { weight.address() } else { 0 },
            ..RoutedNorm::default()
        };
        let arguments = ExpandRopeKv {
            projection: Projection { projected: projected.address(), ..Projection::of_outputs(outputs) },
            step: step.tables,
            attention: step.attention,
            kv: self.layout.layer(self.cache.address(), LAYER),
            queries: queries.address(),
            kv_overflow_rows: kv_overflow_rows.address(),
            q_norm: norm(q_norm),
            k_norm: norm(k_norm),
            inv_freq: inv_freq.address(),
            heads: layer.heads as u32,
            head_dim: layer.head_dim as u32,
            rope_pairs: layer.rope_pairs as u32,
            is_interleaved: is_interleaved.into(),
            rope_factor: ROPE_FACTOR,
            norm_eps: NORM_EPS,
            temperature_beta: 0.0,
            temperature_positions: 1.0,
        };
        // Fewer blocks than rows.
        self.expand.rope_kv(&arguments, rows.len().div_ceil(2)).expect("launched");
        (queries, named(&kv_overflow_rows))
    }

    /// Stores keys and values and attends, launched by a plan.
    pub fn attend(&self, rows: &StepRows, qkv: &[f32], plan: &AttentionPlan) -> Attended {
        let layer = &self.layer;
        let count = rows.len();
        let step = Step::new(&self.device, &vec![0; count], &vec![Vec::new(); count], &[], rows);
        let (queries, kv_overflow_rows) = self.store(&step, rows, qkv, false);
        let attended = self.device.allocate(count * layer.heads * layer.head_dim * 2).expect("allocated");
        let partials = self.device.allocate(plan.partial_bytes).expect("allocated");
        let arrivals = upload(&self.device, &vec![0u32; count * layer.kv_heads]);
        let overflow_rows = upload(&self.device, &vec![0u32; count]);
        let arguments = Attention {
            tables: step.attention,
            kv: self.layout.layer(self.cache.address(), LAYER),
            queries: queries.address(),
            attended: attended.address(),
            partials: partials.address(),
            arrivals: arrivals.address(),
            overflow_rows: overflow_rows.address(),
            scale: layer.scale(),
            score_cap: layer.score_cap,
            group_heads: (layer.heads / layer.kv_heads) as u32,
            window: layer.window.map_or(0, |window| window as u32),
            partial_splits: plan.partial_splits,
            head_dim: layer.head_dim as u32,
            is_bf16: (layer.element == ElementType::Bf16).into(),
            padding: 0,
        };
        self.attention.launch(&arguments, plan).expect("launched");
        assert!(download::<u32>(&arrivals).iter().all(|&arrivals| arrivals == 0), "the counters are left at zero");
        let values = download::<u16>(&attended).into_iter();
        Attended {
            attended: match layer.element {
                ElementType::F16 => values.map(|bits| f16::from_bits(bits).to_f32()).collect(),
                ElementType::Bf16 => values.map(|bits| bf16::from_bits(bits).to_f32()).collect(),
            },
            overflow_rows: named(&overflow_rows),
            kv_overflow_rows,
        }
    }

    /// The bytes of the cache's layer.
    pub fn layer_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.cache.len() / 3];
        self.cache.download(LAYER * bytes.len(), &mut bytes).expect("inside");
        bytes
    }

    /// Elements of the layer of a cache of f32.
    pub fn layer_elements(&self) -> Vec<f32> {
        assert_eq!(self.layer.kv, KvDType::F32);
        self.layer_bytes().chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
    }
}

/// Indices of the rows whose flag is set.
fn named(flags: &DeviceMemory) -> Vec<u32> {
    let flags: Vec<u32> = download(flags);
    assert!(flags.iter().all(|&flag| flag <= 1));
    (0..flags.len() as u32).filter(|&row| flags[row as usize] == 1).collect()
}

/// Runs steps on both; rows are those of positions of two sequences.
pub fn assert_attends_as_the_reference(layer: &Layer, steps: &[[std::ops::Range<usize>; 2]]) {
    let (mut oracle, on_device) = (Oracle::new(layer), OnDevice::new(layer));
    let tolerance = if layer.element == ElementType::Bf16 { 1e-2 } else { 1e-3 };
    for positions in steps {
        let rows = layer.rows(positions);
        let qkv = layer.inputs(&rows);
        let (want, _) = oracle.attend(&rows, &qkv);
        let got = on_device.attend(&rows, &qkv, &on_device.plan(&rows));
        let width = layer.heads * layer.head_dim;
        for (row, want) in want.chunks(width).enumerate() {
            let want: Vec<f64> = want.iter().map(|&value| value.into()).collect();
            let what = format!("{} heads of {}, row {row} of {positions:?}", layer.heads, layer.head_dim);
            assert_close(&got.attended[row * width..][..width], &want, tolerance, &what);
        }
        assert!(got.overflow_rows.is_empty() && got.kv_overflow_rows.is_empty());
    }
}

/// A prompt in two chunks beside a shorter one, then a token of each.
pub const SHORT_STEPS: &[[std::ops::Range<usize>; 2]] = &[[0..9, 0..3], [9..13, 3..4], [13..14, 4..5]];

#[test]
fn heads_of_any_width_attend_as_the_reference() {
    for (head_dim, rope_pairs) in [(8, 4), (20, 10), (64, 32), (80, 16), (128, 64), (130, 65), (256, 128)] {
        let layer = Layer { head_dim, rope_pairs, ..Layer::default() };
        assert_attends_as_the_reference(&layer, SHORT_STEPS);
    }
}

#[test]
fn query_heads_share_key_value_heads_as_the_reference() {
    for (heads, kv_heads) in [(1, 1), (3, 3), (4, 2), (3, 1), (8, 2), (5, 1), (14, 2), (16, 2), (9, 1)] {
        let layer = Layer { heads, kv_heads, head_dim: 24, rope_pairs: 12, ..Layer::default() };
        assert_attends_as_the_reference(&layer, SHORT_STEPS);
    }
}

#[test]
fn norms_pages_caches_and_element_types_are_those_of_the_reference() {
    let layers = [
        Layer { has_norms: true, ..Layer::default() },
        Layer { has_norms: true, head_dim: 72, rope_pairs: 8, ..Layer::default() },
        Layer { page_tokens: 1, pages: 32, ..Layer::default() },
        Layer { page_tokens: 5, ..Layer::default() },
        Layer { page_tokens: 32, ..Layer::default() },
        Layer { kv: KvDType::F32, ..Layer::default() },
        Layer { element: ElementType::Bf16, ..Layer::default() },
        Layer { kv: KvDType::F32, element: ElementType::Bf16, head_dim: 100, rope_pairs: 0, ..Layer::default() },
        Layer { window: Some(1), ..Layer::default() },
        Layer { window: Some(4), ..Layer::default() },
    ];
    for layer in &layers {
        assert_attends_as_the_reference(layer, SHORT_STEPS);
    }
}

/// A cache of some splits' positions for two sequences.
pub fn long_layer() -> Layer {
    Layer { heads: 3, kv_heads: 1, head_dim: 16, rope_pairs: 8, page_tokens: 32, pages: 60, ..Layer::default() }
}

#[test]
fn splits_are_added_as_the_reference_adds_positions() {
    let boundary = 2 * SPLIT_TOKENS;
    let steps = [[0..boundary - 2, 0..40], [boundary - 2..boundary + 3, 40..41]];
    for window in [None, Some(30), Some(SPLIT_TOKENS), Some(SPLIT_TOKENS + 7)] {
        assert_attends_as_the_reference(&Layer { window, ..long_layer() }, &steps);
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_grid_batch_and_chunk() {
    assert_same_bits_in_any_grid_batch_and_chunk(&long_layer());
}

/// Computes some rows of a [`long_layer`] in one step, in other grids, and alone after other chunks.
pub fn assert_same_bits_in_any_grid_batch_and_chunk(layer: &Layer) {
    let end = 2 * SPLIT_TOKENS + 4;
    let last = end - 3..end;
    let width = layer.heads * layer.head_dim;
    let fill = layer.rows(&[0..last.start, 0..30]);
    let rows = layer.rows(&[last.clone(), 30..32]);
    let on_device = OnDevice::new(layer);
    on_device.attend(&fill, &layer.inputs(&fill), &on_device.plan(&fill));
    let plan = on_device.plan(&rows);
    assert_eq!(plan.grid, [3, 1, 5], "the step is small enough for a block for each split");
    let together = on_device.attend(&rows, &layer.inputs(&rows), &plan).attended;

    // A block for all splits of a row, two blocks for three splits, fewer blocks than rows.
    let alone_plan = AttentionPlan { grid: [1, 1, 2], partial_splits: 0, partial_bytes: 0 };
    for plan in [alone_plan, AttentionPlan { grid: [2, 1, 5], ..plan }, AttentionPlan { grid: [3, 1, 1], ..plan }] {
        let again = on_device.attend(&rows, &layer.inputs(&rows), &plan).attended;
        assert_eq!(bits(&again), bits(&together), "{plan:?}");
    }
    // Alone, one row after another, in a cache that was filled in other chunks.
    let on_device = OnDevice::new(layer);
    for positions in [0..100, 100..last.start] {
        let chunk = layer.rows(&[positions]);
        on_device.attend(&chunk, &layer.inputs(&chunk), &on_device.plan(&chunk));
    }
    for (row, position) in last.enumerate() {
        let alone = layer.rows(&[position..position + 1]);
        let attended = on_device.attend(&alone, &layer.inputs(&alone), &on_device.plan(&alone)).attended;
        assert_eq!(bits(&attended), bits(&together[row * width..][..width]), "position {position}");
    }
}

#[test]
fn a_block_may_compute_several_key_value_heads_and_rows() {
    // Nine query heads of a group take two passes.
    let layer = Layer { heads: 18, kv_heads: 2, ..long_layer() };
    let end = 2 * SPLIT_TOKENS + 4;
    let (before, rows) = (layer.rows(&[0..end - 3, 0..30]), layer.rows(&[end - 3..end, 30..32]));
    let on_device = OnDevice::new(&layer);
    on_device.attend(&before, &layer.inputs(&before), &on_device.plan(&before));
    let plan = on_device.plan(&rows);
    assert_eq!(plan.grid, [3, 2, 5]);
    let apart = on_device.attend(&rows, &layer.inputs(&rows), &plan).attended;
    for plan in [AttentionPlan { grid: [3, 1, 2], ..plan }, AttentionPlan { grid: [1, 2, 1], ..plan }] {
        let again = on_device.attend(&rows, &layer.inputs(&rows), &plan).attended;
        assert_eq!(bits(&again), bits(&apart), "{plan:?}");
    }
}

#[test]
fn what_is_left_of_a_sum_that_cancels_has_the_same_bits_in_any_grid() {
    // The last value takes away all the others, so that every bit in which two orders of the sum differ is one of the result.
    let layer = Layer { heads: 1, kv: KvDType::F32, ..long_layer() };
    let last = 2 * SPLIT_TOKENS + 3;
    let (before, row) = (layer.rows(&[0..last]), layer.rows(&[last..last + 1]));
    let first_value = layer.width() - layer.head_dim;
    let inputs = |factor: f32, last_value: &[f32]| {
        let (mut of_before, mut of_row) = (layer.inputs(&before), layer.inputs(&row));
        for qkv in of_before.chunks_exact_mut(layer.width()) {
            qkv[first_value..].iter_mut().for_each(|value| *value *= factor);
        }
        of_row[first_value..].copy_from_slice(last_value);
        (of_before, of_row)
    };
    let attend = |(of_before, of_row): &(Vec<f32>, Vec<f32>)| {
        let mut oracle = Oracle::new(&layer);
        oracle.attend(&before, of_before);
        oracle.attend(&row, of_row).0
    };
    let weight = attend(&inputs(0.0, &[1.0; 16]))[0];
    let others = attend(&inputs(1e4, &[0.0; 16]));
    let (of_before, of_row) = inputs(1e4, &others.iter().map(|other| -other / weight).collect::<Vec<_>>());

    let on_device = OnDevice::new(&layer);
    on_device.attend(&before, &of_before, &on_device.plan(&before));
    let plan = on_device.plan(&row);
    assert_eq!(plan.grid, [3, 1, 1]);
    let in_three = on_device.attend(&row, &of_row, &plan).attended;
    assert!(in_three.iter().all(|left| left.abs() < 0.1), "{in_three:?}");
    for plan in [AttentionPlan { grid: [2, 1, 1], ..plan }, AttentionPlan { grid: [1; 3], ..plan }] {
        let again = on_device.attend(&row, &of_row, &plan).attended;
        assert_eq!(bits(&again), bits(&in_three), "{plan:?}");
    }
}

#[test]
fn keys_and_values_beyond_the_cache_make_what_sees_them_nan_and_nothing_else() {
    assert_overflows_as_the_reference(&Layer { heads: 2, kv_heads: 2, ..Layer::default() }, [1e6, -7e4]);
}

/// A step of two heads with a key and a value of those sizes, which the cache does not hold.
pub fn assert_overflows_as_the_reference(layer: &Layer, [key, value]: [f32; 2]) {
    let rows = layer.rows(&[0..6, 0..6]);
    let mut qkv = layer.inputs(&rows);
    let width = layer.width();
    let (keys, values) = (2 * layer.head_dim, 4 * layer.head_dim);
    // A key of head 1 of row 3, a value of head 0 of row 8; an infinite value of row 10, which is no overflow.
    qkv[3 * width + keys + layer.head_dim + 31] = key;
    qkv[8 * width + values + 5] = value;
    qkv[10 * width + values + 5] = f32::INFINITY;
    let (want, want_overflows) = Oracle::new(layer).attend(&rows, &qkv);
    let on_device = OnDevice::new(layer);
    let got = on_device.attend(&rows, &qkv, &on_device.plan(&rows));
    assert_eq!(want_overflows, [3, 8]);
    assert_eq!(got.kv_overflow_rows, want_overflows);
    for (index, (want, got)) in want.iter().zip(&got.attended).enumerate() {
        let (row, channel) = (index / (2 * layer.head_dim), index % (2 * layer.head_dim));
        assert_eq!(got.is_nan(), want.is_nan(), "channel {channel} of row {row}");
    }
}

#[test]
fn a_result_beyond_the_element_type_is_named() {
    let layer = Layer { kv: KvDType::F32, ..Layer::default() };
    let rows = layer.rows(&[0..1, 0..1]);
    let mut qkv = layer.inputs(&rows);
    // A single position's value is the result.
    let value = layer.width() + (layer.heads + layer.kv_heads) * layer.head_dim;
    qkv[value] = 1e5;
    let on_device = OnDevice::new(&layer);
    let got = on_device.attend(&rows, &qkv, &on_device.plan(&rows));
    assert_eq!((got.overflow_rows, got.kv_overflow_rows), (vec![1], vec![]));
    assert_eq!(got.attended[layer.heads * layer.head_dim], f32::INFINITY);
}

#[test]
fn capped_scores_weigh_as_their_formula_says() {
    let layer = Layer { heads: 1, kv_heads: 1, head_dim: 8, rope_pairs: 0, score_cap: 0.5, ..Layer::default() };
    let rows = layer.rows(&[0..7]);
    let qkv = layer.inputs(&rows);
    let on_device = OnDevice::new(&layer);
    let got = on_device.attend(&rows, &qkv, &on_device.plan(&rows)).attended;
    let part = |row: usize, part: usize| &qkv[row * layer.width() + part * 8..][..8];
    let stored = |value: &f32| f16::from_f32(*value).to_f64();
    for row in 0..7 {
        let weights: Vec<f64> = (0..=row)
            .map(|seen| {
                let dot: f64 = part(row, 0).iter().zip(part(seen, 1)).map(|(&q, k)| f64::from(q) * stored(k)).sum();
                (0.5 * (f64::from(layer.scale()) * dot / 0.5).tanh()).exp()
            })
            .collect();
        let mix = |channel: usize| {
            let terms = weights.iter().enumerate().map(|(seen, weight)| weight * stored(&part(seen, 2)[channel]));
            terms.sum::<f64>() / weights.iter().sum::<f64>()
        };
        assert_close(&got[row * 8..][..8], &(0..8).map(mix).collect::<Vec<_>>(), 1e-3, &format!("row {row}"));
    }
}

#[test]
fn both_layouts_of_rotated_pairs_and_far_positions_are_right() {
    let layer = Layer { head_dim: 20, rope_pairs: 7, page_tokens: 64, pages: 1, kv: KvDType::F32, ..Layer::default() };
    let on_device = OnDevice::new(&layer);
    // The page table of a long sequence that uses one page again and again.
    let far = [0u32, 1, 1000, 131_071, 1_000_003];
    let rows = StepRows { positions: far.to_vec(), sequences: vec![0; 5], block_tables: vec![vec![0; 15_626]] };
    let qkv = layer.inputs(&rows);
    for is_interleaved in [false, true] {
        let step = Step::new(&on_device.device, &[0; 5], &vec![Vec::new(); 5], &[], &rows);
        let (queries, _) = on_device.store(&step, &rows, &qkv, is_interleaved);
        let queries: Vec<f32> = download(&queries);
        let elements = on_device.layer_elements();
        for (row, &position) in far.iter().enumerate() {
            let rotated = |head: &[f32]| -> Vec<f64> {
                let mut out: Vec<f64> = head.iter().map(|&x| x.into()).collect();
                for (pair, inv_freq) in layer.inv_freq().into_iter().enumerate() {
                    let (i, j) = if is_interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + 7) };
                    // The angle is rounded to f32, as in every backend.
                    let angle = f64::from(position as f32 * inv_freq);
                    let (sin, cos) = (angle.sin() * f64::from(ROPE_FACTOR), angle.cos() * f64::from(ROPE_FACTOR));
                    let (a, b) = (f64::from(head[i]), f64::from(head[j]));
                    (out[i], out[j]) = (a * cos - b * sin, b * cos + a * sin);
                }
                out
            };
            let of_row = &qkv[row * layer.width()..][..layer.width()];
            for head in 0..layer.heads {
                let got = &queries[(row * layer.heads + head) * 20..][..20];
                assert_close(got, &rotated(&of_row[head * 20..][..20]), 1e-6, &format!("query at {position}"));
            }
            for head in 0..layer.kv_heads {
                let slot = position as usize % layer.page_tokens;
                let key = &of_row[(layer.heads + head) * 20..][..20];
                let value = &of_row[(layer.heads + layer.kv_heads + head) * 20..][..20];
                let stored =
                    |index: &dyn Fn(usize) -> usize| (0..20).map(|c| elements[index(c) / 32]).collect::<Vec<f32>>();
                let got = stored(&|channel| on_device.layout.key_bit(0, head, slot, channel));
                assert_close(&got, &rotated(key), 1e-6, &format!("key at {position}"));
                let got = stored(&|channel| on_device.layout.value_bit(0, head, slot, channel));
                assert_eq!(bits(&got), bits(value));
                let padding = (20..24).map(|channel| elements[on_device.layout.key_bit(0, head, slot, channel) / 32]);
                assert!(padding.into_iter().all(|padding| padding == 0.0));
            }
        }
    }
}
