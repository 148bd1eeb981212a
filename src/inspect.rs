//! What an adapter or a model folder holds, and whether it can be used: reports as data, for the command and for Python.
//!
//! A model is read and checked as loading it would, an adapter as loading it onto its base would; only nothing is kept. An
//! adapter without a base is checked against the sites its own tensors imply, so everything but the fit is found.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::adapter::delta::{Delta, SiteDelta};
use crate::adapter::plan::AdapterPlan;
use crate::adapter::{AdapterFiles, folder, keys};
use crate::backend::KvDType;
use crate::checkpoint::Checkpoint;
use crate::engine::text::Tokenizer;
use crate::error::{Error, ErrorCode, Result};
use crate::model::{ModelSurvey, survey};
use crate::sites::{LinearSite, SiteTable};

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

/// A quantisation, as the folder declares it for modules without a rule of their own.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Quantisation {
    /// `gptq`.
    pub method: &'static str,
    /// Width of a code.
    pub bits: u8,
    /// Inputs that share a scale; `None` for all of them.
    pub group_size: Option<usize>,
    /// Whether inputs were quantised in order of activation.
    pub desc_act: bool,
    /// Whether all zero points lie in the middle.
    pub sym: bool,
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
            sites.push(LinearSite { path, in_features, out_features, has_bias: false });
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

fn delta_dtypes(delta: &SiteDelta<'_>) -> [String; 2] {
    match &delta.delta {
        Delta::LowRank(low) => [low.a.dtype().to_string(), low.b.dtype().to_string()],
    }
}

fn rank_groups(deltas: &[SiteDelta<'_>], use_rslora: bool) -> Vec<RankGroup> {
    // Bits of a scale as key: equal alphas and ranks give equal bits.
    let mut sites: BTreeMap<(usize, u32), usize> = BTreeMap::new();
    for delta in deltas {
        match &delta.delta {
            Delta::LowRank(low) => *sites.entry((low.rank(), low.scale.to_bits())).or_default() += 1,
        }
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
    let windows: Option<Vec<usize>> = config.windows.iter().copied().collect();
    Ok(ModelReport {
        path: dir.to_path_buf(),
        architecture: config.architecture.clone(),
        parameters: stored.weights + stored.other_parameters,
        quantisation: quant.filter(|_| stored.has_codes).map(|quant| {
            let params = quant.params();
            Quantisation {
                method: "gptq",
                bits: params.bits,
                group_size: params.group_size,
                desc_act: params.desc_act,
                sym: params.sym,
            }
        }),
        bits_per_weight: stored.bits_per_weight(),
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
        sites: sites.len(),
        has_tokenizer: tokenizer.is_some(),
        has_chat_template: tokenizer.is_some_and(|tokenizer| tokenizer.has_chat_template()),
    })
}

/// What the tensors of a checkpoint add up to.
struct StoredSizes {
    /// Weights of the linears that are stored as such.
    weights: u64,
    /// Bytes of everything that belongs to them, but biases.
    weight_bytes: u64,
    /// Elements of embedding, norms and biases.
    other_parameters: u64,
    has_codes: bool,
    dtypes: Vec<String>,
}

impl StoredSizes {
    fn of(checkpoint: &Checkpoint, sites: &SiteTable) -> Result<Self> {
        let mut sizes = Self { weights: 0, weight_bytes: 0, other_parameters: 0, has_codes: false, dtypes: Vec::new() };
        for name in checkpoint.names() {
            let Some(tensor) = checkpoint.get(name)? else { continue };
            let (path, part) = name.rsplit_once('.').unwrap_or((name, ""));
            match sites.find(path).map(|site| sites.get(site)) {
                Some(site) if part != "bias" => {
                    sizes.weight_bytes += tensor.bytes().len() as u64;
                    if part == "weight" || part == "qweight" {
                        sizes.weights += (site.in_features * site.out_features) as u64;
                        sizes.has_codes |= part == "qweight";
                    }
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

    fn bits_per_weight(&self) -> f64 {
        let bits = 8.0 * self.weight_bytes as f64 / self.weights.max(1) as f64;
        (bits * 1000.0).round() / 1000.0
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
        let delta = |site, a, b, scale| SiteDelta {
            site: SiteId(site),
            delta: Delta::LowRank(LowRank { a: view(a), b: view(b), scale }),
        };
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
