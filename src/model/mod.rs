//! A loaded model: packed weights in a backend, its sites, its adapters, and the forward pass.
//!
//! Several engines, each with a KV cache of its own, may share one [`Model`]; a step holds its backend for as long as it
//! computes, so adapters come and go between steps.

pub mod config;
mod decoder;
mod loader;
mod rope;
mod survey;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::adapter::AdapterFiles;
use crate::adapter::plan::AdapterSummary;
use crate::adapter::pool::{AdapterInfo, AdapterLease, AdapterLimits, AdapterPool, Reservation};
use crate::backend::{
    AdapterPreparer, Backend, BackendMemory, Compute, KvDType, KvId, KvShape, MemoryUse, PrepareError, cpu, reference,
};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorCode, Result};
use crate::kv::PAGE_TOKENS;
use crate::quant::QuantConfig;
use crate::sites::{SiteId, SiteTable};
use config::DecoderConfig;
use decoder::Decoder;
use loader::DecoderLoader;

pub use decoder::ForwardBatch;
pub use loader::Progress;
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

/// A model that several engines may share.
pub struct Model {
    path: PathBuf,
    config: DecoderConfig,
    sites: SiteTable,
    file_bytes: u64,
    adapters: AdapterPool,
    device: String,
    memory: Arc<MemoryUse>,
    preparer: Arc<dyn AdapterPreparer>,
    core: Mutex<Core>,
}

/// What a step holds while it computes.
struct Core {
    compute: Box<dyn Compute>,
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
        let mut builder = match options.device {
            Device::Reference => reference::open(),
            Device::Auto | Device::Cpu => cpu::open(&cpu::CpuOptions { threads: options.threads, isa: None })?,
        };
        let loader = DecoderLoader {
            config: &config,
            quant: quant.as_ref(),
            checkpoint: &checkpoint,
            weights: &mut *builder,
            sites: SiteTable::default(),
            progress,
            done: 0,
        };
        let (weights, sites) = loader.load()?;
        let Backend { description: device, memory, adapters: preparer, mut compute } = builder.finish()?;
        let decoder = Decoder::new(weights, &config, &mut *compute);
        tracing::info!(model = %dir.display(), device, "model loaded");
        Ok(Arc::new(Self {
            path: dir.to_path_buf(),
            file_bytes: checkpoint.file_bytes(),
            config,
            sites,
            adapters: AdapterPool::new(options.adapter_limits),
            device,
            memory,
            preparer,
            core: Mutex::new(Core { compute, decoder }),
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
        self.device.clone()
    }

    /// Resident bytes, after letting go of adapters that nobody uses any more.
    pub fn memory(&self) -> BackendMemory {
        // A running step does so itself.
        if let Some(mut core) = self.core.try_lock() {
            self.reap(&mut core);
        }
        self.memory.read()
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
        let id = self.core.lock().compute.create_kv(shape)?;
        Ok(KvStorage { model: Arc::clone(self), id, shape })
    }

    /// How often the cache of a token has the base's number of layers, for that stack of layers.
    pub fn kv_groups_of(&self, layers: Option<&Arc<[u32]>>) -> usize {
        layers.map_or(1, |layers| decoder::kv_groups_of(layers.len(), self.config.layers))
    }

    /// Runs one step; `logits` becomes `[batch.logit_rows, batch.logit_width]`, where a row whose adapters give it fewer
    /// logits than that leaves the rest undefined. There is a cache for each kv_group of the batch, or one for all.
    ///
    /// # Errors
    /// The device failed.
    pub fn forward(&self, batch: &mut ForwardBatch, kvs: &[&KvStorage], logits: &mut Vec<f32>) -> Result<()> {
        let mut core = self.core.lock();
        self.reap(&mut core);
        let Core { compute, decoder } = &mut *core;
        let kvs: Vec<KvId> = kvs.iter().map(|kv| kv.id).collect();
        logits.resize(batch.logit_rows.len() * batch.logit_width, 0.0);
        decoder.forward(&mut **compute, batch, &kvs, logits)
    }

    fn upload(&self, dir: &Path) -> Result<(Reservation, AdapterSummary)> {
        let files = AdapterFiles::read(dir)?;
        let mut plan = files.plan(&self.sites)?;
        plan.drop_copies(|site, part, values| self.preparer.equals_base(site, part, values));
        plan.truncate(|site| self.preparer.dense_weight(site))?;
        let mut reservation = {
            let mut core = self.core.lock();
            self.reap(&mut core);
            self.adapters.reserve(plan.summary.bytes)?
        };
        let prepared = self.preparer.prepare(&plan.deltas).map_err(|error| match error {
            PrepareError::ZeroNorm { site, output } => self.zero_norm(dir, site, output),
            PrepareError::Failed(error) => error,
        })?;
        reservation.set_resident_bytes(prepared.bytes());
        self.core.lock().compute.install_adapter(reservation.slot(), prepared)?;
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
        self.adapters.reap(|slot| core.compute.drop_adapter(slot));
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
        self.model.core.lock().compute.drop_kv(self.id);
    }
}
