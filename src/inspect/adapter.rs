//! What an adapter's folder holds: contents and problems beside each other, with a base or without one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::adapter::AdapterFiles;
use crate::adapter::config::{AdapterConfig, TrainedBiases};
use crate::adapter::delta::{LowRank, SiteDelta};
use crate::adapter::plan::AdapterPlan;
use crate::error::{Error, Result};
use crate::model::{ModelSurvey, survey};
use crate::sites::{SiteId, SiteKind, SitePart, SiteTable};
use crate::tensor::TensorView;

/// A PEFT adapter and everything that is wrong with it.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterReport {
    /// Its folder.
    pub path: PathBuf,
    /// What could be read of it; `None` if that is nothing.
    pub contents: Option<AdapterContents>,
    /// The model it was checked against, if one was named.
    pub base: Option<PathBuf>,
    /// Every problem found; empty if it can be used.
    pub problems: Vec<Error>,
}

/// What a readable adapter holds.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterContents {
    /// `r` of adapter_config.json, else the largest rank of a site.
    pub rank: usize,
    /// `lora_alpha` of adapter_config.json.
    pub alpha: Option<f64>,
    /// Whether alpha is divided by the rank's root.
    pub use_rslora: bool,
    /// Module names the config targets, as written.
    pub target_modules: Vec<String>,
    /// What it uses beyond plain factors, by the fields of adapter_config.json where there are any.
    pub features: Vec<&'static str>,
    /// Number of sites that it changes; one in a repeated layer counts each time.
    pub sites: usize,
    /// The sites with factors by what acts there, in the order of rank, then scale.
    pub groups: Vec<RankGroup>,
    /// Rows of the embedding that it brings in the base's place: the tokens its requests may hold.
    pub embedding_rows: Option<usize>,
    /// Rows of the head that it brings in the base's place: the width of its requests' logits.
    pub head_rows: Option<usize>,
    /// Data types of its tensors.
    pub dtypes: Vec<String>,
    /// Bytes of its tensors.
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

/// Reads and checks an adapter's folder; its problems stand in the report.
pub(super) fn inspect(dir: &Path, base: Option<&Path>) -> Result<AdapterReport> {
    let model = base.map(survey).transpose()?;
    let (contents, problems) = match AdapterFiles::read(dir) {
        Ok(files) => {
            let implied = if model.is_none() { files.implied_sites() } else { SiteTable::default() };
            let sites = model.as_ref().map_or(&implied, |model| &model.sites);
            let (mut plan, outcome) = files.examine(sites);
            if let Some(model) = &model {
                plan.drop_copies(|site, part, tensor| equals_base(model, site, part, tensor));
            }
            let problems = outcome.err().map(Error::into_list).unwrap_or_default();
            (Some(contents(&plan, &files, sites)), problems)
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
    let own = model.checkpoint.get(&format!("{}.{suffix}", sites.get(site).path)).ok().flatten();
    own.is_some_and(|own| own.dtype().is_float() && own.shape() == tensor.shape() && own.to_f32() == tensor.to_f32())
}

fn contents(plan: &AdapterPlan<'_>, files: &AdapterFiles, sites: &SiteTable) -> AdapterContents {
    let (summary, config, weights) = (&plan.summary, files.config(), files.weights());
    // Of the file, whatever could be made of it.
    let tensors: Vec<TensorView<'_>> = weights.names().filter_map(|name| weights.tensor(name).ok()).collect();
    let mut dtypes: Vec<String> = tensors.iter().map(|tensor| tensor.dtype().to_string()).collect();
    dtypes.sort_unstable();
    dtypes.dedup();
    AdapterContents {
        rank: summary.rank,
        alpha: config.alpha,
        use_rslora: summary.use_rslora,
        target_modules: summary.target_modules.clone(),
        features: features(plan, config, sites),
        sites: summary.sites,
        groups: rank_groups(&plan.deltas, summary.use_rslora),
        embedding_rows: summary.constraints.embedding_rows,
        head_rows: summary.constraints.head_rows,
        dtypes,
        bytes: tensors.iter().map(|tensor| tensor.bytes().len()).sum(),
        content_hash: summary.content_hash.clone(),
    }
}

/// What an adapter uses beyond plain factors on linears.
fn features(plan: &AdapterPlan<'_>, config: &AdapterConfig, sites: &SiteTable) -> Vec<&'static str> {
    let any = |has: &dyn Fn(&SiteDelta<'_>) -> bool| plan.deltas.iter().any(has);
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
        ("layer_replication", plan.summary.constraints.layers.is_some()),
        ("alora_invocation_tokens", !config.invocation.is_empty()),
        ("use_qalora", config.pooled_inputs.is_some()),
        ("use_bdlora", config.blocks.is_some()),
        ("kasa_config", config.uses_kasa),
        ("LoRA on the embedding", factors_at(&|site| sites.get(site).kind == SiteKind::Embedding)),
        ("LoRA on the head", factors_at(&|site| sites.head == Some(site))),
    ];
    table.into_iter().filter(|(_, used)| *used).map(|(name, _)| name).collect()
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
            rank_groups(&deltas, false),
            [
                RankGroup { rank: 4, alpha: 16.0, scale: 4.0, sites: 1 },
                RankGroup { rank: 8, alpha: 0.8, scale: 0.1, sites: 1 },
                RankGroup { rank: 8, alpha: 16.0, scale: 2.0, sites: 2 },
            ]
        );
        assert_eq!(rank_groups(&deltas[3..], true)[0].alpha, 8.0);
    }
}
