//! Norms in plain math, of rows and of heads.

use super::matrix::dot;
use crate::backend::{HeadNorm, HeadNormScope, NormKind, NormSpec};

/// `weight * normed(x) + bias`; `packed` is `[weights, biases]` or weights alone.
pub(super) fn norm(spec: &NormSpec, packed: &[f32], x: &[f32]) -> Vec<f32> {
    let (weights, biases) = packed.split_at(x.len());
    let biased = |i: usize, value: f32| biases.get(i).map_or(value, |bias| value + bias);
    normalized(spec, x).zip(weights).enumerate().map(|(i, (x, weight))| biased(i, weight * x)).collect()
}

/// The norm of all heads of queries or keys, `[heads * head_dim]`.
pub(super) fn norm_heads(norm_of: &HeadNorm, packed: &[f32], head_dim: usize, x: &[f32]) -> Vec<f32> {
    let HeadNorm { norm: spec, scope } = norm_of;
    let heads = x.chunks_exact(head_dim);
    match scope {
        HeadNormScope::All => norm(spec, packed, x),
        HeadNormScope::Head => heads.flat_map(|x| norm(spec, packed, x)).collect(),
        HeadNormScope::HeadOwn => {
            let (weights, biases) = packed.split_at(x.len());
            let own = |values: &[f32], head: usize| {
                values.get(head * head_dim..(head + 1) * head_dim).unwrap_or_default().to_vec()
            };
            heads
                .enumerate()
                .flat_map(|(head, x)| norm(spec, &[own(weights, head), own(biases, head)].concat(), x))
                .collect()
        }
    }
}

/// `x / sqrt(mean(x^2) + eps)`, of the deviations from the mean for a layer norm.
fn normalized(spec: &NormSpec, x: &[f32]) -> impl Iterator<Item = f32> {
    let mean = match spec.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => (x.iter().map(|&x| f64::from(x)).sum::<f64>() / x.len() as f64) as f32,
    };
    let deviations: Vec<f32> = x.iter().map(|x| x - mean).collect();
    let factor = 1.0 / (dot(&deviations, &deviations) / x.len() as f32 + spec.eps).sqrt();
    deviations.into_iter().map(move |x| x * factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::NormId;

    fn spec(kind: NormKind) -> NormSpec {
        NormSpec { id: NormId(0), kind, eps: 0.0 }
    }

    #[test]
    fn a_layer_norm_subtracts_the_mean_and_adds_its_bias() {
        let found = norm(&spec(NormKind::Layer), &[1.0, 2.0, 0.5, 0.0], &[4.0, 8.0]);
        // Deviations -2 and 2, deviation 2.
        assert_eq!(found, [-0.5, 2.0]);
        let found = norm(&spec(NormKind::Rms), &[1.0, 2.0], &[3.0, 3.0]);
        assert_eq!(found, [1.0, 2.0]);
    }

    #[test]
    fn scopes_differ_in_what_the_mean_is_taken_over_and_in_whose_weight_it_is() {
        let x = [3.0, 3.0, 1.0, 1.0];
        let of = |scope, packed: &[f32]| norm_heads(&HeadNorm { norm: spec(NormKind::Rms), scope }, packed, 2, &x);
        assert_eq!(of(HeadNormScope::Head, &[1.0, 2.0]), [1.0, 2.0, 1.0, 2.0]);
        assert_eq!(of(HeadNormScope::HeadOwn, &[1.0, 2.0, 3.0, 4.0]), [1.0, 2.0, 3.0, 4.0]);
        let root = 1.0 / 5f32.sqrt();
        let all = of(HeadNormScope::All, &[1.0, 1.0, 1.0, 2.0]);
        assert!(all.iter().zip([3.0 * root, 3.0 * root, root, 2.0 * root]).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
