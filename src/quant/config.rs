//! The quantization a model folder declares: `quantization_config` of config.json, or quantize_config.json.
//!
//! Both spellings of each key are accepted (`quant_method`/`method`, `checkpoint_format`/`format`): GPTQModel writes both,
//! AutoGPTQ and transformers one or the other. `dynamic` is GPTQModel's: an ordered map from a Python regular expression to
//! overrides. Patterns match from the start of the module's path (`re.match`), the first rule that matches applies, and `-:`
//! before a pattern leaves the module unquantized. The path is the one that the quantizer knew, which begins with what a multimodal
//! model has before its text model ([`TextPrefix`]).

use std::fmt;
use std::path::Path;
use std::sync::Once;

use fancy_regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use crate::error::{Error, ErrorCode, Result};
use crate::files::read_bounded;
use crate::text_prefix::TextPrefix;

const FILE: &str = "quantize_config.json";
const MAX_FILE_BYTES: u64 = 16_000_000;
/// GPTQModel writes one rule per module if all differ.
const MAX_RULES: usize = 20_000;
const MAX_PATTERN_BYTES: usize = 4096;
const MAX_BACKTRACKS: usize = 100_000;
const MAX_COMPILED_BYTES: usize = 1 << 20;

/// How the file stores zero points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroFormat {
    /// `checkpoint_format` "gptq", or none: a field holds the zero point minus one.
    MinusOne,
    /// `checkpoint_format` "gptq_v2": a field holds the zero point.
    Plain,
}

/// How one module is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GptqParams {
    /// Width of a code: 2, 3, 4 or 8.
    pub bits: u8,
    /// Inputs that share a scale; `None` for all of them.
    pub group_size: Option<usize>,
    /// Whether inputs were quantized in order of activation, so that groups need `g_idx`.
    pub desc_act: bool,
    /// Whether all zero points are 2^(bits-1).
    pub sym: bool,
    /// How zero points are stored.
    pub zeros: ZeroFormat,
}

impl fmt::Display for GptqParams {
    /// `4 bits in groups of 128, asymmetric, act-order`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bits in ", self.bits)?;
        match self.group_size {
            Some(size) => write!(f, "groups of {size}")?,
            None => f.write_str("one group")?,
        }
        f.write_str(if self.sym { ", symmetric" } else { ", asymmetric" })?;
        f.write_str(if self.desc_act { ", act-order" } else { "" })
    }
}

/// The quantization a model folder declares.
#[derive(Debug)]
pub enum QuantConfig {
    /// GPTQ, whose tensors cannot be read without it.
    Gptq(GptqConfig),
    /// EXL2, whose tensors are self-describing. The declared `bits` and `head_bits` are the quantizer's target averages.
    Exl2,
}

/// How GPTQ's modules are quantized, with overrides per module.
#[derive(Debug)]
pub struct GptqConfig {
    base: GptqParams,
    rules: Vec<Rule>,
    /// What the folder's tensors have before the paths of the text model.
    prefix: TextPrefix,
    /// Makes the warning about zero points that contradict the format appear once, not once per module.
    pub(super) zeros_reported: Once,
}

#[derive(Debug)]
struct Rule {
    pattern: Regex,
    /// `None` leaves the module unquantized.
    params: Option<GptqParams>,
}

impl QuantConfig {
    /// Reads `quantization_config` of config.json, or quantize_config.json next to it; `None` if the folder has neither.
    ///
    /// # Errors
    /// `quant_format_unsupported`, `quant_config_invalid`, or a file that cannot be read.
    pub fn read(dir: &Path, config: &Value) -> Result<Option<Self>> {
        let path = dir.join("config.json");
        if config.get("compression_config").is_some_and(|value| !value.is_null()) {
            return Err(unsupported("quantization method", "compressed-tensors").with_path(path));
        }
        if let Some(value) = config.get("quantization_config").filter(|value| !value.is_null()) {
            return Self::from_json(value).map(Some).map_err(|error| error.with_path(path));
        }
        let path = dir.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let value = serde_json::from_slice(&read_bounded(&path, MAX_FILE_BYTES)?)
            .map_err(|error| invalid(format!("not valid JSON: {error}")).with_path(&path))?;
        Self::from_json(&value).map(Some).map_err(|error| error.with_path(path))
    }

