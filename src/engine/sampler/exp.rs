//! Exponentials of many logits: loops without branches, which the compiler turns into vector instructions of any instruction
//! set, with the same bits in each.

use crate::backend::LargestLogit;

/// Below this, a weight is 0.
const SMALLEST: f64 = -707.0;

/// 1/11!, 1/10!, …, 1/1!, 1: with 12 terms the error is below 1e-14 of the result.
const TAYLOR: [f64; 12] = [
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5_040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];

/// `e^x` for x of at most 0; 0 for NaN and far below.
#[inline(always)]
pub(super) fn exp(x: f64) -> f64 {
    // Adding it rounds to an integer, whose bits are then the lowest of the sum.
    const ROUND: f64 = 1.5 * (1_u64 << 52) as f64;
    // The upper bits of ln 2, so that their product with an exponent is exact, and the rest.
    const LN_2_UPPER: f64 = f64::from_bits(0x3FE6_2E42_FEE0_0000);
    const LN_2_LOWER: f64 = 1.908_214_929_270_587_7e-10;
    let clamped = if x > SMALLEST { x } else { SMALLEST };
    let rounded = clamped * std::f64::consts::LOG2_E + ROUND;
    let exponent = rounded - ROUND;
    let rest = clamped - exponent * LN_2_UPPER - exponent * LN_2_LOWER;
    let mut fraction = TAYLOR[0];
    for coefficient in &TAYLOR[1..] {
        fraction = fraction * rest + coefficient;
    }
    let power = f64::from_bits(fraction.to_bits().wrapping_add(rounded.to_bits() << 52));
    if x > SMALLEST { power } else { 0.0 }
}

/// How a logit becomes the logarithm of a weight: its distance from the best one over the temperature, or, with a smoothing
/// factor, the square of it times that factor.
#[derive(Clone, Copy, Default)]
pub(super) struct Softmax {
    pub temperature: f64,
    /// 0 is off.
    pub smoothing_factor: f64,
}

/// Replaces `weights` by those of `logits` relative to `best`, the largest of them (whose weight is 1), and returns their sum.
pub(super) fn weigh(weights: &mut Vec<f64>, logits: &[f32], best: f32, softmax: Softmax) -> f64 {
    weights.clear();
    if best == f32::INFINITY {
        // The difference of two infinities would be NaN.
        weights.extend(logits.iter().map(|&logit| f64::from(u8::from(logit == best))));
    } else if softmax.smoothing_factor > 0.0 {
        let (best, scale) = (f64::from(best), softmax.smoothing_factor / softmax.temperature);
        weights.extend(logits.iter().map(|&logit| {
            let distance = f64::from(logit) - best;
            exp(-distance * distance * scale)
        }));
    } else {
        let (best, scale) = (f64::from(best), 1.0 / softmax.temperature);
        weights.extend(logits.iter().map(|&logit| exp((f64::from(logit) - best) * scale)));
    }
    sum(weights)
}

/// Replaces `logarithms` by those of the weights that [`weigh`] gives; minus infinity where the weight is 0.
pub(super) fn fill_logarithms(logarithms: &mut Vec<f64>, logits: &[f32], weights: &[f64], best: f32, softmax: Softmax) {
    let elements = logits.iter().zip(weights);
    let if_possible = |logarithm: f64, weight: f64| if weight > 0.0 { logarithm } else { f64::NEG_INFINITY };
    logarithms.clear();
    if best == f32::INFINITY {
        logarithms.extend(weights.iter().map(|&weight| if_possible(0.0, weight)));
    } else if softmax.smoothing_factor > 0.0 {
        let (best, scale) = (f64::from(best), softmax.smoothing_factor / softmax.temperature);
        logarithms.extend(elements.map(|(&logit, &weight)| {
            let distance = f64::from(logit) - best;
            if_possible(-distance * distance * scale, weight)
        }));
    } else {
        let (best, scale) = (f64::from(best), 1.0 / softmax.temperature);
        logarithms.extend(elements.map(|(&logit, &weight)| if_possible((f64::from(logit) - best) * scale, weight)));
    }
}

/// Replaces the weights by those of their logarithms over a temperature, relative to the largest, and returns their sum. A
/// temperature of 0 is the limit: only the largest remain.
pub(super) fn weigh_logarithms(weights: &mut Vec<f64>, logarithms: &[f64], temperature: f64) -> f64 {
    let best =
        logarithms.iter().fold(f64::NEG_INFINITY, |best, &logarithm| if logarithm > best { logarithm } else { best });
    let scale = 1.0 / temperature;
    weights.clear();
    if scale.is_finite() {
        weights.extend(logarithms.iter().map(|&logarithm| exp((logarithm - best) * scale)));
    } else {
        weights.extend(logarithms.iter().map(|&logarithm| f64::from(u8::from(logarithm == best))));
    }
    sum(weights)
}

