//! The CPU backend: weights stay packed in memory and are unpacked in registers, on every core.
//!
//! Lower layers first; a file uses only files of its own layer or a lower one.
//!
//! | folder | content |
//! |---|---|
//! | `kernels` | instruction sets, the vector types, and every inner loop: products of tiles, attention, norm, gate |
//! | `runtime` | the thread pool and its gate; memory for weights, activations and KV pages |
//! | `weights` | packing linears and embeddings, dequantizing them |
//! | `adapter` | prepared adapters: low-rank factors, DoRA norms; routing rows to them |
//! | `ops` | the operations of a step, over all rows and threads |
//! | `preparer`, `compute` | the backend traits |
//!
//! Threads split outputs, rows, heads and fixed segments of positions, never a sum, and vectors run over outputs, never over
//! inputs: so a row's bits depend neither on the rest of the batch nor on the number of threads.

mod adapter;
mod compute;
mod kernels;
mod ops;
mod preparer;
mod runtime;
mod weights;

use std::sync::Arc;

use self::compute::CpuCompute;
use self::kernels::dispatch::Kernels;
pub use self::kernels::isa::Isa;
use self::preparer::CpuPreparer;
use self::runtime::cores::default_threads;
use self::runtime::threads::Pool;
use self::weights::BaseWeights;
use super::{
    ActivationDType, Backend, BackendBuilder, EmbeddingId, GroupId, LinearSource, MemoryUse, NormId, NormSource,
    WeightLoader,
};
use crate::checkpoint::TensorOnDisk;
use crate::error::{Error, ErrorCode, Result};
use crate::sites::SiteId;
use crate::tensor::TensorView;

/// Embedding tables of at most that many bytes are copied; of larger ones, rows are read from their file when they are needed:
/// a step needs few of them, and the kernel caches those.
const COPIED_TABLE_BYTES: usize = 16 << 20;

/// Options of the CPU backend.
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Threads that compute, the caller's included; by default, all physical cores that may be used.
    pub threads: Option<usize>,
    /// Instruction set of the kernels; by default, the one that the environment variable `EXLORA_ISA` names, else the best
    /// this machine has.
    pub isa: Option<Isa>,
    /// How quantized linears take their activations.
    pub activations: ActivationDType,
}

/// The CPU as a backend.
///
/// # Errors
/// `device_unavailable` if the machine lacks the instruction set asked for; `memory_exhausted` if a thread could not be
/// started.
pub fn open(options: &CpuOptions) -> Result<Box<dyn BackendBuilder>> {
    let isa = options.isa.map_or_else(Isa::of_environment, Ok)?;
    let kernels = Kernels::of(isa).ok_or_else(|| {
        Error::new(ErrorCode::DeviceUnavailable, format!("this machine has no {isa}")).with_found(Isa::detect())
    })?;
    let threads = options.threads.unwrap_or_else(default_threads).max(1);
    tracing::debug!(%isa, threads, "cpu backend opened");
    Ok(Box::new(CpuBuilder { pool: Pool::new(threads)?, weights: BaseWeights::new(kernels, options.activations) }))
}

/// The CPU backend while a model loads.
struct CpuBuilder {
    pool: Pool,
    weights: BaseWeights,
}

impl WeightLoader for CpuBuilder {
    fn load_linears(&mut self, members: &[LinearSource<'_>]) -> Result<GroupId> {
        self.weights.load_linears(&mut self.pool, members)
    }

    fn load_embedding(&mut self, site: SiteId, table: TensorView<'_>) -> Result<EmbeddingId> {
        self.weights.load_embedding(site, table)
    }

    fn load_embedding_on_disk(
        &mut self,
        site: SiteId,
        table: TensorView<'_>,
        on_disk: TensorOnDisk,
    ) -> Result<EmbeddingId> {
        match table.bytes().len() {
            0..=COPIED_TABLE_BYTES => self.weights.load_embedding(site, table),
            _ => self.weights.load_embedding_on_disk(site, table, on_disk),
        }
    }

    fn load_norm(&mut self, source: &NormSource<'_>) -> Result<NormId> {
        self.weights.load_norm(source)
    }
}

impl BackendBuilder for CpuBuilder {
    fn finish(self: Box<Self>) -> Result<Backend> {
        let Self { pool, weights } = *self;
        let (isa, threads, weights) = (weights.kernels.isa, pool.threads(), Arc::new(weights));
        let memory = Arc::new(MemoryUse::new(weights.arena.bytes()));
        Ok(Backend {
            description: format!("cpu ({isa}, {threads} thread{})", if threads == 1 { "" } else { "s" }),
            adapters: Arc::new(CpuPreparer::new(Arc::clone(&weights), threads)),
            compute: Box::new(CpuCompute::new(weights, pool, Arc::clone(&memory))),
            memory,
        })
    }
}
