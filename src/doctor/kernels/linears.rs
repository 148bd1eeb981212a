//! Cases of packed weights, of linears, and of what adapters change there.

use super::case::{BaseWeight, Case, Group, Loading, Precision, Run, base_rows, buffers, install, read, route};
use crate::adapter::batch::AdapterBatch;
use crate::adapter::delta::{LowRank, SiteDelta};
use crate::backend::{Backend, NormSpec, Write};
use crate::error::Result;
use crate::tensor::Tensor;

/// Every width of a code.
const BITS: [u8; 6] = [2, 3, 4, 5, 6, 8];
/// Inputs of the linears: whole units of 64, and part of one.
const INPUTS: usize = 328;
/// Outputs: whole strips of 16, and part of one.
const OUTPUTS: usize = 72;

pub(super) fn cases() -> Vec<Case> {
    let widths = BITS.map(|bits| (format!("{bits} bits"), BaseWeight::Codes(bits, 64)));
    let others = [("mixed bits", BaseWeight::MixedCodes), ("16 bits", BaseWeight::Dense)];
    let weights: Vec<(String, BaseWeight)> =
        widths.into_iter().chain(others.map(|(name, weight)| (name.to_owned(), weight))).collect();
    let mut cases: Vec<Case> = weights.iter().map(|(name, weight)| repack(name, *weight)).collect();
    for (name, weight) in &weights {
        cases.extend([1, 9].map(|rows| linear(name, *weight, rows)));
    }
    // Each variant of the kernel, by the rows that a tile has; and several tiles.
    cases.extend([20, 40, 70].map(|rows| linear("4 bits", BaseWeight::Codes(4, 64), rows)));
    cases.push(residual());
    cases.extend(adapters());
    cases
}

/// Packing: what the backend says that it holds.
fn repack(name: &str, weight: BaseWeight) -> Case {
    Case::new(format!("repack, {name}"), Precision::Single, move |loading| {
        let group = loading.group(weight, INPUTS, &[OUTPUTS])?;
        Ok(Box::new(move |backend: &mut Backend| backend.adapters.dense_weight(group.sites[0])))
    })
}

fn linear(name: &str, weight: BaseWeight, rows: usize) -> Case {
    let count = if rows == 1 { "1 row".to_owned() } else { format!("{rows} rows") };
    Case::new(format!("linear, {name}, {count}"), Precision::Half, move |loading| {
        let group = loading.group(weight, INPUTS, &[OUTPUTS])?;
        let x = loading.rng.normals(rows * INPUTS, 1.0);
        Ok(Box::new(move |backend: &mut Backend| product(backend, &group, &x, &base_rows(rows))))
    })
}

/// `W x + b` and what adapters change, `[rows, outputs]`.
fn product(backend: &mut Backend, group: &Group, x: &[f32], batch: &AdapterBatch) -> Result<Vec<f32>> {
    let (compute, rows) = (&mut *backend.compute, x.len() / group.inputs);
    let [input, output] = buffers(compute, rows, [group.inputs, group.outputs()])?;
    compute.write_rows(input, 0, x)?;
    compute.linear(group.id, input, rows, batch, output, Write::Replace)?;
    read(compute, output, rows, group.outputs())
}

/// The residual stream: a sum to which a linear is added, normed and read by another linear.
fn residual() -> Case {
    Case::new("residual, norm", Precision::Half, |loading| {
        let first = loading.group(BaseWeight::Codes(4, 64), 128, &[INPUTS])?;
        let second = loading.group(BaseWeight::Codes(4, 64), INPUTS, &[OUTPUTS])?;
        let norm = loading.norm(INPUTS)?;
        let rows = 9;
        let (x, residual) = (loading.rng.normals(rows * 128, 1.0), loading.rng.normals(rows * INPUTS, 1.0));
        Ok(Box::new(move |backend: &mut Backend| {
            let (compute, batch) = (&mut *backend.compute, base_rows(rows));
            let [input, hidden, normed, output] = buffers(compute, rows, [128, INPUTS, INPUTS, OUTPUTS])?;
            compute.write_rows(input, 0, &x)?;
            compute.write_rows(hidden, 0, &residual)?;
            compute.linear(first.id, input, rows, &batch, hidden, Write::ADD)?;
            compute.norm(&NormSpec::rms(norm, 1e-5), hidden, rows, &batch, normed, Write::Replace)?;
            compute.linear(second.id, normed, rows, &batch, output, Write::Replace)?;
            let mut values = read(compute, hidden, rows, INPUTS)?;
            values.extend(read(compute, output, rows, OUTPUTS)?);
            Ok(values)
        }))
    })
}

