//! What an adapter or a model folder holds, and whether it can be used: reports as data, for the command and for Python.
//!
//! A model is read and checked as loading it would, an adapter as loading it onto its base would; only nothing is kept. An
//! adapter without a base is checked against the sites its own tensors imply, so everything but the fit is found.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::adapter::delta::SiteDelta;
use crate::adapter::plan::AdapterPlan;
use crate::adapter::{AdapterFiles, folder, keys};
use crate::backend::KvDType;
use crate::checkpoint::Checkpoint;
use crate::engine::text::Tokenizer;
use crate::error::{Error, ErrorCode, Result};
use crate::model::{ModelSurvey, survey};
use crate::quant::{self, QuantConfig, QuantWeight};
use crate::sites::{Site, SiteKind, SiteTable};

/// What a folder holds.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Report {
    /// A PEFT adapter.
    Adapter(AdapterReport),
    /// A model.
    Model(ModelReport),
}

/// A PEFT adapter and everything that is wrong with it.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterReport {
    /// Its folder.
    pub path: PathBuf,
    /// What it holds; `None` if its problems keep it from being read.
    pub contents: Option<AdapterContents>,
    /// The model it was checked against, if one was named.
    pub base: Option<PathBuf>,
    /// Every problem found; empty if it can be used.
    pub problems: Vec<Error>,
}

/// What a readable adapter holds.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterContents {
    /// `r` of adapter_config.json.
    pub rank: usize,
    /// `lora_alpha` of adapter_config.json.
    pub alpha: f64,
    /// Whether alpha is divided by the rank's root.
    pub use_rslora: bool,
    /// Module names the config targets, as written.
    pub target_modules: Vec<String>,
    /// Number of sites with a delta.
    pub sites: usize,
    /// The sites by what acts there, in the order of rank, then scale.
    pub groups: Vec<RankGroup>,
    /// Data types of the factors, as stored.
    pub dtypes: Vec<String>,
    /// Bytes of the factors, as stored.
    pub bytes: usize,
    /// SHA-256 over config and weights.
    pub content_hash: String,
}

/// Sites that share a rank and a scale.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RankGroup {
    /// Number of rows of A.
    pub rank: usize,
    /// `lora_alpha`, after alpha_pattern.
    pub alpha: f64,
    /// Factor of the delta: alpha / rank, or alpha / sqrt(rank).
    pub scale: f64,
    /// Number of sites.
    pub sites: usize,
}

/// A model that can be loaded.
#[derive(Clone, Debug, Serialize)]
pub struct ModelReport {
    /// Its folder.
    pub path: PathBuf,
    /// `LlamaForCausalLM`.
    pub architecture: String,
    /// Numbers the model has, each packed code counted as one.
    pub parameters: u64,
    /// How its linears are quantised, if they are.
    pub quantisation: Option<Quantisation>,
    /// Stored bits of the linears, scales, zeros and indices included, by the number of their weights.
    pub bits_per_weight: f64,
    /// The same of the head alone, unless it is the embedding.
    pub head_bits_per_weight: Option<f64>,
    /// Each linear that has a weight of its own, in the order of its site.
    pub linears: Vec<LinearReport>,
    /// Data type of what is not quantised.
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
    /// Positions the model was made for.
    pub max_positions: usize,
    /// The widest attention window, if every layer has one.
    pub window: Option<usize>,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Bytes of keys and values a position needs in f16.
    pub kv_bytes_per_token: usize,
    /// Number of linears where adapters can act.
    pub sites: usize,
    /// Whether text can be given and had.
    pub has_tokenizer: bool,
    /// Whether chats can be given.
    pub has_chat_template: bool,
}

