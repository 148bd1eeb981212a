//! The terms of DoRA's norms, for each output: |W|^2, W.(BA) and |BA|^2, summed over the inputs.
//!
//! W is read once, as packed: its squares by a kernel of their own, W A^T by the product kernel with A's rows as inputs. Both
//! sum in f32 within a span and in f64 beyond it where that is cheap. That is good to 1e-7 of |W|^2, hence enough unless BA is
//! nearly parallel to W, so that the two may cancel at some request weight. Such outputs are summed again, term by term in f64.
//!
//! |BA|^2 is `B (A A^T) B^T`, or summed over BA itself, a few inputs at a time, where the rank is so large that this is less
//! work, or that A A^T would be too large to hold.

use std::ops::Range;

use crate::adapter::delta::{LowRank, ReplacedRows};
use crate::backend::cpu::kernels::dispatch::{Kernels, MAX_ROWS};
use crate::backend::cpu::kernels::tile::Tiles;
use crate::backend::cpu::kernels::vector::LANES;
use crate::backend::cpu::runtime::threads::Pool;
use crate::backend::cpu::weights::pack::PADDING;
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::zeros;

/// Channels of an embedding that a task sums.
const TASK_CHANNELS: usize = 64;
/// Tokens that are summed in f32 before they are added in f64.
const TOKEN_RUN: usize = 256;
/// Inputs for which BA is formed at once.
const INPUT_RUN: usize = 256;
/// Largest rank for which A A^T is formed: 32 MiB.
const MAX_GRAM_RANK: usize = 2048;
/// Outputs are summed again in f64 where the square of the sine between W and BA is smaller: there the three sums may cancel.
/// With sums good to 3e-7, norms are then good to 3e-6 at any request weight.
const NEARLY_PARALLEL: f64 = 1.0 / 16.0;
/// Multiplications between two calls of `between_parts`: a fraction of a second of one core.
const PART: usize = 1 << 28;

/// The sums of one output. They determine its norm at any request weight.
#[derive(Clone, Copy, Default)]
pub(crate) struct NormTerms {
    /// |W|^2
    pub(crate) weight: f64,
    /// W.(BA), without the scale.
    pub(crate) mixed: f64,
    /// |BA|^2, without the scale.
    pub(crate) delta: f64,
    /// |W + s BA|^2, with the scale s: not the sum of the others where these cancel.
    pub(crate) total: f64,
}

impl NormTerms {
    fn new(weight: f64, mixed: f64, delta: f64, scale: f64) -> Self {
        Self { weight, mixed, delta, total: weight + 2.0 * (scale * mixed) + scale * scale * delta }
    }

    /// Adds one input.
    fn add(&mut self, w: f32, ba: f64, scale: f64) {
        let w = f64::from(w);
        self.weight += w * w;
        self.mixed += w * ba;
        self.delta += ba * ba;
        self.total += (w + scale * ba).powi(2);
    }

    /// Whether W and f s BA may cancel at some request weight f. Sums that overflowed f32 may too.
    fn may_cancel(&self) -> bool {
        let product = self.weight * self.delta;
        let sine = product - self.mixed * self.mixed;
        sine.is_nan() || sine < NEARLY_PARALLEL * product
    }
}

/// Factors as f32, A `[rank, inputs]` and B `[outputs, rank]`.
struct Factors {
    rank: usize,
    inputs: usize,
    outputs: usize,
    scale: f64,
    a: Vec<f32>,
    b: Vec<f32>,
    /// `A A^T [rank, rank]`, where |BA|^2 is computed from it.
    gram: Option<Vec<f64>>,
}

impl Factors {
    fn new(pool: &mut Pool, low: &LowRank<'_>, between_parts: &mut dyn FnMut() -> Result<()>) -> Result<Self> {
        let (rank, inputs, outputs) = (low.rank(), low.a.shape()[1], low.b.shape()[0]);
        let (a, b) = (low.a.view().try_to_f32()?, low.b.view().try_to_f32()?);
        let gram = match rank <= MAX_GRAM_RANK && rank * (inputs + outputs) <= inputs.saturating_mul(outputs) {
            true => Some(gram(pool, &a, rank, between_parts)?),
            false => None,
        };
        Ok(Self { rank, inputs, outputs, scale: f64::from(low.scale), a, b, gram })
    }

    fn a(&self, r: usize) -> &[f32] {
        &self.a[r * self.inputs..(r + 1) * self.inputs]
    }

    fn b(&self, output: usize) -> &[f32] {
        &self.b[output * self.rank..(output + 1) * self.rank]
    }

