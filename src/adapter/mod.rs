//! PEFT adapters: read, checked against a model's sites, kept in slots, routed to rows.
//!
//! ```text
//! folder ── config ──┐
//!        └─ weights ─┴─ AdapterFiles ── plan(sites) ── AdapterPlan ── upload ── pool ── lease ── batch
//! ```
//!
//! The tensors are the truth of what an adapter changes; its config gives their scale and is cross-checked. Whatever is
//! asked for and not served is refused by name: an adapter is applied whole, or not at all.

pub mod batch;
pub mod config;
pub mod constraints;
pub mod delta;
pub mod features;
pub mod folder;
pub mod keys;
pub mod mixture;
pub mod patterns;
pub mod plan;
pub mod pool;
mod singular;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use self::config::AdapterConfig;
use self::plan::AdapterPlan;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::sites::SiteTable;

/// An adapter's files, read into memory.
#[derive(Debug)]
pub struct AdapterFiles {
    dir: PathBuf,
    config: AdapterConfig,
    weights: Checkpoint,
    content_hash: String,
}

impl AdapterFiles {
    /// Reads adapter_config.json and adapter_model.safetensors of a folder.
    ///
    /// # Errors
    /// `adapter_config_not_found`, `adapter_weights_not_found`, `adapter_format_unsupported`, `checkpoint_*` of a damaged
    /// file, and those of [`AdapterConfig::parse`]. What is wrong with single fields or tensors is told by
    /// [`AdapterFiles::plan`].
    pub fn read(dir: &Path) -> Result<Self> {
        let subject = subject_of(dir);
        let bytes = folder::read_config(dir).map_err(|error| error.with_subject(&subject))?;
        let config = AdapterConfig::parse(&bytes, &dir.join(folder::CONFIG), &subject)?;
        Self::new(dir, &bytes, config, folder::read_weights(dir))
    }

    /// Takes the bytes of both files; `dir` is for names and messages.
    ///
    /// # Errors
    /// As [`AdapterFiles::read`], without those of the folder.
    pub fn from_bytes(config: &[u8], weights: Vec<u8>, dir: &Path) -> Result<Self> {
        let subject = subject_of(dir);
        let parsed = AdapterConfig::parse(config, &dir.join(folder::CONFIG), &subject)?;
        Self::new(dir, config, parsed, Checkpoint::from_bytes(weights, &dir.join(folder::WEIGHTS)))
    }

    /// Without weights there is no plan that could tell the config's problems: they are told with those of the weights.
    fn new(dir: &Path, config_bytes: &[u8], config: AdapterConfig, weights: Result<Checkpoint>) -> Result<Self> {
        let weights = weights.map_err(|error| {
            let error = error.with_subject(subject_of(dir));
            Error::all(config.problems.iter().cloned().chain([error.clone()]).collect()).unwrap_or(error)
        })?;
        let content_hash = content_hash(config_bytes, &weights);
        Ok(Self { dir: dir.to_path_buf(), config, weights, content_hash })
    }

    /// Checks everything against a model's sites; nothing is uploaded. All problems at once.
    ///
    /// # Errors
    /// `adapter_config_invalid`, `adapter_base_changed`, `adapter_tensor_unexpected`, `adapter_tensor_missing`, `adapter_feature_unsupported`, `adapter_format_unsupported`,
    /// `adapter_site_not_found`, `adapter_site_excluded`, `adapter_shape_mismatch`, `adapter_rank_mismatch`,
    /// `adapter_dtype_unsupported`, `adapter_not_finite`, `adapter_scale_invalid`, `adapter_pattern_invalid`.
    pub fn plan(&self, sites: &SiteTable) -> Result<AdapterPlan<'_>> {
        let (plan, outcome) = self.examine(sites);
        outcome.map(|()| plan)
    }

    /// As [`AdapterFiles::plan`], but with what could be read beside what is wrong: for reports.
    pub fn examine(&self, sites: &SiteTable) -> (AdapterPlan<'_>, Result<()>) {
        plan::examine(self, sites)
    }

    /// The sites that the tensors themselves ask for, to be checked against where there is no model.
    pub fn implied_sites(&self) -> SiteTable {
        plan::implied_sites(self)
    }

    /// The folder they were read from.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// What the config says.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The stored tensors.
    pub fn weights(&self) -> &Checkpoint {
        &self.weights
    }

    /// SHA-256 over config and weights, in hexadecimal.
    pub fn content_hash(&self) -> &str {
        &self.content_hash
    }

    /// How errors call it: `adapter 'sql'`, after its folder.
    pub fn subject(&self) -> String {
        subject_of(&self.dir)
    }
}

fn subject_of(dir: &Path) -> String {
    let name = dir.file_name().map_or_else(|| dir.to_string_lossy(), |name| name.to_string_lossy());
    format!("adapter '{name}'")
}

/// Config and weights in one hash; each part's length is fixed by what stands before it, so none can run into the other.
fn content_hash(config: &[u8], weights: &Checkpoint) -> String {
    let mut hash = Sha256::new();
    hash.update((config.len() as u64).to_le_bytes());
    hash.update(config);
    hash.update(weights.content_hash());
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Collects what is wrong, so that one error tells it all.
struct Problems {
    subject: String,
    list: Vec<Error>,
    /// Problems beyond the cap, and the code of the first of them.
    rest: Option<(crate::error::ErrorCode, usize)>,
}

impl Problems {
    /// Most problems that are told one by one: a hostile file can have as many as it has tensors.
    const MAX: usize = 100;

    fn new(subject: &str) -> Self {
        Self { subject: subject.to_owned(), list: Vec::new(), rest: None }
    }

    fn push(&mut self, error: Error) {
        if self.list.len() < Self::MAX {
            self.list.push(error.with_subject(&self.subject));
        } else {
            self.rest.get_or_insert((error.code(), 0)).1 += 1;
        }
    }

    fn len(&self) -> usize {
        self.list.len() + self.rest.map_or(0, |(_, count)| count)
    }

    fn finish(mut self) -> Result<()> {
        if let Some((code, count)) = self.rest {
            self.list
                .push(Error::new(code, format!("{count} further problems")).with_subject(&self.subject).with_hint(""));
        }
        Error::all(self.list).map_or(Ok(()), Err)
    }
}