/// How linears are quantised.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum Quantisation {
    /// GPTQ, as the folder declares it for modules without a rule of their own.
    Gptq {
        /// Width of a code.
        bits: u8,
        /// Inputs that share a scale; `None` for all of them.
        group_size: Option<usize>,
        /// Whether inputs were quantised in order of activation.
        desc_act: bool,
        /// Whether all zero points lie in the middle.
        sym: bool,
    },
    /// EXL2, as its tensors are.
    Exl2 {
        /// Widths of codes that occur, the widest first.
        widths: Vec<u8>,
        /// Numbers of inputs that share a scale, the smallest first.
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
    /// Stored bits, scales, zeros and indices included, by the number of its weights.
    pub bits_per_weight: f64,
    /// Its groups in stored order; none if it is dense.
    pub groups: Vec<GroupRun>,
}

/// Consecutive groups that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GroupRun {
    /// Width of a code.
    pub bits: u8,
    /// Inputs of each group.
    pub inputs: usize,
    /// How many groups.
    pub count: usize,
}

/// Reads a folder and reports; which kind it is, its files say.
///
/// # Errors
/// `checkpoint_not_found`: the folder holds neither; anything that keeps the model, or the base, from being loaded. What is
/// wrong with an adapter stands in its report.
pub fn inspect(dir: &Path, base: Option<&Path>) -> Result<Report> {
    if dir.join(folder::CONFIG).exists() || dir.join(folder::WEIGHTS).exists() {
        return inspect_adapter(dir, base).map(Report::Adapter);
    }
    if !dir.join("config.json").exists() {
        let what = "the folder holds neither a model (config.json) nor an adapter (adapter_config.json)";
        return Err(Error::new(ErrorCode::CheckpointNotFound, what).path(dir));
    }
    if let Some(base) = base {
        let what = "a base was named, but the folder holds a model, not an adapter";
        return Err(Error::new(ErrorCode::RequestInvalid, what).path(base));
    }
    inspect_model(dir).map(Report::Model)
}

fn inspect_adapter(dir: &Path, base: Option<&Path>) -> Result<AdapterReport> {
    let base_sites = base.map(|base| survey(base).map(|survey| survey.sites)).transpose()?;
    let contents = AdapterFiles::read(dir).and_then(|files| {
        let sites = match base_sites {
            Some(sites) => sites,
            None => implied_sites(files.weights())?,
        };
        let plan = files.plan(&sites)?;
        Ok(contents(&plan))
    });
    let (contents, problems) = match contents {
        Ok(contents) => (Some(contents), Vec::new()),
        Err(error) => (None, error.into_list()),
    };
    Ok(AdapterReport { path: dir.to_path_buf(), contents, base: base.map(Path::to_path_buf), problems })
}

/// The linears that the shapes of a file's pairs ask for: `A [rank, in_features]`, `B [out_features, rank]`.
fn implied_sites(weights: &Checkpoint) -> Result<SiteTable> {
    let mut sites = SiteTable::default();
    for (path, names) in keys::sort(weights.names()).modules {
        let (Some(a), Some(b)) = (names.a, names.b) else { continue };
        if let (&[_, in_features], &[out_features, _]) = (weights.tensor(a)?.shape(), weights.tensor(b)?.shape()) {
            sites.push(Site::linear(path, in_features, out_features));
        }
    }
    Ok(sites)
}

fn contents(plan: &AdapterPlan<'_>) -> AdapterContents {
    let summary = &plan.summary;
    let mut dtypes: Vec<String> = plan.deltas.iter().flat_map(delta_dtypes).collect();
    dtypes.sort_unstable();
    dtypes.dedup();
    AdapterContents {
        rank: summary.rank,
        alpha: summary.alpha,
        use_rslora: summary.use_rslora,
        target_modules: summary.target_modules.clone(),
        sites: summary.sites,
        groups: rank_groups(&plan.deltas, summary.use_rslora),
        dtypes,
        bytes: summary.bytes,
        content_hash: summary.content_hash.clone(),
    }
}

fn delta_dtypes(delta: &SiteDelta<'_>) -> impl Iterator<Item = String> {
    delta.tensors().map(|tensor| tensor.dtype().to_string())
}

