//! What DoRA's norms are made of, for each output: |W|^2, W.(BA) and |BA|^2, over the inputs.
//!
//! W is read once, as the kernels see it: its squares by a kernel of their own, W A^T by the product kernel with A's rows as
//! inputs. Both sum in f32 within a span and in f64 beyond it where that is cheap.

use std::ops::Range;

use crate::adapter::delta::{LowRank, ReplacedRows};
use crate::backend::cpu::kernels::dispatch::{Kernels, MAX_ROWS};
use crate::backend::cpu::kernels::tile::{BLOCK, Tiles};
use crate::backend::cpu::kernels::vector::LANES;
use crate::backend::cpu::runtime::threads::{Disjoint, Pool};
use crate::backend::cpu::weights::pack::PADDING;
use crate::error::Result;

/// Channels of an embedding that a task sums.
const TASK_CHANNELS: usize = 64;
/// Tokens that are summed in f32 before they are added in f64.
const TOKEN_RUN: usize = 256;

/// The three sums of each output.
pub(crate) struct Moments {
    /// |W|^2
    pub(crate) weight: Vec<f64>,
    /// W.(BA), without the scale.
    pub(crate) mixed: Vec<f64>,
    /// |BA|^2, without the scale.
    pub(crate) delta: Vec<f64>,
}

/// Factors as f32, A `[rank, inputs]` and B `[outputs, rank]`, with `A A^T [rank, rank]`.
struct Plain {
    rank: usize,
    inputs: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    gram: Vec<f64>,
}

impl Plain {
    fn new(pool: &mut Pool, low: &LowRank<'_>) -> Result<Self> {
        let (rank, inputs, a) = (low.rank(), low.a.shape()[1], low.a.view().to_f32());
        let mut gram = vec![0.0; rank * rank];
        let rows = Disjoint::new(&mut gram);
        let row = |r: usize| &a[r * inputs..(r + 1) * inputs];
        pool.run(rank, |r, _| {
            // SAFETY: each row belongs to one task.
            let out = unsafe { rows.part(r * rank..(r + 1) * rank) };
            out.iter_mut().enumerate().for_each(|(s, out)| *out = dot(row(r), row(s)));
        })?;
        Ok(Self { rank, inputs, a, b: low.b.view().to_f32(), gram })
    }

    fn b(&self, output: usize) -> &[f32] {
        &self.b[output * self.rank..(output + 1) * self.rank]
    }

    /// |BA|^2 of an output: `B (A A^T) B^T`.
    fn delta(&self, output: usize) -> f64 {
        let b = self.b(output);
        let of_rank = |(&b_r, gram): (&f32, &[f64])| {
            f64::from(b_r) * gram.iter().zip(b).map(|(gram, &b_s)| gram * f64::from(b_s)).sum::<f64>()
        };
        b.iter().zip(self.gram.chunks_exact(self.rank)).map(of_rank).sum()
    }
}

/// The dot product in eight sums.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(a) * f64::from(b);
        }
    }
    sums.iter().sum()
}

