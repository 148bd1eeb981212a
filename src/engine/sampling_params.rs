//! How a request chooses tokens: temperature, filters, penalties, seed.

use crate::error::{Error, ErrorCode, Result};

/// How tokens are chosen. The settings act in the order that the fields have here, except for the last three and the
/// temperature, which may come last.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Weight of the log-probabilities after the prompt, where the request has a negative prompt; those after that one have 1
    /// less this. 1 is the prompt alone, more guides away from the negative prompt.
    pub cfg_scale: Option<f32>,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Number of most recent tokens that the repetition penalty looks at; `None` is all.
    pub repetition_range: Option<usize>,
    /// Number of tokens before these over which the penalty goes back to nothing.
    pub repetition_decay: usize,
    /// Subtracted for each occurrence in the output.
    pub frequency_penalty: f32,
    /// Subtracted once if the token is in the output.
    pub presence_penalty: f32,
    /// Whether frequency and presence penalty count the tokens that the repetition penalty looks at, with its decay, as in
    /// exllamav2, rather than those of the output.
    pub penalize_prompt: bool,
    /// Added to the logits of single tokens; minus infinity forbids a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// DRY: penalty on a token that would continue a repetition of `dry_allowed_length` tokens; 0 is off.
    pub dry_multiplier: f32,
    /// Factor on that penalty for each token that the repetition is longer.
    pub dry_base: f32,
    /// Length from which on a repetition is penalized.
    pub dry_allowed_length: usize,
    /// Length up to which repetitions are compared.
    pub dry_max_ngram: usize,
    /// Number of most recent tokens among which repetitions are looked for; 0 is all.
    pub dry_range: usize,
    /// Tokens that no repetition contains or ends with; `None` is those with punctuation, line breaks or tabs, and special
    /// tokens.
    pub dry_sequence_breakers: Option<Vec<u32>>,
    /// The only tokens that can be chosen; `None` is all.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// 0 is greedy decoding.
    pub temperature: f32,
    /// Makes weights fall with the square of the distance from the best logit, times this factor; 0 is off.
    pub smoothing_factor: f32,
    /// Keep the k most likely; 0 keeps all, 1 is greedy.
    pub top_k: usize,
    /// Keep the smallest set of tokens with this probability; 1 keeps all, and so does 0, as in exllamav2.
    pub top_p: f32,
    /// Keep tokens of at least this multiple of the squared probability of the best one; 0 keeps all.
    pub top_a: f32,
    /// Keep tokens of at least this share of the best one's probability; 0 keeps all.
    pub min_p: f32,
    /// Tail-free sampling: keep tokens up to this share of the curvature of the sorted probabilities; 1 and 0 keep all.
    pub tfs: f32,
    /// Locally typical sampling: keep the tokens nearest to the expected surprise that have this probability together; 1 and 0
    /// keep all.
    pub typical: f32,
    /// Whether Mirostat (2.0) limits the surprise of tokens, so that its mean becomes `mirostat_tau`.
    pub mirostat: bool,
    /// Surprise that Mirostat aims at, in bits.
    pub mirostat_tau: f32,
    /// How fast Mirostat's limit follows.
    pub mirostat_eta: f32,
    /// Mirostat's limit for the first token, in bits; `None` is twice `mirostat_tau`.
    pub mirostat_mu: Option<f32>,
    /// Dynamic temperature: what the filters left gets a temperature from this, if one token is certain, …
    pub min_temp: f32,
    /// … to this, if all are equally likely; off if not above `min_temp`.
    pub max_temp: f32,
    /// Power of the relative entropy by which dynamic temperature grows.
    pub temp_exponent: f32,
    /// Whether the temperature acts after the filters instead of before them. Dynamic temperature takes its place then.
    pub temperature_last: bool,
    /// XTC: probability that likely tokens are left out, except for the least likely of them; 0 is off.
    pub xtc_probability: f32,
    /// Probability from which on XTC takes a token for likely.
    pub xtc_threshold: f32,
    /// Tokens that XTC never leaves out and does not count; `None` is those with line breaks, and special tokens.
    pub xtc_ignore_tokens: Option<Vec<u32>>,
    /// Moves draws towards less likely tokens if above 0, towards more likely ones if below.
    pub skew: f32,
    /// Seed of this request's random numbers; `None` draws one when the request is submitted. The one used is in
    /// [`Finish::seed`](crate::Finish::seed).
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    /// Greedy, without penalties.
    fn default() -> Self {
        Self {
            cfg_scale: None,
            repetition_penalty: 1.0,
            repetition_range: None,
            repetition_decay: 0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            penalize_prompt: false,
            logit_bias: Vec::new(),
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_max_ngram: 20,
            dry_range: 0,
            dry_sequence_breakers: None,
            allowed_token_ids: None,
            temperature: 0.0,
            smoothing_factor: 0.0,
            top_k: 0,
            top_p: 1.0,
            top_a: 0.0,
            min_p: 0.0,
            tfs: 1.0,
            typical: 1.0,
            mirostat: false,
            mirostat_tau: 1.5,
            mirostat_eta: 0.1,
            mirostat_mu: None,
            min_temp: 0.0,
            max_temp: 0.0,
            temp_exponent: 1.0,
            temperature_last: false,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            xtc_ignore_tokens: None,
            skew: 0.0,
            seed: None,
        }
    }
}

