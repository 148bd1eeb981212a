//! Reports on adapter and model folders: what they contain and whether they can be loaded. Data for the command and Python.
//!
//! A model is read and checked exactly as for loading, and so is an adapter onto its base; but nothing is kept. An adapter
//! without a base is checked against the sites inferred from its own tensors, which finds everything except a poor fit.

mod adapter;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use self::adapter::{AdapterContents, AdapterReport, RankGroup};
use crate::adapter::folder;
use crate::backend::KvDType;
use crate::checkpoint::Checkpoint;
use crate::engine::Tokenizer;
use crate::error::{Error, ErrorCode, Result};
use crate::model::{ModelSurvey, survey};
use crate::quant::{self, QuantConfig, StoredWeight};
use crate::sites::{SiteKind, SiteTable};

/// A report on a folder.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Report {
    /// A PEFT adapter.
    Adapter(AdapterReport),
    /// A model.
    Model(ModelReport),
}

/// A model that can be loaded.
#[derive(Clone, Debug, Serialize)]
pub struct ModelReport {
    /// Its folder.
    pub path: PathBuf,
    /// `LlamaForCausalLM`.
    pub architecture: String,
    /// Number of parameters; a packed code counts as one.
    pub parameters: u64,
    /// How its linears are quantized, if they are.
    pub quantization: Option<Quantization>,
    /// Stored bits of the linears, including scales, zeros and indices, per weight.
    pub bits_per_weight: f64,
    /// The same for the head alone; `None` if it is tied to the embedding.
    pub head_bits_per_weight: Option<f64>,
    /// Each linear with its own weight, in the order of the sites.
    pub linears: Vec<LinearReport>,
    /// Data types of the tensors that are not quantized.
    pub dtypes: Vec<String>,
    /// Bytes of its files.
    pub file_bytes: u64,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of embedding and head.
    pub vocab_size: usize,
    /// Longest sequence the model was made for, in positions.
    pub max_positions: usize,
    /// The widest attention window, if every layer has a window.
    pub window: Option<usize>,
    /// Whether the head is tied to the embedding.
    pub tie_word_embeddings: bool,
    /// Bytes of keys and values per position in f16.
    pub kv_bytes_per_token: usize,
    /// Number of linears where adapters can act.
    pub sites: usize,
    /// Whether there is a tokenizer, so that text works.
    pub has_tokenizer: bool,
    /// Whether there is a chat template.
    pub has_chat_template: bool,
    /// Why the chat template was refused, if it was: rendering a chat fails with this.
    pub chat_template_error: Option<String>,
}

/// How linears are quantized.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum Quantization {
    /// GPTQ, as declared for modules without their own rule.
    Gptq {
        /// Width of a code.
        bits: u8,
        /// Number of inputs that share a scale; `None` for all of them.
        group_size: Option<usize>,
        /// Whether inputs were quantized in order of activation.
        desc_act: bool,
        /// Whether all zero points are in the middle.
        sym: bool,
    },
    /// EXL2, as found in the tensors.
    Exl2 {
        /// Code widths that occur, widest first.
        widths: Vec<u8>,
        /// Group sizes that occur, smallest first.
        group_sizes: Vec<usize>,
    },
}

/// How a linear is stored.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinearReport {
    /// Its module path.
    pub path: String,
    /// `exl2`, `gptq` or `dense`.
    pub format: &'static str,
    /// Stored bits, including scales, zeros and indices, per weight.
    pub bits_per_weight: f64,
    /// Its groups in stored order; empty if it is dense.
    pub groups: Vec<GroupRun>,
}

/// A run of consecutive groups of the same form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GroupRun {
    /// Width of a code.
    pub bits: u8,
    /// Inputs of each group.
    pub inputs: usize,
    /// Number of groups.
    pub count: usize,
}

/// Reads a folder and reports on it. Its files decide whether it is a model or an adapter.
///
/// # Errors
/// `checkpoint_not_found` if the folder holds neither; anything that prevents the model, or the base, from being loaded.
/// Problems of an adapter are in its report.
pub fn inspect(dir: &Path, base: Option<&Path>) -> Result<Report> {
    if dir.join(folder::CONFIG).exists() || dir.join(folder::WEIGHTS).exists() {
        return adapter::inspect(dir, base).map(Report::Adapter);
    }
    if !dir.join("config.json").exists() {
        let what = match (dir.is_dir(), dir.exists()) {
            (true, _) => "the folder holds neither a model (config.json) nor an adapter (adapter_config.json)",
            (false, true) => "this is a file, not the folder of a model or an adapter",
            (false, false) => "the folder does not exist",
        };
        return Err(Error::new(ErrorCode::CheckpointNotFound, what).with_path(dir));
    }
    if let Some(base) = base {
        let what = "a base was given, but the folder holds a model, not an adapter";
        return Err(Error::new(ErrorCode::RequestInvalid, what).with_path(base));
    }
    inspect_model(dir).map(Report::Model)
}

