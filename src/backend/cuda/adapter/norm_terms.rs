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
        let run = terms.len().div_ceil(threads);
        let finished = thread::scope(|scope| {
            let mut helpers = Vec::with_capacity(threads);
            for (index, terms) in terms.chunks_mut(run).enumerate() {
                let first = part * of_thread * threads + index * run;
                let (weight, a, b) = (&weight[first * inputs..], &a, &b[first * rank..]);
                helpers.push(scope.spawn(move || sum_outputs(weight, a, b, inputs, scale, terms)));
            }
            // Each is joined, so that none's panic goes on.
            let mut finished = true;
            for helper in helpers {
                finished &= helper.join().is_ok();
            }
            finished
        });
        if !finished {
            return Err(Error::new(ErrorCode::Internal, "a thread that sums DoRA norms panicked"));
        }
    }
    Ok(terms)
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
            let (w, delta) = (f64::from(w), scale * ba);
            let total = w + delta;
            for (sum, term) in terms.iter_mut().zip([w * w, w * delta, delta * delta, total * total]) {
                *sum += term;
            }
        }
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