fn rank_groups(deltas: &[SiteDelta<'_>], use_rslora: bool) -> Vec<RankGroup> {
    // Bits of a scale as key: equal alphas and ranks give equal bits.
    let mut sites: BTreeMap<(usize, u32), usize> = BTreeMap::new();
    for low in deltas.iter().filter_map(|delta| delta.low_rank.as_ref()) {
        *sites.entry((low.rank(), low.scale.to_bits())).or_default() += 1;
    }
    let group = |((rank, scale), sites): ((usize, u32), usize)| {
        let scale = shortest(f32::from_bits(scale));
        let divisor = if use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        RankGroup { rank, alpha: shortest((scale * divisor) as f32), scale, sites }
    };
    sites.into_iter().map(group).collect()
}

/// The double that reads as the single does: 0.1, not 0.10000000149.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
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
        quantisation: quantisation(quant.as_ref(), &linears),
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
        kv_bytes_per_token: 2 * config.layers * config.kv_heads * config.head_dim * KvDType::F16.bytes(),
        sites: sites.linears().count(),
        has_tokenizer: tokenizer.is_some(),
        has_chat_template: tokenizer.is_some_and(|tokenizer| tokenizer.has_chat_template()),
    })
}

fn quantisation(quant: Option<&QuantConfig>, linears: &[LinearReport]) -> Option<Quantisation> {
    let of_format = |format| linears.iter().filter(move |linear| linear.format == format);
    if of_format("exl2").next().is_some() {
        let runs = || of_format("exl2").flat_map(|linear| &linear.groups);
        let widths: BTreeSet<u8> = runs().map(|run| run.bits).collect();
        let group_sizes: BTreeSet<usize> = runs().map(|run| run.inputs).collect();
        return Some(Quantisation::Exl2 {
            widths: widths.into_iter().rev().collect(),
            group_sizes: group_sizes.into_iter().collect(),
        });
    }
    of_format("gptq").next()?;
    let params = quant?.gptq()?.params();
    Some(Quantisation::Gptq {
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
        if let QuantWeight::Coded(weight) = &weight {
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

/// What the tensors of a checkpoint add up to.
struct StoredSizes {
    /// Weights of the linears that are stored as such.
    weights: u64,
    /// Bytes of everything that belongs to each linear, but its bias.
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
    use crate::adapter::delta::LowRank;
    use crate::sites::SiteId;
    use crate::tensor::{DType, TensorView};

    #[test]
    fn sites_are_grouped_by_rank_and_scale() {
        let (zeros, a8, b8, a4, b4) = ([0; 64], [8, 1], [1, 8], [4, 1], [1, 4]);
        let view =
            |shape| TensorView::new(DType::F16, shape, &zeros[..2 * shape.iter().product::<usize>()]).expect("fits");
        let delta =
            |site, a, b, scale| SiteDelta::at(SiteId(site)).with_low_rank(LowRank::new(view(a), view(b), scale));
        let deltas =
            [delta(0, &a8, &b8, 2.0), delta(1, &a8, &b8, 2.0), delta(2, &a8, &b8, 0.1), delta(3, &a4, &b4, 4.0)];
        assert_eq!(
            rank_groups(&deltas, false),
            [
                RankGroup { rank: 4, alpha: 16.0, scale: 4.0, sites: 1 },
                RankGroup { rank: 8, alpha: 0.8, scale: 0.1, sites: 1 },
                RankGroup { rank: 8, alpha: 16.0, scale: 2.0, sites: 2 },
            ]
        );
        assert_eq!(rank_groups(&deltas[3..], true)[0].alpha, 8.0);
    }

    #[test]
    fn a_folder_of_neither_kind_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let error = inspect(dir.path(), None).expect_err("an error");
        assert_eq!(error.code(), ErrorCode::CheckpointNotFound);
        assert_eq!(error.path_ref(), Some(dir.path()));
    }
}
