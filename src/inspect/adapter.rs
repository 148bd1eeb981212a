//! Reports on adapters: contents and problems, with a base or without one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::adapter::AdapterFiles;
use crate::adapter::config::{AdapterConfig, TrainedBiases};
use crate::adapter::delta::{LowRank, SiteDelta};
use crate::adapter::plan::ReducedAdapter;
use crate::error::{Error, Result};
use crate::model::{ModelSurvey, survey};
use crate::sites::{SiteId, SiteKind, SitePart, SiteTable};
use crate::tensor::TensorView;

/// A PEFT adapter and everything that is wrong with it.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterReport {
    /// Its folder.
    pub path: PathBuf,
    /// What could be read; `None` if nothing could.
    pub contents: Option<AdapterContents>,
    /// The model it was checked against, if one was given.
    pub base: Option<PathBuf>,
    /// Every problem found; empty if the adapter can be loaded.
    pub problems: Vec<Error>,
}

/// What an adapter contains.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterContents {
    /// `r` of adapter_config.json; if missing, the largest rank of a site.
    pub rank: usize,
    /// `lora_alpha` of adapter_config.json.
    pub alpha: Option<f64>,
    /// Whether alpha is divided by the root of the rank.
    pub use_rslora: bool,
    /// Module names the config targets, as written.
    pub target_modules: Vec<String>,
    /// Features it uses beyond plain factors, named by the fields of adapter_config.json where there are any.
    pub features: Vec<&'static str>,
    /// Number of sites that it changes; a site of a repeated layer counts once for each repeat.
    pub sites: usize,
    /// The sites with factors, grouped and ordered by rank, then scale.
    pub groups: Vec<RankGroup>,
    /// Rows of its own embedding, if it replaces the base's: the tokens that its requests may use.
    pub embedding_rows: Option<usize>,
    /// Rows of its own head, if it replaces the base's: the width of its requests' logits.
    pub head_rows: Option<usize>,
    /// Data types of its tensors.
    pub dtypes: Vec<String>,
    /// Bytes of its tensors.
    pub bytes: usize,
    /// Number of its tensors that belong to modules of other modalities (vision, audio), and cannot act on text.
    pub ignored_tensors: usize,
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
    /// Scale of the delta: alpha / rank, or alpha / sqrt(rank).
    pub scale: f64,
    /// Number of sites.
    pub sites: usize,
}

/// Reads and checks an adapter's folder. Its problems are in the report.
pub(super) fn inspect(dir: &Path, base: Option<&Path>) -> Result<AdapterReport> {
    let model = base.map(survey).transpose()?;
    let (contents, problems) = match AdapterFiles::read(dir) {
        Ok(files) => {
            let inferred = if model.is_none() { files.inferred_sites() } else { SiteTable::default() };
            let sites = model.as_ref().map_or(&inferred, |model| &model.sites);
            let (checked, outcome) = files.examine(sites);
            let reduced = checked.without_copies(|site, part, tensor| {
                model.as_ref().is_some_and(|model| equals_base(model, site, part, tensor))
            });
            let problems = outcome.err().map(Error::into_list).unwrap_or_default();
            (Some(contents(&reduced, &files, sites)), problems)
        }
        Err(error) => (None, error.into_list()),
    };
    Ok(AdapterReport { path: dir.to_path_buf(), contents, base: base.map(Path::to_path_buf), problems })
}

/// Whether a model has exactly this tensor at a site.
fn equals_base(model: &ModelSurvey, site: SiteId, part: SitePart, tensor: TensorView<'_>) -> bool {
    let sites = &model.sites;
    let site = if sites.is_head_tied && sites.head == Some(site) { sites.embedding.unwrap_or(site) } else { site };
    let suffix = match part {
        SitePart::Weight => "weight",
        SitePart::Bias => "bias",
    };
    let stored = model.checkpoint.get(&format!("{}.{suffix}", sites.get(site).path)).ok().flatten();
    stored.is_some_and(|stored| {
        stored.dtype().is_float() && stored.shape() == tensor.shape() && stored.to_f32() == tensor.to_f32()
    })
}

