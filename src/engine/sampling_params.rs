//! How a request chooses tokens: temperature, filters, penalties, seed.

use crate::error::{Error, ErrorCode, Result};

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy decoding.
    pub temperature: f32,
    /// Keep the k most likely; 0 keeps all, 1 is greedy.
    pub top_k: usize,
    /// Keep the smallest set of tokens with this probability; 1 keeps all, and so does 0, as in exllamav2.
    pub top_p: f32,
    /// Keep tokens of at least this share of the best one's probability; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Number of most recent tokens that the repetition penalty looks at; `None` is all.
    pub repetition_range: Option<usize>,
    /// Subtracted for each occurrence in the output.
    pub frequency_penalty: f32,
    /// Subtracted once if the token is in the output.
    pub presence_penalty: f32,
    /// Added to the logits of single tokens; minus infinity forbids a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of this request's random numbers; `None` draws one when the request is submitted. The one used is in
    /// [`Finish::seed`](crate::Finish::seed).
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    /// Greedy, without penalties.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repetition_range: None,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

impl SamplingParams {
    /// Checks every setting; the ids in `logit_bias` must be below `vocab`.
    ///
    /// # Errors
    /// `sampling_invalid` for the first setting out of range, joined with all others.
    pub fn check(&self, vocab: usize) -> Result<()> {
        let mut problems = Vec::new();
        let mut check = |name: &str, value: f32, valid: bool, expected: &str| {
            if !valid {
                let error = Error::new(ErrorCode::SamplingInvalid, format!("{name} is out of range"));
                problems.push(error.with_expected(expected).with_found(value));
            }
        };
        let t = self.temperature;
        check("temperature", t, t.is_finite() && t >= 0.0, "a finite number of at least 0");
        check("top_p", self.top_p, (0.0..=1.0).contains(&self.top_p), "a number from 0 to 1");
        check("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "a number from 0 to 1");
        let r = self.repetition_penalty;
        check("repetition_penalty", r, r.is_finite() && r > 0.0, "a finite number above 0");
        check("frequency_penalty", self.frequency_penalty, self.frequency_penalty.is_finite(), "a finite number");
        check("presence_penalty", self.presence_penalty, self.presence_penalty.is_finite(), "a finite number");
        for &(id, bias) in &self.logit_bias {
            let name = format!("logit_bias of token {id}");
            check(&name, bias, bias.is_finite() || bias == f32::NEG_INFINITY, "a finite number or minus infinity");
        }
        if let Some(&(id, _)) = self.logit_bias.iter().find(|(id, _)| *id as usize >= vocab) {
            let error = Error::new(ErrorCode::SamplingInvalid, "logit_bias names a token the model does not have");
            problems.push(error.with_expected(format!("ids below {vocab}")).with_found(id));
        }
        Error::all(problems).map_or(Ok(()), Err)
    }

    /// Whether the largest logit is always chosen.
    pub(super) fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// Whether there is a penalty or a bias.
    pub(super) fn changes_logits(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
            || !self.logit_bias.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_settings_out_of_range_are_reported_together() {
        assert!(SamplingParams { top_p: 0.0, min_p: 1.0, temperature: 2.0, ..Default::default() }.check(10).is_ok());
        let bad = SamplingParams {
            temperature: f32::NAN,
            top_p: 1.1,
            min_p: -0.1,
            repetition_penalty: 0.0,
            frequency_penalty: f32::INFINITY,
            logit_bias: vec![(10, 0.0), (1, f32::INFINITY), (2, f32::NEG_INFINITY)],
            ..Default::default()
        };
        let error = bad.check(10).expect_err("an error");
        assert_eq!(error.code(), ErrorCode::SamplingInvalid);
        let text = error.to_string();
        for name in
            ["temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "token 1", "ids below 10"]
        {
            assert!(text.contains(name), "{name} is missing in {text}");
        }
        assert!(!text.contains("token 2"));
    }
}
