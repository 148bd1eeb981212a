//! A loaded model: packed weights in a backend, its sites, its adapters, and the forward pass.
//!
//! Several engines, each with a KV cache of its own, may share one [`Model`]; a step holds its backend for as long as it
//! computes, so adapters come and go between steps.

pub mod batch;
pub mod config;
mod decoder;
mod rope;
mod survey;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::adapter::AdapterFiles;
use crate::adapter::plan::AdapterSummary;
use crate::adapter::pool::{AdapterInfo, AdapterLease, AdapterLimits, AdapterPool, Reservation};
use crate::backend::{Backend, BackendMemory, KvDType, KvId, KvShape, UploadError, cpu};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorCode, Result};
use crate::kv_cache::PAGE_TOKENS;
use crate::quant::QuantConfig;
use crate::sites::{SiteId, SiteTable};
use batch::StepBatch;
use config::DecoderConfig;
use decoder::{Decoder, DecoderLoader};

pub use survey::{ModelSurvey, survey};

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "reference" => Ok(Device::Reference),
            other => Err(Error::new(ErrorCode::DeviceUnavailable, "this build does not have the device")
                .with_expected("auto, cpu or reference")
                .with_found(other)),
        }
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
pub struct Model {
    path: PathBuf,
    config: DecoderConfig,
    sites: SiteTable,
    file_bytes: u64,
    adapters: AdapterPool,
    core: Mutex<Core>,
}

struct Core {
    backend: Box<dyn Backend>,
    decoder: Decoder,
}

impl Model {
    /// Loads a model folder. `progress` is called after each module and may stop the work by an error.
    ///
    /// # Errors
    /// Anything of `checkpoint_*`, `quant_*`, `model_*`; `memory_exhausted`; what `progress` returned.
    pub fn load(
        dir: &Path,
        options: &ModelOptions,
        progress: &mut dyn FnMut(Progress) -> Result<()>,
    ) -> Result<Arc<Self>> {
        let (config, json) = DecoderConfig::read(dir)?;
        let quant = QuantConfig::read(dir, &json)?;
        let checkpoint = Checkpoint::open(dir)?;
        let is_reference = options.device == Device::Reference;
        let mut backend =
            cpu::open(&cpu::CpuOptions { threads: options.threads, reference: is_reference, ..Default::default() })?;
        let loader = DecoderLoader {
            config: &config,
            quant: quant.as_ref(),
            checkpoint: &checkpoint,
            backend: &mut *backend,
            sites: SiteTable::default(),
            progress,
            done: 0,
        };
        let (decoder, sites) = loader.load()?;
        tracing::info!(model = %dir.display(), device = backend.describe(), "model loaded");
        Ok(Arc::new(Self {
            path: dir.to_path_buf(),
            file_bytes: checkpoint.file_bytes(),
            config,
            sites,
            adapters: AdapterPool::new(options.adapter_limits),
            core: Mutex::new(Core { backend, decoder }),
        }))
    }

    /// The folder it was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What config.json says.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Where adapters can act.
    pub fn sites(&self) -> &SiteTable {
        &self.sites
    }

    /// Bytes of the checkpoint's files.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// What computes: `cpu (avx512, 2 threads)`.
    pub fn describe_device(&self) -> String {
        self.core.lock().backend.describe()
    }

    /// Resident bytes, after letting go of adapters that nobody uses any more.
    pub fn memory(&self) -> BackendMemory {
        let mut core = self.core.lock();
        self.reap(&mut core);
        core.backend.memory()
    }

    /// Loads an adapter under a name, or replaces the one that has it. Running requests keep theirs.
    ///
    /// # Errors
    /// Anything of `adapter_*`; nothing changed then.
    pub fn load_adapter(&self, name: &str, dir: &Path) -> Result<AdapterInfo> {
        let subject = |e: Error| e.with_subject(format!("adapter '{name}'"));
        // Before any file is read; publishing checks it again.
        AdapterPool::check_name(name).map_err(subject)?;
        let (reservation, summary) = self.upload(dir).map_err(subject)?;
        self.adapters.publish(name, reservation, summary).map_err(subject)
    }

