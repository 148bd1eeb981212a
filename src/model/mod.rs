//! A loaded model: packed weights in a backend, its sites, its adapters, and the forward pass.
//!
//! Several engines, each with its own KV cache, may share one [`Model`]. A step holds the step lock while it
//! computes. Adapters are loaded while steps run and take the lock only for the moment of installing them.

mod adapters;
pub mod batch;
pub mod config;
mod core;
mod decoder;
mod kv_storage;
mod loader;
mod survey;
mod text_checkpoint;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use self::core::Core;
use crate::adapter::mixture::Mixture;
use crate::adapter::pool::{AdapterLimits, AdapterPool};
#[cfg(feature = "cuda")]
use crate::backend::cuda;
use crate::backend::{
    ActivationDType, AdapterPreparer, Backend, BackendBuilder, BackendMemory, Compute, KvDType, KvShape, MemoryUse,
    WeightLoader, cpu, reference,
};
use crate::error::{Error, ErrorCode, Result, printable};
use crate::fork_safe_mutex::ForkSafeMutex;
use crate::guard::catch_panic;
use crate::kv_cache::PAGE_TOKENS;
use crate::quant::QuantConfig;
use crate::sites::SiteTable;
use crate::tensor::zeros;
use batch::{StepBatch, StepLimits};
use config::{DecoderConfig, RopeOverrides};
use decoder::Decoder;
use loader::DecoderLoader;

pub(crate) use adapters::LoadHooks;
pub use kv_storage::KvStorage;
pub use loader::{HeadDType, Progress};
pub use survey::{ModelSurvey, survey};

/// Largest number of CPU threads: more are a mistake, and each takes memory.
pub const MAX_THREADS: usize = 1024;

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// The first CUDA card, or the CPU where there is none.
    #[default]
    Auto,
    /// The CPU's fast paths.
    Cpu,
    /// The CUDA card with that number.
    Cuda(usize),
    /// The plain f32 implementation that every fast path is tested against; slow.
    Reference,
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "reference" => Ok(Device::Reference),
            "cuda" => Ok(Device::Cuda(0)),
            other => match other.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(ordinal)) => Ok(Device::Cuda(ordinal)),
                _ => Err(Error::new(ErrorCode::DeviceUnavailable, "there is no such device")
                    .with_expected("auto, cpu, cuda, cuda:NUMBER or reference")
                    .with_found(other)),
            },
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
    /// Longest sequence, in positions; by default [`DecoderConfig::max_positions`](config::DecoderConfig::max_positions).
    pub max_seq_len: Option<usize>,
    /// How the output head is kept.
    pub head: HeadDType,
    /// How quantized linears take their activations; only the CPU rounds them.
    pub activations: ActivationDType,
    /// What replaces config.json's rotary position embedding.
    pub rope: RopeOverrides,
    /// Limits of resident adapters.
    pub adapter_limits: AdapterLimits,
}

/// A model that several engines may share.
pub struct Model {
    path: PathBuf,
    config: DecoderConfig,
    max_seq_len: usize,
    sites: SiteTable,
    file_bytes: u64,
    adapters: AdapterPool,
    device: String,
    memory: Arc<MemoryUse>,
    preparer: Arc<dyn AdapterPreparer>,
    /// Behind the step lock.
    core: Arc<ForkSafeMutex<Core>>,
}