impl SamplingParams {
    /// Checks every setting; the ids that it names must be below `vocab`.
    ///
    /// # Errors
    /// `sampling_invalid` for the first setting out of range, joined with all others.
    pub fn check(&self, vocab: usize) -> Result<()> {
        let mut problems = Vec::new();
        self.check_numbers(&mut problems);
        self.check_lengths(&mut problems);
        self.check_ids(vocab, &mut problems);
        Error::all(problems).map_or(Ok(()), Err)
    }

    fn check_numbers(&self, problems: &mut Vec<Error>) {
        let mut check = |name: &str, value: f32, valid: bool, expected: &str| {
            if !valid {
                problems.push(out_of_range(name, "").with_expected(expected).with_found(value));
            }
        };
        for (name, value) in [
            ("frequency_penalty", self.frequency_penalty),
            ("presence_penalty", self.presence_penalty),
            ("skew", self.skew),
            ("mirostat_mu", self.mirostat_mu.unwrap_or_default()),
            ("cfg_scale", self.cfg_scale.unwrap_or_default()),
        ] {
            check(name, value, value.is_finite(), "a finite number");
        }
        for (name, value) in [
            ("temperature", self.temperature),
            ("smoothing_factor", self.smoothing_factor),
            ("dry_multiplier", self.dry_multiplier),
            ("mirostat_tau", self.mirostat_tau),
            ("mirostat_eta", self.mirostat_eta),
            ("min_temp", self.min_temp),
            ("max_temp", self.max_temp),
            ("temp_exponent", self.temp_exponent),
        ] {
            check(name, value, value.is_finite() && value >= 0.0, "a finite number of at least 0");
        }
        for (name, value) in [("repetition_penalty", self.repetition_penalty), ("dry_base", self.dry_base)] {
            check(name, value, value.is_finite() && value > 0.0, "a finite number above 0");
        }
        for (name, value) in [
            ("top_p", self.top_p),
            ("top_a", self.top_a),
            ("min_p", self.min_p),
            ("tfs", self.tfs),
            ("typical", self.typical),
            ("xtc_probability", self.xtc_probability),
            ("xtc_threshold", self.xtc_threshold),
        ] {
            check(name, value, (0.0..=1.0).contains(&value), "a number from 0 to 1");
        }
        for &(id, bias) in &self.logit_bias {
            if !bias.is_finite() && bias != f32::NEG_INFINITY {
                let error = out_of_range("logit_bias", &format!(" of token {id}"));
                problems.push(error.with_expected("a finite number or minus infinity").with_found(bias));
            }
        }
    }

    fn check_lengths(&self, problems: &mut Vec<Error>) {
        for (name, value) in [("dry_allowed_length", self.dry_allowed_length), ("dry_max_ngram", self.dry_max_ngram)] {
            if value == 0 {
                problems.push(out_of_range(name, "").with_expected("at least 1").with_found(value));
            }
        }
    }

    fn check_ids(&self, vocab: usize, problems: &mut Vec<Error>) {
        let ids = |ids: &Option<Vec<u32>>| ids.clone().unwrap_or_default();
        for (name, ids) in [
            ("logit_bias", self.logit_bias.iter().map(|&(id, _)| id).collect()),
            ("dry_sequence_breakers", ids(&self.dry_sequence_breakers)),
            ("allowed_token_ids", ids(&self.allowed_token_ids)),
            ("xtc_ignore_tokens", ids(&self.xtc_ignore_tokens)),
        ] {
            if let Some(id) = ids.into_iter().find(|&id| id as usize >= vocab) {
                let what = format!("{name} names a token the model does not have");
                let error = Error::new(ErrorCode::SamplingInvalid, what).with_setting(name);
                problems.push(error.with_expected(format!("ids below {vocab}")).with_found(id));
            }
        }
        if self.allowed_token_ids.as_ref().is_some_and(Vec::is_empty) {
            let what = "allowed_token_ids is empty, so no token can be chosen";
            problems.push(Error::new(ErrorCode::SamplingInvalid, what).with_setting("allowed_token_ids"));
        }
    }

