//! Defaults of requests from a generation_config.json, where they are asked for.
//!
//! As with vLLM's `generation_config`, what a request sets itself precedes them. Each setting of the file is used as
//! transformers uses it, or it is refused by name: none is dropped in silence.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::{Map, Value};

use super::request::{Request, Stop};
use crate::error::{Error, ErrorCode, Result};
use crate::model::config::{eos_ids, read_json};

const FILE: &str = "generation_config.json";

/// The generation_config.json whose settings are the defaults of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GenerationConfigSource {
    /// That of the model folder, if it has one: `auto`.
    Auto,
    /// That file, or that of a folder.
    Path(PathBuf),
}

impl FromStr for GenerationConfigSource {
    type Err = Infallible;

    /// `auto`, or a path.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(PathBuf::from(text).into())
    }
}

impl From<PathBuf> for GenerationConfigSource {
    /// `auto`, or a path.
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == "auto" { Self::Auto } else { Self::Path(path) }
    }
}

/// The settings of a generation_config.json; those that it leaves open are `None` or empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Sampling temperature; 0 where the file has `do_sample: false`.
    pub temperature: Option<f32>,
    /// Keep the k most likely.
    pub top_k: Option<usize>,
    /// Keep the smallest set of tokens with this probability.
    pub top_p: Option<f32>,
    /// Keep tokens of at least this share of the best one's probability.
    pub min_p: Option<f32>,
    /// Keep the tokens nearest to the expected surprise that have this probability together.
    pub typical_p: Option<f32>,
    /// Penalty on tokens seen in prompt or output.
    pub repetition_penalty: Option<f32>,
    /// Largest number of new tokens.
    pub max_new_tokens: Option<usize>,
    /// Longest prompt and output together, if the file limits that and not the new tokens.
    pub max_length: Option<usize>,
    /// Before this number of new tokens, stop tokens are not chosen.
    pub min_new_tokens: Option<usize>,
    /// Tokens that are never chosen: `suppress_tokens`, and those of `bad_words_ids`.
    pub suppressed_tokens: Vec<u32>,
    /// Strings that end the text.
    pub stop_strings: Vec<String>,
    /// Ids that end the text.
    pub eos_token_ids: Vec<u32>,
    /// Number of samples, if not 1: `num_return_sequences`.
    pub n: Option<usize>,
}

/// When a setting that is not supported makes no difference; null never does.
#[derive(Clone, Copy)]
enum Neutral {
    /// Never.
    Never,
    /// If it is this number.
    At(f64),
    /// If it is false or empty.
    Off,
}

/// Settings of transformers' `GenerationConfig` that change the tokens and are not supported.
const UNSUPPORTED: &[(&str, Neutral)] = &[
    ("begin_suppress_tokens", Neutral::Off),
    ("constraints", Neutral::Off),
    ("diversity_penalty", Neutral::At(0.0)),
    ("dola_layers", Neutral::Off),
    ("encoder_no_repeat_ngram_size", Neutral::At(0.0)),
    ("encoder_repetition_penalty", Neutral::At(1.0)),
    ("epsilon_cutoff", Neutral::At(0.0)),
    ("eta_cutoff", Neutral::At(0.0)),
    ("exponential_decay_length_penalty", Neutral::Off),
    ("force_words_ids", Neutral::Off),
    ("forced_bos_token_id", Neutral::Never),
    ("forced_eos_token_id", Neutral::Never),
    ("guidance_scale", Neutral::At(1.0)),
    ("max_time", Neutral::Never),
    ("min_length", Neutral::At(0.0)),
    ("no_repeat_ngram_size", Neutral::At(0.0)),
    ("num_beam_groups", Neutral::At(1.0)),
    ("num_beams", Neutral::At(1.0)),
    ("penalty_alpha", Neutral::At(0.0)),
    ("remove_invalid_values", Neutral::Off),
    ("sequence_bias", Neutral::Off),
    ("token_healing", Neutral::Off),
    ("top_h", Neutral::Never),
    ("watermarking_config", Neutral::Off),
];

