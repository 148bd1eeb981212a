//! Rotary position embedding: `rope_parameters` of config.json, or the older `rope_scaling` and `rope_theta`, to frequencies and
//! to the length that they stretch the context to.
//!
//! Formulas: transformers 5.23, `modeling_rope_utils.py`; computed in f32 as there, so that long positions agree. The stretched
//! length is that of vLLM (`max_model_len`).

use std::f64::consts::PI;

use serde_json::{Map, Value};

use super::fields::{Fields, invalid, is_truthy, unsupported, wrong};
use crate::backend::Rope;
use crate::error::{Error, ErrorCode, Result};

/// The rotation of queries and keys, and how far it reaches.
#[derive(Debug)]
pub(super) struct RotaryEmbedding {
    pub rope: Rope,
    /// Longest sequence that it is made for, in positions.
    pub max_positions: usize,
    /// Positions that no sequence may pass, because the frequencies would depend on its length.
    pub position_limit: Option<usize>,
    /// The base of its frequencies.
    pub theta: f64,
    /// What positions are divided by before anything else: the factor of linear scaling.
    pub linear_factor: f64,
}

/// What a user sets of the rotation in place of what config.json says. The default changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RopeOverrides {
    /// The base of the frequencies, `rope_theta`.
    pub theta: Option<f64>,
    /// What positions are divided by (linear scaling), in place of the factor of `rope_type` "linear".
    pub scale: Option<f64>,
    /// NTK scaling: the base is multiplied by `alpha^(head_dim / (head_dim - 2))`.
    pub alpha: Option<f64>,
}

impl RopeOverrides {
    /// # Errors
    /// `request_invalid`: a number is not positive.
    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in [("rope theta", self.theta), ("rope scale", self.scale), ("rope alpha", self.alpha)] {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value > 0.0)) {
                return Err(Error::new(ErrorCode::RequestInvalid, format!("{name} is out of range"))
                    .with_expected("a number above 0")
                    .with_found(value));
            }
        }
        Ok(())
    }
}

/// `rope_parameters` in the form that transformers brings all spellings to.
#[derive(Debug)]
struct RopeParameters {
    members: Map<String, Value>,
    head_dim: usize,
    /// `max_position_embeddings`.
    positions: usize,
}

/// Reads the rotary embedding of heads of width `head_dim`. `layer_types` are those that parameters of their own may be
/// given for.
pub(super) fn rotary_embedding(
    fields: &Fields<'_>,
    layer_types: &[&str],
    head_dim: usize,
    positions: usize,
    overrides: &RopeOverrides,
) -> Result<RotaryEmbedding> {
    let mut parameters = RopeParameters::read(fields, layer_types, head_dim, positions)?;
    parameters.override_base(overrides)?;
    let kind = match parameters.members.get("rope_type") {
        Some(Value::String(kind)) => kind.as_str(),
        other => return Err(wrong("rope_type", "a name", other.unwrap_or(&Value::Null))),
    };
    let (theta, kind) = (parameters.number("rope_theta")?, kind.to_owned());
    let is_linear = kind == "linear";
    if let Some(scale) = overrides.scale.filter(|_| is_linear) {
        parameters.members.insert("factor".to_owned(), scale.into());
    }
    let linear_factor = if is_linear { parameters.number("factor")? } else { 1.0 };
    let mut position_limit = None;
    let (mut rope, mut length) = match kind.as_str() {
        "default" => (Rope::halves(parameters.frequencies(head_dim)?, 1.0), positions as f64),
        "linear" => parameters.linear()?,
        "proportional" => parameters.proportional()?,
        "dynamic" => {
            position_limit = Some(positions);
            (parameters.dynamic()?, positions as f64)
        }
        "yarn" => parameters.yarn()?,
        "llama3" => (parameters.llama3()?, positions as f64),
        other => return Err(unsupported(format!("rope_type '{other}' is not supported")).with_found(other)),
    };
    if let Some(scale) = overrides.scale.filter(|_| !is_linear) {
        rope.inv_freq.iter_mut().for_each(|frequency| *frequency /= scale as f32);
        length *= scale;
    }
    if rope.inv_freq.len() * 2 != head_dim {
        return Err(unsupported("partial_rotary_factor is not 1"));
    }
    if !rope.factor.is_finite() || rope.inv_freq.iter().any(|frequency| !frequency.is_finite()) {
        return Err(invalid("rope_parameters").with_expected("parameters with finite frequencies"));
    }
    // A float becomes an integer by saturation.
    let max_positions = (length as usize).clamp(1, u32::MAX as usize);
    Ok(RotaryEmbedding { rope, max_positions, position_limit, theta, linear_factor })
}

