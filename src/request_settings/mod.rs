//! Settings of a request by the names of its fields: keys of a JSON request, options of the command, and `/set` in a chat.

mod embeds_json;
mod field_names;
mod numbers;
mod prompt_json;
mod read_json;
mod suggestion;
mod texts_json;

use std::collections::BTreeMap;

#[cfg(feature = "cli")]
use clap::{Arg, Args, Command, FromArgMatches};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
#[cfg(feature = "cli")]
use serde_json::Map;
use serde_json::Value;
use utoipa::ToSchema;

pub(crate) use self::embeds_json::prompt_embeds_of_json;
pub(crate) use self::field_names::field_names;
#[cfg(feature = "cli")]
use self::numbers::{seed_arg, top_k_arg};
pub(crate) use self::prompt_json::prompt_of_json;
use self::prompt_json::{negative_prompt, prompt_as_json};
pub use self::read_json::read_json;
pub(crate) use self::read_json::read_json_at;
use self::read_json::unexpected;
#[cfg(feature = "server")]
pub(crate) use self::suggestion::closest;
pub(crate) use self::suggestion::did_you_mean;
use self::texts_json::texts;
use crate::engine::{Grammar, Prompt, Request, Stop};
#[cfg(feature = "cli")]
use crate::error::ErrorCode;
use crate::error::{Error, Result};

