//! The expand kernels against their formulas in f64.

use std::sync::Arc;

use ::support::Rng;
use exlora::adapter::batch::AdapterBatch;
use exlora::backend::cuda::driver::{Device, DeviceMemory};
use exlora::backend::cuda::layout::ElementType;
use exlora::backend::cuda::ops::embed::SQUARES_COLUMNS;
use exlora::backend::cuda::ops::expand::{
    ExpandActivate, ExpandKernels, ExpandLogits, ExpandResidual, LargestKey, Projection, activation_kind,
};
use exlora::backend::{Activation, KvDType, LargestLogit, MlpShape, StepRows};
use half::{bf16, f16};

use crate::step::{DeviceSlot, LinearDelta, LowRank, Routes, Step, assert_close, bits, route};
use crate::support::{device, download, upload};

/// The group's index among the model's groups; slots change nothing at the ones before it.
const GROUP: usize = 2;

/// The products of a group for some rows, what finishes them, and the same on the host.
#[derive(Clone)]
struct Products {
    out_features: Vec<usize>,
    /// Values of a row of `projected`: the base's outputs, or more where an adapter brings a larger weight.
    columns: usize,
    bias: Vec<Option<Vec<f32>>>,
    /// By slot, then by linear.
    deltas: Vec<Vec<LinearDelta>>,
    routes: Routes,
    /// `[rows, columns]`
    projected: Vec<f32>,
    /// `[entries, stride]`
    shrunk: Vec<f32>,
    stride: usize,
}

/// Products on the device.
struct OnDevice {
    projection: Projection,
    step: Step,
    _memory: Vec<DeviceMemory>,
    _slots: Vec<DeviceSlot>,
}

impl Products {
    /// Random products of linears for rows with those adapters: slots of three ranks, the first with B's bias, the second with
    /// a bias of its own, the third with a magnitude; then one with a bias alone, one without anything, and two that replace
    /// rows, in part the same: one takes something out of the weight besides, the other has a magnitude.
    fn random(rng: &mut Rng, out_features: &[usize], ranks: [usize; 3], routes: Routes) -> Self {
        let bias = |rng: &mut Rng, outputs: usize| Some(rng.normals(outputs, 1.0));
        let mut deltas = vec![Vec::new(); 7];
        for &outputs in out_features {
            let low = ranks.map(|rank| LowRank::random(rng, rank, outputs));
            let [first, second, third] = low;
            let at = LinearDelta::at(outputs);
            deltas[0].push(LinearDelta { low: Some(first.with_b_bias(rng)), ..at.clone() });
            deltas[1].push(LinearDelta { bias: bias(rng, outputs), low: Some(second.clone()), ..at.clone() });
            deltas[2].push(LinearDelta { low: Some(third.clone().with_magnitude(rng)), ..at.clone() });
            deltas[3].push(LinearDelta { bias: bias(rng, outputs), ..at.clone() });
            let removed = Some(LowRank::random(rng, 3, outputs));
            let every_third = (0..outputs as u32).filter(|id| id % 3 == 1 || *id as usize == outputs - 1).collect();
            deltas[5].push(LinearDelta { rows: every_third, removed, low: Some(second), ..at.clone() });
            let rows = random_rows(rng, outputs);
            deltas[6].push(LinearDelta { rows, low: Some(third.with_magnitude(rng)), ..at });
        }
        let entries: usize = routes.iter().map(Vec::len).sum();
        let stride = longest_t(&deltas) + 3;
        Self {
            columns: out_features.iter().sum(),
            // The last linear has no bias, unless it is the only one.
            bias: (0..out_features.len())
                .map(|linear| if linear == 2 { None } else { bias(rng, out_features[linear]) })
                .collect(),
            projected: rng.normals(routes.len() * out_features.iter().sum::<usize>(), 2.0),
            shrunk: rng.normals(entries * stride, 1.0),
            out_features: out_features.to_vec(),
            deltas,
            routes,
            stride,
        }
    }