    /// |BA|^2 of an output: `B (A A^T) B^T`.
    fn delta(&self, gram: &[f64], output: usize) -> f64 {
        let b = self.b(output);
        let of_rank = |(&b_r, gram): (&f32, &[f64])| {
            f64::from(b_r) * gram.iter().zip(b).map(|(gram, &b_s)| gram * f64::from(b_s)).sum::<f64>()
        };
        b.iter().zip(gram.chunks_exact(self.rank)).map(of_rank).sum()
    }
}

/// `A A^T`
fn gram(pool: &mut Pool, a: &[f32], rank: usize, between_parts: &mut dyn FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let mut gram = zeros(rank * rank)?;
    let inputs = a.len() / rank;
    let row = |r: usize| &a[r * inputs..(r + 1) * inputs];
    let part = part_outputs(pool, 1, a.len());
    for (index, rows) in gram.chunks_mut(part * rank).enumerate() {
        between_parts()?;
        pool.for_chunks(rows, rank, |r, out| {
            out.iter_mut().enumerate().for_each(|(s, out)| *out = dot(row(index * part + r), row(s)));
        })?;
    }
    Ok(gram)
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

/// Outputs of a part of the work: whole tasks, at least one for each thread.
fn part_outputs(pool: &Pool, task: usize, per_output: usize) -> usize {
    (PART / per_output.max(1) / task).max(pool.threads()) * task
}

/// A linear's packed weight, and the factors of its delta in the same order of inputs.
struct Linear<'a> {
    kernels: &'a Kernels,
    tiles: &'a Tiles<'a>,
    factors: &'a Factors,
    /// A `[rank, packed]`.
    a: Vec<f32>,
    /// 1 at inputs, 0 at padding.
    mask: Vec<f32>,
}

/// What a thread needs to sum a tile term by term.
struct TileScratch {
    /// `[packed][16]`
    w: Vec<f32>,
    /// `[lane][inputs of a run]`
    ba: [[f64; INPUT_RUN]; LANES],
}

