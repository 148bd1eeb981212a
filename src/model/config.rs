//! Parses config.json into a decoder described by data.
//!
//! A model family is one row of `FAMILIES`: what its architecture fixes and which keys it reads. Nothing else in the crate
//! knows an architecture's name.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::rope::{RopeContext, RopeParameters};
use crate::backend::{Activation, Rope};
use crate::checkpoint::{self, with_path_hint};
use crate::error::{Error, ErrorCode, Result};

/// Cap on config.json, in bytes. Real ones have a few KiB.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Which linears of a layer have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// q, k and v.
    pub qkv: bool,
    /// o.
    pub output: bool,
    /// gate, up and down.
    pub mlp: bool,
}

/// A decoder as config.json describes it.
#[derive(Clone, Debug)]
pub struct DecoderConfig {
    /// `architectures[0]`: `LlamaForCausalLM`.
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
    /// Longest sequence the model supports, in positions.
    pub max_positions: usize,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// Gate function of the MLP.
    pub activation: Activation,
    /// Which linears have a bias.
    pub biases: Biases,
    /// Whether queries and keys are normalized per head.
    pub has_qk_norm: bool,
    /// Attention window of each layer, in positions; `None` is full causal attention.
    pub windows: Vec<Option<usize>>,
    /// The rotation of queries and keys.
    pub rope: Arc<Rope>,
    /// Whether the head shares the embedding's weight.
    pub tie_word_embeddings: bool,
    /// End-of-text ids of config.json and generation_config.json.
    pub eos_token_ids: Vec<u32>,
    /// Beginning-of-text id, if config.json has one.
    pub bos_token_id: Option<u32>,
    /// Padding id, if config.json has one.
    pub pad_token_id: Option<u32>,
}

/// What an architecture fixes beyond its config.json.
struct Family {
    architecture: &'static str,
    /// q, k and v have biases, regardless of `attention_bias`.
    fixed_qkv_bias: bool,
    /// `attention_bias` is read.
    optional_attention_bias: bool,
    /// `mlp_bias` is read.
    optional_mlp_bias: bool,
    has_qk_norm: bool,
    window: WindowRule,
    /// transformers' defaults for keys that config.json omits.
    default_kv_heads: Option<usize>,
    default_head_dim: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum WindowRule {
    /// No layer has one.
    None,
    /// `sliding_window` applies to every layer.
    Every,
    /// `sliding_window` applies if `use_sliding_window` is set, to the layers that `layer_types` or `max_window_layers` select.
    Selected,
}

const FAMILIES: &[Family] = &[
    Family {
        architecture: "LlamaForCausalLM",
        fixed_qkv_bias: false,
        optional_attention_bias: true,
        optional_mlp_bias: true,
        has_qk_norm: false,
        window: WindowRule::None,
        default_kv_heads: None,
        default_head_dim: None,
    },
    Family {
        architecture: "MistralForCausalLM",
        fixed_qkv_bias: false,
        optional_attention_bias: false,
        optional_mlp_bias: false,
        has_qk_norm: false,
        window: WindowRule::Every,
        default_kv_heads: Some(8),
        default_head_dim: None,
    },
    Family {
        architecture: "Qwen2ForCausalLM",
        fixed_qkv_bias: true,
        optional_attention_bias: false,
        optional_mlp_bias: false,
        has_qk_norm: false,
        window: WindowRule::Selected,
        default_kv_heads: None,
        default_head_dim: None,
    },
    Family {
        architecture: "Qwen3ForCausalLM",
        fixed_qkv_bias: false,
        optional_attention_bias: true,
        optional_mlp_bias: false,
        has_qk_norm: true,
        window: WindowRule::Selected,
        default_kv_heads: None,
        default_head_dim: Some(128),
    },
];

/// The supported architectures, by their names in config.json.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.architecture)
}