/// Settings of a request by the names of its fields. What is not given keeps the request's value.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[cfg_attr(feature = "cli", derive(Args), command(next_help_heading = "Sampling"))]
#[serde(deny_unknown_fields)]
pub struct RequestSettings {
    /// Largest number of new tokens; 128 by default, in a chat up to the end of the context.
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    max_new_tokens: Option<usize>,
    /// Up to this number of new tokens, only --max-new-tokens ends the text: tokens that would end it are not chosen, and
    /// stop strings become part of it; 0 by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    min_new_tokens: Option<usize>,
    /// Number of independent samples of the prompt, each with its own seed; 1 by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    n: Option<usize>,
    /// Another prompt, which the text is guided away from (classifier-free guidance); needs --cfg-scale.
    #[cfg_attr(feature = "cli", arg(long, value_name = "TEXT", value_parser = prompt_text_arg, allow_hyphen_values = true))]
    #[serde(default, deserialize_with = "negative_prompt", serialize_with = "prompt_as_json")]
    #[schema(value_type = Option<serde_json::Value>)]
    negative_prompt: Option<Prompt>,
    /// Weight of the log-probabilities after the prompt; those after --negative-prompt have 1 less it. 1 is the prompt alone.
    #[cfg_attr(feature = "cli", arg(long, value_name = "X", allow_negative_numbers = true))]
    cfg_scale: Option<f32>,
    /// Sampling temperature; 0, the default, is greedy.
    #[cfg_attr(feature = "cli", arg(long, value_name = "T"))]
    temperature: Option<f32>,
    /// Sample from the K most likely tokens; 0, the default, is all, and so is -1.
    #[cfg_attr(feature = "cli", arg(long, value_name = "K", value_parser = top_k_arg, allow_negative_numbers = true))]
    #[serde(default, deserialize_with = "numbers::top_k")]
    #[schema(value_type = Option<i64>)]
    top_k: Option<usize>,
    /// Nucleus sampling: the most likely tokens up to this total probability; 1, the default, is all.
    #[cfg_attr(feature = "cli", arg(long, value_name = "P"))]
    top_p: Option<f32>,
    /// Drop tokens less likely than this multiple of the most likely one's squared probability; 0, the default, drops none.
    #[cfg_attr(feature = "cli", arg(long, value_name = "P"))]
    top_a: Option<f32>,
    /// Drop tokens less likely than this fraction of the most likely one; 0, the default, drops none.
    #[cfg_attr(feature = "cli", arg(long, value_name = "P"))]
    min_p: Option<f32>,
    /// Tail-free sampling: drop what comes after this share of the curvature of the sorted probabilities; 1, the default, drops
    /// none.
    #[cfg_attr(feature = "cli", arg(long, value_name = "P"))]
    tfs: Option<f32>,
    /// Locally typical sampling: the tokens nearest to the expected surprise, up to this total probability; 1, the default, is
    /// all.
    #[cfg_attr(feature = "cli", arg(long, value_name = "P"))]
    typical: Option<f32>,
    /// Whether Mirostat 2.0 limits the surprise of tokens; false by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "BOOL"))]
    mirostat: Option<bool>,
    /// Mean surprise that Mirostat aims at; 1.5 by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "BITS"))]
    mirostat_tau: Option<f32>,
    /// How fast Mirostat's limit follows; 0.1 by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "X"))]
    mirostat_eta: Option<f32>,
    /// Mirostat's limit for the first token; twice --mirostat-tau by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "BITS"))]
    mirostat_mu: Option<f32>,
    /// Smoothed sampling: logits fall with the square of their distance from the best one, times X; 0, the default, is off.
    #[cfg_attr(feature = "cli", arg(long, value_name = "X"))]
    smoothing_factor: Option<f32>,
    /// Dynamic temperature: the temperature where one token is certain; 0 by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "T"))]
    min_temp: Option<f32>,
    /// Dynamic temperature: the temperature where all tokens are equally likely; off by default, and if not above --min-temp.
    #[cfg_attr(feature = "cli", arg(long, value_name = "T"))]
    max_temp: Option<f32>,
    /// Power by which dynamic temperature grows with the entropy; 1 by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "X"))]
    temp_exponent: Option<f32>,
    /// Whether the temperature acts after the filters instead of before them; false by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "BOOL"))]
    temperature_last: Option<bool>,
    /// XTC: probability that all likely tokens but the least likely of them are left out; 0, the default, is off.
    #[cfg_attr(feature = "cli", arg(long, value_name = "P"))]
    xtc_probability: Option<f32>,
    /// Probability from which on XTC takes a token for likely; 0.1 by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "P"))]
    xtc_threshold: Option<f32>,
    /// Token id that XTC never leaves out; may be repeated. By default those with line breaks, and special tokens.
    #[cfg_attr(feature = "cli", arg(long, value_name = "ID"))]
    xtc_ignore_tokens: Option<Vec<u32>>,
    /// Move draws towards less likely tokens if above 0, towards more likely ones if below; 0 by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "X", allow_negative_numbers = true))]
    skew: Option<f32>,
    /// Penalty on tokens that occur in the prompt or the output; 1, the default, is none.
    #[cfg_attr(feature = "cli", arg(long, value_name = "X"))]
    repetition_penalty: Option<f32>,
    /// Number of most recent tokens that the repetition penalty looks at; all by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    repetition_range: Option<usize>,
    /// Number of tokens before these over which the penalty goes back to nothing; 0 by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    repetition_decay: Option<usize>,
    /// Penalty for each occurrence of a token in the output; 0, the default, is none.
    #[cfg_attr(feature = "cli", arg(long, value_name = "X", allow_negative_numbers = true))]
    frequency_penalty: Option<f32>,
    /// Penalty on tokens that occur in the output; 0, the default, is none.
    #[cfg_attr(feature = "cli", arg(long, value_name = "X", allow_negative_numbers = true))]
    presence_penalty: Option<f32>,
    /// Whether frequency and presence penalty count the tokens that the repetition penalty looks at, and not the output's; false
    /// by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "BOOL"))]
    penalize_prompt: Option<bool>,
    /// DRY: penalty on a token that would continue a repetition of --dry-allowed-length tokens; 0, the default, is none.
    #[cfg_attr(feature = "cli", arg(long, value_name = "X"))]
    dry_multiplier: Option<f32>,
    /// Factor on that penalty for each token that the repetition is longer; 1.75 by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "X"))]
    dry_base: Option<f32>,
    /// Length from which on a repetition is penalized; 2 by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    dry_allowed_length: Option<usize>,
    /// Length up to which repetitions are compared; 20 by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    dry_max_ngram: Option<usize>,
    /// Number of most recent tokens among which repetitions are looked for; 0, the default, is all.
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    dry_range: Option<usize>,
    /// Token id that no repetition contains or ends with; may be repeated. By default those with punctuation, line breaks or
    /// tabs, and special tokens.
    #[cfg_attr(feature = "cli", arg(long, value_name = "ID"))]
    dry_sequence_breakers: Option<Vec<u32>>,
    /// Add BIAS to the logit of a token id; -inf forbids it. May be repeated.
    #[cfg_attr(feature = "cli", arg(long, value_name = "ID=BIAS", value_parser = logit_bias_arg))]
    #[serde(default, deserialize_with = "logit_bias", serialize_with = "logit_bias_as_map")]
    #[schema(value_type = Option<BTreeMap<String, f32>>)]
    logit_bias: Option<Vec<(u32, f32)>>,
    /// Choose only tokens with this id; may be repeated. All by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "ID"))]
    allowed_token_ids: Option<Vec<u32>>,
    /// Random seed: the same seed gives the same text. A random one by default, which is reported. A negative one is the number of
    /// 64 bits with the same bits.
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", value_parser = seed_arg, allow_negative_numbers = true))]
    #[serde(default, deserialize_with = "numbers::seed")]
    #[schema(value_type = Option<i128>)]
    seed: Option<u64>,
    /// Stop before this string; may be repeated.
    #[cfg_attr(feature = "cli", arg(long, value_name = "TEXT", value_parser = stop_text_arg, allow_hyphen_values = true))]
    #[serde(default, deserialize_with = "stops", serialize_with = "stops_as_list")]
    #[schema(value_type = Option<serde_json::Value>)]
    stop: Option<Vec<Stop>>,
    /// A string that the text does not contain, in any case; may be repeated.
    #[cfg_attr(feature = "cli", arg(long, value_name = "TEXT", allow_hyphen_values = true))]
    #[serde(default, deserialize_with = "texts")]
    #[schema(value_type = Option<serde_json::Value>)]
    banned_strings: Option<Vec<String>>,
    /// Stop at this token id; may be repeated.
    #[cfg_attr(feature = "cli", arg(long, value_name = "ID"))]
    stop_token_ids: Option<Vec<u32>>,
    /// Whether the model's end-of-sequence tokens end the text; true by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "BOOL"))]
    stop_at_eos: Option<bool>,
    /// Number of top log-probabilities for each token, which --json prints; 0, the default, is none.
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    logprobs: Option<usize>,
    /// Number of top probabilities for each token after penalties and filters, which --json prints; 0, the default, is none.
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    probs: Option<usize>,
    /// Draft tokens from the prompt and the output: what followed where the last tokens appeared before. Saves steps where a
    /// text repeats itself, and changes no token; false by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true))]
    ngram_draft: Option<bool>,
    /// Largest number of last tokens that --ngram-draft looks for; 4 by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    max_ngram: Option<usize>,
    /// Largest number of tokens drafted for a step, if any are: 4 by default, 0 for none.
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    num_draft_tokens: Option<usize>,
    /// Whether special tokens are left out of the text; true by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "BOOL"))]
    skip_special_tokens: Option<bool>,
    /// Whether the tokenizer adds its own special tokens (a BOS) to a text prompt; true by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "BOOL"))]
    add_special_tokens: Option<bool>,
    /// The text is JSON that is valid under this JSON schema.
    #[cfg_attr(feature = "cli", arg(long, value_name = "SCHEMA"))]
    #[serde(default, deserialize_with = "json_schema")]
    #[schema(value_type = Option<serde_json::Value>)]
    json_schema: Option<String>,
    /// The text is a JSON object; false by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "BOOL"))]
    json_object: Option<bool>,
    /// The whole text matches this regular expression.
    #[cfg_attr(feature = "cli", arg(long, value_name = "PATTERN", allow_hyphen_values = true))]
    regex: Option<String>,
    /// The text is in the language of this grammar, in Lark syntax.
    #[cfg_attr(feature = "cli", arg(long, value_name = "LARK", allow_hyphen_values = true))]
    grammar: Option<String>,
    /// The text is in the language of this grammar, in llama.cpp's GBNF.
    #[cfg_attr(feature = "cli", arg(long, value_name = "GBNF", allow_hyphen_values = true))]
    gbnf: Option<String>,
    /// The text is this string, or another one that is given in the same way; may be repeated.
    #[cfg_attr(feature = "cli", arg(long, value_name = "TEXT", allow_hyphen_values = true))]
    #[serde(default, deserialize_with = "texts")]
    #[schema(value_type = Option<serde_json::Value>)]
    choices: Option<Vec<String>>,
    /// Whether the first new token may replace the last one of the prompt by one that begins with its text; false by default.
    #[cfg_attr(feature = "cli", arg(long, value_name = "BOOL"))]
    token_healing: Option<bool>,
}

