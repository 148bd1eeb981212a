//! Parses config.json into a decoder described by data, as transformers' config classes parse it.
//!
//! A model family is one row of a table (`family`). Nothing else in the crate knows an architecture's name. No number of the
//! file sizes an allocation before it has been compared with a cap, and no weight is looked up before the cap holds.

mod architecture;
mod description;
mod family;
mod family_table;
mod fields;
mod readers;
mod rope;
mod rope_frequencies;
mod rope_parameters;
mod sizes;
mod token_ids;
mod windows;

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use self::architecture::TextModel;
use self::family::Family;
use self::fields::{Fields, invalid, is_truthy, unsupported};
use self::sizes::Sizes;
use self::token_ids::TokenIds;
use crate::backend::Rope;
use crate::checkpoint::with_path_hint;
use crate::error::{Error, ErrorCode, Result};

pub use self::architecture::{Architecture, architectures};
pub use self::description::{AttentionScores, Biases, Block, Mlp, Multipliers, Norms};
pub(crate) use self::fields::read_json;
pub use self::rope::{LongRopes, RopeOverrides};
pub(crate) use self::token_ids::{eos_ids, generation_eos_ids};

/// A decoder as config.json describes it.
#[derive(Clone, Debug)]
pub struct DecoderConfig {
    /// The architecture that `model_type` means: `LlamaForCausalLM`.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of embedding and head.
    pub vocab_size: usize,
    /// Longest sequence the model is made for, in positions: `max_position_embeddings`, stretched by rope scaling.
    pub max_positions: usize,
    /// Positions that no sequence may pass: beyond them, dynamic scaling makes the rotation of all positions depend on the length.
    pub position_limit: Option<usize>,
    /// Its norms.
    pub norms: Norms,
    /// How a layer is put together.
    pub block: Block,
    /// The MLP.
    pub mlp: Mlp,
    /// What attention does with scores.
    pub scores: AttentionScores,
    /// Constant factors along the residual stream.
    pub multipliers: Multipliers,
    /// Which linears have a bias.
    pub biases: Biases,
    /// Attention window of each layer, in positions; `None` is full causal attention.
    pub windows: Vec<Option<usize>>,
    /// The rotation of queries and keys of each layer, one `Arc` for all layers that share it; `None` where they are not rotated.
    pub ropes: Vec<Option<Arc<Rope>>>,
    /// Those of long sequences, if they are others.
    pub long_ropes: Option<LongRopes>,
    /// The base of the frequencies of [`DecoderConfig::main_rope`].
    pub rope_theta: f64,
    /// What linear scaling divides positions by; 1 without it.
    pub rope_scale: f64,
    /// Whether the head shares the embedding's weight.
    pub tie_word_embeddings: bool,
    /// Whether it is the text model of a multimodal one. `tie_word_embeddings` of those is no more than a default: a head that is
    /// stored is the head.
    pub is_wrapped: bool,
    /// End-of-text ids: those of config.json in their order, then what generation_config.json adds.
    pub eos_token_ids: Vec<u32>,
    /// Beginning-of-text id, if config.json has one.
    pub bos_token_id: Option<u32>,
    /// Padding id, if config.json has one.
    pub pad_token_id: Option<u32>,
}

impl DecoderConfig {
    /// Reads config.json and generation_config.json of a model folder; also returns the parsed config.json.
    ///
    /// # Errors
    /// `checkpoint_not_found`, `model_config_invalid`, `model_architecture_unsupported`, `model_feature_unsupported`.
    pub fn read(dir: &Path) -> Result<(Self, Value)> {
        Self::read_with(dir, &RopeOverrides::default())
    }