impl GenerationConfig {
    /// Reads the file that `source` means for the model in `model`. No source, or a model folder without the file, sets
    /// nothing.
    ///
    /// # Errors
    /// `checkpoint_not_found`, `model_config_invalid`, `setting_unsupported`.
    pub fn read(source: Option<&GenerationConfigSource>, model: &Path) -> Result<Self> {
        let Some(source) = source else { return Ok(Self::default()) };
        let path = match source {
            GenerationConfigSource::Auto => model.join(FILE),
            GenerationConfigSource::Path(path) if path.is_dir() => path.join(FILE),
            GenerationConfigSource::Path(path) => path.clone(),
        };
        match (read_json(&path)?, source) {
            (Some(value), _) => Self::from_json(&value).map_err(|error| error.with_path(&path)),
            (None, GenerationConfigSource::Auto) => Ok(Self::default()),
            (None, _) => {
                let what = "the generation config does not exist";
                Err(Error::new(ErrorCode::CheckpointNotFound, what).with_path(&path))
            }
        }
    }

    /// The settings of a parsed generation_config.json.
    ///
    /// # Errors
    /// `model_config_invalid`, `setting_unsupported`.
    pub fn from_json(value: &Value) -> Result<Self> {
        let Some(members) = value.as_object() else {
            return Err(Error::new(ErrorCode::ModelConfigInvalid, "generation_config.json is not a JSON object"));
        };
        let settings = Settings(members);
        settings.refuse_unsupported()?;
        let eos_token_ids = eos_ids(value)?;
        let temperature = match settings.flag("do_sample")? {
            Some(false) => Some(0.0),
            Some(true) => settings.float("temperature")?.or(Some(1.0)),
            None => settings.float("temperature")?,
        };
        let max_new_tokens = settings.count("max_new_tokens")?;
        let mut suppressed_tokens = settings.tokens("suppress_tokens", members.get("suppress_tokens"))?;
        suppressed_tokens.extend(settings.bad_words(&eos_token_ids)?);
        Ok(Self {
            temperature,
            top_k: settings.count("top_k")?,
            top_p: settings.float("top_p")?,
            min_p: settings.float("min_p")?,
            typical_p: settings.float("typical_p")?,
            repetition_penalty: settings.float("repetition_penalty")?,
            max_length: settings.count("max_length")?.filter(|_| max_new_tokens.is_none()),
            max_new_tokens,
            min_new_tokens: settings.count("min_new_tokens")?,
            suppressed_tokens,
            stop_strings: settings.texts("stop_strings")?,
            eos_token_ids,
            n: settings.count("num_return_sequences")?.filter(|&n| n != 1),
        })
    }

    /// Sets what the file sets, in a request that begins with it.
    pub fn apply(&self, request: &mut Request) {
        let sampling = &mut request.sampling;
        set(&mut sampling.temperature, self.temperature);
        set(&mut sampling.top_k, self.top_k);
        set(&mut sampling.top_p, self.top_p);
        set(&mut sampling.min_p, self.min_p);
        set(&mut sampling.typical, self.typical_p);
        set(&mut sampling.repetition_penalty, self.repetition_penalty);
        sampling.logit_bias.extend(self.suppressed_tokens.iter().map(|&token| (token, f32::NEG_INFINITY)));
        set(&mut request.max_new_tokens, self.new_tokens());
        set(&mut request.min_new_tokens, self.min_new_tokens);
        set(&mut request.n, self.n);
        request.stop.extend(self.stop_strings.iter().cloned().map(Stop::Text));
    }

    /// Largest number of new tokens that it allows after a prompt of any length.
    #[doc(hidden)]
    pub fn new_tokens(&self) -> Option<usize> {
        self.max_new_tokens.or(self.max_length)
    }

