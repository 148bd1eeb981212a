//! The kinds of rotary embedding: parameters to frequencies, and to the length that they stretch the context to.
//!
//! Formulas: transformers 5.23, `modeling_rope_utils.py`; computed in f32 as there, so that long positions agree. The stretched
//! length is that of vLLM (`max_model_len`).

use std::f64::consts::PI;

use serde_json::Value;

use super::fields::{invalid, is_truthy, unsupported, wrong};
use super::rope_parameters::RopeParameters;
use crate::backend::Rope;
use crate::error::{Error, Result};

/// A rotation, and how far it reaches.
#[derive(Debug)]
pub(super) struct Rotation {
    pub rope: Rope,
    /// Longest sequence that it is made for, in positions.
    pub length: f64,
    /// Positions that no sequence may pass, because the frequencies would depend on its length.
    pub position_limit: Option<usize>,
    /// The rotation of sequences with more positions than a number, if it is another one.
    pub long: Option<(usize, Rope)>,
}

impl RopeParameters {
    /// The rotation of their kind.
    pub(super) fn rotation(&self) -> Result<Rotation> {
        let positions = self.positions as f64;
        let (mut position_limit, mut long) = (None, None);
        let (rope, length) = match self.kind()? {
            "default" => (self.plain()?, positions),
            "linear" => self.linear()?,
            "proportional" => self.proportional()?,
            "dynamic" => {
                position_limit = Some(self.positions);
                (self.dynamic()?, positions)
            }
            "yarn" => self.yarn()?,
            "llama3" => (self.llama3()?, positions),
            "longrope" => {
                let rope;
                (rope, long) = self.longrope()?;
                (rope, positions)
            }
            other => return Err(unsupported(format!("rope_type '{other}' is not supported")).with_found(other)),
        };
        if 2 * rope.inv_freq.len() != self.head_dim && !self.is_partial {
            return Err(unsupported("partial_rotary_factor is not 1"));
        }
        for rope in std::iter::once(&rope).chain(long.iter().map(|(_, rope)| rope)) {
            if !rope.factor.is_finite() || rope.inv_freq.iter().any(|frequency| !frequency.is_finite()) {
                return Err(invalid("rope_parameters").with_expected("parameters with finite frequencies"));
            }
        }
        Ok(Rotation { rope, length, position_limit, long })
    }

    /// `factor`, where there has to be one.
    fn factor(&self) -> Result<f64> {
        self.stretch()?.ok_or_else(|| invalid("factor").with_expected("a number above 0").with_found("nothing"))
    }

    /// `partial_rotary_factor`, by default 1.
    fn rotary_share(&self) -> Result<f64> {
        if self.get("partial_rotary_factor").is_some() { self.number("partial_rotary_factor") } else { Ok(1.0) }
    }

    /// The width that is rotated.
    fn rotary_dim(&self) -> Result<usize> {
        let dim = (self.head_dim as f64 * self.rotary_share()?) as usize;
        match self.is_partial {
            true if (1..=self.head_dim).contains(&dim) => Ok(dim),
            true => Err(invalid("partial_rotary_factor").with_expected("a number above 0, at most 1").with_found(dim)),
            false if dim.div_ceil(2) == self.head_dim / 2 => Ok(dim),
            false => Err(unsupported("partial_rotary_factor is not 1")),
        }
    }

    /// Models that rotate whole heads ignore `partial_rotary_factor` here.
    fn plain(&self) -> Result<Rope> {
        let dim = if self.is_partial { self.rotary_dim()? } else { self.head_dim };
        Ok(Rope::halves(self.frequencies(dim)?, 1.0))
    }

    /// `theta^(-2i / dim)` for each pair of channels.
    fn frequencies(&self, dim: usize) -> Result<Vec<f32>> {
        Ok(frequencies(self.number("rope_theta")?, dim, dim.div_ceil(2)))
    }

    /// Every frequency is divided by the factor.
    fn linear(&self) -> Result<(Rope, f64)> {
        let (base, factor) = (self.frequencies(self.rotary_dim()?)?, self.factor()?);
        let inv_freq = base.iter().map(|frequency| frequency / factor as f32).collect();
        Ok((Rope::halves(inv_freq, 1.0), self.positions as f64 * factor))
    }