    /// As [`DecoderConfig::read`], with another rotation.
    ///
    /// # Errors
    /// As [`DecoderConfig::read`]; `request_invalid`: the rotation's numbers are no positive ones.
    pub fn read_with(dir: &Path, overrides: &RopeOverrides) -> Result<(Self, Value)> {
        overrides.check()?;
        if !dir.is_dir() {
            let what =
                if dir.exists() { "this is a file, not a model's folder" } else { "the model folder does not exist" };
            let error = Error::new(ErrorCode::CheckpointNotFound, what).with_path(dir);
            return Err(with_path_hint(error, dir));
        }
        let path = dir.join("config.json");
        let value = read_json(&path)?.ok_or_else(|| {
            Error::new(ErrorCode::CheckpointNotFound, "the model folder has no config.json").with_path(&path)
        })?;
        let mut config = Self::from_json_with(&value, overrides).map_err(|e| e.with_path(&path))?;
        for id in generation_eos_ids(&dir.join("generation_config.json"))? {
            if !config.eos_token_ids.contains(&id) {
                config.eos_token_ids.push(id);
            }
        }
        Ok((config, value))
    }

    /// A decoder from a parsed config.json.
    ///
    /// # Errors
    /// `model_config_invalid`, `model_architecture_unsupported`, `model_feature_unsupported`.
    pub fn from_json(value: &Value) -> Result<Self> {
        Self::from_json_with(value, &RopeOverrides::default())
    }

    /// As [`DecoderConfig::from_json`], with another rotation.
    ///
    /// # Errors
    /// As [`DecoderConfig::from_json`].
    pub fn from_json_with(value: &Value, overrides: &RopeOverrides) -> Result<Self> {
        let model = TextModel::of(Fields::of(value)?)?;
        let TextModel { family, architecture, ref fields, wrapper } = model;
        check_unused(family, fields, false)?;
        if let Some(outer) = &wrapper {
            check_unused(family, outer, true)?;
        }
        let Sizes { hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, positions } =
            Sizes::read(family, fields)?;
        let attention = windows::layer_attention(family, fields, layers)?;
        let rotary = rope::rotary_embeddings(family, fields, &attention, head_dim, positions, overrides)?;
        let tokens = TokenIds::read(&model, vocab)?;
        Ok(Self {
            architecture: architecture.to_owned(),
            hidden_size: hidden,
            intermediate_size: intermediate,
            layers,
            heads,
            kv_heads,
            head_dim,
            vocab_size: vocab,
            max_positions: rotary.max_positions,
            position_limit: rotary.position_limit,
            norms: readers::norms(family, fields)?,
            block: family.block,
            mlp: readers::mlp(family, fields)?,
            scores: readers::scores(family, fields, head_dim, rotary.query_temperature)?,
            multipliers: readers::multipliers(family, fields, hidden, wrapper.is_some())?,
            biases: readers::biases(family, fields)?,
            windows: attention.windows,
            ropes: rotary.ropes,
            long_ropes: rotary.long_ropes,
            rope_theta: rotary.theta,
            rope_scale: rotary.linear_factor,
            tie_word_embeddings: is_head_tied(&model)?,
            is_wrapped: wrapper.is_some(),
            eos_token_ids: tokens.eos,
            bos_token_id: tokens.bos,
            pad_token_id: tokens.pad,
        })
    }

    /// The rotation of the layers that see farthest: of the first rotated layer without a window, else of the first rotated one.
    pub fn main_rope(&self) -> Option<&Arc<Rope>> {
        let rotated =
            || self.ropes.iter().zip(&self.windows).filter_map(|(rope, window)| Some((rope.as_ref()?, window)));
        rotated().find(|(_, window)| window.is_none()).or_else(|| rotated().next()).map(|(rope, _)| rope)
    }

    /// The rotation of a layer in long sequences, or in others; `None` where it does not rotate, or there is no such layer.
    pub fn rope(&self, layer: usize, is_long: bool) -> Option<&Arc<Rope>> {
        let long = self.long_ropes.as_ref().filter(|_| is_long);
        long.map_or(&self.ropes, |long| &long.ropes).get(layer)?.as_ref()
    }

    /// Whether a sequence of that many tokens is rotated by `long_ropes`.
    pub fn has_long_rope(&self, tokens: usize) -> bool {
        self.long_ropes.as_ref().is_some_and(|long| tokens > long.original_positions)
    }

