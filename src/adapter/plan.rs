//! The checked plan. SKELETON

use crate::adapter::delta::SiteDelta;

/// What is known of an adapter before it is resident.
#[derive(Clone, Debug)]
pub struct AdapterSummary {
    /// Folder it was read from.
    pub path: std::path::PathBuf,
    /// SHA-256 over config and weights: what a KV prefix and a replaced adapter are told apart by.
    pub content_hash: String,
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
    /// Largest rank of a site.
    pub max_rank: usize,
    /// Bytes of the factors as stored.
    pub bytes: usize,
}

/// Every delta of an adapter, checked: names, shapes, ranks, finite values, completeness.
#[derive(Debug)]
pub struct AdapterPlan<'a> {
    /// The deltas, ordered by site.
    pub deltas: Vec<SiteDelta<'a>>,
    /// Summary for reports.
    pub summary: AdapterSummary,
}