    /// Loads an adapter that no name finds; it lives as long as its leases.
    ///
    /// # Errors
    /// Anything of `adapter_*`; nothing changed then.
    pub fn load_anonymous_adapter(&self, dir: &Path) -> Result<AdapterLease> {
        let (reservation, summary) = self.upload(dir)?;
        Ok(self.adapters.insert_anonymous(reservation, summary))
    }

    /// Forgets a name; memory returns when the last request that uses it has ended.
    ///
    /// # Errors
    /// `adapter_not_found`.
    pub fn unload_adapter(&self, name: &str) -> Result<()> {
        self.adapters.unload(name)
    }

    /// The resident adapters.
    pub fn adapters(&self) -> &AdapterPool {
        &self.adapters
    }

    /// Storage for KV pages of this model.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub fn create_kv(self: &Arc<Self>, pages: usize, dtype: KvDType) -> Result<KvStorage> {
        let shape = KvShape {
            layers: self.config.layers,
            pages,
            page_tokens: PAGE_TOKENS,
            kv_heads: self.config.kv_heads,
            head_dim: self.config.head_dim,
            dtype,
        };
        let id = self.core.lock().backend.create_kv(shape)?;
        Ok(KvStorage { model: Arc::clone(self), id, shape })
    }

    /// How often the cache of a token has the base's number of layers, for that stack of layers.
    pub fn kv_groups_of(&self, layers: Option<&Arc<[u32]>>) -> usize {
        layers.map_or(1, |layers| decoder::kv_groups_of(layers.len(), self.config.layers))
    }

    /// Runs one step; `logits` becomes `[rows with logits, batch.logit_width()]`. A row whose adapters give it fewer logits
    /// than that leaves the rest undefined. `kvs` has one cache for each KV group, or one that holds the pages of all.
    ///
    /// # Errors
    /// The device failed.
    pub fn forward(&self, batch: &mut StepBatch, kvs: &[&KvStorage], logits: &mut Vec<f32>) -> Result<()> {
        let mut core = self.core.lock();
        self.reap(&mut core);
        let Core { backend, decoder } = &mut *core;
        logits.resize(batch.logit_rows.len() * batch.logit_width, 0.0);
        decoder.forward(&mut **backend, batch, kvs, logits)
    }

    fn upload(&self, dir: &Path) -> Result<(Reservation, AdapterSummary)> {
        let files = AdapterFiles::read(dir)?;
        let mut plan = files.plan(&self.sites)?;
        plan.drop_copies(|site, part, values| self.core.lock().backend.equals_base(site, part, values));
        // Steps go on meanwhile: a decomposition takes long.
        plan.truncate(|site| self.core.lock().backend.dense_weight(site))?;
        let mut core = self.core.lock();
        self.reap(&mut core);
        let mut reservation = self.adapters.reserve(plan.summary.bytes)?;
        let uploaded = core.backend.upload_adapter(reservation.slot(), &plan.deltas);
        let resident = uploaded.map_err(|error| match error {
            UploadError::ZeroNorm { site, output } => self.zero_norm(dir, site, output),
            UploadError::Failed(error) => error,
        })?;
        reservation.set_resident_bytes(resident);
        Ok((reservation, plan.summary))
    }

    fn zero_norm(&self, dir: &Path, site: SiteId, output: usize) -> Error {
        let what = format!("DoRA divides by norms of '{}', one of which is 0", self.sites.get(site).path);
        Error::new(ErrorCode::AdapterScaleInvalid, what)
            .with_path(dir)
            .with_expected("norms above 0")
            .with_found(format!("0 at output {output}"))
            .with_hint("the base's weight and the adapter's delta cancel in that row, or both are 0")
    }

    fn reap(&self, core: &mut Core) {
        self.adapters.reap(|slot| core.backend.drop_adapter(slot));
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("path", &self.path).finish_non_exhaustive()
    }
}

/// KV pages in a model's backend; given back when dropped.
pub struct KvStorage {
    model: Arc<Model>,
    id: KvId,
    shape: KvShape,
}

impl KvStorage {
    /// Its size.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }
}

impl Drop for KvStorage {
    fn drop(&mut self) {
        self.model.core.lock().backend.drop_kv(self.id);
    }
}
