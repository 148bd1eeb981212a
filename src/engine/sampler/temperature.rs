//! Temperatures that act on what the filters left.

use super::candidates::Candidates;
use super::exp::Softmax;
use crate::engine::sampling_params::SamplingParams;

/// How logits become weights, before the filters.
pub(super) fn softmax(params: &SamplingParams) -> Softmax {
    let temperature = if params.temperature_last { 1.0 } else { f64::from(params.temperature) };
    Softmax { temperature, smoothing_factor: f64::from(params.smoothing_factor) }
}

/// Applies dynamic temperature, else the temperature if it comes last.
pub(super) fn soften(candidates: &mut Candidates, params: &SamplingParams) {
    if params.max_temp > params.min_temp {
        let temperature = dynamic_temperature(candidates, params);
        candidates.soften(temperature);
    } else if params.temperature_last && params.temperature != 1.0 {
        candidates.soften(f64::from(params.temperature));
    }
}

/// A temperature between `min_temp` and `max_temp` that grows with the entropy, relative to that of equal probabilities.
fn dynamic_temperature(candidates: &mut Candidates, params: &SamplingParams) -> f64 {
    let possible = candidates.possible();
    if possible < 2 {
        return 1.0;
    }
    // The entropy is the logarithm of the total, less the mean of those of the weights.
    candidates.take_logarithms();
    let entropy = candidates.total.ln() - candidates.mean_logarithm();
    let relative = (entropy / (possible as f64).ln()).clamp(0.0, 1.0);
    let (min, max) = (f64::from(params.min_temp), f64::from(params.max_temp));
    min + (max - min) * relative.powf(f64::from(params.temp_exponent))
}