impl Model {
    /// Loads a model folder. `progress` is called after each module and may stop the work by an error.
    ///
    /// # Errors
    /// Anything of `checkpoint_*`, `quant_*`, `model_*`; `request_invalid`; `memory_exhausted`; what `progress` returned.
    pub fn load(
        dir: &Path,
        options: &ModelOptions,
        progress: &mut dyn FnMut(Progress) -> Result<()>,
    ) -> Result<Arc<Self>> {
        if let Some(threads) = options.threads
            && !(1..=MAX_THREADS).contains(&threads)
        {
            return Err(Error::new(ErrorCode::RequestInvalid, "threads is out of range")
                .with_expected(format!("1 to {MAX_THREADS}"))
                .with_found(threads));
        }
        let (config, json) = DecoderConfig::read_with(dir, &options.rope)?;
        let max_seq_len = config.max_seq_len(options.max_seq_len)?;
        let quant = QuantConfig::read(dir, &json)?;
        let (checkpoint, prefix) = text_checkpoint::open(dir)?;
        let quant = quant.map(|quant| quant.with_prefix(prefix));
        let mut builder = open_backend(options)?;
        let load = |weights: &mut dyn WeightLoader, progress: &mut dyn FnMut(Progress) -> Result<()>| {
            DecoderLoader {
                config: &config,
                quant: quant.as_ref(),
                checkpoint: &checkpoint,
                head: options.head,
                weights,
                sites: SiteTable::default(),
                progress,
                done: 0,
            }
            .load()
        };
        if let Some(measurer) = builder.measurer() {
            load(measurer, &mut |measured| progress(Progress { done: 0, ..measured }))?;
        }
        let (weights, sites) = load(&mut *builder, progress)?;
        let Backend { description: device, memory, adapters: preparer, mut compute } = builder.finish()?;
        let decoder = Decoder::new(weights, &config, &mut *compute);
        tracing::info!(model = %printable(&dir.to_string_lossy()), device, "model loaded");
        Ok(Arc::new(Self {
            path: dir.to_path_buf(),
            file_bytes: checkpoint.file_bytes(),
            config,
            max_seq_len,
            sites,
            adapters: AdapterPool::new(options.adapter_limits),
            device,
            memory,
            preparer,
            core: Arc::new(ForkSafeMutex::new(Core { compute, decoder, kv_ids: Vec::new() })),
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

    /// Longest sequence, in positions.
    pub fn max_seq_len(&self) -> usize {
        self.max_seq_len
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

    /// Resident bytes. Never waits for a step.
    pub fn memory(&self) -> BackendMemory {
        // Adapters that are no longer used go first. If a step is running, it has done so itself.
        if let Some(mut core) = self.core.try_lock() {
            self.reap(&mut core);
        }
        self.memory.read()
    }

    /// The resident adapters.
    pub fn adapters(&self) -> &AdapterPool {
        &self.adapters
    }

    /// Allocates all that steps of the base need within these limits, where the device would do so during the first large ones.
    ///
    /// # Errors
    /// `memory_exhausted`; the device failed.
    pub fn reserve_steps(&self, limits: &StepLimits, dtype: KvDType) -> Result<()> {
        let mut core = self.core.lock()?;
        let Core { compute, decoder, .. } = &mut *core;
        let (page, vocab) = (self.kv_shape(1, dtype), self.config.vocab_size);
        let mut dry_run = |compute: &mut dyn Compute| {
            let kv = compute.create_kv(page)?;
            // Prompts, and decoding alone, which may take other kernels.
            let steps = [*limits, StepLimits { prompt_tokens: 0, ..*limits }];
            let rotations = [false, true].into_iter().filter(|is_long| !is_long || self.config.long_ropes.is_some());
            let mut steps = rotations.flat_map(|is_long| steps.map(|limits| (limits, is_long)));
            let done = steps.try_for_each(|(limits, is_long)| {
                let mut batch = StepBatch::largest(&limits, vocab);
                batch.has_long_rope = is_long;
                let mut logits = zeros(batch.logit_rows.len().saturating_mul(vocab))?;
                decoder.forward(compute, &mut batch, &[kv], &mut logits)
            });
            compute.drop_kv(kv);
            done
        };
        compute.reserve_step(&mut dry_run).map_err(|error| match error.code() {
            ErrorCode::MemoryExhausted => error
                .with_subject("the buffers of steps")
                .with_hint("set a smaller prefill_chunk, max_rows or max_seq_len, or use a card with more free memory"),
            _ => error,
        })
    }

    /// Storage for KV pages of this model.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub fn create_kv(&self, pages: usize, dtype: KvDType) -> Result<KvStorage> {
        KvStorage::new(&self.core, self.kv_shape(pages, dtype))
    }

    /// Number of KV pages that fit into the device's free memory. `None` where memory is committed as it is used.
    ///
    /// # Errors
    /// `forked_while_in_use`; the device failed.
    pub fn kv_pages_in_free_memory(&self, dtype: KvDType) -> Result<Option<usize>> {
        let free = self.core.lock()?.compute.free_bytes()?;
        Ok(free.map(|free| free / self.kv_page_bytes(dtype)))
    }

    /// Bytes of a KV page of this model, over all layers.
    pub(crate) fn kv_page_bytes(&self, dtype: KvDType) -> usize {
        self.kv_shape(1, dtype).bytes().unwrap_or(usize::MAX).max(1)
    }

    fn kv_shape(&self, pages: usize, dtype: KvDType) -> KvShape {
        KvShape {
            layers: self.config.layers,
            pages,
            page_tokens: PAGE_TOKENS,
            kv_heads: self.config.kv_heads,
            head_dim: self.config.head_dim,
            dtype,
        }
    }

    /// Number of KV groups (caches of the base's number of layers) that a layer map needs.
    pub fn kv_groups_of(&self, layers: Option<&Arc<[u32]>>) -> usize {
        layers.map_or(1, |layers| decoder::kv_groups_of(layers.len(), self.config.layers))
    }

    /// What a row costs under a mixture, in rows of the base.
    pub(crate) fn row_cost(&self, mixture: &Mixture) -> usize {
        // A layer map that needs several KV groups has that many times the base's layers.
        (1 + mixture.rank_sum() / self.config.hidden_size.max(1)) * self.kv_groups_of(mixture.layers())
    }

    /// Runs one step; `logits` becomes `[rows with logits, batch.logit_width()]`. A row whose adapters give it fewer logits
    /// than that leaves the rest undefined, and a greedy one all of them, if the device told its largest. `kvs` has one cache for
    /// each KV group, or one that holds the pages of all.
    ///
    /// # Errors
    /// `memory_exhausted`; the device failed; `internal` if it panicked.
    pub fn forward(&self, batch: &mut StepBatch, kvs: &[&KvStorage], logits: &mut Vec<f32>) -> Result<()> {
        let mut core = self.core.lock()?;
        self.reap(&mut core);
        let Core { compute, decoder, kv_ids } = &mut *core;
        kv_ids.clear();
        kv_ids.extend(kvs.iter().map(|kv| kv.id()));
        let len = batch.logit_rows.len().saturating_mul(batch.logit_width);
        logits.try_reserve_exact(len.saturating_sub(logits.len())).map_err(|_| {
            let bytes = len.saturating_mul(size_of::<f32>());
            Error::new(ErrorCode::MemoryExhausted, format!("cannot allocate {bytes} bytes for the logits of a step"))
        })?;
        logits.resize(len, 0.0);
        // What the backend keeps from step to step stays usable: every step writes what it reads.
        let on_panic = |message: &str| Error::new(ErrorCode::Internal, format!("the step panicked: {message}"));
        catch_panic(on_panic, || decoder.forward(&mut **compute, batch, kv_ids, logits))
    }

    /// Computes steps with a wrapper around what does so now.
    #[cfg(test)]
    pub(crate) fn wrap_compute(&self, wrap: impl FnOnce(Box<dyn Compute>) -> Box<dyn Compute>) {
        let mut core = self.core.lock().expect("not forked");
        let placeholder = reference::open().finish().expect("an empty backend").compute;
        let inner = std::mem::replace(&mut core.compute, placeholder);
        core.compute = wrap(inner);
    }

    /// Drops the adapters that are no longer used.
    fn reap(&self, core: &mut Core) {
        self.adapters.reap(|slot| core.compute.drop_adapter(slot));
    }
}

/// The backend that a model will be loaded into.
fn open_backend(options: &ModelOptions) -> Result<Box<dyn BackendBuilder>> {
    if options.activations != ActivationDType::F32 && !matches!(options.device, Device::Auto | Device::Cpu) {
        return Err(Error::new(ErrorCode::RequestInvalid, "only the CPU takes activations of that type")
            .with_found(options.activations.name())
            .with_hint("leave activations at f32, or take the device cpu"));
    }
    let open_cpu = || {
        let ModelOptions { threads, activations, .. } = *options;
        cpu::open(&cpu::CpuOptions { threads, activations, isa: None })
    };
    match options.device {
        Device::Reference => Ok(reference::open()),
        Device::Cpu => open_cpu(),
        Device::Cuda(ordinal) => open_cuda(ordinal),
        // Only the CPU takes other activations.
        Device::Auto if options.activations != ActivationDType::F32 => open_cpu(),
        Device::Auto => match open_cuda(0) {
            Err(error) if [ErrorCode::CudaUnavailable, ErrorCode::DeviceUnavailable].contains(&error.code()) => {
                tracing::info!(%error, "device \"auto\" is the CPU");
                open_cpu()
            }
            opened => opened.inspect(|_| tracing::info!("device \"auto\" is cuda:0")),
        },
    }
}

#[cfg(feature = "cuda")]
fn open_cuda(ordinal: usize) -> Result<Box<dyn BackendBuilder>> {
    cuda::open(&cuda::CudaOptions { ordinal, element: None })
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: usize) -> Result<Box<dyn BackendBuilder>> {
    Err(Error::new(ErrorCode::DeviceUnavailable, "this build has no CUDA backend").with_found("cuda"))
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("path", &self.path).finish_non_exhaustive()
    }
}
