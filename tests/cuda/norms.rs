//! Norms that are computed alone: the kernel against its formula in f64; layer norms and norms with biases, with what adapters bring,
//! through the backend, against the reference backend.

use ::support::Rng;
use ::support::deltas::Change;
use ::support::harness::{Device, Harness, Member, Mixture, Tensor, Weight, bits, oracle, route};
use exlora::adapter::batch::SlotId;
use exlora::backend::cuda::ops::norms::{NormKernels, NormSegments};
use exlora::backend::cuda::tables::RoutedNorm;
use exlora::backend::{NormKind, NormSpec, Write};
use exlora::tensor::DType;

use crate::compute::{assert_ratio, cuda, devices};
use crate::step::assert_close;
use crate::support::{device, download, upload};

const EPS: f32 = 1e-5;

/// `weight * (x - mean) / sqrt(variance + eps) + bias`, the mean being 0 where it is not subtracted.
fn normed(x: &[f32], weight: &[f32], bias: Option<&[f32]>, subtracts_mean: bool) -> Vec<f64> {
    let count = x.len() as f64;
    let mean = if subtracts_mean { x.iter().map(|&x| f64::from(x)).sum::<f64>() / count } else { 0.0 };
    let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
    let root = (variance + f64::from(EPS)).sqrt();
    let biased = |i: usize, value: f64| value + bias.map_or(0.0, |bias| f64::from(bias[i]));
    x.iter().enumerate().map(|(i, &x)| biased(i, f64::from(weight[i]) * (f64::from(x) - mean) / root)).collect()
}

/// Segments in the middle of rows, normed in their place.
struct Segments {
    width: usize,
    segments: usize,
    /// Whether each segment has weights and biases of its own.
    has_own: bool,
    has_bias: bool,
    subtracts_mean: bool,
}

const ROWS: usize = 5;
/// Columns before and behind the segments.
const BEFORE: usize = 20;
const BEHIND: usize = 9;

fn check_segments(case: &Segments) {
    let Segments { width, segments, has_own, has_bias, subtracts_mean } = *case;
    let (device, mut rng) = (device(), Rng((width + segments) as u64));
    let stride = BEFORE + segments * width + BEHIND;
    let x: Vec<f32> = rng.normals(ROWS * stride, 2.0).into_iter().map(|x| x + 3.0).collect();
    let weights = if has_own { segments * width } else { width };
    let packed = rng.normals(weights * 2, 1.0);
    let (on_device, norm) = (upload(&device, &x), upload(&device, &packed));
    let arguments = NormSegments {
        x: on_device.address(),
        out: on_device.address(),
        norm: RoutedNorm { weight: norm.address(), ..RoutedNorm::default() },
        rows: ROWS as u32,
        stride: stride as u32,
        first: BEFORE as u32,
        width: width as u32,
        weight_stride: if has_own { width as u32 } else { 0 },
        bias_offset: if has_bias { weights as u32 } else { 0 },
        subtracts_mean: subtracts_mean.into(),
        eps: EPS,
    };
    // Fewer blocks than rows.
    NormKernels::load(&device).expect("compiled").segments(&arguments, segments, 2).expect("launched");
    let found: Vec<f32> = download(&on_device);
    for (found, x) in found.chunks_exact(stride).zip(x.chunks_exact(stride)) {
        for segment in 0..segments {
            let columns = BEFORE + segment * width..BEFORE + (segment + 1) * width;
            let (weight, bias) = packed.split_at(weights);
            let own = if has_own { segment * width } else { 0 };
            let bias = has_bias.then(|| &bias[own..own + width]);
            let expected = normed(&x[columns.clone()], &weight[own..own + width], bias, subtracts_mean);
            assert_close(&found[columns], &expected, 1e-5, &format!("{width} wide, segment {segment}"));
        }
        let kept = |row: &[f32]| [bits(&row[..BEFORE]), bits(&row[stride - BEHIND..])].concat();
        assert_eq!(kept(found), kept(x));
    }
}

#[test]
fn segments_of_rows_are_normed_in_their_place_and_nothing_else_changes() {
    for (width, segments) in [(5, 3), (7, 1), (64, 4), (257, 2), (600, 1)] {
        for flags in 0..8 {
            let [has_own, has_bias, subtracts_mean] = [1, 2, 4].map(|flag| flags & flag != 0);
            check_segments(&Segments { width, segments, has_own, has_bias, subtracts_mean });
        }
    }
}

/// A norm of rows, what two adapters bring in its place, and a linear that reads the normed rows.
struct Case {
    width: usize,
    x: Vec<f32>,
    /// What the sums begin with.
    sums: Vec<f32>,
    kind: NormKind,
    weight: Tensor,
    bias: Option<Tensor>,
    /// Added to every stored weight.
    offset: f32,
    changes: [Change; 2],
    linear: Member,
}

/// Outputs of the linear.
const OUTPUTS: usize = 24;