impl RequestSettings {
    /// The largest number of new tokens, if it is given.
    pub(crate) fn max_new_tokens(&self) -> Option<usize> {
        self.max_new_tokens
    }

    /// The number of samples, if it is given.
    #[cfg(feature = "cli")]
    pub(crate) fn n(&self) -> Option<usize> {
        self.n
    }

    /// Changes what is given in a request.
    ///
    /// # Errors
    /// `request_invalid`: several grammars are given.
    pub(crate) fn apply(&self, request: &mut Request) -> Result<()> {
        let grammars = [
            self.json_schema.clone().map(Grammar::JsonSchema),
            self.json_object.unwrap_or(false).then_some(Grammar::JsonObject),
            self.regex.clone().map(Grammar::Regex),
            self.grammar.clone().map(Grammar::Lark),
            self.gbnf.clone().map(Grammar::Gbnf),
            self.choices.clone().map(Grammar::Choices),
        ];
        if let Some(grammar) = Grammar::only(grammars.into_iter().flatten())? {
            request.grammar = Some(grammar);
        }
        if self.json_object == Some(false) && request.grammar == Some(Grammar::JsonObject) {
            request.grammar = None;
        }
        set(&mut request.token_healing, self.token_healing);
        set(&mut request.max_new_tokens, self.max_new_tokens);
        set(&mut request.min_new_tokens, self.min_new_tokens);
        set(&mut request.n, self.n);
        set(&mut request.stop_at_eos, self.stop_at_eos);
        set(&mut request.banned_strings, self.banned_strings.clone());
        set(&mut request.logprobs, self.logprobs);
        set(&mut request.probs, self.probs);
        set(&mut request.ngram_draft, self.ngram_draft);
        set(&mut request.max_ngram, self.max_ngram);
        set(&mut request.num_draft_tokens, self.num_draft_tokens.map(Some));
        set(&mut request.skip_special_tokens, self.skip_special_tokens);
        set(&mut request.add_special_tokens, self.add_special_tokens);
        if self.stop.is_some() || self.stop_token_ids.is_some() {
            let tokens = self.stop_token_ids.iter().flatten().map(|id| Stop::Token(*id));
            request.stop = self.stop.iter().flatten().cloned().chain(tokens).collect();
        }
        set(&mut request.negative_prompt, self.negative_prompt.clone().map(Some));
        let sampling = &mut request.sampling;
        set(&mut sampling.cfg_scale, self.cfg_scale.map(Some));
        set(&mut sampling.temperature, self.temperature);
        set(&mut sampling.top_k, self.top_k);
        set(&mut sampling.top_p, self.top_p);
        set(&mut sampling.top_a, self.top_a);
        set(&mut sampling.min_p, self.min_p);
        set(&mut sampling.tfs, self.tfs);
        set(&mut sampling.typical, self.typical);
        set(&mut sampling.mirostat, self.mirostat);
        set(&mut sampling.mirostat_tau, self.mirostat_tau);
        set(&mut sampling.mirostat_eta, self.mirostat_eta);
        set(&mut sampling.mirostat_mu, self.mirostat_mu.map(Some));
        set(&mut sampling.smoothing_factor, self.smoothing_factor);
        set(&mut sampling.min_temp, self.min_temp);
        set(&mut sampling.max_temp, self.max_temp);
        set(&mut sampling.temp_exponent, self.temp_exponent);
        set(&mut sampling.temperature_last, self.temperature_last);
        set(&mut sampling.xtc_probability, self.xtc_probability);
        set(&mut sampling.xtc_threshold, self.xtc_threshold);
        set(&mut sampling.xtc_ignore_tokens, self.xtc_ignore_tokens.clone().map(Some));
        set(&mut sampling.skew, self.skew);
        set(&mut sampling.repetition_penalty, self.repetition_penalty);
        set(&mut sampling.repetition_range, self.repetition_range.map(Some));
        set(&mut sampling.repetition_decay, self.repetition_decay);
        set(&mut sampling.frequency_penalty, self.frequency_penalty);
        set(&mut sampling.presence_penalty, self.presence_penalty);
        set(&mut sampling.penalize_prompt, self.penalize_prompt);
        set(&mut sampling.dry_multiplier, self.dry_multiplier);
        set(&mut sampling.dry_base, self.dry_base);
        set(&mut sampling.dry_allowed_length, self.dry_allowed_length);
        set(&mut sampling.dry_max_ngram, self.dry_max_ngram);
        set(&mut sampling.dry_range, self.dry_range);
        set(&mut sampling.dry_sequence_breakers, self.dry_sequence_breakers.clone().map(Some));
        set(&mut sampling.logit_bias, self.logit_bias.clone());
        set(&mut sampling.allowed_token_ids, self.allowed_token_ids.clone().map(Some));
        set(&mut sampling.seed, self.seed.map(Some));
        Ok(())
    }