    /// Reads the JSON of a quantization config.
    ///
    /// # Errors
    /// `quant_format_unsupported`, `quant_config_invalid`.
    pub fn from_json(value: &Value) -> Result<Self> {
        let keys = value.as_object().ok_or_else(|| invalid("the quantization config is not an object"))?;
        if ["load_in_4bit", "load_in_8bit"].iter().any(|key| keys.get(*key) == Some(&Value::Bool(true))) {
            return Err(unsupported("quantization method", "bitsandbytes"));
        }
        match read_method(keys)? {
            Method::Gptq => GptqConfig::read(keys).map(Self::Gptq),
            Method::Exl2 => Ok(Self::Exl2),
        }
    }

    /// The same for a folder whose tensors have this prefix.
    #[must_use]
    pub fn with_prefix(self, prefix: TextPrefix) -> Self {
        match self {
            QuantConfig::Gptq(config) => QuantConfig::Gptq(GptqConfig { prefix, ..config }),
            QuantConfig::Exl2 => self,
        }
    }

    /// The GPTQ config, if it declares GPTQ.
    pub fn gptq(&self) -> Option<&GptqConfig> {
        match self {
            QuantConfig::Gptq(config) => Some(config),
            QuantConfig::Exl2 => None,
        }
    }
}

impl GptqConfig {
    fn read(keys: &Map<String, Value>) -> Result<Self> {
        let base = Partial::read(keys)?;
        let base = GptqParams {
            bits: base.bits.ok_or_else(|| missing("bits"))?,
            group_size: base.group_size.ok_or_else(|| missing("group_size"))?,
            desc_act: base.desc_act.unwrap_or(false),
            sym: base.sym.unwrap_or(true),
            zeros: base.zeros.unwrap_or(ZeroFormat::MinusOne),
        };
        let rules = match keys.get("dynamic") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Object(rules)) if rules.len() > MAX_RULES => {
                return Err(invalid("too many rules in 'dynamic'")
                    .with_expected(format!("at most {MAX_RULES}"))
                    .with_found(rules.len()));
            }
            Some(Value::Object(rules)) => {
                rules.iter().map(|(key, value)| Rule::read(key, value, base)).collect::<Result<_>>()?
            }
            Some(other) => return Err(wrong_value("dynamic", "a map of patterns", other)),
        };
        Ok(Self { base, rules, prefix: TextPrefix::None, zeros_reported: Once::new() })
    }

    /// The parameters of modules that no rule of `dynamic` matches.
    pub fn params(&self) -> GptqParams {
        self.base
    }

    /// How the quantized module at `path` of the text model is quantized; `None` if the config leaves it unquantized.
    ///
    /// The quantizer may have known it by another name than the folder does. Since it is quantized, a rule that leaves it
    /// unquantized was not meant for the name that it matches.
    ///
    /// # Errors
    /// `quant_config_invalid` if a pattern costs too much to match.
    pub fn params_of(&self, path: &str) -> Result<Option<GptqParams>> {
        let mut without_rule = None;
        for prefix in [Some(self.prefix), self.prefix.loaded_as()].into_iter().flatten() {
            match self.rule_of(&prefix.added_to(path))? {
                Some(Rule { params: Some(params), .. }) => return Ok(Some(*params)),
                Some(Rule { params: None, .. }) => {}
                None => without_rule = Some(self.base),
            }
        }
        Ok(without_rule)
    }

    /// The first rule that matches a name.
    fn rule_of(&self, name: &str) -> Result<Option<&Rule>> {
        for rule in &self.rules {
            // The leftmost match begins at 0 exactly if any match does, which is the condition of `re.match`.
            let found = rule.pattern.find(name).map_err(|error| {
                invalid(format!("a pattern of 'dynamic' cannot be matched: {error}")).with_found(rule.pattern.as_str())
            })?;
            if found.is_some_and(|found| found.start() == 0) {
                return Ok(Some(rule));
            }
        }
        Ok(None)
    }
}