fn contents(adapter: &ReducedAdapter<'_>, files: &AdapterFiles, sites: &SiteTable) -> AdapterContents {
    let (summary, config, weights) = (adapter.summary(), files.config(), files.weights());
    // Of all tensors in the file, valid or not.
    let tensors: Vec<TensorView<'_>> = weights.names().filter_map(|name| weights.tensor(name).ok()).collect();
    let mut dtypes: Vec<String> = tensors.iter().map(|tensor| tensor.dtype().to_string()).collect();
    dtypes.sort_unstable();
    dtypes.dedup();
    AdapterContents {
        rank: summary.rank,
        alpha: config.alpha,
        use_rslora: summary.use_rslora,
        target_modules: summary.target_modules.clone(),
        features: features(adapter, config, sites),
        sites: summary.sites,
        groups: rank_groups(adapter.deltas(), summary.use_rslora),
        embedding_rows: summary.constraints.embedding_rows,
        head_rows: summary.constraints.head_rows,
        dtypes,
        bytes: tensors.iter().map(|tensor| tensor.bytes().len()).sum(),
        ignored_tensors: summary.ignored_tensors,
        content_hash: summary.content_hash.clone(),
    }
}

/// Features that an adapter uses beyond plain factors on linears.
fn features(adapter: &ReducedAdapter<'_>, config: &AdapterConfig, sites: &SiteTable) -> Vec<&'static str> {
    let any = |has: &dyn Fn(&SiteDelta<'_>) -> bool| adapter.deltas().any(has);
    let factors = |has: fn(&LowRank<'_>) -> bool| any(&|delta| delta.low_rank.as_ref().is_some_and(has));
    let factors_at = |is: &dyn Fn(SiteId) -> bool| any(&|delta| delta.low_rank.is_some() && is(delta.site));
    let table = [
        ("use_rslora", config.use_rslora),
        ("use_dora", factors(|low| low.magnitude.is_some())),
        ("lora_bias", factors(|low| low.b_bias.is_some())),
        ("bias", config.biases != TrainedBiases::None || any(&|delta| delta.bias.is_some())),
        ("modules_to_save", !config.modules_to_save.is_empty()),
        ("replaced weights", any(&|delta| delta.weight.is_some())),
        ("trainable_token_indices", any(&|delta| delta.rows.is_some())),
        ("ensure_weight_tying", config.ensure_weight_tying),
        ("layer_replication", adapter.summary().constraints.layers.is_some()),
        ("alora_invocation_tokens", !config.invocation.is_empty()),
        ("use_qalora", config.pooled_inputs.is_some()),
        ("use_bdlora", config.blocks.is_some()),
        ("kasa_config", config.uses_kasa),
        ("LoRA on the embedding", factors_at(&|site| sites.get(site).kind == SiteKind::Embedding)),
        ("LoRA on the head", factors_at(&|site| sites.head == Some(site))),
    ];
    table.into_iter().filter(|(_, used)| *used).map(|(name, _)| name).collect()
}

fn rank_groups<'d, 'a: 'd>(deltas: impl Iterator<Item = &'d SiteDelta<'a>>, use_rslora: bool) -> Vec<RankGroup> {
    // The bits of a scale as key: equal alphas and ranks give equal bits.
    let mut sites: BTreeMap<(usize, u32), usize> = BTreeMap::new();
    for low in deltas.filter_map(|delta| delta.low_rank.as_ref()) {
        *sites.entry((low.rank(), low.scale.to_bits())).or_default() += 1;
    }
    let group = |((rank, scale), sites): ((usize, u32), usize)| {
        let scale = shortest(f32::from_bits(scale));
        let divisor = if use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        RankGroup { rank, alpha: shortest((scale * divisor) as f32), scale, sites }
    };
    sites.into_iter().map(group).collect()
}

/// The double with the shortest decimal form of the single: 0.1, not 0.10000000149.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn sites_are_grouped_by_rank_and_scale() {
        let (zeros, a8, b8, a4, b4) = ([0; 64], [8, 1], [1, 8], [4, 1], [1, 4]);
        let view =
            |shape| TensorView::new(DType::F16, shape, &zeros[..2 * shape.iter().product::<usize>()]).expect("fits");
        let delta = |site, a, b, scale| SiteDelta {
            low_rank: Some(LowRank::new(view(a), view(b), scale)),
            ..SiteDelta::at(SiteId(site))
        };
        let deltas =
            [delta(0, &a8, &b8, 2.0), delta(1, &a8, &b8, 2.0), delta(2, &a8, &b8, 0.1), delta(3, &a4, &b4, 4.0)];
        assert_eq!(
            rank_groups(deltas.iter(), false),
            [
                RankGroup { rank: 4, alpha: 16.0, scale: 4.0, sites: 1 },
                RankGroup { rank: 8, alpha: 0.8, scale: 0.1, sites: 1 },
                RankGroup { rank: 8, alpha: 16.0, scale: 2.0, sites: 2 },
            ]
        );
        assert_eq!(rank_groups(deltas[3..].iter(), true)[0].alpha, 8.0);
    }
}