    /// Checks it against a model of `vocab` tokens and an engine whose sequences have at most `max_tokens`.
    pub(super) fn check(&self, vocab: usize, max_tokens: usize) -> Result<()> {
        if let Some(length) = self.max_length.filter(|&length| length < max_tokens) {
            return Err(unsupported("max_length")
                .with_expected(format!("at least {max_tokens}, the longest sequence"))
                .with_found(length)
                .with_hint("set max_new_tokens in the file, or lower max_seq_len"));
        }
        let mut request = Request::new("");
        self.apply(&mut request);
        request.check(vocab)
    }
}

/// The members of a generation_config.json; null is as good as absent.
struct Settings<'a>(&'a Map<String, Value>);

impl<'a> Settings<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn refuse_unsupported(&self) -> Result<()> {
        for (name, neutral) in UNSUPPORTED {
            let Some(value) = self.get(name) else { continue };
            let is_neutral = match (neutral, value) {
                (Neutral::At(number), value) => value.as_f64() == Some(*number),
                (Neutral::Off, Value::Bool(flag)) => !flag,
                (Neutral::Off, Value::Array(items)) => items.is_empty(),
                (Neutral::Off, Value::Object(items)) => items.is_empty(),
                _ => false,
            };
            if !is_neutral {
                return Err(unsupported(name).with_found(value));
            }
        }
        Ok(())
    }

    fn float(&self, name: &str) -> Result<Option<f32>> {
        self.typed(name, "a number", |value| value.as_f64().map(|number| number as f32))
    }

    fn count(&self, name: &str) -> Result<Option<usize>> {
        self.typed(name, "a number of at least 0", |value| value.as_u64().and_then(|count| count.try_into().ok()))
    }

    fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.typed(name, "true or false", Value::as_bool)
    }

    /// A string or a list of strings.
    fn texts(&self, name: &str) -> Result<Vec<String>> {
        let texts = |value: &Value| match value {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        Ok(self.typed(name, "strings", texts)?.unwrap_or_default())
    }

    fn typed<T>(&self, name: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        self.get(name).map(|value| read(value).ok_or_else(|| wrong(name, expected, value))).transpose()
    }

    /// A list of ids, or null.
    fn tokens(&self, name: &str, value: Option<&Value>) -> Result<Vec<u32>> {
        let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
        let id = |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = value.as_array().and_then(|items| items.iter().map(id).collect());
        ids.ok_or_else(|| wrong(name, "a list of token ids", value))
    }

    /// The ids of `bad_words_ids`. An end-of-text id is allowed again, as in transformers.
    fn bad_words(&self, eos: &[u32]) -> Result<Vec<u32>> {
        let name = "bad_words_ids";
        let Some(value) = self.get(name) else { return Ok(Vec::new()) };
        let mut tokens = Vec::new();
        for word in value.as_array().ok_or_else(|| wrong(name, "a list of lists of token ids", value))? {
            match self.tokens(name, Some(word))?[..] {
                [token] if eos.contains(&token) => {}
                [token] => tokens.push(token),
                _ => {
                    let what = "bad_words_ids of several tokens";
                    return Err(unsupported(what).with_expected("words of one token").with_found(word));
                }
            }
        }
        Ok(tokens)
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn unsupported(what: &str) -> Error {
    Error::new(ErrorCode::SettingUnsupported, format!("the generation config's {what} is not supported"))
        .with_hint("remove the setting, or use another generation config")
}

fn wrong(name: &str, expected: &str, found: &Value) -> Error {
    Error::new(ErrorCode::ModelConfigInvalid, format!("invalid '{name}' in the generation config"))
        .with_expected(expected)
        .with_found(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<GenerationConfig> {
        GenerationConfig::from_json(&value)
    }

    fn request(value: Value) -> Request {
        let mut request = Request::new("");
        read(value).expect("readable").apply(&mut request);
        request
    }

    #[test]
    fn a_request_begins_with_the_settings_of_the_file() {
        let request = request(json!({
            "do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1,
            "typical_p": 0.7,
            "max_new_tokens": 32, "min_new_tokens": 2, "suppress_tokens": [5], "bad_words_ids": [[7], [2]],
            "eos_token_id": [2], "stop_strings": "end", "pad_token_id": 0, "transformers_version": "5.0.0", "num_beams": 1,
            "num_return_sequences": 3
        }));
        let sampling = &request.sampling;
        assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p), (0.6, 0.9, 20, 0.05));
        assert_eq!((sampling.typical, sampling.repetition_penalty), (0.7, 1.1));
        assert_eq!(sampling.logit_bias, [(5, f32::NEG_INFINITY), (7, f32::NEG_INFINITY)]);
        assert_eq!((request.max_new_tokens, request.min_new_tokens, request.n), (32, 2, 3));
        assert_eq!(request.stop, [Stop::Text("end".into())]);
    }

    #[test]
    fn sampling_that_is_switched_off_is_greedy() {
        assert_eq!(request(json!({"do_sample": false, "temperature": 0.6})).sampling.temperature, 0.0);
        assert_eq!(request(json!({"do_sample": true})).sampling.temperature, 1.0);
        assert_eq!(request(json!({"temperature": 0.6})).sampling.temperature, 0.6);
        assert_eq!(request(json!({})), Request::new(""));
    }

    #[test]
    fn every_unsupported_setting_is_refused_by_name_unless_it_makes_no_difference() {
        for (name, neutral) in UNSUPPORTED {
            let error = read(json!({*name: 0.25})).expect_err(name);
            assert_eq!(error.code(), ErrorCode::SettingUnsupported);
            assert!(error.to_string().contains(name), "{error}");
            assert!(read(json!({*name: null})).is_ok(), "{name}");
            match neutral {
                Neutral::Never => assert!(read(json!({*name: 0})).is_err(), "{name}"),
                Neutral::At(number) => assert!(read(json!({*name: number})).is_ok(), "{name}"),
                Neutral::Off => {
                    assert!(read(json!({*name: []})).is_ok() && read(json!({*name: false})).is_ok(), "{name}")
                }
            }
        }
        assert_eq!(read(json!({"bad_words_ids": [[1, 2]]})).expect_err("words").code(), ErrorCode::SettingUnsupported);
    }

    #[test]
    fn a_limit_of_the_whole_length_is_used_where_the_engine_has_none_below_it() {
        let config = read(json!({"max_length": 100})).expect("readable");
        assert_eq!(config.new_tokens(), Some(100));
        assert!(config.check(10, 100).is_ok());
        let error = config.check(10, 101).expect_err("the limit would be passed");
        assert_eq!(error.code(), ErrorCode::SettingUnsupported);
        let both = read(json!({"max_length": 100, "max_new_tokens": 7})).expect("readable");
        assert_eq!((both.max_length, both.new_tokens()), (None, Some(7)));
    }

    #[test]
    fn wrong_types_and_values_are_refused_by_name() {
        for (name, value) in [
            ("temperature", json!("warm")),
            ("top_k", json!(-1)),
            ("do_sample", json!(1)),
            ("suppress_tokens", json!([-1])),
            ("bad_words_ids", json!([5])),
            ("stop_strings", json!([5])),
            ("eos_token_id", json!("</s>")),
        ] {
            let error = read(json!({name: value})).expect_err(name);
            assert_eq!(error.code(), ErrorCode::ModelConfigInvalid);
            assert!(error.to_string().contains(name), "{error}");
        }
        let out_of_range = read(json!({"top_p": 2.0, "suppress_tokens": [10]})).expect("readable");
        assert_eq!(out_of_range.check(10, 100).expect_err("refused").code(), ErrorCode::SamplingInvalid);
        for (name, value) in [
            ("num_return_sequences", json!(0)),
            ("stop_strings", json!([""])),
            ("stop_strings", json!(vec!["x"; 10_000])),
        ] {
            let config = read(json!({name: value})).expect("readable");
            assert_eq!(config.check(10, 100).expect_err(name).code(), ErrorCode::RequestInvalid);
        }
    }
}
