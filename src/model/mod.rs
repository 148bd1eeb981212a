//! A loaded model: packed weights in a backend, its sites, its adapters, and the forward pass. SKELETON of bodies

pub mod config;
pub mod decoder;

use std::path::Path;
use std::sync::Arc;

use crate::adapter::batch::AdapterBatch;
use crate::adapter::pool::{AdapterInfo, AdapterLease, AdapterLimits, AdapterPool};
use crate::backend::{BackendMemory, KvDType, StepRows};
use crate::error::Result;
use crate::sites::SiteTable;

/// Where a model runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// The best there is.
    #[default]
    Auto,
    /// The CPU's fast paths.
    Cpu,
    /// The plain f32 maths every fast path is tested against; slow.
    Reference,
}

impl std::str::FromStr for Device {
    type Err = crate::Error;

    fn from_str(_text: &str) -> Result<Self> {
        todo!()
    }
}

/// Options of [`Model::load`].
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// Where it runs.
    pub device: Device,
    /// CPU threads; all physical cores by default.
    pub threads: Option<usize>,
    /// Limits of resident adapters.
    pub adapter_limits: AdapterLimits,
}

/// How far loading has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Modules packed so far.
    pub done: usize,
    /// Modules in all.
    pub total: usize,
}

/// A model that several engines may share.
pub struct Model {}

impl Model {
    /// Loads a model folder. `progress` is called after each module and may stop the work by an error.
    ///
    /// # Errors
    /// Anything of `checkpoint_*`, `quant_*`, `model_*`.
    pub fn load(
        _dir: &Path,
        _options: &ModelOptions,
        _progress: &mut dyn FnMut(Progress) -> Result<()>,
    ) -> Result<Arc<Self>> {
        todo!()
    }

    /// The folder it was loaded from.
    pub fn path(&self) -> &Path {
        todo!()
    }

    /// What config.json says.
    pub fn config(&self) -> &config::DecoderConfig {
        todo!()
    }

    /// Where adapters can act.
    pub fn sites(&self) -> &SiteTable {
        todo!()
    }

    /// What computes: `cpu (avx512, 2 threads)`.
    pub fn describe_device(&self) -> String {
        todo!()
    }

    /// Resident bytes.
    pub fn memory(&self) -> BackendMemory {
        todo!()
    }

    /// Loads an adapter under a name, or replaces the one that has it. Running requests keep theirs.
    ///
    /// # Errors
    /// Anything of `adapter_*`; nothing changed then.
    pub fn load_adapter(&self, _name: &str, _dir: &Path) -> Result<AdapterInfo> {
        todo!()
    }

    /// Loads an adapter that no name finds; it lives as long as its leases.
    ///
    /// # Errors
    /// Anything of `adapter_*`; nothing changed then.
    pub fn admit_adapter(&self, _dir: &Path) -> Result<AdapterLease> {
        todo!()
    }

    /// Forgets a name; memory returns when the last request that uses it has ended.
    ///
    /// # Errors
    /// `adapter_not_found`.
    pub fn unload_adapter(&self, _name: &str) -> Result<()> {
        todo!()
    }

    /// The resident adapters.
    pub fn adapters(&self) -> &AdapterPool {
        todo!()
    }

    /// Storage for KV pages of this model.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub fn create_kv(self: &Arc<Self>, _pages: usize, _page_tokens: usize, _dtype: KvDType) -> Result<KvStorage> {
        todo!()
    }

    /// Runs one step and writes the logits of `batch.logit_rows`, `[logit_rows, vocab]`.
    ///
    /// # Errors
    /// The device failed.
    pub fn forward(&self, _batch: &ForwardBatch, _kv: &KvStorage, _logits: &mut Vec<f32>) -> Result<()> {
        todo!()
    }
}

/// KV pages in a model's backend; given back when dropped.
pub struct KvStorage {}

/// The rows of one step.
#[derive(Clone, Debug, Default)]
pub struct ForwardBatch {
    /// Token of each row.
    pub tokens: Vec<u32>,
    /// Where each row stands.
    pub rows: StepRows,
    /// Adapters of each row.
    pub adapters: AdapterBatch,
    /// Rows whose logits are wanted.
    pub logit_rows: Vec<u32>,
    /// Adapters of each of those.
    pub logit_adapters: AdapterBatch,
}