    /// Every kind of row: base, one adapter, mixtures in both orders, weights that are 1 and that are not.
    fn mixed(rng: &mut Rng, out_features: &[usize], ranks: [usize; 3]) -> Self {
        let routes = vec![
            vec![],
            vec![(0, 1.0)],
            vec![(1, 0.5), (0, -2.0)],
            vec![(2, 1.0)],
            vec![(0, 0.75), (2, 0.25), (1, 1.0)],
            vec![(2, 1.0), (0, 0.75)],
            vec![(3, 1.0)],
            vec![(3, 1.0), (1, 1.0), (3, 1.0)],
            vec![(4, 1.0), (0, 1.0)],
            vec![(5, 1.0)],
            vec![(6, 1.0), (0, 0.5)],
            vec![(0, -1.0), (6, 0.5), (5, 1.0)],
            vec![(5, 0.25), (5, 1.0), (6, 1.0)],
        ];
        Self::random(rng, out_features, ranks, routes)
    }

    /// A head, and adapters that bring heads of their own with more outputs: one with every part that there is, one with a
    /// magnitude; beside them one without, for the base's outputs.
    fn with_larger_heads(rng: &mut Rng, vocab: usize) -> Self {
        let heads = [vocab + 301, vocab, vocab + 5].map(LinearDelta::at);
        let [mut larger, mut plain, mut rescaled] = heads;
        (larger.brings_weight, rescaled.brings_weight) = (true, true);
        larger.bias = Some(rng.normals(larger.outputs, 1.0));
        larger.rows = random_rows(rng, larger.outputs);
        larger.removed = Some(LowRank::random(rng, 4, larger.outputs));
        larger.low = Some(LowRank::random(rng, 8, larger.outputs).with_b_bias(rng));
        plain.rows = random_rows(rng, vocab);
        plain.low = Some(LowRank::random(rng, 5, vocab).with_b_bias(rng));
        rescaled.low = Some(LowRank::random(rng, 3, rescaled.outputs).with_magnitude(rng));
        let routes: Routes = vec![
            vec![],
            vec![(0, 1.0)],
            vec![(1, 0.5)],
            vec![(2, 1.0)],
            vec![(0, 1.0), (1, 1.0)],
            vec![(1, 1.0), (2, 0.5)],
            vec![(0, 1.0), (2, 1.0)],
            vec![(2, 1.0), (0, 1.0)],
        ];
        let (columns, deltas) = (larger.outputs, vec![vec![larger], vec![plain], vec![rescaled]]);
        let stride = longest_t(&deltas);
        let entries: usize = routes.iter().map(Vec::len).sum();
        Self {
            out_features: vec![vocab],
            columns,
            bias: vec![Some(rng.normals(vocab, 1.0))],
            projected: rng.normals(routes.len() * columns, 2.0),
            shrunk: rng.normals(entries * stride, 1.0),
            deltas,
            routes,
            stride,
        }
    }

    fn rows(&self) -> usize {
        self.routes.len()
    }

    /// Outputs of a linear for a row: those of the last weight that its adapters bring.
    fn outputs_of_row(&self, row: usize, linear: usize) -> usize {
        let deltas = self.routes[row].iter().rev().filter_map(|&(slot, _)| self.deltas[slot].get(linear));
        deltas
            .filter(|delta| delta.brings_weight)
            .map(|delta| delta.outputs)
            .next()
            .unwrap_or(self.out_features[linear])
    }

    /// The row alone, with what belongs to it.
    fn alone(&self, row: usize, batch: &AdapterBatch) -> Self {
        // In a batch of one row, entries are sorted by slot; those of one slot keep the request's order.
        let mut entries: Vec<usize> = batch.of_row(row).to_vec();
        entries.sort_unstable();
        let shrunk = entries.iter().flat_map(|&entry| self.shrunk[entry * self.stride..][..self.stride].to_vec());
        Self {
            routes: vec![self.routes[row].clone()],
            projected: self.projected[row * self.columns..][..self.columns].to_vec(),
            shrunk: shrunk.collect(),
            ..self.clone()
        }
    }