impl Rule {
    fn read(key: &str, value: &Value, base: GptqParams) -> Result<Self> {
        let (skip, text) = match key.strip_prefix("-:") {
            Some(text) => (true, text),
            None => (false, key.strip_prefix("+:").unwrap_or(key)),
        };
        if text.len() > MAX_PATTERN_BYTES {
            return Err(invalid("a pattern of 'dynamic' is too long")
                .with_expected(format!("at most {MAX_PATTERN_BYTES} bytes")));
        }
        let pattern = RegexBuilder::new(text)
            .backtrack_limit(MAX_BACKTRACKS)
            .delegate_size_limit(MAX_COMPILED_BYTES)
            .build()
            .map_err(|error| invalid(format!("a pattern of 'dynamic' is not valid: {error}")).with_found(text))?;
        if skip {
            return Ok(Self { pattern, params: None });
        }
        let keys = value.as_object().ok_or_else(|| wrong_value(key, "a map of overrides", value))?;
        let own = Partial::read(keys).map_err(|error| error.with_subject(format!("rule '{key}' of 'dynamic'")))?;
        let params = GptqParams {
            bits: own.bits.unwrap_or(base.bits),
            group_size: own.group_size.unwrap_or(base.group_size),
            desc_act: own.desc_act.unwrap_or(base.desc_act),
            sym: own.sym.unwrap_or(base.sym),
            zeros: own.zeros.unwrap_or(base.zeros),
        };
        Ok(Self { pattern, params: Some(params) })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Gptq,
    Exl2,
}

/// The method under either spelling of its key; GPTQ if there is none.
fn read_method(keys: &Map<String, Value>) -> Result<Method> {
    let mut method = None;
    for key in ["quant_method", "method"] {
        let own = match text(keys, key)?.as_deref() {
            None => continue,
            Some("gptq") => Method::Gptq,
            Some("exl2") => Method::Exl2,
            Some(other) => return Err(unsupported("quantization method", other).with_expected("gptq or exl2")),
        };
        if method.is_some_and(|method| method != own) {
            return Err(invalid("'quant_method' and 'method' contradict each other"));
        }
        method = Some(own);
    }
    Ok(method.unwrap_or(Method::Gptq))
}

/// The keys that the config and its rules share, where given.
struct Partial {
    bits: Option<u8>,
    group_size: Option<Option<usize>>,
    desc_act: Option<bool>,
    sym: Option<bool>,
    zeros: Option<ZeroFormat>,
}

impl Partial {
    fn read(keys: &Map<String, Value>) -> Result<Self> {
        if read_method(keys)? != Method::Gptq {
            return Err(invalid("a rule of 'dynamic' names a different method than its config"));
        }
        for (key, format) in [("is_marlin_format", "marlin"), ("is_bitblas_format", "bitblas")] {
            if flag(keys, key)? == Some(true) {
                return Err(unsupported("checkpoint format", format));
            }
        }
        let mut zeros = None;
        for key in ["checkpoint_format", "format"] {
            let own = match text(keys, key)?.as_deref() {
                None => continue,
                Some("gptq") => ZeroFormat::MinusOne,
                Some("gptq_v2") => ZeroFormat::Plain,
                Some(other) => return Err(unsupported("checkpoint format", other)),
            };
            if zeros.is_some_and(|zeros| zeros != own) {
                return Err(invalid("'checkpoint_format' and 'format' contradict each other"));
            }
            zeros = Some(own);
        }
        match text(keys, "pack_dtype")?.as_deref() {
            None | Some("int32" | "torch.int32") => {}
            Some(other) => return Err(unsupported("pack_dtype", other).with_expected("int32")),
        }
        let bits = match present(keys, "bits") {
            None => None,
            Some(value) => match value.as_u64() {
                Some(bits @ (2 | 3 | 4 | 8)) => Some(bits as u8),
                Some(bits) => {
                    return Err(unsupported("width", &format!("{bits} bits")).with_expected("2, 3, 4 or 8 bits"));
                }
                None => return Err(wrong_value("bits", "2, 3, 4 or 8", value)),
            },
        };
        let group_size = match present(keys, "group_size") {
            None => None,
            Some(value) => match value.as_i64() {
                Some(-1) => Some(None),
                Some(size @ 1..=0xffff_ffff) => Some(Some(size as usize)),
                _ => return Err(wrong_value("group_size", "a positive number, or -1 for the whole column", value)),
            },
        };
        Ok(Self { bits, group_size, desc_act: flag(keys, "desc_act")?, sym: flag(keys, "sym")?, zeros })
    }
}

fn present<'a>(keys: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    keys.get(key).filter(|value| !value.is_null())
}

fn text(keys: &Map<String, Value>, key: &str) -> Result<Option<String>> {
    match present(keys, key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.to_ascii_lowercase())),
        Some(other) => Err(wrong_value(key, "a string", other)),
    }
}

fn flag(keys: &Map<String, Value>, key: &str) -> Result<Option<bool>> {
    match present(keys, key) {
        None => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(other) => Err(wrong_value(key, "true or false", other)),
    }
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorCode::QuantConfigInvalid, what)
}

fn missing(key: &str) -> Error {
    invalid(format!("the quantization config has no '{key}'"))
}

fn wrong_value(key: &str, expected: &str, found: &Value) -> Error {
    invalid(format!("invalid '{key}' in the quantization config")).with_expected(expected).with_found(found)
}

fn unsupported(what: &str, found: &str) -> Error {
    Error::new(ErrorCode::QuantFormatUnsupported, format!("unsupported {what}"))
        .with_expected("gptq or gptq_v2")
        .with_found(found)
}
