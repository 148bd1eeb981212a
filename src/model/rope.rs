//! Rotary position embedding: `rope_parameters` (or the older `rope_scaling`) of config.json to frequencies.
//!
//! Formulas: transformers 5.23, `modeling_rope_utils.py`; computed in f32 as there, so that long positions agree.

use std::f64::consts::PI;

use serde::Deserialize;

use crate::backend::Rope;
use crate::error::{Error, ErrorCode, Result};

/// The keys of `rope_parameters` / `rope_scaling`.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct RopeParameters {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    partial_rotary_factor: Option<f64>,
}

/// What the frequencies depend on besides [`RopeParameters`].
pub(super) struct RopeContext {
    pub head_dim: usize,
    pub max_positions: usize,
    /// The older, top-level `rope_theta`.
    pub theta: Option<f64>,
}

impl RopeParameters {
    /// The rotation that these parameters describe.
    pub(super) fn build(&self, context: &RopeContext) -> Result<Rope> {
        let theta = self.rope_theta.or(context.theta).unwrap_or(10_000.0);
        if !(theta.is_finite() && theta > 1.0) {
            return Err(invalid("rope_theta").with_expected("a number above 1").with_found(theta));
        }
        if self.partial_rotary_factor.is_some_and(|f| f != 1.0) {
            return Err(Error::new(ErrorCode::ModelFeatureUnsupported, "partial_rotary_factor is not 1"));
        }
        let base = frequencies(theta, context.head_dim);
        match self.rope_type.as_deref().unwrap_or("default") {
            "default" => Ok(Rope { inv_freq: base, factor: 1.0 }),
            "linear" => {
                let factor = self.factor()? as f32;
                Ok(Rope { inv_freq: base.iter().map(|f| f / factor).collect(), factor: 1.0 })
            }
            "llama3" => self.llama3(base, context),
            "yarn" => self.yarn(theta, base, context),
            other => {
                Err(Error::new(ErrorCode::ModelFeatureUnsupported, format!("rope_type '{other}' is not supported")))
            }
        }
    }

    fn factor(&self) -> Result<f64> {
        match self.factor {
            Some(factor) if factor.is_finite() && factor > 0.0 => Ok(factor),
            Some(factor) => Err(invalid("rope factor").with_expected("a positive number").with_found(factor)),
            None => Err(invalid("rope factor").with_found("nothing")),
        }
    }

    fn original_positions(&self, context: &RopeContext) -> f64 {
        self.original_max_position_embeddings.unwrap_or(context.max_positions as f64)
    }

    /// Llama 3.1: the frequencies of long wavelengths are divided by the factor, those of short ones are kept, the rest is
    /// interpolated.
    fn llama3(&self, base: Vec<f32>, context: &RopeContext) -> Result<Rope> {
        let (Some(low), Some(high)) = (self.low_freq_factor, self.high_freq_factor) else {
            return Err(invalid("llama3 rope").with_expected("low_freq_factor and high_freq_factor"));
        };
        let (factor, original) = (self.factor()? as f32, self.original_positions(context) as f32);
        let (low, high) = (low as f32, high as f32);
        let blend = |freq: f32| {
            let wavelength = 2.0 * PI as f32 / freq;
            if wavelength < original / high {
                freq
            } else if wavelength > original / low {
                freq / factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * freq / factor + smooth * freq
            }
        };
        Ok(Rope { inv_freq: base.into_iter().map(blend).collect(), factor: 1.0 })
    }

    /// YaRN (arXiv 2309.00071): interpolation for slow channels, extrapolation for fast ones, a linear ramp between them.
    fn yarn(&self, theta: f64, base: Vec<f32>, context: &RopeContext) -> Result<Rope> {
        let original = self.original_positions(context);
        let factor = match self.factor {
            Some(_) => self.factor()?,
            None => context.max_positions as f64 / original,
        };
        let magnitude = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
        let attention_factor = match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(given), _, _) => given,
            (None, Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => magnitude(mscale) / magnitude(all),
            _ => magnitude(1.0),
        };

        let dim = context.head_dim as f64;
        let turns_at = |turns: f64| dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let given = |value: Option<f64>, default: f64| value.filter(|v| *v != 0.0).unwrap_or(default);
        let (mut low, mut high) = (turns_at(given(self.beta_fast, 32.0)), turns_at(given(self.beta_slow, 1.0)));
        if self.truncate.unwrap_or(true) {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let ramp = |channel: usize| (((channel as f64 - low) / (high - low)).clamp(0.0, 1.0)) as f32;
        let blend = |(channel, extrapolated): (usize, f32)| {
            let interpolated = extrapolated / factor as f32;
            let keep = 1.0 - ramp(channel);
            interpolated * (1.0 - keep) + extrapolated * keep
        };
        Ok(Rope { inv_freq: base.into_iter().enumerate().map(blend).collect(), factor: attention_factor as f32 })
    }
}

/// `theta^(-2i / head_dim)` for each pair of channels.
fn frequencies(theta: f64, head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2).map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / head_dim as f32)).collect()
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorCode::ModelConfigInvalid, format!("{what} of config.json is not usable"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: RopeContext = RopeContext { head_dim: 16, max_positions: 64, theta: Some(10_000.0) };

    fn rope(json: &str) -> Result<Rope> {
        serde_json::from_str::<RopeParameters>(json).expect("json").build(&CONTEXT)
    }

    #[test]
    fn default_frequencies_fall_by_powers_of_theta() {
        let rope = rope("{}").expect("default");
        assert_eq!(rope.inv_freq.len(), 8);
        assert_eq!(rope.inv_freq[0], 1.0);
        assert!((rope.inv_freq[4] - 0.01).abs() < 1e-6);
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let (plain, linear) = (rope("{}").expect("plain"), rope(r#"{"type": "linear", "factor": 4}"#).expect("linear"));
        for (a, b) in plain.inv_freq.iter().zip(&linear.inv_freq) {
            assert_eq!(a / 4.0, *b);
        }
    }

    #[test]
    fn llama3_keeps_fast_channels_and_divides_slow_ones() {
        let json = r#"{"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                       "original_max_position_embeddings": 64}"#;
        let (plain, scaled) = (rope("{}").expect("plain"), rope(json).expect("llama3"));
        assert_eq!(plain.inv_freq[0], scaled.inv_freq[0]);
        assert_eq!(plain.inv_freq[7] / 8.0, scaled.inv_freq[7]);
    }

    #[test]
    fn yarn_has_an_attention_factor() {
        let rope =
            rope(r#"{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}"#).expect("yarn");
        assert!((f64::from(rope.factor) - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-6);
    }

    #[test]
    fn an_unknown_rope_type_is_refused_by_name() {
        let error = rope(r#"{"rope_type": "longrope", "factor": 4.0}"#).expect_err("refused");
        assert_eq!(error.code(), ErrorCode::ModelFeatureUnsupported);
        assert!(error.to_string().contains("longrope"));
    }
}