    fn upload(&self, device: &Arc<Device>, rows: &StepRows) -> OnDevice {
        let mut slots: Vec<DeviceSlot> =
            self.deltas.iter().map(|deltas| DeviceSlot::new(device, GROUP, deltas)).collect();
        if let Some(slot) = slots.get_mut(4) {
            *slot = DeviceSlot::empty();
        }
        let step = Step::new(device, &vec![0; self.rows()], &self.routes, &slots, rows);
        let mut memory = vec![upload(device, &self.projected), upload(device, &self.shrunk)];
        let mut projection = Projection {
            projected: memory[0].address(),
            shrunk: memory[1].address(),
            shrunk_stride: self.stride as u32,
            group: GROUP as u32,
            changes_weights: 1,
            ..Projection::of_outputs(self.out_features.iter().copied())
        };
        if self.out_features.len() == 1 {
            projection.starts[1..].fill(self.columns as u32);
        }
        for (address, bias) in projection.bias.iter_mut().zip(&self.bias) {
            if let Some(bias) = bias {
                memory.push(upload(device, bias));
                *address = memory.last().map_or(0, DeviceMemory::address);
            }
        }
        OnDevice { projection, step, _memory: memory, _slots: slots }
    }

    /// The finished outputs of a row, linear after linear.
    fn finished(&self, row: usize, batch: &AdapterBatch) -> Vec<f64> {
        let mut y = Vec::new();
        let mut start = row * self.columns;
        for linear in 0..self.out_features.len() {
            let outputs = self.outputs_of_row(row, linear);
            let finished =
                |output: usize| self.finished_output(row, batch, linear, output, self.projected[start + output]);
            y.extend((0..outputs).map(finished));
            start += outputs;
        }
        y
    }

    /// The definition of `Compute::linear`, with the bias outside of what a magnitude rescales.
    fn finished_output(&self, row: usize, batch: &AdapterBatch, linear: usize, output: usize, product: f32) -> f64 {
        // Weight, delta and t of each of the row's adapters.
        let deltas = self.routes[row].iter().zip(batch.of_row(row)).filter_map(|(&(slot, weight), &entry)| {
            let delta = self.deltas[slot].get(linear)?;
            let before: usize = self.deltas[slot][..linear].iter().map(LinearDelta::stack_rows).sum();
            let t = &self.shrunk[entry * self.stride + before..][..delta.stack_rows()];
            Some((weight, delta, t))
        });
        let times_t = |low: &LowRank, t: &[f32]| -> f64 {
            let b = &low.b[output * low.rank..][..low.rank];
            b.iter().zip(t).map(|(b, &t)| b.to_f64() * f64::from(t)).sum()
        };
        let mut y = f64::from(product);
        for (_, delta, t) in deltas.clone() {
            if let Ok(index) = delta.rows.binary_search(&(output as u32)) {
                y = f64::from(delta.rows_scale * t[index]);
            }
        }
        let mut bias = self.bias[linear].as_ref();
        for (_, delta, t) in deltas.clone() {
            bias = delta.bias.as_ref().or(bias);
            if let Some(removed) = delta.removed.as_ref().filter(|_| output < delta.outputs) {
                y += f64::from(removed.scale) * times_t(removed, &t[delta.rows.len()..]);
            }
        }
        for (weight, delta, t) in deltas {
            let Some(low) = delta.low.as_ref().filter(|_| output < delta.outputs) else { continue };
            y = low.apply(&t[delta.stack_rows() - low.rank..], output, weight, y);
        }
        y + bias.and_then(|bias| bias.get(output)).map_or(0.0, |&bias| f64::from(bias))
    }
}

/// Some rows of a weight, ascending.
fn random_rows(rng: &mut Rng, outputs: usize) -> Vec<u32> {
    (0..outputs as u32).filter(|_| rng.below(5) == 0).collect()
}

