//! Classifier-free guidance: the logits of two prompts become one.

use super::exp::{largest, sum_of_exponentials};

/// Replaces the logits of a prompt by `scale` times their log-softmax plus `1 - scale` times that of the negative prompt's
/// logits, which are as many. All of both must be finite.
pub fn guide(logits: &mut [f32], negative: &[f32], scale: f32) {
    let scale = f64::from(scale);
    let rest = 1.0 - scale;
    let (normalizer, negative_normalizer) = (log_sum_of_exponentials(logits), log_sum_of_exponentials(negative));
    for (logit, &negative) in logits.iter_mut().zip(negative) {
        let logprob = f64::from(*logit) - normalizer;
        let negative_logprob = f64::from(negative) - negative_normalizer;
        *logit = (scale * logprob + rest * negative_logprob) as f32;
    }
}

fn log_sum_of_exponentials(logits: &[f32]) -> f64 {
    let best = largest(logits);
    f64::from(best) + sum_of_exponentials(logits, best).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, in f64 and one element at a time.
    fn expected(logits: &[f32], negative: &[f32], scale: f64) -> Vec<f64> {
        let log_softmax = |logits: &[f32]| -> Vec<f64> {
            let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
            logits.iter().map(|&logit| f64::from(logit) - sum.ln()).collect()
        };
        let pairs = log_softmax(logits).into_iter().zip(log_softmax(negative));
        pairs.map(|(logprob, negative)| scale * logprob + (1.0 - scale) * negative).collect()
    }

    #[test]
    fn log_probabilities_are_mixed_by_the_scale() {
        let logits: Vec<f32> = (0..37).map(|i| (i * i % 11) as f32 * 0.7 - 2.0).collect();
        let negative: Vec<f32> = (0..37).map(|i| (i * 5 % 13) as f32 * -0.4 + 1.0).collect();
        for scale in [-1.0, 0.0, 0.25, 1.0, 1.5, 7.0] {
            let mut guided = logits.clone();
            guide(&mut guided, &negative, scale);
            for (found, expected) in guided.iter().zip(expected(&logits, &negative, f64::from(scale))) {
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} and {expected} at {scale}");
            }
        }
    }

    #[test]
    fn adding_a_number_to_all_logits_of_a_prompt_changes_nothing() {
        let (logits, negative) = ([1.0, -2.0, 0.5, 4.0], [0.0, 3.0, -1.0, 2.0]);
        let (mut guided, mut moved) = (logits, logits.map(|logit| logit + 64.0));
        guide(&mut guided, &negative, 2.5);
        guide(&mut moved, &negative.map(|logit| logit - 32.0), 2.5);
        for (one, other) in guided.iter().zip(moved) {
            assert!((one - other).abs() < 1e-5);
        }
    }
}