/// The keys of config.json that matter here.
#[derive(Deserialize)]
struct RawConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    #[serde(default = "default_eps")]
    rms_norm_eps: f32,
    #[serde(default = "default_activation")]
    hidden_act: String,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
    #[serde(default)]
    use_sliding_window: bool,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    eos_token_id: Option<OneOrMany>,
    bos_token_id: Option<OneOrMany>,
    pad_token_id: Option<OneOrMany>,
}

fn default_positions() -> usize {
    2048
}

fn default_eps() -> f32 {
    1e-6
}

fn default_activation() -> String {
    "silu".to_owned()
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(i64),
    Many(Vec<i64>),
}

impl OneOrMany {
    fn ids(&self) -> impl Iterator<Item = u32> {
        let list = match self {
            OneOrMany::One(id) => std::slice::from_ref(id),
            OneOrMany::Many(ids) => ids,
        };
        list.iter().filter_map(|&id| u32::try_from(id).ok())
    }
}

impl DecoderConfig {
    /// Reads config.json and generation_config.json of a model folder; also returns the parsed config.json.
    ///
    /// # Errors
    /// `checkpoint_not_found`, `model_config_invalid`, `model_architecture_unsupported`, `model_feature_unsupported`.
    pub fn read(dir: &Path) -> Result<(Self, Value)> {
        if !dir.is_dir() {
            let error = Error::new(ErrorCode::CheckpointNotFound, "the model folder does not exist").with_path(dir);
            return Err(with_path_hint(error, dir));
        }
        let path = dir.join("config.json");
        let value = read_json(&path)?.ok_or_else(|| {
            Error::new(ErrorCode::CheckpointNotFound, "the model folder has no config.json").with_path(&path)
        })?;
        let mut config = Self::from_json(&value).map_err(|e| e.with_path(&path))?;
        let generation_path = dir.join("generation_config.json");
        if let Some(generation) = read_json(&generation_path)?
            && let Some(ids) = generation.get("eos_token_id").and_then(|v| OneOrMany::deserialize(v).ok())
        {
            config.eos_token_ids.extend(ids.ids());
            config.eos_token_ids.sort_unstable();
            config.eos_token_ids.dedup();
        }
        Ok((config, value))
    }

    /// A decoder from a parsed config.json.
    ///
    /// # Errors
    /// `model_config_invalid`, `model_architecture_unsupported`, `model_feature_unsupported`.
    pub fn from_json(value: &Value) -> Result<Self> {
        let family = family_of(value)?;
        let raw: RawConfig = serde_path_to_error::deserialize(value)
            .map_err(|e| Error::new(ErrorCode::ModelConfigInvalid, format!("invalid '{}': {}", e.path(), e.inner())))?;
        Self::from_raw(family, &raw, value)
    }

    fn from_raw(family: &Family, raw: &RawConfig, value: &Value) -> Result<Self> {
        if raw.hidden_act != "silu" {
            let what = format!("unsupported hidden_act '{}'", raw.hidden_act);
            return Err(Error::new(ErrorCode::ModelFeatureUnsupported, what));
        }
        let heads = raw.num_attention_heads;
        check_positive(raw)?;
        let kv_heads = match (raw.num_key_value_heads, value.get("num_key_value_heads")) {
            (Some(kv_heads), _) => kv_heads,
            (None, Some(_)) => heads,
            (None, None) => family.default_kv_heads.unwrap_or(heads),
        };
        let head_dim = raw.head_dim.or(family.default_head_dim).unwrap_or(raw.hidden_size / heads);
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(invalid("num_key_value_heads")
                .with_expected(format!("a divisor of {heads}"))
                .with_found(kv_heads));
        }
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(invalid("head_dim").with_expected("an even number").with_found(head_dim));
        }
        let context = RopeContext { head_dim, max_positions: raw.max_position_embeddings, theta: raw.rope_theta };
        let parameters = raw.rope_scaling.clone().or_else(|| raw.rope_parameters.clone()).unwrap_or_default();
        Ok(Self {
            architecture: family.architecture.to_owned(),
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads,
            kv_heads,
            head_dim,
            vocab_size: raw.vocab_size,
            max_positions: raw.max_position_embeddings,
            norm_eps: raw.rms_norm_eps,
            activation: Activation::Silu,
            biases: Biases {
                qkv: family.fixed_qkv_bias || (family.optional_attention_bias && raw.attention_bias),
                output: family.optional_attention_bias && raw.attention_bias,
                mlp: family.optional_mlp_bias && raw.mlp_bias,
            },
            has_qk_norm: family.has_qk_norm,
            windows: windows(family, raw, value)?,
            rope: Arc::new(parameters.build(&context)?),
            tie_word_embeddings: raw.tie_word_embeddings,
            eos_token_ids: raw.eos_token_id.iter().flat_map(OneOrMany::ids).collect(),
            bos_token_id: raw.bos_token_id.as_ref().and_then(|id| id.ids().next()),
            pad_token_id: raw.pad_token_id.as_ref().and_then(|id| id.ids().next()),
        })
    }
}