/// The sum of weights times logarithms, in lanes; a weight of 0 adds nothing.
pub(super) fn weighted_sum(weights: &[f64], logarithms: &[f64]) -> f64 {
    let product = |weight: f64, logarithm: f64| if weight > 0.0 { weight * logarithm } else { 0.0 };
    let ((chunks, rest), (log_chunks, log_rest)) = (weights.as_chunks::<8>(), logarithms.as_chunks::<8>());
    let mut lanes = [0.0; 8];
    for (chunk, logs) in chunks.iter().zip(log_chunks) {
        for ((lane, &weight), &logarithm) in lanes.iter_mut().zip(chunk).zip(logs) {
            *lane += product(weight, logarithm);
        }
    }
    let rest = rest.iter().zip(log_rest).map(|(&weight, &logarithm)| product(weight, logarithm));
    lanes.into_iter().chain(rest).sum()
}

/// The sum, in lanes.
pub(super) fn sum(weights: &[f64]) -> f64 {
    let (chunks, rest) = weights.as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for chunk in chunks {
        for (lane, weight) in lanes.iter_mut().zip(chunk) {
            *lane += weight;
        }
    }
    lanes.iter().chain(rest).sum()
}

/// The sum of `e^(logit - best)`, without NaN.
pub(super) fn sum_of_exponentials(logits: &[f32], best: f32) -> f64 {
    let distance = |logit: f32| if logit == best { 0.0 } else { f64::from(logit) - f64::from(best) };
    let (chunks, rest) = logits.as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane += exp(distance(logit));
        }
    }
    lanes.into_iter().chain(rest.iter().map(|&logit| exp(distance(logit)))).sum()
}

/// The largest logit; minus infinity if there is none, or only NaN.
pub(super) fn largest(logits: &[f32]) -> f32 {
    // Lanes, so that finding the maximum is limited by memory alone; a comparison with NaN is false.
    let (chunks, rest) = logits.as_chunks::<32>();
    let mut lanes = [f32::NEG_INFINITY; 32];
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |best, &logit| if logit > best { logit } else { best })
}

/// The id of the first logit that is infinite or NaN.
pub(in crate::engine) fn first_not_finite(logits: &[f32]) -> Option<usize> {
    // Chunk by chunk, and all of a chunk, which vectorizes.
    let is_broken = |chunk: &[f32]| chunk.iter().fold(false, |any, logit| any | !logit.is_finite());
    let start = logits.chunks(64).position(is_broken)? * 64;
    logits[start..].iter().position(|logit| !logit.is_finite()).map(|offset| start + offset)
}

/// The id of the largest logit, the lowest such id; `None` if all are NaN or minus infinity.
pub(super) fn argmax(logits: &[f32]) -> Option<u32> {
    let best = largest(logits);
    if best == f32::NEG_INFINITY {
        return None;
    }
    logits.iter().position(|&logit| logit == best).map(|id| id as u32)
}

/// The largest logit, the first of equal ones; or, if some are infinite or NaN, the first of those. `None` if there are none.
pub(in crate::engine) fn largest_logit(logits: &[f32]) -> Option<LargestLogit> {
    let token = first_not_finite(logits).map(|id| id as u32).or_else(|| argmax(logits))?;
    Some(LargestLogit { token, logit: logits[token as usize] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_have_nearly_all_bits() {
        let mut worst = 0.0_f64;
        for step in 0..200_000 {
            let x = -f64::from(step) * 0.003_531_7;
            let (found, expected) = (exp(x), x.exp());
            worst = worst.max((found - expected).abs() / expected);
        }
        assert!(worst < 1e-14, "{worst}");
        assert_eq!((exp(0.0), exp(-0.0)), (1.0, 1.0));
        for nothing in [-708.0, -1e300, f64::NEG_INFINITY, f64::NAN] {
            assert_eq!(exp(nothing), 0.0);
        }
    }

    #[test]
    fn the_first_infinite_or_nan_logit_is_found() {
        for length in [0, 1, 63, 64, 65, 200] {
            let mut logits = vec![f32::MAX; length];
            assert_eq!(first_not_finite(&logits), None);
            for id in (0..length).rev() {
                logits[id] = if id % 2 == 0 { f32::NAN } else { f32::NEG_INFINITY };
                assert_eq!(first_not_finite(&logits), Some(id));
            }
        }
    }

    #[test]
    fn sums_take_every_element_once() {
        for length in 0..40 {
            let weights: Vec<f64> = (0..length).map(f64::from).collect();
            assert_eq!(sum(&weights), f64::from(length * (length - 1) / 2));
            let logits = vec![2.5; length as usize];
            assert_eq!(sum_of_exponentials(&logits, 2.5), f64::from(length));
        }
    }
}
