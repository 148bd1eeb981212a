//! Attention through the backend: several layers, each with its own rotation, window and norms, over several splits.

use std::sync::Arc;

use ::support::Rng;
use ::support::harness::{Device, Harness, Member, Tensor, Weight, oracle};
use exlora::adapter::batch::AdapterBatch;
use exlora::backend::cuda::ops::attention::SPLIT_TOKENS;
use exlora::backend::{AttentionSpec, HeadNorm, KvDType, KvShape, Rope, RopeLayout, StepRows, Write};
use exlora::tensor::DType;

use crate::compute::{assert_ratio, devices};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 8;
/// q, k and v of a row.
const WIDTH: usize = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
const PAGE_TOKENS: usize = 32;
const LAYERS: usize = 3;

/// Rows of those positions of each sequence; a sequence has every second page.
fn rows(positions: [std::ops::Range<usize>; 2]) -> StepRows {
    let mut rows = StepRows::default();
    for (sequence, positions) in positions.into_iter().enumerate() {
        let pages = positions.end.div_ceil(PAGE_TOKENS) as u32;
        rows.push(positions, (0..pages).map(|page| 2 * page + sequence as u32));
    }
    rows
}

/// q, k, v of rows. Every third row is so small that a norm's epsilon decides what becomes of it.
fn inputs(rng: &mut Rng, rows: usize) -> Vec<f32> {
    let mut qkv = rng.normals(rows * WIDTH, 1.0);
    for row in qkv.chunks_exact_mut(WIDTH).step_by(3) {
        row[..(HEADS + KV_HEADS) * HEAD_DIM].iter_mut().for_each(|value| *value *= 2e-3);
    }
    qkv
}

/// What each layer attends in each step.
fn attend(device: Device, steps: &[StepRows], windows: [Option<usize>; 2]) -> Vec<Vec<f32>> {
    let mut harness = Harness::open(device);
    let [q_norm, k_norm] = [1, 2].map(|seed| harness.norm_weight(&Rng(seed).normals(HEAD_DIM, 1.0)).0);
    let spec = |layer: usize, window, has_norms: bool| AttentionSpec {
        layer,
        scale: 0.75,
        // Layer 2 is not rotated, and its scores are bounded; layer 1 rotates pairs of neighbors.
        score_cap: (layer == 2).then_some(2.0),
        window,
        q_norm: has_norms.then_some(HeadNorm::rms(q_norm, 1e-5)),
        k_norm: has_norms.then_some(HeadNorm::rms(k_norm, 1e-5)),
        rope: (layer < 2).then(|| {
            Arc::new(Rope {
                inv_freq: (0..2 + 2 * layer).map(|pair| 0.5f32.powi((pair + layer) as i32)).collect(),
                factor: 1.0 + 0.25 * layer as f32,
                layout: [RopeLayout::Halves, RopeLayout::Pairs][layer],
            })
        }),
        ..AttentionSpec::new(HEADS, KV_HEADS, HEAD_DIM)
    };
    let specs = [spec(0, windows[0], true), spec(1, windows[1], false), spec(2, windows[1], true)];
    let shape = KvShape {
        layers: LAYERS,
        pages: 36,
        page_tokens: PAGE_TOKENS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        dtype: KvDType::F16,
    };
    let kv = harness.compute().create_kv(shape).expect("the cache is small");
    let most = steps.iter().map(StepRows::len).max().unwrap_or(0);
    let [qkv, out] = [WIDTH, HEADS * HEAD_DIM].map(|width| harness.buffer(width, most));
    let mut rng = Rng(7);
    let mut attended = Vec::new();
    for rows in steps {
        harness.compute().reserve_rows(rows.len()).expect("there is room");
        for spec in &specs {
            harness.compute().write_rows(qkv, 0, &inputs(&mut rng, rows.len())).expect("rows fit");
            harness.compute().attend(spec, kv, rows, &AdapterBatch::default(), qkv, out).expect("the rows attend");
            attended.push(harness.get(out, HEADS * HEAD_DIM, rows.len()));
        }
    }
    attended
}