/// What an adapter has at the linears of a group.
type Deltas = fn(&mut Loading<'_>, &Group) -> Vec<SiteDelta<'static>>;

/// Shrink and expand: each kind of delta, on a group of three linears.
fn adapters() -> Vec<Case> {
    let one: &[&[(u32, f32)]] =
        &[&[(0, 1.0)], &[], &[(0, 0.5)], &[(0, 1.0)], &[], &[], &[(0, -1.0)], &[(0, 1.0)], &[(0, 2.0)]];
    let whole: &[&[(u32, f32)]] = &[&[(0, 1.0)], &[], &[(0, 1.0)]];
    let mixture: &[&[(u32, f32)]] = &[
        &[(0, 0.3), (1, 0.7)],
        &[(1, 1.0), (2, 0.5), (0, -0.25)],
        &[],
        &[(2, 1.0)],
        &[(2, 0.5), (1, 0.5)],
        &[(0, 1.0)],
        &[(1, 2.0)],
        &[],
        &[(0, 1.0), (1, 1.0), (2, 1.0)],
    ];
    vec![
        adapted("LoRA", one, &[lora]),
        adapted("LoRA with a bias of B", one, &[lora_with_bias]),
        adapted("DoRA", one, &[dora]),
        adapted("mixture of three", mixture, &[lora, dora, lora_with_bias]),
        adapted("replaced weight and bias", whole, &[replaced]),
        adapted("truncated weight (KaSA)", one, &[truncated]),
    ]
}

fn adapted(name: &str, rows: &'static [&'static [(u32, f32)]], adapters: &'static [Deltas]) -> Case {
    Case::new(format!("adapters, {name}"), Precision::Half, move |loading| -> Result<Run> {
        let group = loading.group(BaseWeight::Codes(4, 64), INPUTS, &[40, OUTPUTS, 16])?;
        let adapters: Vec<_> = adapters.iter().map(|deltas| deltas(loading, &group)).collect();
        let x = loading.rng.normals(rows.len() * INPUTS, 1.0);
        Ok(Box::new(move |backend: &mut Backend| {
            for (slot, deltas) in (0..).zip(&adapters) {
                install(backend, slot, deltas)?;
            }
            product(backend, &group, &x, &route(rows))
        }))
    })
}

fn lora(loading: &mut Loading<'_>, group: &Group) -> Vec<SiteDelta<'static>> {
    vec![loading.low_rank(group, 0, 16), loading.low_rank(group, 1, 40), loading.low_rank(group, 2, 5)]
}

fn lora_with_bias(loading: &mut Loading<'_>, group: &Group) -> Vec<SiteDelta<'static>> {
    let delta = loading.low_rank(group, 1, 8);
    let bias = vector(loading, group.widths[1], 1.0);
    vec![change(delta, |low| low.b_bias = Some(bias))]
}

fn dora(loading: &mut Loading<'_>, group: &Group) -> Vec<SiteDelta<'static>> {
    [(0, 8), (1, 16)]
        .into_iter()
        .map(|(member, rank)| {
            let delta = loading.low_rank(group, member, rank);
            let outputs = group.widths[member];
            let magnitude: Vec<f32> = (0..outputs).map(|_| 1.0 + loading.rng.uniform(0.5)).collect();
            change(delta, |low| low.magnitude = Some(Tensor::from_f32(&[outputs], &magnitude)))
        })
        .collect()
}

fn replaced(loading: &mut Loading<'_>, group: &Group) -> Vec<SiteDelta<'static>> {
    let (inputs, outputs) = (group.inputs, group.widths[1]);
    let weight = loading.rng.normals(outputs * inputs, (inputs as f32).powf(-0.5));
    let weight = Some(Tensor::from_f32(&[outputs, inputs], &weight));
    let bias = Some(vector(loading, group.widths[0], 1.0));
    vec![SiteDelta { weight, ..SiteDelta::at(group.sites[1]) }, SiteDelta { bias, ..loading.low_rank(group, 0, 8) }]
}

fn truncated(loading: &mut Loading<'_>, group: &Group) -> Vec<SiteDelta<'static>> {
    let removed = loading.low_rank(group, 1, 5).low_rank;
    vec![SiteDelta { removed, ..loading.low_rank(group, 1, 8) }]
}

fn vector(loading: &mut Loading<'_>, length: usize, scale: f32) -> Tensor<'static> {
    Tensor::from_f32(&[length], &loading.rng.normals(length, scale))
}

fn change(mut delta: SiteDelta<'static>, change: impl FnOnce(&mut LowRank<'static>)) -> SiteDelta<'static> {
    if let Some(low) = &mut delta.low_rank {
        change(low);
    }
    delta
}