/// The most values that t of one entry has.
fn longest_t(deltas: &[Vec<LinearDelta>]) -> usize {
    let of_slot = |linears: &Vec<LinearDelta>| linears.iter().map(LinearDelta::stack_rows).sum();
    deltas.iter().map(of_slot).max().unwrap_or(0)
}

fn kernels(device: &Arc<Device>, element: ElementType) -> ExpandKernels {
    ExpandKernels::load(device, element, KvDType::F16).expect("compiled")
}

/// Runs `expand_residual` on `hidden` with that many blocks along the rows; returns it with its sums of squares.
fn residual(products: &Products, hidden: &[f32], factor: f32, blocks: usize) -> (Vec<f32>, Vec<f32>) {
    let device = device();
    let on_device = products.upload(&device, &StepRows::default());
    let hidden = upload(&device, hidden);
    let sums = products.rows() * products.columns.div_ceil(SQUARES_COLUMNS);
    let sum_squares = device.allocate(sums * 4).expect("allocated");
    let arguments = ExpandResidual {
        projection: on_device.projection,
        step: on_device.step.tables,
        hidden: hidden.address(),
        sum_squares: sum_squares.address(),
        hidden_size: products.columns as u32,
        factor,
    };
    kernels(&device, ElementType::F16).residual(&arguments, blocks).expect("launched");
    (download(&hidden), download(&sum_squares))
}

#[test]
fn a_projection_is_added_to_the_residual_stream_with_every_delta_in_the_order_of_the_request() {
    for (hidden_size, ranks) in [(40, [8, 5, 64]), (300, [1, 16, 33]), (257, [64, 2, 24])] {
        let mut rng = Rng(hidden_size as u64);
        let products = Products::mixed(&mut rng, &[hidden_size], ranks);
        let hidden = rng.normals(products.rows() * hidden_size, 3.0);
        let (got, sum_squares) = residual(&products, &hidden, 0.5, 4);
        let batch = route(&products.routes);
        for row in 0..products.rows() {
            let of_row = row * hidden_size..(row + 1) * hidden_size;
            let y = products.finished(row, &batch);
            let want: Vec<f64> =
                hidden[of_row.clone()].iter().zip(y).map(|(&hidden, y)| f64::from(hidden) + 0.5 * y).collect();
            assert_close(&got[of_row.clone()], &want, 1e-5, &format!("row {row} of {:?}", products.routes[row]));
            let squares: Vec<f64> = got[of_row]
                .chunks(SQUARES_COLUMNS)
                .map(|block| block.iter().map(|&value| f64::from(value).powi(2)).sum())
                .collect();
            let blocks = hidden_size.div_ceil(SQUARES_COLUMNS);
            assert_close(&sum_squares[row * blocks..][..blocks], &squares, 1e-6, "sums of squares");
        }
    }
}

#[test]
fn a_finished_row_has_the_same_bits_alone_and_in_any_batch() {
    let mut rng = Rng(5);
    let products = Products::mixed(&mut rng, &[300], [8, 5, 64]);
    let hidden = rng.normals(products.rows() * 300, 3.0);
    let (together, sum_squares) = residual(&products, &hidden, 1.0, products.rows());
    let batch = route(&products.routes);
    for row in 0..products.rows() {
        let of_row = row * 300..(row + 1) * 300;
        let (alone, sum_squares_alone) = residual(&products.alone(row, &batch), &hidden[of_row.clone()], 1.0, 1);
        assert_eq!(bits(&together[of_row]), bits(&alone), "row {row}");
        assert_eq!(bits(&sum_squares[row * 2..][..2]), bits(&sum_squares_alone), "row {row}");
    }
}

