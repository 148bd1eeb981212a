//! An adapter's two files, read into memory.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::adapter::config::AdapterConfig;
use crate::adapter::folder;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// The config and the weights of an adapter, parsed but not yet compared with a model.
///
/// [`AdapterFiles::check`] compares them with a model's sites. Where there is no model,
/// [`AdapterFiles::inferred_sites`] derives the sites from the tensors.
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
    /// file, and those of [`AdapterConfig::parse`]. Problems with single fields or tensors are reported by
    /// [`AdapterFiles::check`].
    pub fn read(dir: &Path) -> Result<Self> {
        let subject = subject_of(dir);
        let bytes = folder::read_config(dir).map_err(|error| error.with_subject(&subject))?;
        let config = AdapterConfig::parse(&bytes, &dir.join(folder::CONFIG), &subject)?;
        Self::new(dir, &bytes, config, folder::read_weights(dir))
    }

    /// Parses the bytes of both files. `dir` is used for names and messages only.
    ///
    /// # Errors
    /// Those of [`AdapterFiles::read`], except those of the folder.
    pub fn from_bytes(config: &[u8], weights: Vec<u8>, dir: &Path) -> Result<Self> {
        let subject = subject_of(dir);
        let parsed = AdapterConfig::parse(config, &dir.join(folder::CONFIG), &subject)?;
        Self::new(dir, config, parsed, Checkpoint::from_bytes(weights, &dir.join(folder::WEIGHTS)))
    }

    /// Without weights nothing can be checked, so the config's problems are reported here with those of the weights.
    fn new(dir: &Path, config_bytes: &[u8], config: AdapterConfig, weights: Result<Checkpoint>) -> Result<Self> {
        let weights = weights.map_err(|error| {
            let error = error.with_subject(subject_of(dir));
            Error::all(config.problems.iter().cloned().chain([error.clone()]).collect()).unwrap_or(error)
        })?;
        let content_hash = content_hash(config_bytes, &weights);
        Ok(Self { dir: dir.to_path_buf(), config, weights, content_hash })
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

    /// What errors call it, after its folder: `adapter 'sql'`.
    pub fn subject(&self) -> String {
        subject_of(&self.dir)
    }
}

fn subject_of(dir: &Path) -> String {
    let name = dir.file_name().map_or_else(|| dir.to_string_lossy(), |name| name.to_string_lossy());
    format!("adapter '{name}'")
}

/// Config and weights in one hash. The config's length comes first, so that no byte can move from one part to the other.
fn content_hash(config: &[u8], weights: &Checkpoint) -> String {
    let mut hash = Sha256::new();
    hash.update((config.len() as u64).to_le_bytes());
    hash.update(config);
    hash.update(weights.content_hash());
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