impl RopeParameters {
    /// All spellings, in the priority of transformers: `rope_scaling`, unless it is empty, replaces `rope_parameters`; in either,
    /// `rope_theta` and `partial_rotary_factor` precede those at the top level, and `rope_type` precedes `type`.
    fn read(fields: &Fields<'_>, layer_types: &[&str], head_dim: usize, positions: usize) -> Result<Self> {
        let object = |name: &str, value: &Value| match value {
            Value::Null => Ok(Map::new()),
            Value::Object(members) => Ok(members.clone()),
            other => Err(wrong(name, "an object or null", other)),
        };
        let new = object("rope_parameters", fields.get("rope_parameters").unwrap_or(&Value::Null))?;
        let mut members = match fields.get("rope_scaling").filter(|value| is_truthy(value)) {
            Some(old) => object("rope_scaling", old)?,
            None => new,
        };
        if let Some(kind) = layer_types.iter().find(|kind| members.contains_key(**kind)) {
            return Err(unsupported(format!("rope_parameters of their own for layers of type '{kind}'")));
        }
        let theta = fields.get("rope_theta").cloned().unwrap_or_else(|| 10_000.0.into());
        members.entry("rope_theta").or_insert(theta);
        if let Some(share) = fields.non_null("partial_rotary_factor") {
            members.entry("partial_rotary_factor").or_insert(share.clone());
        }
        let kind = members.get("type").cloned().unwrap_or_else(|| "default".into());
        members.entry("rope_type").or_insert(kind);
        if let Some(original) = fields.get("original_max_position_embeddings") {
            members.insert("original_max_position_embeddings".to_owned(), original.clone());
        } else {
            members.entry("original_max_position_embeddings").or_insert(positions.into());
        }
        Ok(Self { members, head_dim, positions })
    }

    /// Replaces and scales the base of the frequencies.
    fn override_base(&mut self, overrides: &RopeOverrides) -> Result<()> {
        let RopeOverrides { theta, scale: _, alpha } = *overrides;
        if theta.is_none() && alpha.is_none() {
            return Ok(());
        }
        let width = self.head_dim as f64;
        let stretch = alpha.map_or(1.0, |alpha| alpha.powf(width / (width - 2.0)));
        let theta = theta.map_or_else(|| self.number("rope_theta"), Ok)? * stretch;
        self.members.insert("rope_theta".to_owned(), theta.into());
        Ok(())
    }

    /// A number; `true` and `false` are numbers in Python.
    fn number(&self, name: &str) -> Result<f64> {
        self.optional_number(name)?.ok_or_else(|| invalid(name).with_expected("a number").with_found("nothing"))
    }

