//! How large the terms are that a linear adds up, under every kind of delta: what its rounding errors are relative to.
//!
//! A sum may be small because its terms cancel, while its error is that of the terms. So a bound on the error of an output that
//! follows from the arithmetic is a multiple of the sum of magnitudes, not of the output.

use std::collections::HashMap;

use exlora::adapter::batch::SlotId;
use exlora::quant::StoredWeight;

use super::adapter_cases::LinearsCase;
use super::deltas::{Change, Low};
use super::harness::{Tensor, Weight};

/// Below this magnitude a float16 has less than 11 bits: an error is then that of a value of this magnitude.
const LEAST_NORMAL_F16: f64 = 1.0 / 16384.0;

impl LinearsCase {
    /// For each output of each row, `[rows, stride]`: the sum of the magnitudes of all products and biases that make it. 0 for
    /// outputs that the row does not have.
    pub fn magnitudes(&self) -> Vec<f64> {
        let weights: Vec<Vec<f64>> = self.members.iter().map(|member| values_of(&member.weight)).collect();
        let mut ratios = HashMap::new();
        let mut all = Vec::with_capacity(self.rows() * self.stride);
        for row in 0..self.rows() {
            let x = &self.x[row * self.inputs..(row + 1) * self.inputs];
            for (member, weight) in weights.iter().enumerate() {
                self.push_linear(row, member, weight, x, &mut ratios, &mut all);
            }
            all.resize((row + 1) * self.stride, 0.0);
        }
        all
    }

    fn push_linear(
        &self,
        row: usize,
        member: usize,
        weight: &[f64],
        x: &[f32],
        ratios: &mut HashMap<(SlotId, usize, u32), Vec<f64>>,
        all: &mut Vec<f64>,
    ) {
        let change_of = |slot: SlotId| {
            let changes = &self.adapters.iter().find(|(other, _)| *other == slot)?.1;
            changes.iter().find(|change| change.site == member && change.repeat == self.repeat)
        };
        let entries = self.mixtures[row].iter().filter_map(|&(slot, f)| Some((slot, f, change_of(slot)?)));
        let entries: Vec<(SlotId, f32, &Change)> = entries.collect();
        let last = |part: fn(&Change) -> Option<&Tensor>| entries.iter().rev().find_map(|(.., change)| part(change));

        let replaced = last(|change| change.weight.as_ref()).map(values);
        let mut y = products(replaced.as_deref().unwrap_or(weight), x);
        for (ids, rows) in entries.iter().filter_map(|(.., change)| change.rows.as_ref()) {
            for (&id, product) in ids.iter().zip(products(&values(rows), x)) {
                if let Some(y) = y.get_mut(id as usize) {
                    *y = product;
                }
            }
        }
        for removed in entries.iter().filter_map(|(.., change)| change.removed.as_ref()) {
            add(&mut y, &low_rank(removed, x), 1.0);
        }
        for &(slot, f, change) in &entries {
            let Some(low) = &change.low else { continue };
            add(&mut y, &low_rank(low, x), f64::from(f.abs()));
            if low.magnitude.is_some() {
                let key = (slot, member, f.to_bits());
                let ratios = ratios.entry(key).or_insert_with(|| magnitude_ratios(change, low, weight, x.len(), f));
                y.iter_mut().zip(ratios).for_each(|(y, ratio)| *y *= *ratio);
            }
        }
        let bias = last(|change| change.bias.as_ref()).or(self.members[member].bias.as_ref());
        let bias = bias.map_or_else(Vec::new, values);
        y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias.abs());
        all.append(&mut y);
    }
}

/// The dense values of a weight, `[outputs, inputs]`.
fn values_of(weight: &Weight) -> Vec<f64> {
    match weight {
        Weight::Dense(tensor) => values(tensor),
        Weight::Coded(codes) => {
            let stored = StoredWeight::Quantized(Box::new(codes.clone()));
            stored.dequantize(0..stored.out_features()).into_iter().map(f64::from).collect()
        }
    }
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.view().to_f32().into_iter().map(f64::from).collect()
}

/// Sums of magnitudes of the products of rows `[outputs, inputs]` with an input, each factor at least a normal float16.
fn products(rows: &[f64], x: &[f32]) -> Vec<f64> {
    let product = |(&w, &x): (&f64, &f32)| w.abs().max(LEAST_NORMAL_F16) * f64::from(x).abs().max(LEAST_NORMAL_F16);
    rows.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(product).sum()).collect()
}

/// Those of a low-rank part at a request weight of 1, with B's bias.
fn low_rank(low: &Low, x: &[f32]) -> Vec<f64> {
    let (t, b) = (products(&values(&low.a), x), values(&low.b));
    let b_bias = low.b_bias.as_ref().map(values);
    let scale = f64::from(low.scale.abs());
    let of_output = |(output, b): (usize, &[f64])| {
        let product: f64 = b.iter().zip(&t).map(|(b, t)| b.abs() * t).sum();
        scale * (product + b_bias.as_ref().map_or(0.0, |bias| bias[output].abs()))
    };
    b.chunks_exact(t.len()).enumerate().map(of_output).collect()
}

fn add(y: &mut [f64], added: &[f64], factor: f64) {
    y.iter_mut().zip(added).for_each(|(y, added)| *y += factor * added);
}

/// DoRA's `m / n` of each output, where n is the norm of the adapter's own weight and `f s B A`.
fn magnitude_ratios(change: &Change, low: &Low, base: &[f64], inputs: usize, f: f32) -> Vec<f64> {
    let mut weight = change.weight.as_ref().map_or_else(|| base.to_vec(), values);
    if let Some((ids, rows)) = &change.rows {
        for (&id, row) in ids.iter().zip(values(rows).chunks_exact(inputs)) {
            weight[id as usize * inputs..][..inputs].copy_from_slice(row);
        }
    }
    let (a, b) = (values(&low.a), values(&low.b));
    let factor = f64::from(f) * f64::from(low.scale);
    let magnitude = low.magnitude.as_ref().map_or_else(Vec::new, values);
    let rank = low.b.shape[1];
    let ratio = |(output, m): (usize, &f64)| {
        let mut row = weight[output * inputs..][..inputs].to_vec();
        for (r, a) in a.chunks_exact(inputs).enumerate() {
            row.iter_mut().zip(a).for_each(|(w, a)| *w += factor * b[output * rank + r] * a);
        }
        m.abs() / row.iter().map(|w| w * w).sum::<f64>().sqrt()
    };
    magnitude.iter().enumerate().map(ratio).collect()
}