/// The terms of a linear's packed weight, some of whose rows may be replaced; `order` is the model's input of each packed one.
///
/// # Errors
/// `memory_exhausted`; a task panicked; what `between_parts` returned.
pub(crate) fn of_linear(
    pool: &mut Pool,
    kernels: &Kernels,
    tiles: &Tiles<'_>,
    order: Option<&[u32]>,
    low: &LowRank<'_>,
    rows: Option<&ReplacedRows<'_>>,
    between_parts: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<NormTerms>> {
    let factors = Factors::new(pool, low, between_parts)?;
    let linear = Linear::new(kernels, tiles, order, &factors)?;
    let mut terms = zeros::<NormTerms>(factors.outputs)?;
    let scratch = || Ok(TileScratch { w: zeros(tiles.inputs * LANES)?, ba: [[0.0; INPUT_RUN]; LANES] });
    let mut scratch = (0..pool.threads()).map(|_| scratch()).collect::<Result<Vec<_>>>()?;
    let part = part_outputs(pool, LANES, factors.rank.saturating_mul(tiles.inputs));
    for (index, terms) in terms.chunks_mut(part).enumerate() {
        between_parts()?;
        let first_tile = index * part / LANES;
        pool.for_chunks_with(terms, LANES, &mut scratch, |tile, terms, scratch| {
            linear.sum_tile(first_tile + tile, terms, scratch);
        })?;
    }
    for (at, &id) in rows.into_iter().flat_map(|rows| rows.ids.iter().enumerate()) {
        let Some(values) = rows.map(|rows| row(rows, at)) else { continue };
        between_parts()?;
        terms[id as usize] = of_replaced_row(&factors, &values?, id as usize)?;
    }
    Ok(terms)
}

/// The values of a replaced row.
fn row(rows: &ReplacedRows<'_>, at: usize) -> Result<Vec<f32>> {
    let width = rows.values.shape()[1];
    let mut values = zeros(width)?;
    rows.values.view().read_f32(at * width..(at + 1) * width, &mut values);
    Ok(values)
}

fn of_replaced_row(factors: &Factors, values: &[f32], output: usize) -> Result<NormTerms> {
    let mut ba: Vec<f64> = zeros(factors.inputs)?;
    for (r, &b) in factors.b(output).iter().enumerate() {
        ba.iter_mut().zip(factors.a(r)).for_each(|(ba, &a)| *ba += f64::from(b) * f64::from(a));
    }
    let mut terms = NormTerms::default();
    values.iter().zip(ba).for_each(|(&w, ba)| terms.add(w, ba, factors.scale));
    Ok(terms)
}

impl<'a> Linear<'a> {
    fn new(kernels: &'a Kernels, tiles: &'a Tiles<'a>, order: Option<&[u32]>, factors: &'a Factors) -> Result<Self> {
        let packed = tiles.inputs;
        let input = |k: usize| match order {
            Some(order) => Some(order[k]).filter(|&input| input != PADDING).map(|input| input as usize),
            None => Some(k).filter(|&k| k < factors.inputs),
        };
        let too_large = || Error::new(ErrorCode::MemoryExhausted, "a factor exceeds the address space");
        let mut mask = zeros(packed)?;
        mask.iter_mut().enumerate().for_each(|(k, mask)| *mask = f32::from(input(k).is_some()));
        let mut a = zeros(factors.rank.checked_mul(packed).ok_or_else(too_large)?)?;
        for (r, row) in a.chunks_exact_mut(packed.max(1)).enumerate() {
            let from = factors.a(r);
            row.iter_mut().enumerate().for_each(|(k, a)| *a = input(k).map_or(0.0, |input| from[input]));
        }
        Ok(Self { kernels, tiles, factors, a, mask })
    }

    /// The terms of a tile's outputs.
    fn sum_tile(&self, tile: usize, terms: &mut [NormTerms], scratch: &mut TileScratch) {
        let first = tile * LANES;
        let mut again = [true; LANES];
        if let Some(gram) = &self.factors.gram {
            let squares = self.kernels.squares(self.tiles, tile, &self.mask);
            let mixed = self.mixed(tile, terms.len());
            for (lane, terms) in terms.iter_mut().enumerate() {
                let delta = self.factors.delta(gram, first + lane);
                *terms = NormTerms::new(squares[lane], mixed[lane], delta, self.factors.scale);
                again[lane] = terms.may_cancel();
            }
        }
        if again[..terms.len()].contains(&true) {
            self.sum_in_f64(tile, &again, terms, scratch);
        }
    }

    /// W.(BA) of a tile's outputs, from the products of W with A's rows.
    fn mixed(&self, tile: usize, outputs: usize) -> [f64; LANES] {
        let (rank, packed) = (self.factors.rank, self.tiles.inputs);
        let mut mixed = [0.0; LANES];
        for first in (0..rank).step_by(MAX_ROWS) {
            let count = MAX_ROWS.min(rank - first);
            let mut x: [&[f32]; MAX_ROWS] = [&[]; MAX_ROWS];
            for (r, x) in x[..count].iter_mut().enumerate() {
                *x = &self.a[(first + r) * packed..(first + r + 1) * packed];
            }
            let mut products = [[0.0; LANES]; MAX_ROWS];
            self.kernels.product(self.tiles, tile, 1, &x[..count], &mut products);
            for (lane, mixed) in mixed[..outputs].iter_mut().enumerate() {
                let b = &self.factors.b(tile * LANES + lane)[first..first + count];
                let terms = b.iter().zip(&products);
                *mixed += terms.map(|(&b, products)| f64::from(b) * f64::from(products[lane])).sum::<f64>();
            }
        }
        mixed
    }

    /// The terms of some of a tile's outputs, each product and sum in f64.
    fn sum_in_f64(&self, tile: usize, wanted: &[bool; LANES], terms: &mut [NormTerms], scratch: &mut TileScratch) {
        let TileScratch { w, ba } = scratch;
        let packed = self.tiles.inputs;
        self.kernels.dequantize(self.tiles, tile, w);
        let first = tile * LANES;
        terms
            .iter_mut()
            .zip(wanted)
            .filter(|(_, wanted)| **wanted)
            .for_each(|(terms, _)| *terms = NormTerms::default());
        for start in (0..packed).step_by(INPUT_RUN) {
            let run = INPUT_RUN.min(packed - start);
            ba.iter_mut().for_each(|ba| ba[..run].fill(0.0));
            // A is read once for all outputs of the tile.
            for r in 0..self.factors.rank {
                let a = &self.a[r * packed + start..][..run];
                for (lane, ba) in ba[..terms.len()].iter_mut().enumerate().filter(|(lane, _)| wanted[*lane]) {
                    let b = f64::from(self.factors.b(first + lane)[r]);
                    ba[..run].iter_mut().zip(a).for_each(|(ba, &a)| *ba += b * f64::from(a));
                }
            }
            for (lane, terms) in terms.iter_mut().enumerate().filter(|(lane, _)| wanted[*lane]) {
                for i in (0..run).filter(|i| self.mask[start + i] != 0.0) {
                    terms.add(w[(start + i) * LANES + lane], ba[lane][i], self.factors.scale);
                }
            }
        }
    }
}

/// The terms of an embedding, whose inputs are its tokens: `read(token, channels, out)` gives channels of a token's row.
///
/// # Errors
/// `memory_exhausted`; a task panicked; what `between_parts` returned.
pub(crate) fn of_embedding(
    pool: &mut Pool,
    low: &LowRank<'_>,
    read: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    between_parts: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<NormTerms>> {
    let factors = Factors::new(pool, low, between_parts)?;
    let (rank, tokens) = (factors.rank, factors.inputs);
    let mut columns = zeros(factors.a.len())?;
    for r in 0..rank {
        factors.a(r).iter().enumerate().for_each(|(token, &a)| columns[token * rank + r] = a);
    }
    let embedding = Embedding { factors: &factors, columns, read };
    let mut terms = zeros::<NormTerms>(factors.outputs)?;
    let run = rank.saturating_add(1).saturating_mul(TASK_CHANNELS);
    let mut scratch = (0..pool.threads()).map(|_| zeros(run)).collect::<Result<Vec<Vec<f32>>>>()?;
    let part = part_outputs(pool, TASK_CHANNELS, rank.saturating_mul(tokens));
    for (index, terms) in terms.chunks_mut(part).enumerate() {
        between_parts()?;
        pool.for_chunks_with(terms, TASK_CHANNELS, &mut scratch, |task, terms, run| {
            embedding.sum_channels(index * part + task * TASK_CHANNELS, terms, run);
        })?;
    }
    Ok(terms)
}

/// An embedding and the factors of its delta.
struct Embedding<'a, R> {
    factors: &'a Factors,
    /// A^T `[tokens, rank]`
    columns: Vec<f32>,
    read: R,
}

impl<R: Fn(usize, Range<usize>, &mut [f32])> Embedding<'_, R> {
    /// The terms of some channels, at most [`TASK_CHANNELS`]; `run` has that many values for each rank, and for the squares.
    fn sum_channels(&self, first: usize, terms: &mut [NormTerms], run: &mut [f32]) {
        let mut again = [true; TASK_CHANNELS];
        if let Some(gram) = &self.factors.gram {
            self.sum_runs(first, terms, run);
            for (i, terms) in terms.iter_mut().enumerate() {
                let delta = self.factors.delta(gram, first + i);
                *terms = NormTerms::new(terms.weight, terms.mixed, delta, self.factors.scale);
                again[i] = terms.may_cancel();
            }
        }
        if again[..terms.len()].contains(&true) {
            self.sum_in_f64(first, &again, terms);
        }
    }

    /// |W|^2 and W.(BA), summed in f32 over runs of tokens.
    fn sum_runs(&self, first: usize, terms: &mut [NormTerms], run: &mut [f32]) {
        let (rank, tokens, width) = (self.factors.rank, self.factors.inputs, terms.len());
        let mut row = [0.0; TASK_CHANNELS];
        let (row, run) = (&mut row[..width], &mut run[..(rank + 1) * width]);
        for first_token in (0..tokens).step_by(TOKEN_RUN) {
            run.fill(0.0);
            let (squares, products) = run.split_at_mut(width);
            for token in first_token..tokens.min(first_token + TOKEN_RUN) {
                (self.read)(token, first..first + width, row);
                squares.iter_mut().zip(&*row).for_each(|(square, value)| *square += value * value);
                for (products, &a) in products.chunks_exact_mut(width).zip(&self.columns[token * rank..]) {
                    products.iter_mut().zip(&*row).for_each(|(product, value)| *product += a * value);
                }
            }
            for (i, terms) in terms.iter_mut().enumerate() {
                terms.weight += f64::from(squares[i]);
                let products = products.chunks_exact(width).zip(self.factors.b(first + i));
                terms.mixed += products.map(|(products, &b)| f64::from(b) * f64::from(products[i])).sum::<f64>();
            }
        }
    }

    /// The terms of some of the channels, each product and sum in f64.
    fn sum_in_f64(&self, first: usize, wanted: &[bool; TASK_CHANNELS], terms: &mut [NormTerms]) {
        let (rank, width) = (self.factors.rank, terms.len());
        let mut row = [0.0; TASK_CHANNELS];
        terms
            .iter_mut()
            .zip(wanted)
            .filter(|(_, wanted)| **wanted)
            .for_each(|(terms, _)| *terms = NormTerms::default());
        for (token, column) in self.columns.chunks_exact(rank.max(1)).enumerate() {
            (self.read)(token, first..first + width, &mut row[..width]);
            for (i, terms) in terms.iter_mut().enumerate().filter(|(i, _)| wanted[*i]) {
                terms.add(row[i], dot(self.factors.b(first + i), column), self.factors.scale);
            }
        }
    }
}