    /// Gives one setting by its name, with `-` or `_`, and its value as on the command line.
    ///
    /// # Errors
    /// `request_invalid`.
    #[cfg(feature = "cli")]
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let invalid = |what: String| Error::new(ErrorCode::RequestInvalid, what);
        let name = name.replace('_', "-");
        if !Self::names().contains(&name) {
            let names = Self::names();
            let similar = did_you_mean(&name, names.iter().map(String::as_str));
            return Err(invalid(format!("there is no setting '{name}'{similar}")).with_expected(names.join(", ")));
        }
        let command = Self::augment_args(Command::new("set").no_binary_name(true));
        command
            .try_get_matches_from([format!("--{name}={value}")])
            .and_then(|matches| self.update_from_arg_matches(&matches))
            .map_err(|e| {
                let message = e.to_string();
                let line = message.lines().next().unwrap_or_default();
                invalid(line.trim_start_matches("error: ").to_owned())
            })
    }

    /// The names of all settings, as options without their dashes.
    #[cfg(feature = "cli")]
    pub(crate) fn names() -> Vec<String> {
        let command = Self::augment_args(Command::new("names"));
        command.get_arguments().filter_map(Arg::get_long).map(str::to_owned).collect()
    }

    /// What is given, by name.
    #[cfg(feature = "cli")]
    pub(crate) fn given(&self) -> Vec<(String, Value)> {
        // Through text, because a float becomes longer as a value: 0.7 is 0.699999988079071.
        let fields = serde_json::to_string(self).and_then(|text| serde_json::from_str::<Map<String, Value>>(&text));
        fields.unwrap_or_default().into_iter().filter(|(_, value)| !value.is_null()).collect()
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

#[cfg(feature = "cli")]
fn logit_bias_arg(text: &str) -> Result<(u32, f32), String> {
    let parts = text.split_once('=').and_then(|(id, bias)| Some((id.trim().parse().ok()?, bias.trim().parse().ok()?)));
    parts.ok_or_else(|| "write ID=BIAS, as in 42=-1.5".to_owned())
}

#[cfg(feature = "cli")]
fn prompt_text_arg(text: &str) -> Result<Prompt, std::convert::Infallible> {
    Ok(Prompt::Text(text.to_owned()))
}

#[cfg(feature = "cli")]
fn stop_text_arg(text: &str) -> Result<Stop, std::convert::Infallible> {
    Ok(Stop::Text(text.to_owned()))
}

fn logit_bias<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<(u32, f32)>>, D::Error> {
    let bias: Option<BTreeMap<String, f32>> = Deserialize::deserialize(deserializer)?;
    let one = |(id, bias): (String, f32)| match id.parse::<u32>() {
        Ok(id) => Ok((id, bias)),
        Err(_) => Err(unexpected(&Value::from(id), "token ids as the names of numbers")),
    };
    let bias = bias.map(|bias| bias.into_iter().map(one).collect::<Result<BTreeMap<u32, f32>, D::Error>>());
    Ok(bias.transpose()?.map(|bias| bias.into_iter().collect()))
}

fn logit_bias_as_map<S: Serializer>(bias: &Option<Vec<(u32, f32)>>, serializer: S) -> Result<S::Ok, S::Error> {
    let bias: Option<BTreeMap<u32, f32>> = bias.as_ref().map(|bias| bias.iter().copied().collect());
    bias.serialize(serializer)
}

/// A JSON schema, or its text.
fn json_schema<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Null => None,
        Value::String(text) => Some(text),
        schema => Some(schema.to_string()),
    })
}

