//! The terms of DoRA's norms: |W|^2, s W.(BA), s^2 |BA|^2 and |W + s BA|^2 of each output, summed over the inputs in f64.
//!
//! The last is summed by itself, because at a request weight of 1, the usual one, the others may cancel.

use std::thread;

use crate::adapter::delta::LowRank;
use crate::backend::cuda::tables::NORM_TERMS;
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::zeros;

/// Multiplications of one thread between two calls of `between_parts`: a fraction of a second.
const PART: usize = 1 << 28;
/// Values of a table that are read between two calls of `between_parts`.
const PART_VALUES: usize = 1 << 22;

/// The terms of each output, `[outputs]`, of a weight `[outputs, inputs]`.
///
/// # Errors
/// `memory_exhausted`; what `between_parts` returned; `internal` if a thread panicked.
pub(super) fn norm_terms(
    weight: &[f32],
    low: &LowRank<'_>,
    threads: usize,
    between_parts: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<[f64; NORM_TERMS]>> {
    let (rank, inputs, outputs) = (low.rank(), low.a.shape()[1], low.b.shape()[0]);
    let (a, b) = (low.a.view().try_to_f32()?, low.b.view().try_to_f32()?);
    let scale = f64::from(low.scale);

    let mut terms = zeros::<[f64; NORM_TERMS]>(outputs)?;
    let of_thread = (PART / (rank + 1).saturating_mul(inputs).max(1)).max(1);
    for (part, terms) in terms.chunks_mut(of_thread * threads).enumerate() {
        between_parts()?;
        let first_of_part = part * of_thread * threads;
        on_threads(threads, terms, |first, terms| {
            let first = first_of_part + first;
            sum_outputs(&weight[first * inputs..], &a, &b[first * rank..], inputs, scale, terms);
        })?;
    }
    Ok(terms)
}

/// The terms of each column of a table `[tokens, outputs]`: at an embedding the inputs are the tokens. `read(token, rows)` gives
/// the rows from a token on.
///
/// # Errors
/// `memory_exhausted`; what `read` or `between_parts` returned; `internal` if a thread panicked.
pub(super) fn norm_terms_of_table(
    mut read: impl FnMut(usize, &mut [f32]) -> Result<()>,
    low: &LowRank<'_>,
    threads: usize,
    between_parts: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<[f64; NORM_TERMS]>> {
    let (rank, tokens, outputs) = (low.rank(), low.a.shape()[1], low.b.shape()[0]);
    let (a, b) = (low.a.view().try_to_f32()?, low.b.view().try_to_f32()?);
    let scale = f64::from(low.scale);
    let mut columns_of_b = zeros(b.len())?;
    for (output, b) in b.chunks_exact(rank.max(1)).enumerate() {
        b.iter().enumerate().for_each(|(r, &b)| columns_of_b[r * outputs + output] = b);
    }

    let mut terms = zeros::<[f64; NORM_TERMS]>(outputs)?;
    let of_part = (PART / (rank + 1)).clamp(1, PART_VALUES).div_ceil(outputs.max(1));
    let mut rows = zeros(of_part.min(tokens) * outputs)?;
    for first_token in (0..tokens).step_by(of_part) {
        between_parts()?;
        let count = of_part.min(tokens - first_token);
        let rows = &mut rows[..count * outputs];
        read(first_token, rows)?;
        on_threads(threads, &mut terms, |first, terms| {
            let mut ba = vec![0f64; terms.len()];
            for (token, row) in (first_token..).zip(rows.chunks_exact(outputs)) {
                ba.fill(0.0);
                for (r, b) in columns_of_b.chunks_exact(outputs).enumerate() {
                    let a = f64::from(a[r * tokens + token]);
                    ba.iter_mut().zip(&b[first..]).for_each(|(ba, &b)| *ba += a * f64::from(b));
                }
                for ((terms, &w), ba) in terms.iter_mut().zip(&row[first..]).zip(&ba) {
                    add_input(terms, w, scale * ba);
                }
            }
        })?;
    }
    Ok(terms)
}

/// Calls `sum(first, terms)` for runs of the terms, each on a thread of its own.
fn on_threads(
    threads: usize,
    terms: &mut [[f64; NORM_TERMS]],
    sum: impl Fn(usize, &mut [[f64; NORM_TERMS]]) + Sync,
) -> Result<()> {
    let run = terms.len().div_ceil(threads).max(1);
    let finished = thread::scope(|scope| {
        let mut helpers = Vec::with_capacity(threads);
        for (index, terms) in terms.chunks_mut(run).enumerate() {
            let sum = &sum;
            helpers.push(scope.spawn(move || sum(index * run, terms)));
        }
        // Each is joined, so that none's panic goes on.
        let mut finished = true;
        for helper in helpers {
            finished &= helper.join().is_ok();
        }
        finished
    });
    match finished {
        true => Ok(()),
        false => Err(Error::new(ErrorCode::Internal, "a thread that sums DoRA norms panicked")),
    }
}

/// The terms of consecutive outputs, with which `weight` and `b` begin.
fn sum_outputs(weight: &[f32], a: &[f32], b: &[f32], inputs: usize, scale: f64, terms: &mut [[f64; NORM_TERMS]]) {
    let rank = a.len() / inputs.max(1);
    let mut ba = vec![0f64; inputs];
    for (output, terms) in terms.iter_mut().enumerate() {
        ba.fill(0.0);
        for (a, &b) in a.chunks_exact(inputs.max(1)).zip(&b[output * rank..(output + 1) * rank]) {
            ba.iter_mut().zip(a).for_each(|(ba, &a)| *ba += f64::from(b) * f64::from(a));
        }
        *terms = [0.0; NORM_TERMS];
        for (&w, ba) in weight[output * inputs..].iter().zip(&ba) {
            add_input(terms, w, scale * ba);
        }
    }
}

/// Adds what one input contributes: its weight, and the adapter's delta of that.
fn add_input(terms: &mut [f64; NORM_TERMS], weight: f32, delta: f64) {
    let weight = f64::from(weight);
    let total = weight + delta;
    for (sum, term) in terms.iter_mut().zip([weight * weight, weight * delta, delta * delta, total * total]) {
        *sum += term;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    #[test]
    fn terms_are_those_of_the_formula_for_any_number_of_threads() {
        // W = [[1, 2], [3, -1], [0, 4]], B A = [[1, 0], [2, 0], [-1, 0]], s = 0.5.
        let weight = [1.0, 2.0, 3.0, -1.0, 0.0, 4.0];
        let low =
            LowRank::new(Tensor::from_f32(&[1, 2], &[1.0, 0.0]), Tensor::from_f32(&[3, 1], &[1.0, 2.0, -1.0]), 0.5);
        let expected = [[5.0, 0.5, 0.25, 6.25], [10.0, 3.0, 1.0, 17.0], [16.0, 0.0, 0.25, 16.25]];
        for threads in 1..5 {
            assert_eq!(norm_terms(&weight, &low, threads, &mut || Ok(())).unwrap(), expected);
        }
    }

    #[test]
    fn terms_of_a_table_are_those_of_its_transpose_for_any_number_of_threads() {
        // E = [[1, 3, 0], [2, -1, 4]], of which each column is an output; the factors are those above.
        let table = [1.0, 3.0, 0.0, 2.0, -1.0, 4.0];
        let low =
            LowRank::new(Tensor::from_f32(&[1, 2], &[1.0, 0.0]), Tensor::from_f32(&[3, 1], &[1.0, 2.0, -1.0]), 0.5);
        let weight = [1.0, 2.0, 3.0, -1.0, 0.0, 4.0];
        let expected = norm_terms(&weight, &low, 1, &mut || Ok(())).unwrap();
        for threads in 1..5 {
            let read = |token: usize, rows: &mut [f32]| {
                rows.copy_from_slice(&table[token * 3..][..rows.len()]);
                Ok(())
            };
            assert_eq!(norm_terms_of_table(read, &low, threads, &mut || Ok(())).unwrap(), expected);
        }
    }

    #[test]
    fn the_norm_at_a_weight_of_one_is_exact_where_the_delta_cancels_the_weight() {
        let weight = [1.0 + 2f32.powi(-20), 1.0];
        let low = LowRank::new(Tensor::from_f32(&[1, 2], &[1.0, 1.0]), Tensor::from_f32(&[1, 1], &[-1.0]), 1.0);
        let terms = norm_terms(&weight, &low, 1, &mut || Ok(())).unwrap();
        assert_eq!(terms[0][3], 2f64.powi(-40));
    }

    #[test]
    fn an_interrupted_sum_ends_with_the_error_of_its_caller() {
        let low = LowRank::new(Tensor::from_f32(&[1, 1], &[1.0]), Tensor::from_f32(&[1, 1], &[1.0]), 1.0);
        let interrupt = || Err(Error::new(ErrorCode::Interrupted, "enough"));
        assert_eq!(norm_terms(&[1.0], &low, 1, &mut { interrupt }).unwrap_err().code(), ErrorCode::Interrupted);
    }
}