fn family_of(value: &Value) -> Result<&'static Family> {
    let named = value.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let Some(named) = named else {
        return Err(invalid("architectures").with_expected("a list with the architecture's name"));
    };
    FAMILIES.iter().find(|family| family.architecture == named).ok_or_else(|| {
        Error::new(ErrorCode::ModelArchitectureUnsupported, format!("unsupported architecture '{named}'"))
            .with_expected(architectures().collect::<Vec<_>>().join(", "))
            .with_found(named)
    })
}

fn check_positive(raw: &RawConfig) -> Result<()> {
    let counts = [
        ("hidden_size", raw.hidden_size),
        ("intermediate_size", raw.intermediate_size),
        ("num_hidden_layers", raw.num_hidden_layers),
        ("num_attention_heads", raw.num_attention_heads),
        ("vocab_size", raw.vocab_size),
        ("max_position_embeddings", raw.max_position_embeddings),
    ];
    for (name, count) in counts {
        if count == 0 || count > u32::MAX as usize {
            return Err(invalid(name).with_expected("a positive 32-bit number").with_found(count));
        }
    }
    if !(raw.rms_norm_eps.is_finite() && raw.rms_norm_eps >= 0.0) {
        return Err(invalid("rms_norm_eps").with_found(raw.rms_norm_eps));
    }
    Ok(())
}

fn windows(family: &Family, raw: &RawConfig, value: &Value) -> Result<Vec<Option<usize>>> {
    // transformers gives Mistral and Qwen a window of 4096 if the key is absent; null means no window.
    let window = match value.get("sliding_window") {
        None => Some(4096),
        Some(Value::Null) => None,
        Some(number) => match number.as_u64() {
            Some(window) if window > 0 => Some(window as usize),
            _ => return Err(invalid("sliding_window").with_expected("a positive number or null").with_found(number)),
        },
    };
    let slides = match family.window {
        WindowRule::None => vec![false; raw.num_hidden_layers],
        WindowRule::Every => vec![true; raw.num_hidden_layers],
        WindowRule::Selected if !raw.use_sliding_window => vec![false; raw.num_hidden_layers],
        WindowRule::Selected => match &raw.layer_types {
            Some(types) if types.len() != raw.num_hidden_layers => {
                return Err(invalid("layer_types").with_expected(raw.num_hidden_layers).with_found(types.len()));
            }
            Some(types) => types.iter().map(|kind| layer_slides(kind)).collect::<Result<_>>()?,
            None => (0..raw.num_hidden_layers).map(|layer| layer >= raw.max_window_layers.unwrap_or(28)).collect(),
        },
    };
    Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
}