    /// The longest sequence to serve, in positions: what was asked for, by default `max_positions`.
    ///
    /// # Errors
    /// `request_invalid`, or `model_feature_unsupported` beyond `position_limit`.
    pub fn max_seq_len(&self, asked: Option<usize>) -> Result<usize> {
        let Some(asked) = asked else { return Ok(self.max_positions) };
        let longest = u32::MAX as usize;
        if !(1..=longest).contains(&asked) {
            return Err(Error::new(ErrorCode::RequestInvalid, "max_seq_len is out of range")
                .with_expected(format!("a number from 1 to {longest}"))
                .with_found(asked));
        }
        if let Some(limit) = self.position_limit.filter(|&limit| asked > limit) {
            let what = "dynamic scaling is not supported beyond the original length, where each token changes the past";
            return Err(unsupported(what)
                .with_expected(format!("max_seq_len of at most {limit}"))
                .with_found(asked)
                .with_hint("use linear or yarn scaling for longer sequences"));
        }
        if asked > self.max_positions {
            tracing::warn!(
                max_seq_len = asked,
                model = self.max_positions,
                "longer sequences than the model is made for"
            );
        }
        Ok(asked)
    }
}

/// Whether the head is tied to the embedding. A multimodal model says so beside its text model or in it.
fn is_head_tied(model: &TextModel<'_>) -> Result<bool> {
    let name = "tie_word_embeddings";
    let of_text = model.fields.flag(name, model.family.is_head_tied)?;
    match &model.wrapper {
        Some(outer) if outer.get(name).is_some() => outer.flag(name, true),
        // What it says by default, and the text model need not.
        Some(_) => Ok(true),
        None => Ok(of_text),
    }
}

/// Refuses what would make transformers build something else, and checks the types of members that make no difference.
/// `is_wrapper` says whether they are those of a multimodal model around the text model.
fn check_unused(family: &Family, fields: &Fields<'_>, is_wrapper: bool) -> Result<()> {
    for name in ["text_config", "decoder", "generator", "per_layer_config"] {
        if fields.non_null(name).is_some() && !(is_wrapper && name == "text_config") {
            return Err(unsupported(format!("a model with '{name}' is not supported")).with_found(name));
        }
    }
    if fields.get("use_bidirectional_attention").is_some_and(is_truthy) {
        let what = "a model with use_bidirectional_attention, which makes embeddings and no text, is not supported";
        return Err(unsupported(what).with_found(true));
    }
    let is_other = |name: &Value| name.as_str().is_none_or(|name| name != "config.json" && name.starts_with("config."));
    match fields.get("configuration_files") {
        Some(Value::Array(names)) if !names.iter().any(is_other) => {}
        None => {}
        Some(_) => return Err(unsupported("configuration_files with other files than config.json are not supported")),
    }
    for (name, expected, may_be_null) in family.unused.iter().filter(|_| !is_wrapper) {
        fields.check(name, *expected, *may_be_null)?;
    }
    match fields.non_null("dtype").or(fields.non_null("torch_dtype")) {
        Some(Value::String(name)) if !is_torch_dtype(name) => {
            Err(invalid("dtype").with_expected("a dtype of torch, such as float16").with_found(name))
        }
        _ => Ok(()),
    }
}