    /// As linear, with the slow channels not rotated at all; frequencies are those of the whole head.
    fn proportional(&self) -> Result<(Rope, f64)> {
        let factor = if self.get("factor").is_some() { self.factor()? } else { 1.0 };
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
        let (dim, factor, positions) = (self.rotary_dim()? as f64, self.factor()?, self.positions as f64);
        let stretch = factor * positions / positions - (factor - 1.0);
        let theta = self.number("rope_theta")? * stretch.powf(dim / (dim - 2.0));
        let dim = dim as usize;
        Ok(Rope::halves(frequencies(theta, dim, dim.div_ceil(2)), 1.0))
    }

    /// Llama 3.1: the frequencies of long wavelengths are divided by the factor, those of short ones are kept, the rest is
    /// interpolated.
    fn llama3(&self) -> Result<Rope> {
        let base = self.frequencies(self.rotary_dim()?)?;
        if let Some(flag @ Value::Bool(_)) = self.get("low_freq_factor") {
            // The one number that torch does not take a flag for.
            return Err(wrong("low_freq_factor", "a number", flag));
        }
        let (low, high) = (self.divisor("low_freq_factor")?, self.divisor("high_freq_factor")?);
        let original = self.number("original_max_position_embeddings")?;
        let factor = self.factor()? as f32;
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
        if self.get("factor").is_none() {
            return Err(invalid("factor").with_expected("a number or null").with_found("nothing"));
        }
        let factor = self.stretch()?.unwrap_or(self.positions as f64 / original);
        let non_zero = |name: &str| Ok::<_, Error>(self.optional_number(name)?.filter(|value| *value != 0.0));
        let magnitude = |mscale: f64| 0.1 * mscale * factor.ln() + 1.0;
        let has_magnitudes = ["mscale", "mscale_all_dim"].iter().all(|name| self.get(name).is_some_and(is_truthy));
        let attention_factor = match self.optional_number("attention_factor")? {
            Some(given) => given,
            None if factor <= 1.0 => 1.0,
            None if has_magnitudes => magnitude(self.number("mscale")?) / magnitude(self.number("mscale_all_dim")?),
            None => magnitude(1.0),
        };

        let rotary_dim = self.rotary_dim()?;
        if !rotary_dim.is_multiple_of(2) {
            return Err(invalid("partial_rotary_factor")
                .with_expected("an even number of channels")
                .with_found(rotary_dim));
        }
        let dim = rotary_dim as f64;
        let turns_at = |turns: f64| dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let fast = turns_at(non_zero("beta_fast")?.unwrap_or(32.0));
        let slow = turns_at(non_zero("beta_slow")?.unwrap_or(1.0));
        if !(fast.is_finite() && slow.is_finite()) {
            return Err(invalid("rope_parameters").with_expected("positive numbers, and a rope_theta other than 1"));
        }
        let (low, high) = match self.get("truncate").is_none_or(is_truthy) {
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

    /// LongRoPE (arXiv 2402.13753): each frequency has a divisor, another one in sequences longer than the original training.
    /// Returns the rotation of shorter ones and, if the divisors differ, the length up to which it holds with that of longer ones.
    fn longrope(&self) -> Result<(Rope, Option<(usize, Rope)>)> {
        let dim = self.rotary_dim()?;
        let [short, long] = ["short_factor", "long_factor"].map(|name| self.numbers(name, dim.div_ceil(2)));
        let (short, long) = (short?, long?);
        let original = self.divisor("original_max_position_embeddings")?;
        let stretch = self.stretch()?.unwrap_or(self.positions as f64 / original);
        let attention_factor = match self.optional_number("attention_factor")? {
            Some(given) => given,
            None if stretch <= 1.0 => 1.0,
            None => (1.0 + stretch.ln() / original.ln()).sqrt(),
        };
        if original < 1.0 {
            return Err(invalid("original_max_position_embeddings").with_expected("a number of at least 1"));
        }
        let theta = self.number("rope_theta")? as f32;
        let power = |i: usize| theta.powf((2 * i) as f32 / dim as f32);
        let rope = |divisors: &[f64]| {
            let inv_freq = divisors.iter().enumerate().map(|(i, &divisor)| 1.0 / (divisor as f32 * power(i))).collect();
            Rope::halves(inv_freq, attention_factor as f32)
        };
        Ok((rope(&short), (short != long).then(|| (original as usize, rope(&long)))))
    }
}

/// `theta^(-2i / dim)` for the first pairs of channels.
fn frequencies(theta: f64, dim: usize, pairs: usize) -> Vec<f32> {
    (0..pairs).map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / dim as f32)).collect()
}