fn layer_slides(kind: &str) -> Result<bool> {
    match kind {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(Error::new(ErrorCode::ModelFeatureUnsupported, format!("unsupported layer type '{other}'"))),
    }
}

fn invalid(key: &str) -> Error {
    Error::new(ErrorCode::ModelConfigInvalid, format!("invalid '{key}' in config.json"))
}

/// A JSON file of a model folder, or `None` if there is none.
fn read_json(path: &Path) -> Result<Option<Value>> {
    let text = match checkpoint::read_bounded(path, MAX_FILE_BYTES) {
        Ok(text) => text,
        Err(error) if error.code() == ErrorCode::CheckpointNotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|e| Error::new(ErrorCode::ModelConfigInvalid, format!("not valid JSON: {e}")).with_path(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(changes: Value) -> Result<DecoderConfig> {
        let mut value = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": 4, "vocab_size": 100
        });
        let fields = value.as_object_mut().expect("object");
        fields.extend(changes.as_object().expect("object").clone());
        DecoderConfig::from_json(&value)
    }

    #[test]
    fn absent_keys_have_the_defaults_of_the_family() {
        let llama = config(serde_json::json!({})).expect("llama");
        assert_eq!((llama.kv_heads, llama.head_dim, llama.biases), (4, 16, Biases::default()));
        assert_eq!(llama.windows, [None; 3]);
        let mistral = config(serde_json::json!({"architectures": ["MistralForCausalLM"], "num_attention_heads": 8}));
        let mistral = mistral.expect("mistral");
        assert_eq!((mistral.kv_heads, mistral.windows[0]), (8, Some(4096)));
        let qwen3 = config(serde_json::json!({"architectures": ["Qwen3ForCausalLM"]})).expect("qwen3");
        assert_eq!((qwen3.head_dim, qwen3.has_qk_norm), (128, true));
        let qwen2 = config(serde_json::json!({"architectures": ["Qwen2ForCausalLM"]})).expect("qwen2");
        assert_eq!(qwen2.biases, Biases { qkv: true, output: false, mlp: false });
    }

    #[test]
    fn the_family_decides_which_layers_have_a_window() {
        let mistral = serde_json::json!({"architectures": ["MistralForCausalLM"], "num_attention_heads": 8});
        let with = |window: Value| {
            let mut value = mistral.clone();
            value["sliding_window"] = window;
            config(value).expect("mistral").windows
        };
        assert_eq!(with(serde_json::json!(8)), [Some(8); 3]);
        assert_eq!(with(Value::Null), [None; 3]);
        let qwen =
            serde_json::json!({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 8, "max_window_layers": 2});
        assert_eq!(config(qwen.clone()).expect("unused").windows, [None; 3]);
        let mut used = qwen;
        used["use_sliding_window"] = true.into();
        assert_eq!(config(used).expect("used").windows, [None, None, Some(8)]);
    }

    #[test]
    fn an_unsupported_architecture_or_option_is_refused_by_name() {
        let refused = |changes: Value| config(changes).expect_err("refused");
        let error = refused(serde_json::json!({"architectures": ["MambaForCausalLM"]}));
        assert_eq!(error.code(), ErrorCode::ModelArchitectureUnsupported);
        assert!(error.to_string().contains("MambaForCausalLM"));
        assert_eq!(refused(serde_json::json!({"hidden_act": "gelu"})).code(), ErrorCode::ModelFeatureUnsupported);
        let error = refused(serde_json::json!({"hidden_size": "wide"}));
        assert_eq!(error.code(), ErrorCode::ModelConfigInvalid);
        assert!(error.to_string().contains("hidden_size"));
    }

    #[test]
    fn end_ids_may_be_one_or_many() {
        assert_eq!(config(serde_json::json!({"eos_token_id": 2})).expect("one").eos_token_ids, [2]);
        assert_eq!(config(serde_json::json!({"eos_token_id": [2, 5]})).expect("many").eos_token_ids, [2, 5]);
    }
}