/// A string, a token id, or a list of both.
fn stops<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Stop>>, D::Error> {
    let stop = |value: &Value| match value {
        Value::String(text) => Some(Stop::Text(text.clone())),
        other => other.as_u64().and_then(|id| u32::try_from(id).ok()).map(Stop::Token),
    };
    let value = Value::deserialize(deserializer)?;
    let items = match &value {
        Value::Null => return Ok(None),
        Value::Array(items) => items,
        one => std::slice::from_ref(one),
    };
    let wrong = |item| unexpected(item, "a string, a token id, or an array of them");
    items.iter().map(|item| stop(item).ok_or_else(|| wrong(item))).collect::<Result<_, _>>().map(Some)
}

fn stops_as_list<S: Serializer>(stops: &Option<Vec<Stop>>, serializer: S) -> Result<S::Ok, S::Error> {
    let value = |stop: &Stop| match stop {
        Stop::Text(text) => Value::from(text.as_str()),
        Stop::Token(id) => Value::from(*id),
    };
    stops.as_ref().map(|stops| stops.iter().map(value).collect::<Vec<_>>()).serialize(serializer)
}

#[cfg(all(test, feature = "cli"))]
mod tests {
    use super::*;
    use crate::engine::SamplingParams;

    /// Every field of a request that continues a prompt can be given. A new field does not compile here before it can.
    #[test]
    fn every_field_of_a_request_is_an_option_and_a_json_key() {
        let Request {
            prompt: _,
            adapters: _,
            // Keys of JSON Lines beside the messages: tools, chat_template_kwargs and others.
            chat: _,
            negative_prompt: _,
            // An array for the caller of the library; the command has nowhere to put it.
            return_logits: _,
            max_new_tokens: _,
            min_new_tokens: _,
            n: _,
            sampling:
                SamplingParams {
                    cfg_scale: _,
                    temperature: _,
                    top_k: _,
                    top_p: _,
                    top_a: _,
                    min_p: _,
                    tfs: _,
                    typical: _,
                    mirostat: _,
                    mirostat_tau: _,
                    mirostat_eta: _,
                    mirostat_mu: _,
                    smoothing_factor: _,
                    min_temp: _,
                    max_temp: _,
                    temp_exponent: _,
                    temperature_last: _,
                    xtc_probability: _,
                    xtc_threshold: _,
                    xtc_ignore_tokens: _,
                    skew: _,
                    repetition_penalty: _,
                    repetition_range: _,
                    repetition_decay: _,
                    frequency_penalty: _,
                    presence_penalty: _,
                    penalize_prompt: _,
                    dry_multiplier: _,
                    dry_base: _,
                    dry_allowed_length: _,
                    dry_max_ngram: _,
                    dry_range: _,
                    dry_sequence_breakers: _,
                    logit_bias: _,
                    allowed_token_ids: _,
                    seed: _,
                },
            stop: _,
            banned_strings: _,
            stop_at_eos: _,
            logprobs: _,
            probs: _,
            // Functions.
            post_sampling_hooks: _,
            skip_special_tokens: _,
            add_special_tokens: _,
            ngram_draft: _,
            max_ngram: _,
            num_draft_tokens: _,
            // --draft-use
            draft_adapters: _,
            // json_schema, json_object, regex, grammar, gbnf, choices.
            grammar: _,
            // Code of the library's caller.
            filters: _,
            token_healing: _,
        } = Request::new("");
        let fields = "max_new_tokens min_new_tokens n temperature top_k top_p top_a min_p tfs typical mirostat \
                      mirostat_tau mirostat_eta mirostat_mu smoothing_factor min_temp max_temp temp_exponent \
                      temperature_last xtc_probability xtc_threshold xtc_ignore_tokens skew repetition_penalty \
                      repetition_range repetition_decay frequency_penalty presence_penalty penalize_prompt \
                      dry_multiplier dry_base dry_allowed_length dry_max_ngram dry_range dry_sequence_breakers \
                      logit_bias allowed_token_ids seed stop banned_strings stop_at_eos logprobs probs skip_special_tokens \
                      add_special_tokens ngram_draft max_ngram num_draft_tokens json_schema json_object regex grammar \
                      gbnf choices token_healing negative_prompt cfg_scale";
        let names = RequestSettings::names();
        let default = format!("{:?}", Request::new(""));
        for field in fields.split_whitespace() {
            assert!(names.contains(&field.replace('_', "-")), "--{field}");
            let value = match field {
                "logit_bias" => serde_json::json!({"3": -1.5}),
                "banned_strings" => serde_json::json!(["x"]),
                "ngram_draft" => serde_json::json!(true),
                "stop_at_eos" | "skip_special_tokens" | "add_special_tokens" => serde_json::json!(false),
                "json_object" | "token_healing" => serde_json::json!(true),
                "json_schema" => serde_json::json!({"type": "integer"}),
                "regex" | "grammar" | "gbnf" | "negative_prompt" => serde_json::json!("x"),
                "choices" => serde_json::json!(["x", "y"]),
                "mirostat" | "temperature_last" | "penalize_prompt" => serde_json::json!(true),
                "xtc_ignore_tokens" | "dry_sequence_breakers" | "allowed_token_ids" => serde_json::json!([3, 4]),
                _ => serde_json::json!(7),
            };
            let args: RequestSettings = serde_json::from_value(serde_json::json!({field: value})).expect(field);
            let given: Vec<String> = args.given().into_iter().map(|(name, _)| name).collect();
            assert_eq!(given, [field]);
            let mut request = Request::new("");
            args.apply(&mut request).expect(field);
            assert_ne!(format!("{request:?}"), default, "{field} reaches the request");
        }
    }