    /// A number, or `None` if it is absent or null.
    fn optional_number(&self, name: &str) -> Result<Option<f64>> {
        match self.members.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(f64::from(u8::from(*flag)))),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| wrong(name, "a number", value)),
        }
    }

    /// A number by which something is divided.
    fn divisor(&self, name: &str) -> Result<f64> {
        match self.number(name)? {
            0.0 => Err(invalid(name).with_expected("a number other than 0").with_found(0)),
            number => Ok(number),
        }
    }

    /// `partial_rotary_factor`, by default 1.
    fn rotary_share(&self) -> Result<f64> {
        if self.members.contains_key("partial_rotary_factor") { self.number("partial_rotary_factor") } else { Ok(1.0) }
    }

    /// The width that is rotated. The default rotation ignores `partial_rotary_factor`.
    fn rotary_dim(&self) -> Result<usize> {
        let dim = (self.head_dim as f64 * self.rotary_share()?) as usize;
        if dim.div_ceil(2) == self.head_dim / 2 { Ok(dim) } else { Err(unsupported("partial_rotary_factor is not 1")) }
    }

    /// `theta^(-2i / dim)` for each pair of channels.
    fn frequencies(&self, dim: usize) -> Result<Vec<f32>> {
        Ok(frequencies(self.number("rope_theta")?, dim, dim.div_ceil(2)))
    }

    /// Every frequency is divided by the factor.
    fn linear(&self) -> Result<(Rope, f64)> {
        let (base, factor) = (self.frequencies(self.rotary_dim()?)?, self.number("factor")?);
        let inv_freq = base.iter().map(|frequency| frequency / factor as f32).collect();
        Ok((Rope::halves(inv_freq, 1.0), self.positions as f64 * factor))
    }

    /// As linear, with the slow channels not rotated at all; frequencies are those of the whole head.
    fn proportional(&self) -> Result<(Rope, f64)> {
        let factor = if self.members.contains_key("factor") { self.number("factor")? } else { 1.0 };
        let pairs = self.head_dim / 2;
        let rotated = (self.rotary_share()? * self.head_dim as f64 / 2.0).floor();
        if !(0.0..=pairs as f64).contains(&rotated) {
            return Err(invalid("partial_rotary_factor").with_expected("a number from 0 to 1"));
        }
        let base = frequencies(self.number("rope_theta")?, self.head_dim, rotated as usize);
        let mut inv_freq: Vec<f32> = base.iter().map(|frequency| frequency / factor as f32).collect();
        inv_freq.resize(pairs, 0.0);
        Ok((Rope::halves(inv_freq, 1.0), self.positions as f64 * factor))
    }

    /// NTK scaling, up to the length beyond which its base grows with the sequence.
    fn dynamic(&self) -> Result<Rope> {
        let (dim, factor, positions) = (self.rotary_dim()? as f64, self.number("factor")?, self.positions as f64);
        let stretch = factor * positions / positions - (factor - 1.0);
        let theta = self.number("rope_theta")? * stretch.powf(dim / (dim - 2.0));
        let dim = dim as usize;
        Ok(Rope::halves(frequencies(theta, dim, dim.div_ceil(2)), 1.0))
    }

    /// Llama 3.1: the frequencies of long wavelengths are divided by the factor, those of short ones are kept, the rest is
    /// interpolated.
    fn llama3(&self) -> Result<Rope> {
        let base = self.frequencies(self.rotary_dim()?)?;
        if let Some(flag @ Value::Bool(_)) = self.members.get("low_freq_factor") {
            // The one number that torch does not take a flag for.
            return Err(wrong("low_freq_factor", "a number", flag));
        }
        let (low, high) = (self.divisor("low_freq_factor")?, self.divisor("high_freq_factor")?);
        let original = self.number("original_max_position_embeddings")?;
        let factor = self.number("factor")? as f32;
        let (longest, shortest) = ((original / low) as f32, (original / high) as f32);
        let blend = |frequency: f32| {
            let wavelength = (2.0 * PI) as f32 / frequency;
            if wavelength > longest {
                frequency / factor
            } else if wavelength < shortest {
                frequency
            } else {
                let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        };
        Ok(Rope::halves(base.into_iter().map(blend).collect(), 1.0))
    }

    /// YaRN (arXiv 2309.00071): interpolation for slow channels, extrapolation for fast ones, a linear ramp between them.
    fn yarn(&self) -> Result<(Rope, f64)> {
        let theta = self.number("rope_theta")?;
        let original = self.divisor("original_max_position_embeddings")?;
        if !self.members.contains_key("factor") {
            return Err(invalid("factor").with_expected("a number or null").with_found("nothing"));
        }
        let factor = self.optional_number("factor")?.unwrap_or(self.positions as f64 / original);
        let non_zero = |name: &str| Ok::<_, crate::Error>(self.optional_number(name)?.filter(|value| *value != 0.0));
        let magnitude = |mscale: f64| 0.1 * mscale * factor.ln() + 1.0;
        let has_magnitudes =
            ["mscale", "mscale_all_dim"].iter().all(|name| self.members.get(*name).is_some_and(is_truthy));
        let attention_factor = match self.optional_number("attention_factor")? {
            Some(given) => given,
            None if factor <= 1.0 => 1.0,
            None if has_magnitudes => magnitude(self.number("mscale")?) / magnitude(self.number("mscale_all_dim")?),
            None => magnitude(1.0),
        };

        let rotary_dim = self.rotary_dim()?;
        if rotary_dim != self.head_dim {
            return Err(unsupported("partial_rotary_factor is not 1"));
        }
        let dim = rotary_dim as f64;
        let turns_at = |turns: f64| dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let fast = turns_at(non_zero("beta_fast")?.unwrap_or(32.0));
        let slow = turns_at(non_zero("beta_slow")?.unwrap_or(1.0));
        if !(fast.is_finite() && slow.is_finite()) {
            return Err(invalid("rope_parameters").with_expected("positive numbers, and a rope_theta other than 1"));
        }
        let (low, high) = match self.members.get("truncate").is_none_or(is_truthy) {
            true => (fast.floor(), slow.ceil()),
            false => (fast, slow),
        };
        let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let ramp = |channel: usize| ((channel as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let blend = |(channel, extrapolated): (usize, f32)| {
            let interpolated = extrapolated / factor as f32;
            let keep = 1.0 - ramp(channel);
            interpolated * (1.0 - keep) + extrapolated * keep
        };
        let base = frequencies(theta, rotary_dim, rotary_dim.div_ceil(2));
        let inv_freq = base.into_iter().enumerate().map(blend).collect();
        Ok((Rope::halves(inv_freq, attention_factor as f32), original * factor))
    }
}

/// `theta^(-2i / dim)` for the first pairs of channels.
fn frequencies(theta: f64, dim: usize, pairs: usize) -> Vec<f32> {
    (0..pairs).map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / dim as f32)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::error::ErrorCode;

    /// The embedding of 16 channels and 64 positions that the members of config.json describe.
    fn read(config: Value) -> Result<RotaryEmbedding> {
        rotary_embedding(&Fields::of(&config)?, &[], 16, 64, &RopeOverrides::default())
    }

    fn rope(parameters: Value) -> Rope {
        read(json!({"rope_parameters": parameters})).expect("readable").rope
    }

    #[test]
    fn default_frequencies_fall_by_powers_of_theta() {
        let rope = rope(json!({}));
        assert_eq!(rope.inv_freq.len(), 8);
        assert_eq!(rope.inv_freq[0], 1.0);
        assert!((rope.inv_freq[4] - 0.01).abs() < 1e-6);
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let (plain, linear) = (rope(json!({})), rope(json!({"type": "linear", "factor": 4})));
        for (a, b) in plain.inv_freq.iter().zip(&linear.inv_freq) {
            assert_eq!(a / 4.0, *b);
        }
    }

    #[test]
    fn llama3_keeps_fast_channels_and_divides_slow_ones() {
        let parameters = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                                "original_max_position_embeddings": 64});
        let (plain, scaled) = (rope(json!({})), rope(parameters));
        assert_eq!(plain.inv_freq[0], scaled.inv_freq[0]);
        assert_eq!(plain.inv_freq[7] / 8.0, scaled.inv_freq[7]);
    }

    #[test]
    fn yarn_has_an_attention_factor() {
        let rope = rope(json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}));
        assert!((f64::from(rope.factor) - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-6);
    }

    #[test]
    fn a_scaled_context_is_as_long_as_vllm_derives_it() {
        let length = |parameters: Value| read(json!({"rope_parameters": parameters})).expect("readable").max_positions;
        assert_eq!(length(json!({"factor": 4})), 64);
        assert_eq!(length(json!({"rope_type": "linear", "factor": 2.5})), 160);
        assert_eq!(length(json!({"rope_type": "yarn", "factor": 4})), 256);
        assert_eq!(length(json!({"rope_type": "yarn", "factor": 8, "original_max_position_embeddings": 16})), 128);
        let llama3 = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                            "original_max_position_embeddings": 16});
        assert_eq!(length(llama3), 64);
        assert_eq!(length(json!({"rope_type": "linear", "factor": 1e30})), u32::MAX as usize);
        let dynamic = read(json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}})).expect("readable");
        assert_eq!((dynamic.max_positions, dynamic.position_limit), (64, Some(64)));
    }

    #[test]
    fn the_old_spelling_precedes_the_new_one_and_inner_members_precede_outer_ones() {
        let scaling = |config: Value| read(config).expect("readable").rope.inv_freq;
        let linear = |factor: f64, theta: f64| {
            scaling(json!({"rope_parameters": {"rope_type": "linear", "factor": factor, "rope_theta": theta}}))
        };
        let both = json!({
            "rope_scaling": {"type": "yarn", "rope_type": "linear", "factor": 2.0}, "rope_theta": 500.0,
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 300.0}
        });
        assert_eq!(scaling(both.clone()), linear(2.0, 500.0));
        for empty in [json!({}), Value::Null, json!(false)] {
            let mut other = both.clone();
            other["rope_scaling"] = empty;
            assert_eq!(scaling(other), linear(4.0, 300.0));
        }
        let outer = json!({
            "original_max_position_embeddings": 16, "rope_scaling": {"rope_type": "yarn", "factor": 4.0,
            "original_max_position_embeddings": 32}
        });
        assert_eq!(read(outer).expect("readable").max_positions, 64);
    }

    #[test]
    fn an_unknown_rope_type_is_refused_by_name() {
        let error = read(json!({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}})).expect_err("refused");
        assert_eq!(error.code(), ErrorCode::ModelFeatureUnsupported);
        assert!(error.to_string().contains("longrope"));
    }
}