#[test]
fn layers_with_rotations_windows_and_norms_of_their_own_agree_with_the_reference() {
    let end = 2 * SPLIT_TOKENS;
    // A prompt that ends with a split, the first position of the next split, some rows beyond.
    let steps = [rows([0..end, 0..40]), rows([end..end + 1, 40..41]), rows([end + 1..end + 4, 41..42])];
    for ((device, limit), windows) in devices().into_iter().zip([[None, Some(300)], [Some(7), None]]) {
        let expected = attend(oracle(), &steps, windows);
        for (index, (found, expected)) in attend(device, &steps, windows).iter().zip(&expected).enumerate() {
            let what = format!("{device:?}, step {}, layer {}", index / LAYERS, index % LAYERS);
            assert_ratio(&what, HEADS * HEAD_DIM, found, expected, limit);
        }
    }
}

#[test]
fn a_prompt_in_small_steps_has_room_for_what_blocks_of_a_row_count() {
    // No large step came before, whose memory these steps would have.
    let steps: Vec<StepRows> =
        (0..SPLIT_TOKENS + 64).step_by(16).map(|first| rows([first..first + 16, first..first + 16])).collect();
    let expected = attend(oracle(), &steps, [None, Some(300)]);
    let (device, limit) = devices()[0];
    for (index, (found, expected)) in attend(device, &steps, [None, Some(300)]).iter().zip(&expected).enumerate() {
        assert_ratio(
            &format!("step {}, layer {}", index / LAYERS, index % LAYERS),
            HEADS * HEAD_DIM,
            found,
            expected,
            limit,
        );
    }
}

#[test]
fn a_step_at_the_positions_of_the_one_before_finds_its_tables_where_they_are_now() {
    // In the second step other tables come first, so that those of the same rows lie elsewhere.
    let rows = rows([0..3, 0..2]);
    let run = |device: Device| {
        let mut harness = Harness::open(device);
        let weight = Tensor::new(DType::F16, &[WIDTH, WIDTH], &Rng(3).normals(WIDTH * WIDTH, 0.1));
        let (group, _) = harness.group(&[Member { weight: Weight::Dense(weight), bias: None }]);
        let rope = Some(Arc::new(Rope::halves(vec![0.5, 0.25], 1.0)));
        let spec = AttentionSpec { scale: 0.75, rope, ..AttentionSpec::new(HEADS, KV_HEADS, HEAD_DIM) };
        let (layers, pages) = (1, 4);
        let (kv_heads, head_dim) = (KV_HEADS, HEAD_DIM);
        let shape = KvShape { layers, pages, page_tokens: PAGE_TOKENS, kv_heads, head_dim, dtype: KvDType::F16 };
        let kv = harness.compute().create_kv(shape).expect("the cache is small");
        let x = harness.buffer(WIDTH, rows.len());
        let [qkv, out] = [WIDTH, HEADS * HEAD_DIM].map(|width| harness.buffer(width, rows.len()));
        let base = AdapterBatch::default();
        let mut attended = Vec::new();
        for projects in [false, true] {
            let compute = harness.compute();
            compute.reserve_rows(rows.len()).expect("there is room");
            compute.write_rows(x, 0, &Rng(4).normals(rows.len() * WIDTH, 1.0)).expect("rows fit");
            compute.write_rows(qkv, 0, &Rng(5).normals(rows.len() * WIDTH, 1.0)).expect("rows fit");
            if projects {
                compute.linear(group, x, rows.len(), &base, qkv, Write::Replace).expect("the linear runs");
            }
            compute.attend(&spec, kv, &rows, &base, qkv, out).expect("the rows attend");
            attended.extend(harness.get(out, HEADS * HEAD_DIM, rows.len()));
        }
        attended
    };
    let (device, limit) = devices()[0];
    assert_ratio("attended", HEADS * HEAD_DIM, &run(device), &run(oracle()), limit);
}