    #[test]
    fn two_grammars_are_refused_and_a_schema_is_json_or_its_text() {
        let of = |json: serde_json::Value| {
            let args: RequestSettings = serde_json::from_value(json).expect("settings");
            let mut request = Request::new("");
            args.apply(&mut request).map(|()| request.grammar)
        };
        let schema = Some(Grammar::JsonSchema(r#"{"type":"integer"}"#.to_owned()));
        assert_eq!(of(serde_json::json!({"json_schema": {"type": "integer"}})).expect("one"), schema);
        assert_eq!(of(serde_json::json!({"json_schema": r#"{"type":"integer"}"#})).expect("one"), schema);
        assert_eq!(of(serde_json::json!({"json_object": false, "regex": null})).expect("none"), None);
        let error = of(serde_json::json!({"regex": "a", "choices": ["b"]})).expect_err("two");
        assert!(error.to_string().contains("regex and choices"), "{error}");
    }

    #[test]
    fn a_setting_is_given_by_its_name() {
        let mut args = RequestSettings::default();
        for (name, value) in [("temperature", "0.7"), ("top_k", "5"), ("frequency-penalty", "-1"), ("stop", "--x")] {
            args.set(name, value).expect(name);
        }
        let given: Vec<_> = args.given().into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(given, ["temperature=0.7", "top_k=5", "frequency_penalty=-1.0", "stop=[\"--x\"]"]);
        let message = |name, value| RequestSettings::default().set(name, value).expect_err("refused").to_string();
        assert!(
            message("temprature", "1").starts_with("there is no setting 'temprature'; did you mean 'temperature'?")
        );
        assert!(message("top-k", "x").starts_with("invalid value 'x' for '--top-k <K>'"), "{}", message("top-k", "x"));
        assert!(message("help", "").starts_with("there is no setting"));
    }
}