impl Case {
    fn random(seed: u64, width: usize, rows: usize) -> Self {
        let mut rng = Rng(seed);
        let mut tensor = || Tensor::new(DType::BF16, &[width], &rng.normals(width, 1.0));
        let [weight, bias, first, second, other] = [(); 5].map(|()| tensor());
        let (kind, has_bias) =
            [(NormKind::Layer, false), (NormKind::Layer, true), (NormKind::Rms, true)][seed as usize % 3];
        // The second adapter brings the bias alone, where there is one.
        let changes = match has_bias {
            true => [
                Change { weight: Some(first), bias: Some(other), ..Change::default() },
                Change { bias: Some(second), ..Change::default() },
            ],
            false => [first, second].map(|weight| Change { weight: Some(weight), ..Change::default() }),
        };
        let values = rng.normals(width * OUTPUTS, (width as f32).powf(-0.5));
        Self {
            width,
            // Far from 0, so that the mean matters.
            x: rng.normals(rows * width, 2.0).into_iter().map(|x| x + 3.0).collect(),
            sums: rng.normals(rows * width, 1.0),
            kind,
            weight,
            bias: has_bias.then_some(bias),
            offset: [0.0, 1.0][seed as usize % 2],
            changes,
            linear: Member { weight: Weight::Dense(Tensor::new(DType::F16, &[OUTPUTS, width], &values)), bias: None },
        }
    }

    /// Rows of every kind: without an adapter, with one, with both.
    fn mixtures(&self) -> Vec<Mixture> {
        let of_row = |row: usize| -> Mixture {
            [&[][..], &[(SlotId(0), 1.0)], &[(SlotId(1), 0.5)], &[(SlotId(1), 1.0), (SlotId(0), 1.0)]][row % 4].to_vec()
        };
        (0..self.x.len() / self.width).map(of_row).collect()
    }

    /// A linear of the normed rows, the normed rows, and their sums with others; of all rows or of one.
    fn run(&self, device: Device, row: Option<usize>) -> [Vec<f32>; 3] {
        let mut harness = Harness::open(device);
        let (group, _) = harness.group(std::slice::from_ref(&self.linear));
        let (id, site) = harness.norm_with(&self.weight, self.bias.as_ref(), self.offset);
        for (slot, change) in (0..).zip(&self.changes) {
            harness.upload(SlotId(slot), &[site], std::slice::from_ref(change)).expect("the adapter uploads");
        }
        let (width, mixtures) = (self.width, self.mixtures());
        let of_rows = row.map_or(0..mixtures.len(), |row| row..row + 1);
        let (batch, rows) = (route(&mixtures[of_rows.clone()]), of_rows.len());
        let values = of_rows.start * width..of_rows.end * width;
        let (x, sums) = (harness.put(width, &self.x[values.clone()]), harness.put(width, &self.sums[values]));
        let [out, y] = [width, OUTPUTS].map(|width| harness.buffer(width, rows));
        let (compute, norm) = (harness.compute(), NormSpec { id, kind: self.kind, eps: EPS });
        compute.norm(&norm, x, rows, &batch, out, Write::Replace).expect("the norm runs");
        compute.linear(group, out, rows, &batch, y, Write::Replace).expect("the linear runs");
        compute.norm(&norm, x, rows, &batch, sums, Write::Add { factor: 0.22 }).expect("the norm runs");
        [harness.get(y, OUTPUTS, rows), harness.get(out, width, rows), harness.get(sums, width, rows)]
    }
}

#[test]
fn layer_norms_and_norms_with_biases_agree_with_the_reference_under_adapters() {
    for (seed, (width, rows)) in (0..).zip([(64, 5), (100, 9), (33, 12), (320, 20), (8, 70), (600, 4)]) {
        let case = Case::random(seed, width, rows);
        let expected = case.run(oracle(), None);
        for (device, limit) in devices() {
            let found = case.run(device, None);
            let of_results = [(OUTPUTS, limit), (width, 1e-6), (width, 1e-6)];
            for (index, ((found, expected), (width, limit))) in found.iter().zip(&expected).zip(of_results).enumerate()
            {
                assert_ratio(&format!("seed {seed}, {device:?}, result {index}"), width, found, expected, limit);
            }
        }
    }
}

#[test]
fn a_normed_row_has_the_same_bits_alone() {
    for (seed, (width, rows)) in (0..).zip([(96, 6), (300, 40), (64, 9)]) {
        let case = Case::random(seed, width, rows);
        let together = case.run(cuda(), None);
        for row in [0, 1, 2, rows - 1] {
            let alone = case.run(cuda(), Some(row));
            for ((alone, together), width) in alone.iter().zip(&together).zip([OUTPUTS, width, width]) {
                assert_eq!(bits(alone), bits(&together[row * width..(row + 1) * width]), "seed {seed}, row {row}");
            }
        }
    }
}