    /// Whether the largest logit is always chosen.
    pub(super) fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// Whether there is a penalty, a bias or a forbidden token.
    pub(super) fn changes_logits(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
            || !self.logit_bias.is_empty()
            || self.dry_multiplier > 0.0
            || self.allowed_token_ids.is_some()
    }

    /// Whether a draw adds up weights in order of rank, and not of id.
    pub(super) fn draws_by_rank(&self) -> bool {
        self.top_k > 0 || is_share(self.top_p) || self.skew != 0.0
    }
}

/// Whether a share cuts anything: 0 and 1 both keep all.
pub(super) fn is_share(share: f32) -> bool {
    0.0 < share && share < 1.0
}

/// The error of a setting; `part` says of which part of it.
fn out_of_range(setting: &str, part: &str) -> Error {
    Error::new(ErrorCode::SamplingInvalid, format!("{setting}{part} is out of range")).with_setting(setting)
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
        let settings: Vec<_> =
            error.clone().into_list().iter().filter_map(|e| e.setting().map(str::to_owned)).collect();
        let named =
            ["frequency_penalty", "temperature", "repetition_penalty", "top_p", "min_p", "logit_bias", "logit_bias"];
        assert_eq!(settings, named);
        let text = error.to_string();
        for name in
            ["temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "token 1", "ids below 10"]
        {
            assert!(text.contains(name), "{name} is missing in {text}");
        }
        assert!(!text.contains("token 2"));
    }

    #[test]
    fn every_number_has_a_range() {
        let refused = |change: fn(&mut SamplingParams, f32), value: f32| {
            let mut params = SamplingParams::default();
            change(&mut params, value);
            params.check(10).is_err()
        };
        let shares: [fn(&mut SamplingParams, f32); 7] = [
            |params, value| params.top_p = value,
            |params, value| params.top_a = value,
            |params, value| params.min_p = value,
            |params, value| params.tfs = value,
            |params, value| params.typical = value,
            |params, value| params.xtc_probability = value,
            |params, value| params.xtc_threshold = value,
        ];
        for share in shares {
            assert!([0.0, 0.5, 1.0].into_iter().all(|value| !refused(share, value)));
            assert!([-0.1, 1.1, f32::NAN].into_iter().all(|value| refused(share, value)));
        }
        let positive: [fn(&mut SamplingParams, f32); 8] = [
            |params, value| params.temperature = value,
            |params, value| params.smoothing_factor = value,
            |params, value| params.min_temp = value,
            |params, value| params.max_temp = value,
            |params, value| params.temp_exponent = value,
            |params, value| params.mirostat_tau = value,
            |params, value| params.mirostat_eta = value,
            |params, value| params.dry_multiplier = value,
        ];
        for number in positive {
            assert!([0.0, 7.0].into_iter().all(|value| !refused(number, value)));
            assert!([-0.1, f32::INFINITY, f32::NAN].into_iter().all(|value| refused(number, value)));
        }
        let finite: [fn(&mut SamplingParams, f32); 4] = [
            |params, value| params.cfg_scale = Some(value),
            |params, value| params.skew = value,
            |params, value| params.presence_penalty = value,
            |params, value| params.mirostat_mu = Some(value),
        ];
        for number in finite {
            assert!([-3.0, 0.0].into_iter().all(|value| !refused(number, value)));
            assert!([f32::NEG_INFINITY, f32::NAN].into_iter().all(|value| refused(number, value)));
        }
        assert!(refused(|params, value| params.dry_base = value, 0.0));
    }

    #[test]
    fn ids_and_lengths_have_ranges() {
        let bad = SamplingParams {
            dry_allowed_length: 0,
            dry_max_ngram: 0,
            dry_sequence_breakers: Some(vec![3, 11]),
            xtc_ignore_tokens: Some(vec![12]),
            allowed_token_ids: Some(Vec::new()),
            ..Default::default()
        };
        let text = bad.check(10).expect_err("an error").to_string();
        for name in ["allowed_length", "max_ngram", "sequence_breakers", "ignore_tokens", "allowed_token_ids is empty"]
        {
            assert!(text.contains(name), "{name} is missing in {text}");
        }
        assert!(SamplingParams { allowed_token_ids: Some(vec![9]), ..Default::default() }.check(10).is_ok());
    }
}
