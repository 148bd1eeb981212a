//! Activation functions and bounds in plain math, in f64.

use std::f64::consts::{FRAC_2_SQRT_PI, PI, SQRT_2};

use crate::backend::Activation;

/// The function of one value, rounded once.
pub(super) fn activated(activation: Activation, x: f32) -> f32 {
    let x = f64::from(x);
    let value = match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => x / (1.0 + (-2.0 * (2.0 / PI).sqrt() * (x + 0.044_715 * x.powi(3))).exp()),
        Activation::Gelu => x * 0.5 * erfc(-x / SQRT_2),
    };
    value as f32
}

/// `cap * tanh(x / cap)`, or `x` without a cap.
pub(super) fn capped(cap: Option<f32>, x: f32) -> f32 {
    cap.map_or(x, |cap| (f64::from(cap) * (f64::from(x) / f64::from(cap)).tanh()) as f32)
}

/// The complement of the error function: by the series of erf near 0, by the continued fraction of erfc beyond.
fn erfc(z: f64) -> f64 {
    if z.is_nan() {
        return z;
    }
    let magnitude = z.abs();
    let of_magnitude = if magnitude < 2.5 {
        // erf(z) = 2 / sqrt(pi) e^(-z^2) sum over n of z (2 z^2)^n / (1 3 5 ... (2 n + 1))
        let mut term = magnitude;
        let mut sum = term;
        for n in 1..80 {
            term *= 2.0 * magnitude * magnitude / f64::from(2 * n + 1);
            sum += term;
        }
        1.0 - FRAC_2_SQRT_PI * (-magnitude * magnitude).exp() * sum
    } else {
        // erfc(z) = e^(-z^2) / sqrt(pi) / (z + (1/2) / (z + 1 / (z + (3/2) / (z + ...))))
        let fraction = (1..80).rev().fold(magnitude, |below, n| magnitude + f64::from(n) / 2.0 / below);
        (-magnitude * magnitude).exp() * FRAC_2_SQRT_PI / 2.0 / fraction
    };
    if z < 0.0 { 2.0 - of_magnitude } else { of_magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erfc_has_the_values_of_tables() {
        let table = [
            (0.0, 1.0),
            (0.5, 0.479_500_122_186_953_5),
            (-1.0, 1.842_700_792_949_715),
            (2.4, 6.885_138_966_450_785e-4),
            (2.6, 2.360_344_165_293_497e-4),
            (4.0, 1.541_725_790_028_002e-8),
        ];
        for (z, expected) in table {
            assert!((erfc(z) - expected).abs() <= 1e-12 * expected, "erfc({z}) = {}", erfc(z));
        }
    }

    #[test]
    fn functions_have_their_limits() {
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            assert_eq!(activated(activation, 0.0), 0.0);
            assert_eq!(activated(activation, 100.0), 100.0);
            assert!(activated(activation, -100.0).abs() < 1e-30);
            assert!(activated(activation, f32::NAN).is_nan());
        }
        assert!((activated(Activation::Gelu, 1.0) - 0.841_344_8).abs() < 1e-7);
        assert!((activated(Activation::GeluTanh, 1.0) - 0.841_192).abs() < 1e-6);
        assert_eq!((capped(None, 7.0), capped(Some(2.0), 1e9), capped(Some(2.0), -1e9)), (7.0, 2.0, -2.0));
    }
}