/// Of a linear's packed weight, some of whose rows are replaced; `order` is the model's input of each packed one.
///
/// # Errors
/// A task panicked.
pub(crate) fn of_linear(
    pool: &mut Pool,
    kernels: &Kernels,
    tiles: &Tiles<'_>,
    order: Option<&[u32]>,
    low: &LowRank<'_>,
    rows: Option<&ReplacedRows<'_>>,
) -> Result<Moments> {
    let plain = Plain::new(pool, low)?;
    let (rank, outputs) = (plain.rank, low.b.shape()[0]);
    let packed: usize = tiles.spans.iter().map(|span| span.blocks * BLOCK).sum();
    let input = |k: usize| match order {
        Some(order) => Some(order[k]).filter(|&input| input != PADDING).map(|input| input as usize),
        None => Some(k).filter(|&k| k < plain.inputs),
    };
    let mask: Vec<f32> = (0..packed).map(|k| f32::from(input(k).is_some())).collect();
    let gathered = |r: usize| (0..packed).map(move |k| (r, k));
    let a: Vec<f32> = (0..rank)
        .flat_map(gathered)
        .map(|(r, k)| input(k).map_or(0.0, |input| plain.a[r * plain.inputs + input]))
        .collect();
    let mut sums = vec![[0.0; 3]; outputs];
    let parts = Disjoint::new(&mut sums);
    pool.run(outputs.div_ceil(LANES), |tile, _| {
        let squares = kernels.squares(tiles, tile, &mask);
        let range = tile * LANES..outputs.min((tile + 1) * LANES);
        // SAFETY: each tile belongs to one task.
        let sums = unsafe { parts.part(range.clone()) };
        for (lane, (output, sums)) in range.clone().zip(&mut *sums).enumerate() {
            *sums = [squares[lane], 0.0, plain.delta(output)];
        }
        for first in (0..rank).step_by(MAX_ROWS) {
            let count = MAX_ROWS.min(rank - first);
            let mut x = [std::ptr::null(); MAX_ROWS];
            for (r, x) in x[..count].iter_mut().enumerate() {
                *x = a[(first + r) * packed..(first + r + 1) * packed].as_ptr();
            }
            let mut products = [[0.0; LANES]; MAX_ROWS];
            // SAFETY: rows are as long as the tiles' inputs.
            unsafe { kernels.product(tiles, tile, 1, &x[..count], &mut products) };
            for (lane, (output, sums)) in range.clone().zip(&mut *sums).enumerate() {
                let terms = plain.b(output)[first..first + count].iter().zip(&products);
                sums[1] += terms.map(|(&b, products)| f64::from(b) * f64::from(products[lane])).sum::<f64>();
            }
        }
    })?;
    for (&id, values) in rows.into_iter().flat_map(|rows| rows.ids.iter().zip(values_of(rows))) {
        let ba =
            |(r, &b): (usize, &f32)| f64::from(b) * dot(&values, &plain.a[r * plain.inputs..(r + 1) * plain.inputs]);
        let sums = &mut sums[id as usize];
        (sums[0], sums[1]) = (dot(&values, &values), plain.b(id as usize).iter().enumerate().map(ba).sum());
    }
    let [weight, mixed, delta] = [0, 1, 2].map(|of| sums.iter().map(|sums| sums[of]).collect());
    Ok(Moments { weight, mixed, delta })
}

fn values_of<'a>(rows: &'a ReplacedRows<'_>) -> impl Iterator<Item = Vec<f32>> + 'a {
    let width = rows.values.shape()[1];
    (0..rows.ids.len()).map(move |row| {
        let mut values = vec![0.0; width];
        rows.values.view().read_f32(row * width..(row + 1) * width, &mut values);
        values
    })
}

/// Of an embedding, whose inputs are its tokens: `read(token, channels, out)` gives channels of a token's row.
///
/// # Errors
/// A task panicked.
pub(crate) fn of_embedding(
    pool: &mut Pool,
    low: &LowRank<'_>,
    read: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
) -> Result<Moments> {
    let plain = Plain::new(pool, low)?;
    let (rank, tokens, outputs) = (plain.rank, plain.inputs, low.b.shape()[0]);
    let mut columns = vec![0.0; tokens * rank];
    for (r, row) in plain.a.chunks_exact(tokens.max(1)).enumerate() {
        row.iter().enumerate().for_each(|(token, &a)| columns[token * rank + r] = a);
    }
    let mut sums = vec![[0.0; 2]; outputs];
    let parts = Disjoint::new(&mut sums);
    pool.run(outputs.div_ceil(TASK_CHANNELS), |task, _| {
        let channels = task * TASK_CHANNELS..outputs.min((task + 1) * TASK_CHANNELS);
        // SAFETY: each channel belongs to one task.
        let sums = unsafe { parts.part(channels.clone()) };
        let width = channels.len();
        let (mut row, mut run) = (vec![0.0; width], vec![0.0f32; (rank + 1) * width]);
        for first in (0..tokens).step_by(TOKEN_RUN) {
            run.fill(0.0);
            let (squares, products) = run.split_at_mut(width);
            for token in first..tokens.min(first + TOKEN_RUN) {
                read(token, channels.clone(), &mut row);
                squares.iter_mut().zip(&row).for_each(|(square, value)| *square += value * value);
                for (products, &a) in products.chunks_exact_mut(width).zip(&columns[token * rank..]) {
                    products.iter_mut().zip(&row).for_each(|(product, value)| *product += a * value);
                }
            }
            for (i, (channel, sums)) in channels.clone().zip(&mut *sums).enumerate() {
                sums[0] += f64::from(squares[i]);
                let products = products.chunks_exact(width).zip(plain.b(channel));
                sums[1] += products.map(|(products, &b)| f64::from(b) * f64::from(products[i])).sum::<f64>();
            }
        }
    })?;
    let [weight, mixed] = [0, 1].map(|of| sums.iter().map(|sums| sums[of]).collect());
    Ok(Moments { weight, mixed, delta: (0..outputs).map(|output| plain.delta(output)).collect() })
}