/// Runs `expand_activate` on gate and up, or on up alone; returns the bits of its results and the rows that overflowed.
fn activate(products: &Products, element: ElementType, activation: Activation, blocks: usize) -> (Vec<u16>, Vec<u32>) {
    let device = device();
    let on_device = products.upload(&device, &StepRows::default());
    let (rows, width) = (products.rows(), products.out_features[0]);
    let activated = device.allocate(rows * width * 2).expect("allocated");
    let overflow_rows = upload(&device, &vec![0u32; rows]);
    let arguments = ExpandActivate {
        projection: on_device.projection,
        step: on_device.step.tables,
        activated: activated.address(),
        overflow_rows: overflow_rows.address(),
        intermediate_size: width as u32,
        activation: activation_kind(activation),
    };
    let shape = if products.out_features.len() == 1 { MlpShape::Plain } else { MlpShape::Gated };
    kernels(&device, element).activate(&arguments, shape, blocks).expect("launched");
    (download(&activated), download(&overflow_rows))
}

/// The integral of the normal density from 0 to x, by Simpson's rule.
fn normal_integral(x: f64) -> f64 {
    let density = |x: f64| (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let step = x / 2000.0;
    let parts = (0..2000).map(|part| {
        let start = f64::from(part) * step;
        density(start) + 4.0 * density(start + step / 2.0) + density(start + step)
    });
    parts.sum::<f64>() * step / 6.0
}

#[test]
fn gate_and_up_are_finished_and_activated_and_so_is_up_alone() {
    let silu: fn(f64) -> f64 = |x| x / (1.0 + (-x).exp());
    let gelu_tanh: fn(f64) -> f64 = |x| {
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
        0.5 * x * (1.0 + u.tanh())
    };
    let gelu: fn(f64) -> f64 = |x| x * (0.5 + normal_integral(x));
    for (element, linears, width, activation, formula, tolerance) in [
        (ElementType::F16, 2, 40, Activation::Silu, silu, 1e-3),
        (ElementType::F16, 2, 270, Activation::GeluTanh, gelu_tanh, 1e-3),
        (ElementType::Bf16, 2, 270, Activation::Silu, silu, 1e-2),
        (ElementType::F16, 2, 270, Activation::Gelu, gelu, 1e-3),
        (ElementType::F16, 1, 270, Activation::GeluTanh, gelu_tanh, 1e-3),
        (ElementType::Bf16, 1, 33, Activation::Gelu, gelu, 1e-2),
    ] {
        let products = Products::mixed(&mut Rng(width as u64), &vec![width; linears], [8, 5, 16]);
        let (got, overflow_rows) = activate(&products, element, activation, 2);
        let got: Vec<f32> = match element {
            ElementType::F16 => got.into_iter().map(|bits| f16::from_bits(bits).to_f32()).collect(),
            ElementType::Bf16 => got.into_iter().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
        };
        let batch = route(&products.routes);
        for row in 0..products.rows() {
            let y = products.finished(row, &batch);
            let want: Vec<f64> =
                (0..width).map(|i| formula(y[i]) * if linears == 2 { y[width + i] } else { 1.0 }).collect();
            assert_close(&got[row * width..][..width], &want, tolerance, &format!("row {row}, {element:?}"));
        }
        assert!(overflow_rows.iter().all(|&overflowed| overflowed == 0));
    }
}

#[test]
fn a_row_whose_activation_overflows_is_named_and_its_value_infinite() {
    let mut products = Products::random(&mut Rng(7), &[33, 33], [1, 1, 1], vec![vec![]; 4]);
    products.projected.fill(1.0);
    // 300 * 300 is beyond f16, not beyond bf16; an infinite input is no overflow of the element type.
    products.projected[66 + 32] = 300.0;
    products.projected[66 + 65] = 300.0;
    products.projected[2 * 66] = f32::INFINITY;
    products.bias = vec![None, None];
    let (got, overflow_rows) = activate(&products, ElementType::F16, Activation::Silu, 4);
    assert_eq!(overflow_rows, [0, 1, 0, 0]);
    assert_eq!(got[33 + 32], f16::INFINITY.to_bits());
    assert_eq!(got[2 * 33], f16::INFINITY.to_bits());
    let (_, overflow_rows) = activate(&products, ElementType::Bf16, Activation::Silu, 4);
    assert_eq!(overflow_rows, [0; 4]);
}

/// Runs `expand_logits`; returns the logits, `[rows, stride]` beginning as -7, and the largest of each row.
fn logits(products: &Products, stride: usize, multiplier: f32, cap: f32) -> (Vec<f32>, Vec<LargestKey>) {
    let device = device();
    let on_device = products.upload(&device, &StepRows::default());
    let logits = upload(&device, &vec![-7.0f32; products.rows() * stride]);
    let argmax = upload(&device, &vec![0u64; products.rows()]);
    let arguments = ExpandLogits {
        projection: on_device.projection,
        step: on_device.step.tables,
        logits: logits.address(),
        argmax: argmax.address(),
        stride: stride as u32,
        columns: products.columns as u32,
        multiplier,
        cap,
    };
    kernels(&device, ElementType::F16).logits(&arguments, 3).expect("launched");
    (download(&logits), download::<u64>(&argmax).into_iter().map(LargestKey::read).collect())
}

/// Fails unless rows have the logits that they should have, and no others.
fn assert_logits(products: &Products, stride: usize, cap: f32) {
    let (got, largest) = logits(products, stride, 0.25, cap);
    let batch = route(&products.routes);
    for (row, got) in got.chunks_exact(stride).enumerate() {
        let want = products.finished(row, &batch).into_iter().map(|y| 0.25 * y);
        let capped = want.map(|y| if cap == 0.0 { y } else { f64::from(cap) * (y / f64::from(cap)).tanh() });
        let capped: Vec<f64> = capped.collect();
        let (logits, others) = got.split_at(capped.len());
        assert_close(logits, &capped, 1e-5, &format!("row {row}"));
        assert!(others.iter().all(|&value| value == -7.0));
        let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let first = logits.iter().position(|&logit| logit == peak).expect("it is one of them");
        assert_eq!(largest[row], LargestKey::Finite(LargestLogit { token: first as u32, logit: peak }));
    }
}

#[test]
fn logits_are_finished_and_the_largest_is_found() {
    for cap in [0.0, 4.0] {
        assert_logits(&Products::mixed(&mut Rng(11), &[515], [8, 5, 16]), 520, cap);
    }
}

#[test]
fn a_row_has_the_logits_of_the_head_that_its_adapters_bring_and_no_others() {
    for vocab in [515, 31] {
        let mut products = Products::with_larger_heads(&mut Rng(vocab as u64), vocab);
        // What a row has no outputs for is not read.
        for row in 0..products.rows() {
            let outputs = products.outputs_of_row(row, 0);
            products.projected[row * products.columns..][outputs..products.columns].fill(f32::NAN);
        }
        assert_logits(&products, products.columns + 2, 0.0);
    }
}

#[test]
fn of_equal_logits_the_first_is_the_largest_and_what_is_not_finite_is_reported() {
    let mut products = Products::random(&mut Rng(13), &[300], [1, 1, 1], vec![vec![]; 5]);
    products.bias = vec![None];
    products.projected.fill(-1.0);
    // Equal peaks in different blocks; zeros of both signs; all infinite; an infinity before a NaN; an infinity below the others.
    for (row, token, value) in [
        (0, 299, 3.0),
        (0, 40, 3.0),
        (0, 41, 3.0),
        (1, 200, -0.0),
        (1, 270, 0.0),
        (3, 280, f32::NAN),
        (3, 257, f32::NAN),
        (3, 2, f32::INFINITY),
        (4, 299, f32::NEG_INFINITY),
    ] {
        products.projected[row * 300 + token] = value;
    }
    products.projected[600..900].fill(f32::NEG_INFINITY);
    let (_, largest) = logits(&products, 300, 1.0, 0.0);
    let finite = |token, logit| LargestKey::Finite(LargestLogit { token, logit });
    let not_finite = LargestKey::NotFinite;
    assert_eq!(largest, [finite(40, 3.0), finite(200, 0.0), not_finite(0), not_finite(2), not_finite(299)]);
}