fn inspect_model(dir: &Path) -> Result<ModelReport> {
    let ModelSurvey { config, quant, checkpoint, sites } = survey(dir)?;
    let tokenizer = Tokenizer::open(dir)?;
    let stored = StoredSizes::of(&checkpoint, &sites)?;
    let linears = linears(&checkpoint, quant.as_ref(), &sites, &stored)?;
    let windows: Option<Vec<usize>> = config.windows.iter().copied().collect();
    Ok(ModelReport {
        path: dir.to_path_buf(),
        architecture: config.architecture.clone(),
        parameters: stored.weights + stored.other_parameters,
        quantization: quantization(quant.as_ref(), &linears),
        head_bits_per_weight: linears.iter().find(|linear| linear.path == "lm_head").map(|head| head.bits_per_weight),
        bits_per_weight: bits_per_weight(stored.site_bytes.iter().sum(), stored.weights),
        linears,
        dtypes: stored.dtypes,
        file_bytes: checkpoint.file_bytes(),
        layers: config.layers,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        vocab_size: config.vocab_size,
        max_positions: config.max_positions,
        window: windows.and_then(|windows| windows.into_iter().max()),
        tie_word_embeddings: config.tie_word_embeddings,
        kv_bytes_per_token: config.layers * config.kv_heads * KvDType::F16.head_bytes(config.head_dim),
        sites: sites.linears().count(),
        has_tokenizer: tokenizer.is_some(),
        has_chat_template: tokenizer.as_ref().is_some_and(Tokenizer::has_chat_template),
        chat_template_error: tokenizer
            .as_ref()
            .and_then(Tokenizer::chat_template_error)
            .map(|error| error.message().to_owned()),
    })
}

fn quantization(quant: Option<&QuantConfig>, linears: &[LinearReport]) -> Option<Quantization> {
    let of_format = |format| linears.iter().filter(move |linear| linear.format == format);
    if of_format("exl2").next().is_some() {
        let runs = || of_format("exl2").flat_map(|linear| &linear.groups);
        let widths: BTreeSet<u8> = runs().map(|run| run.bits).collect();
        let group_sizes: BTreeSet<usize> = runs().map(|run| run.inputs).collect();
        return Some(Quantization::Exl2 {
            widths: widths.into_iter().rev().collect(),
            group_sizes: group_sizes.into_iter().collect(),
        });
    }
    of_format("gptq").next()?;
    let params = quant?.gptq()?.params();
    Some(Quantization::Gptq {
        bits: params.bits,
        group_size: params.group_size,
        desc_act: params.desc_act,
        sym: params.sym,
    })
}

fn linears(
    checkpoint: &Checkpoint,
    quant: Option<&QuantConfig>,
    sites: &SiteTable,
    stored: &StoredSizes,
) -> Result<Vec<LinearReport>> {
    let mut linears = Vec::with_capacity(sites.len());
    for (id, site) in sites.linears() {
        let Some(format) = quant::format_of(checkpoint, &site.path) else { continue };
        let weight = quant::open_linear(checkpoint, quant, &site.path, site.in_features, site.out_features)?;
        let mut groups: Vec<GroupRun> = Vec::new();
        if let StoredWeight::Quantized(weight) = &weight {
            for group in &weight.layout().groups {
                match groups.last_mut() {
                    Some(run) if (run.bits, run.inputs) == (group.bits, group.inputs) => run.count += 1,
                    _ => groups.push(GroupRun { bits: group.bits, inputs: group.inputs, count: 1 }),
                }
            }
        }
        let weights = (site.in_features * site.out_features) as u64;
        let bits_per_weight = bits_per_weight(stored.site_bytes[id.index()], weights);
        linears.push(LinearReport { path: site.path.clone(), format, bits_per_weight, groups });
    }
    Ok(linears)
}

fn bits_per_weight(bytes: u64, weights: u64) -> f64 {
    let bits = 8.0 * bytes as f64 / weights.max(1) as f64;
    (bits * 1000.0).round() / 1000.0
}

/// Sums over the tensors of a checkpoint.
struct StoredSizes {
    /// Number of weights of the linears that have their own weight.
    weights: u64,
    /// Bytes of everything that belongs to each linear, except its bias.
    site_bytes: Vec<u64>,
    /// Elements of embedding, norms and biases.
    other_parameters: u64,
    dtypes: Vec<String>,
}

impl StoredSizes {
    fn of(checkpoint: &Checkpoint, sites: &SiteTable) -> Result<Self> {
        let stored = sites.linears().filter(|(_, site)| quant::format_of(checkpoint, &site.path).is_some());
        let mut sizes = Self {
            weights: stored.map(|(_, site)| (site.in_features * site.out_features) as u64).sum(),
            site_bytes: vec![0; sites.len()],
            other_parameters: 0,
            dtypes: Vec::new(),
        };
        for name in checkpoint.names() {
            let Some(tensor) = checkpoint.get(name)? else { continue };
            let (path, part) = name.rsplit_once('.').unwrap_or((name, ""));
            match sites.find(path) {
                Some(site) if part != "bias" && sites.get(site).kind == SiteKind::Linear => {
                    sizes.site_bytes[site.index()] += tensor.bytes().len() as u64
                }
                _ => sizes.other_parameters += tensor.len() as u64,
            }
            if tensor.dtype().is_float() {
                sizes.dtypes.push(tensor.dtype().to_string());
            }
        }
        sizes.dtypes.sort_unstable();
        sizes.dtypes.dedup();
        Ok(sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_neither_kind_is_refused_by_its_path() {
        let dir = tempfile::tempdir().expect("a folder");
        let error = inspect(dir.path(), None).expect_err("an error");
        assert_eq!(error.code(), ErrorCode::CheckpointNotFound);
        assert_eq!(error.path(), Some(dir.path()));
        let path = dir.path().join("none");
        assert!(inspect(&path, None).expect_err("an error").message().contains("does not exist"));
        std::fs::write(&path, "").expect("written");
        assert!(inspect(&path, None).expect_err("an error").message().contains("a file"));
    }
}
