//! The smallest singular values of a weight, which KaSA removes.
//!
//! With W = U S V^T, the weight without its r smallest values is `W - (U_r S_r) V_r^T`, where U_r and V_r are the last r
//! columns. That is a low-rank delta, as cheap to apply as any adapter of rank r, but finding it takes a full decomposition.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use nalgebra::{DMatrix, SVD};

use crate::adapter::delta::{LowRank, Truncation};
use crate::error::{Error, ErrorCode, Result};
use crate::fork_safe_mutex::ForkSafeMutex;
use crate::tensor::Tensor;

/// Iterations per singular value after which a decomposition is given up; a few are usual.
const MAX_ITERATIONS_PER_VALUE: usize = 1000;

/// How often a caller that waits for a decomposition is asked whether to go on.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Held while a weight is decomposed, which takes several times its memory: one at a time, so that those whose callers were
/// interrupted don't add up.
static DECOMPOSING: LazyLock<ForkSafeMutex<()>> = LazyLock::new(|| ForkSafeMutex::new(()));

/// The delta that removes the smallest singular values of a row-major weight: A is `V_r^T`, B is `U_r S_r`, the scale is -1.
/// The weight is decomposed in f64, on a thread of its own: if `between_parts` returns an error, that ends by itself.
///
/// # Errors
/// `internal` if the decomposition does not converge; `memory_exhausted` if there is no thread for it;
/// `forked_while_in_use`; what `between_parts` returned.
pub(super) fn remove_smallest_singular_values(
    weight: Vec<f32>,
    truncation: Truncation,
    between_parts: &mut dyn FnMut() -> Result<()>,
) -> Result<LowRank<'static>> {
    let (sender, receiver) = channel();
    let waiting = Arc::new(());
    let caller = Arc::downgrade(&waiting);
    let work = move || {
        let result = DECOMPOSING.lock().and_then(|_decomposing| match caller.strong_count() {
            0 => Err(Error::new(ErrorCode::Interrupted, "nobody waits for the decomposition any more")),
            _ => decompose(&weight, truncation),
        });
        // A caller that was interrupted does not want it.
        let _ = sender.send(result);
    };
    thread::Builder::new().name("exlora-svd".to_owned()).spawn(work).map_err(|e| {
        Error::new(ErrorCode::MemoryExhausted, format!("cannot start a thread to decompose a weight: {e}"))
    })?;
    loop {
        match receiver.recv_timeout(ASK_EVERY) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Timeout) => between_parts()?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::new(ErrorCode::Internal, "the singular value decomposition of a weight panicked"));
            }
        }
    }
}

fn decompose(weight: &[f32], truncation: Truncation) -> Result<LowRank<'static>> {
    let Truncation { values: count, outputs, inputs } = truncation;
    let matrix = DMatrix::from_row_iterator(outputs, inputs, weight.iter().map(|&value| f64::from(value)));
    let values = outputs.min(inputs);
    let failed = || Error::new(ErrorCode::Internal, "the singular value decomposition of a weight did not converge");
    let svd =
        SVD::try_new(matrix, true, true, 5.0 * f64::EPSILON, MAX_ITERATIONS_PER_VALUE * values).ok_or_else(failed)?;
    let (Some(u), Some(v_t)) = (svd.u, svd.v_t) else { return Err(failed()) };
    // They are in descending order.
    let smallest = values.saturating_sub(count)..values;
    let left = (0..outputs).flat_map(|output| smallest.clone().map(move |i| (output, i)));
    let right = smallest.clone().flat_map(|i| (0..inputs).map(move |input| (i, input)));
    let left: Vec<f32> = left.map(|(output, i)| (u[(output, i)] * svd.singular_values[i]) as f32).collect();
    let right: Vec<f32> = right.map(|(i, input)| v_t[(i, input)] as f32).collect();
    Ok(LowRank::new(Tensor::from_f32(&[count, inputs], &right), Tensor::from_f32(&[outputs, count], &left), -1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The delta that removes one value, as a matrix `[outputs, inputs]`.
    fn removed(weight: &[f32], outputs: usize, inputs: usize) -> Vec<f32> {
        let truncation = Truncation { values: 1, outputs, inputs };
        let low = remove_smallest_singular_values(weight.to_vec(), truncation, &mut || Ok(())).expect("it converges");
        assert_eq!((low.a.shape(), low.b.shape()), (&[1, inputs][..], &[outputs, 1][..]));
        let (a, b) = (low.a.view().to_f32(), low.b.view().to_f32());
        b.iter().flat_map(|b| a.iter().map(move |a| low.scale * b * a)).collect()
    }

    #[test]
    fn the_smallest_singular_value_is_removed() {
        // [2 1; 1 2] has the singular values 3 and 1, the smaller along (1, -1) / sqrt 2.
        let removed = removed(&[2.0, 1.0, 1.0, 2.0], 2, 2);
        for (found, expected) in removed.iter().zip([-0.5, 0.5, 0.5, -0.5]) {
            assert!((found - expected).abs() < 1e-6, "{removed:?}");
        }
    }

    #[test]
    fn wide_and_tall_weights_are_decomposed_alike() {
        let wide = removed(&[4.0, 0.0, 0.0, 0.0, 0.5, 0.0], 2, 3);
        let tall = removed(&[4.0, 0.0, 0.0, 0.5, 0.0, 0.0], 3, 2);
        for (removed, at) in [(wide, 4), (tall, 3)] {
            for (i, value) in removed.iter().enumerate() {
                let expected = if i == at { -0.5 } else { 0.0 };
                assert!((value - expected).abs() < 1e-6, "{removed:?}");
            }
        }
    }

    #[test]
    fn an_interrupted_caller_does_not_wait_for_the_decomposition() {
        // As long as this is held, no decomposition begins.
        let other = DECOMPOSING.lock().expect("not forked");
        let mut asked = 0;
        let mut interrupt = || {
            asked += 1;
            if asked == 2 { Err(Error::new(ErrorCode::Interrupted, "Ctrl-C was pressed")) } else { Ok(()) }
        };
        let truncation = Truncation { values: 1, outputs: 2, inputs: 2 };
        let error = remove_smallest_singular_values(vec![2.0, 1.0, 1.0, 2.0], truncation, &mut interrupt)
            .expect_err("interrupted");
        assert_eq!(error.code(), ErrorCode::Interrupted);
        drop(other);
        assert_eq!(removed(&[2.0, 1.0, 1.0, 2.0], 2, 2).len(), 4);
    }
}