/// Whether torch has a dtype of this name.
fn is_torch_dtype(name: &str) -> bool {
    let floats = ["half", "float", "double", "bfloat16", "float16", "float32", "float64", "float4_e2m1fn_x2"];
    let integers = ["bool", "short", "int", "long", "quint8", "qint8", "qint32", "quint4x2", "quint2x4"];
    let complex = ["chalf", "cfloat", "cdouble", "complex32", "complex64", "complex128"];
    let is_float8 = name
        .strip_prefix("float8_")
        .is_some_and(|kind| ["e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu"].contains(&kind));
    let bits = name.strip_prefix('u').unwrap_or(name).strip_prefix("int");
    let is_integer = bits.is_some_and(|bits| ["8", "16", "32", "64"].contains(&bits));
    is_float8 || is_integer || [&floats[..], &integers, &complex].concat().contains(&name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::backend::HeadNormScope;

    fn config(changes: Value) -> Result<DecoderConfig> {
        let mut value = json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": 4, "vocab_size": 100
        });
        let fields = value.as_object_mut().expect("object");
        fields.extend(changes.as_object().expect("object").clone());
        DecoderConfig::from_json(&value)
    }

    fn refused(changes: Value) -> Error {
        config(changes.clone()).expect_err(&changes.to_string())
    }

    #[test]
    fn absent_keys_have_the_defaults_of_the_family() {
        let llama = config(json!({})).expect("llama");
        assert_eq!((llama.kv_heads, llama.head_dim, llama.biases), (4, 16, Biases::default()));
        assert_eq!((llama.windows, llama.max_positions), (vec![None; 3], 2048));
        assert_eq!((llama.bos_token_id, llama.eos_token_ids), (Some(1), vec![2]));
        let mistral = config(json!({"model_type": "mistral", "num_attention_heads": 8})).expect("mistral");
        assert_eq!((mistral.kv_heads, mistral.windows[0], mistral.max_positions), (8, Some(4096), 131_072));
        let qwen3 = config(json!({"model_type": "qwen3", "num_attention_heads": 32})).expect("qwen3");
        assert_eq!((qwen3.head_dim, qwen3.kv_heads, qwen3.norms.qk), (128, 32, Some(HeadNormScope::Head)));
        let qwen2 = config(json!({"model_type": "qwen2", "num_key_value_heads": 2})).expect("qwen2");
        assert_eq!(qwen2.biases, Biases { qkv: true, output: false, mlp: false });
        assert!(qwen2.eos_token_ids.is_empty());
        let whole = DecoderConfig::from_json(&json!({"model_type": "llama"})).expect("a Llama of 7B");
        assert_eq!((whole.hidden_size, whole.intermediate_size, whole.vocab_size), (4096, 11008, 32000));
    }

    #[test]
    fn the_family_decides_which_layers_have_a_window() {
        let windows = |changes: Value| config(changes).expect("readable").windows;
        let mistral = |window: Value| {
            windows(json!({"model_type": "mistral", "num_attention_heads": 8, "sliding_window": window}))
        };
        assert_eq!(mistral(json!(8)), [Some(8); 3]);
        assert_eq!(mistral(Value::Null), [None; 3]);
        let qwen = |changes: Value| {
            let mut all =
                json!({"model_type": "qwen2", "num_key_value_heads": 2, "sliding_window": 8, "max_window_layers": 2});
            all.as_object_mut().expect("object").extend(changes.as_object().expect("object").clone());
            config(all)
        };
        assert_eq!(qwen(json!({})).expect("unused").windows, [None; 3]);
        assert_eq!(qwen(json!({"sliding_window": 0})).expect("unused").windows, [None; 3]);
        assert_eq!(qwen(json!({"use_sliding_window": true})).expect("used").windows, [None, None, Some(8)]);
        let mixed =
            json!({"use_sliding_window": true, "layer_types": ["sliding_attention", "full_attention", "attention"]});
        assert_eq!(qwen(mixed).expect("mixed").windows, [Some(8), None, None]);
        for wrong in [
            json!({"layer_types": ["sliding_attention", "full_attention", "full_attention"]}),
            json!({"use_sliding_window": true, "sliding_window": 0}),
            json!({"layer_types": ["full_attention"]}),
            json!({"use_sliding_window": 1}),
            json!({"max_window_layers": null}),
        ] {
            assert_eq!(qwen(wrong.clone()).expect_err("refused").code(), ErrorCode::ModelConfigInvalid, "{wrong}");
        }
    }

    #[test]
    fn a_mistral_whose_layers_differ_is_a_ministral() {
        let types = ["sliding_attention", "full_attention", "sliding_attention"];
        let changes = json!({
            "model_type": "mistral", "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8, "layer_types": types
        });
        let ministral = config(changes).expect("ministral");
        assert_eq!(
            (&*ministral.architecture, ministral.windows),
            ("MinistralForCausalLM", vec![Some(8), None, Some(8)])
        );
    }

    #[test]
    fn an_unsupported_architecture_or_option_is_refused_by_name() {
        let error = refused(json!({"architectures": ["MambaForCausalLM"]}));
        assert_eq!(error.code(), ErrorCode::ModelArchitectureUnsupported);
        assert!(error.to_string().contains("MambaForCausalLM"));
        assert_eq!(refused(json!({"model_type": "mamba"})).code(), ErrorCode::ModelArchitectureUnsupported);
        assert_eq!(refused(json!({"hidden_act": "relu"})).code(), ErrorCode::ModelFeatureUnsupported);
        assert_eq!(refused(json!({"text_config": {}})).code(), ErrorCode::ModelFeatureUnsupported);
        let sliding = json!({"layer_types": ["sliding_attention", "full_attention", "full_attention"]});
        assert_eq!(refused(sliding).code(), ErrorCode::ModelFeatureUnsupported);
        let error = refused(json!({"hidden_size": "wide"}));
        assert_eq!(error.code(), ErrorCode::ModelConfigInvalid);
        assert!(error.to_string().contains("hidden_size"));
    }

    #[test]
    fn model_type_decides_which_supported_architecture_it_is() {
        let changes = json!({"model_type": "qwen2", "num_key_value_heads": 4, "architectures": ["LlamaForCausalLM"]});
        assert_eq!(config(changes).expect("qwen2").architecture, "Qwen2ForCausalLM");
    }

    #[test]
    fn no_number_of_the_file_sizes_an_allocation() {
        for name in ["num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"] {
            for number in [1i64 << 20, 1 << 32, 1 << 62, i64::MAX, 0, -1] {
                let mut changes = json!({"num_key_value_heads": 4});
                changes[name] = number.into();
                assert_eq!(refused(changes).code(), ErrorCode::ModelConfigInvalid, "{name} {number}");
            }
        }
        assert_eq!(
            config(json!({"max_position_embeddings": i64::MAX})).expect("long").max_positions,
            u32::MAX as usize
        );
    }

    #[test]
    fn end_ids_may_be_one_or_many_and_keep_their_order() {
        assert_eq!(config(json!({"eos_token_id": 7})).expect("one").eos_token_ids, [7]);
        assert_eq!(config(json!({"eos_token_id": [7, 5]})).expect("many").eos_token_ids, [7, 5]);
        assert!(config(json!({"eos_token_id": null})).expect("none").eos_token_ids.is_empty());
        let dir = tempfile::tempdir().expect("a folder");
        let write =
            |name: &str, value: Value| std::fs::write(dir.path().join(name), value.to_string()).expect("written");
        write("config.json", json!({"model_type": "llama", "eos_token_id": [40, 30]}));
        write("generation_config.json", json!({"eos_token_id": [20, 40]}));
        assert_eq!(DecoderConfig::read(dir.path()).expect("readable").0.eos_token_ids, [40, 30, 20]);
    }

    #[test]
    fn another_length_can_be_asked_for_unless_the_rotation_depends_on_it() {
        let plain = config(json!({"max_position_embeddings": 64})).expect("plain");
        assert_eq!(
            [None, Some(10), Some(1000)].map(|asked| plain.max_seq_len(asked).ok()),
            [Some(64), Some(10), Some(1000)]
        );
        assert_eq!(plain.max_seq_len(Some(0)).expect_err("refused").code(), ErrorCode::RequestInvalid);
        let scaling = json!({"max_position_embeddings": 64, "rope_scaling": {"type": "dynamic", "factor": 2.0}});
        let dynamic = config(scaling).expect("dynamic");
        assert_eq!(dynamic.max_seq_len(Some(64)).ok(), Some(64));
        assert_eq!(dynamic.max_seq_len(Some(65)).expect_err("refused").code(), ErrorCode::ModelFeatureUnsupported);
    }
}
