//! What is known of an adapter before it is resident.

use std::path::PathBuf;
use std::sync::Arc;

use crate::adapter::AdapterFiles;
use crate::adapter::constraints::AdapterConstraints;
use crate::adapter::delta::{CheckedDelta, LowRank, SiteDelta};
use crate::sites::SiteId;

/// What is known of an adapter before it is resident.
#[derive(Clone, Debug)]
pub struct AdapterSummary {
    /// Folder it was read from.
    pub path: PathBuf,
    /// SHA-256 over config and weights: identifies the adapter in prefix keys and across replacements.
    pub content_hash: String,
    /// `r` of adapter_config.json; if missing, the largest rank of a site.
    pub rank: usize,
    /// `lora_alpha` of adapter_config.json.
    pub alpha: f64,
    /// Whether alpha is divided by the root of the rank.
    pub use_rslora: bool,
    /// Module names the config targets, as written.
    pub target_modules: Vec<String>,
    /// Number of sites with a delta; a site of a repeated layer counts once for each repeat.
    pub sites: usize,
    /// Largest rank of a site.
    pub max_rank: usize,
    /// Bytes of its tensors, after structured factors were expanded.
    pub bytes: usize,
    /// Number of its tensors that belong to modules of other modalities (vision, audio) of a multimodal model, and cannot act on
    /// text.
    pub ignored_tensors: usize,
    /// What a request must respect if it names the adapter.
    pub constraints: AdapterConstraints,
}

/// What a summary needs of a check besides the deltas.
#[derive(Debug)]
pub(super) struct CheckFacts {
    pub embedding: Option<SiteId>,
    pub head: Option<SiteId>,
    pub layer_map: Option<Arc<[u32]>>,
    pub ignored_tensors: usize,
}

impl AdapterSummary {
    /// Summarizes the deltas of an adapter.
    pub(super) fn of(files: &AdapterFiles, facts: &CheckFacts, deltas: &[CheckedDelta<'_>]) -> Self {
        let config = files.config();
        let mut constraints = AdapterConstraints {
            invocation: config.invocation.clone(),
            layers: facts.layer_map.clone(),
            ..AdapterConstraints::default()
        };
        let (mut bytes, mut max_rank) = (0, 0);
        for CheckedDelta { delta, truncation } in deltas {
            constraints.add(delta, facts.embedding, facts.head);
            bytes += stored_bytes(delta);
            max_rank = max_rank.max(delta.low_rank.as_ref().map_or(0, LowRank::rank));
            if let Some(truncation) = truncation {
                constraints.truncated.push(delta.site);
                bytes += truncation.bytes();
            }
        }
        constraints.sort();
        Self {
            path: files.path().to_path_buf(),
            content_hash: files.content_hash().to_owned(),
            rank: config.rank.unwrap_or(max_rank),
            alpha: config.alpha.unwrap_or_default(),
            use_rslora: config.use_rslora,
            target_modules: config.target_modules.clone(),
            sites: deltas.len(),
            max_rank,
            bytes,
            ignored_tensors: facts.ignored_tensors,
            constraints,
        }
    }
}

fn stored_bytes(delta: &SiteDelta<'_>) -> usize {
    delta.tensors().map(|tensor| tensor.bytes().len()).sum()
}
