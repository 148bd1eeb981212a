//! Keys and values that the KV cache cannot hold: the rows that see them are NaN, and are named; no other row changes.

use exlora::adapter::batch::AdapterBatch;
use exlora::backend::{AttentionSpec, KvDType, KvShape, StepRows};

use support::Rng;
use support::harness::{Device, Harness, bits, fast, isas, oracle};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 16;
const WIDTH: usize = (HEADS + 2 * KV_HEADS) * DIM;
/// Of the first sequence; the second has as many.
const ROWS: usize = 9;

/// Two sequences, each of one step, under a window; where a value is put, and which rows are reported and which are NaN.
struct Case {
    dtype: KvDType,
    window: Option<usize>,
    qkv: Vec<f32>,
}

impl Case {
    fn new(dtype: KvDType, window: Option<usize>) -> Self {
        Self { dtype, window, qkv: Rng(3).normals(2 * ROWS * WIDTH, 1.0) }
    }

    /// With a value in a row's first key (0) or last value (1).
    fn with(mut self, row: usize, part: usize, value: f32) -> Self {
        let at = [HEADS * DIM, WIDTH - 1][part];
        self.qkv[row * WIDTH + at] = value;
        self
    }

    /// The rows of both sequences, and those that are reported.
    fn run(&self, device: Device) -> (Vec<Vec<f32>>, Vec<u32>) {
        let mut harness = Harness::open(device);
        let shape =
            KvShape { layers: 1, pages: 4, page_tokens: 8, kv_heads: KV_HEADS, head_dim: DIM, dtype: self.dtype };
        let kv = harness.compute().create_kv(shape).expect("a cache");
        let spec = AttentionSpec { scale: 0.5, window: self.window, ..AttentionSpec::new(HEADS, KV_HEADS, DIM) };
        let mut rows = StepRows::default();
        rows.push(0..ROWS, [2, 0]);
        rows.push(0..ROWS, [1, 3]);
        let (x, y) = (harness.put(WIDTH, &self.qkv), harness.buffer(HEADS * DIM, rows.len()));
        harness.compute().attend(&spec, kv, &rows, &AdapterBatch::default(), x, y).expect("attention runs");
        let out = harness.get(y, HEADS * DIM, rows.len());
        let overflows = harness.compute().take_kv_overflows().expect("the device works");
        assert!(harness.compute().take_kv_overflows().expect("the device works").is_empty(), "reported once");
        (out.chunks(HEADS * DIM).map(<[f32]>::to_vec).collect(), overflows)
    }
}

fn devices() -> impl Iterator<Item = Device> {
    isas().map(|isa| fast(isa, 2)).chain([oracle()])
}

#[test]
fn a_row_beyond_float16_is_named_and_every_row_that_sees_it_is_nan() {
    for (window, last_seen) in [(None, ROWS - 1), (Some(3), 4)] {
        for part in [0, 1] {
            for value in [65_520.0, -65_520.0, 1e30] {
                for device in devices() {
                    let clean = Case::new(KvDType::F16, window).run(device);
                    let (out, overflows) = Case::new(KvDType::F16, window).with(2, part, value).run(device);
                    assert_eq!((overflows, clean.1.len()), (vec![2], 0));
                    for (row, (out, clean)) in out.iter().zip(&clean.0).enumerate() {
                        match (2..=last_seen).contains(&row) {
                            true => assert!(out.iter().any(|value| value.is_nan()), "{device:?}: row {row}"),
                            false => assert_eq!(bits(out), bits(clean), "{device:?}: row {row}"),
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_largest_float16_fits_and_float32_holds_what_it_does_not() {
    for (dtype, value) in [(KvDType::F16, 65_519.0), (KvDType::F32, 65_520.0), (KvDType::F32, 1e30)] {
        for device in devices() {
            let (out, overflows) = Case::new(dtype, None).with(2, 1, value).run(device);
            assert!(overflows.is_empty() && out.iter().flatten().all(|value| value.is_finite()), "{device:?}");
        }
    }
}

#[test]
fn what_was_not_finite_before_is_no_overflow_and_is_seen_as_nan() {
    for dtype in KvDType::ALL {
        for part in [0, 1] {
            for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                for device in devices() {
                    let (out, overflows) = Case::new(dtype, None).with(2, part, value).run(device);
                    assert!(overflows.is_empty());
                    for (row, out) in out.iter().enumerate() {
                        let sees = (2..ROWS).contains(&row);
                        assert_eq!(out.iter().any(|value| value.is_nan()), sees, "{device:?}: row {row}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_quantized_cache_holds_more_than_float16_and_names_what_it_cannot_hold() {
    for dtype in [KvDType::Q8, KvDType::Q6, KvDType::Q4] {
        for part in [0, 1] {
            for device in devices() {
                let (out, overflows) = Case::new(dtype, None).with(2, part, 70_000.0).run(device);
                assert!(overflows.is_empty() && out.iter().flatten().all(|value| value.is_finite()), "{device:?}");
                let clean = Case::new(dtype, None).run(device);
                let (out, overflows) = Case::new(dtype, None).with(2, part, -1e30).run(device);
                assert_eq!((overflows, clean.1.len()), (vec![2], 0), "{device:?}, {dtype:?}");
                for (row, (out, clean)) in out.iter().zip(&clean.0).enumerate() {
                    match (2..ROWS).contains(&row) {
                        true => assert!(out.iter().any(|value| value.is_nan()), "{device:?}: row {row}"),
                        false => assert_eq!(bits(out), bits(clean), "{device:?}: row {row}"),
                    }
                }
            }
        }
    }
}
