//! Backends, by role: loading the base's weights, preparing adapters, computing steps.
//!
//! A [`BackendBuilder`] takes the base's weights through [`WeightLoader`] and finishes as a [`Backend`]: an
//! [`AdapterPreparer`], which is shared and immutable, and a [`Compute`], which owns everything a step changes. Whoever
//! needs one role implements or holds only that.
//!
//! The forward pass names buffers and calls [`Compute::embed`], [`norm`](Compute::norm), [`linear`](Compute::linear),
//! [`attend`](Compute::attend), [`activate`](Compute::activate) and [`head`](Compute::head). Buffers, weights, KV and
//! adapters live inside the backend and are named by small ids, so the same forward pass drives a CPU and a graphics card,
//! and a captured graph sees fixed addresses. An operation reads one buffer and writes another, never the same. An id that
//! does not exist or shapes that do not fit together are an `internal` error.
//!
//! **Rows are independent.** Whatever shares the step, however it is chunked, a row's result has the same bits: every
//! sum over inputs, ranks or positions has one order that depends on the row alone. Batch invariance follows from that.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod kv_elements;
mod kv_positions;
pub mod kv_quant;
mod kv_shape;
mod kv_states;
mod packed_norm;
pub mod reference;
mod rope;
mod slots;
mod sorted_deltas;
mod types;

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use self::kv_positions::KvPositions;
pub use self::kv_shape::{KvDType, KvShape};
pub use self::kv_states::KvStates;
pub use self::rope::{Rope, RopeLayout};
pub use self::types::{
    Activation, ActivationDType, AttentionSpec, BufferId, EmbeddingId, GroupId, HeadNorm, HeadNormScope, HeadSpec,
    KvId, LargestLogit, LinearSource, LogitRows, MlpShape, NormId, NormKind, NormSource, NormSpec, QueryTemperature,
    StepInputs, StepRows, Write,
};
use crate::adapter::batch::{AdapterBatch, SlotId};
use crate::adapter::delta::SiteDelta;
use crate::checkpoint::TensorOnDisk;
use crate::error::{Error, ErrorCode, Result};
use crate::sites::{SiteId, SitePart};
use crate::tensor::TensorView;

/// Takes the base's weights while a model loads.
pub trait WeightLoader {
    /// Packs the linears of one group, in the order of their outputs in `y`.
    ///
    /// # Errors
    /// `memory_exhausted`.
    fn load_linears(&mut self, members: &[LinearSource<'_>]) -> Result<GroupId>;

    /// Takes an embedding table `[vocab, hidden]`; adapters find it at `site`.
    ///
    /// # Errors
    /// `memory_exhausted`.
    fn load_embedding(&mut self, site: SiteId, table: TensorView<'_>) -> Result<EmbeddingId>;

    /// As [`WeightLoader::load_embedding`], of a table that stays readable in its file: a backend may read rows there instead of
    /// keeping them.
    ///
    /// # Errors
    /// `memory_exhausted`.
    fn load_embedding_on_disk(
        &mut self,
        site: SiteId,
        table: TensorView<'_>,
        _on_disk: TensorOnDisk,
    ) -> Result<EmbeddingId> {
        self.load_embedding(site, table)
    }

    /// Takes a norm's weight and bias.
    ///
    /// # Errors
    /// `memory_exhausted`.
    fn load_norm(&mut self, source: &NormSource<'_>) -> Result<NormId>;
}

/// A backend that still takes weights.
pub trait BackendBuilder: WeightLoader {
    /// What takes all weights once before they are loaded, only to add up their memory, on a device where they go into one
    /// allocation. `None` where each finds its own memory. Without it too they load.
    fn measurer(&mut self) -> Option<&mut dyn WeightLoader> {
        None
    }

    /// The backend, whose base weights never change again.
    ///
    /// # Errors
    /// `memory_exhausted`; the device failed.
    fn finish(self: Box<Self>) -> Result<Backend>;
}

/// A device that holds a model's weights.
pub struct Backend {
    /// What computes, for reports: `cpu (avx512, 2 threads)`.
    pub description: String,
    /// Resident bytes, up to date at any time.
    pub memory: Arc<MemoryUse>,
    /// Compares tensors with the base's and prepares adapters, on any thread.
    pub adapters: Arc<dyn AdapterPreparer>,
    /// Computes steps.
    pub compute: Box<dyn Compute>,
}

/// Resident bytes of a backend at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendMemory {
    /// The base's packed weights.
    pub weights_bytes: usize,
    /// Adapters in slots.
    pub adapters_bytes: usize,
    /// KV caches.
    pub kv_bytes: usize,
    /// Of a device with memory of its own, if it tells.
    pub device: Option<DeviceMemoryUse>,
}

/// The memory of a device at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceMemoryUse {
    /// What the backend has allocated: weights, adapters, KV caches, and the buffers of steps.
    pub allocated_bytes: usize,
    /// What nobody uses, other processes included.
    pub free_bytes: usize,
    /// All it has.
    pub total_bytes: usize,
}

/// Tells the memory of a device, at any time and from any thread.
pub type DeviceMemoryProbe = Box<dyn Fn() -> Option<DeviceMemoryUse> + Send + Sync>;

/// Counts the resident bytes of a backend, readable while a step computes.
#[derive(Default)]
pub struct MemoryUse {
    weights: usize,
    adapters: AtomicUsize,
    kv: AtomicUsize,
    device: Option<DeviceMemoryProbe>,
}

impl MemoryUse {
    /// Of a backend that holds the base's weights alone.
    pub fn new(weights_bytes: usize) -> Self {
        Self { weights: weights_bytes, ..Self::default() }
    }

    /// Of a device with memory of its own.
    pub fn on_device(weights_bytes: usize, device: DeviceMemoryProbe) -> Self {
        Self { weights: weights_bytes, device: Some(device), ..Self::default() }
    }

    /// The counts now.
    pub fn read(&self) -> BackendMemory {
        BackendMemory {
            weights_bytes: self.weights,
            adapters_bytes: self.adapters.load(Ordering::Relaxed),
            kv_bytes: self.kv.load(Ordering::Relaxed),
            device: self.device.as_ref().and_then(|device| device()),
        }
    }

    fn add_adapter(&self, bytes: usize) {
        self.adapters.fetch_add(bytes, Ordering::Relaxed);
    }

    fn remove_adapter(&self, bytes: usize) {
        self.adapters.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn add_kv(&self, bytes: usize) {
        self.kv.fetch_add(bytes, Ordering::Relaxed);
    }

    fn remove_kv(&self, bytes: usize) {
        self.kv.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Why an adapter could not be prepared.
#[derive(Clone, Debug, PartialEq)]
pub enum PrepareError {
    /// DoRA would divide by the norm of an output, which is 0. Only a caller that knows the sites can name it.
    ZeroNorm {
        /// The site.
        site: SiteId,
        /// Which of its outputs.
        output: usize,
    },
    /// Anything else.
    Failed(Error),
}

impl From<Error> for PrepareError {
    fn from(error: Error) -> Self {
        PrepareError::Failed(error)
    }
}

/// An adapter in the layout of its backend, ready for a slot.
pub struct PreparedAdapter {
    bytes: usize,
    adapter: Box<dyn Any + Send>,
}

impl PreparedAdapter {
    /// A backend's own form of an adapter, which occupies that many bytes.
    pub fn new(bytes: usize, adapter: impl Any + Send) -> Self {
        Self { bytes, adapter: Box::new(adapter) }
    }

    /// Bytes it occupies.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What [`PreparedAdapter::new`] was given.
    ///
    /// # Errors
    /// `internal` if it was prepared by a backend of another kind.
    pub fn into_inner<T: Any>(self) -> Result<Box<T>> {
        let foreign = |_| Error::new(ErrorCode::Internal, "an adapter was prepared by a backend of another kind");
        self.adapter.downcast().map_err(foreign)
    }
}

impl std::fmt::Debug for PreparedAdapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PreparedAdapter").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// Compares tensors with the base's and prepares adapters, on the caller's thread and short-lived helpers. It never waits
/// for a step.
pub trait AdapterPreparer: Send + Sync {
    /// Whether the base's weight or bias at a site is stored as plain floats and holds exactly these: an adapter's copy of
    /// it then replaces nothing. `false` wherever that cannot be decided.
    fn equals_base(&self, site: SiteId, part: SitePart, values: TensorView<'_>) -> bool;

    /// The base's dequantized weight at a linear site, `[out_features, in_features]`.
    ///
    /// # Errors
    /// `internal`: no linear was loaded there.
    fn dense_weight(&self, site: SiteId) -> Result<Vec<f32>>;

    /// Packs an adapter's factors and computes its DoRA norms. `between_parts` is called every second or more often, and may
    /// end the work by an error.
    ///
    /// # Errors
    /// `memory_exhausted`, or a norm of 0 that DoRA would divide by; what `between_parts` returned.
    fn prepare(
        &self,
        deltas: &[SiteDelta<'_>],
        between_parts: &mut dyn FnMut() -> Result<()>,
    ) -> Result<PreparedAdapter, PrepareError>;
}

/// Computes steps. See the module for its one law: rows are independent.
pub trait Compute: Send {
    /// A buffer of rows of `width` values; it grows to the rows of the largest step.
    fn create_buffer(&mut self, width: usize) -> BufferId;

    /// Begins a step that is known as a whole, so that a device can be told in one transfer. It reserves the step's rows.
    /// Operations that are then called with something else are as right as those of a step that began with
    /// [`Compute::reserve_rows`].
    ///
    /// # Errors
    /// `memory_exhausted`; the device failed.
    fn begin_step(&mut self, inputs: &StepInputs<'_>) -> Result<()> {
        self.reserve_rows(inputs.tokens.len())
    }

    /// Allocates all that a step needs, so that one no larger allocates nothing, on a device that would otherwise do so during
    /// the step. `dry_run` calls the operations of the step, which then allocate and compute nothing; elsewhere it is not called.
    ///
    /// # Errors
    /// `memory_exhausted`; what `dry_run` returned; the device failed.
    fn reserve_step(&mut self, _dry_run: &mut dyn FnMut(&mut dyn Compute) -> Result<()>) -> Result<()> {
        Ok(())
    }

    /// Begins a step: makes every buffer hold at least that many rows, whose contents are undefined afterwards.
    ///
    /// # Errors
    /// `memory_exhausted`.
    fn reserve_rows(&mut self, rows: usize) -> Result<()>;

    /// Copies rows `[rows, width]` into a buffer, from row `first` on; its other rows stay as they are.
    ///
    /// # Errors
    /// `internal` if they are more than were reserved; the device failed.
    fn write_rows(&mut self, buffer: BufferId, first: usize, values: &[f32]) -> Result<()>;

    /// Copies the first rows of a buffer out, `[rows, width]`.
    ///
    /// # Errors
    /// `internal` if they are more than were reserved; the device failed.
    fn read_rows(&mut self, buffer: BufferId, values: &mut [f32]) -> Result<()>;

    /// Bytes of memory that nobody uses, on a device where memory is committed when it is allocated; `None` elsewhere.
    ///
    /// # Errors
    /// The device failed.
    fn free_bytes(&self) -> Result<Option<usize>> {
        Ok(None)
    }

    /// Storage of a KV cache; its contents are undefined until written.
    ///
    /// # Errors
    /// `memory_exhausted`; as [`KvShape::check`].
    fn create_kv(&mut self, shape: KvShape) -> Result<KvId>;

    /// Frees a KV cache. An unknown id is ignored.
    fn drop_kv(&mut self, kv: KvId);

    /// Keys and values of some positions of a layer of the sequence that has those pages, codes dequantized and rotated back.
    /// What was not written there is undefined.
    ///
    /// # Errors
    /// `internal` if they do not lie within the cache; `memory_exhausted`; the device failed.
    fn read_kv(&self, kv: KvId, layer: usize, block_table: &[u32], positions: Range<usize>) -> Result<KvStates>;

    /// Copies pages, each with all its layers, byte for byte to pages of another cache that has the same shape but for the number
    /// of its pages, or to other pages of the same one.
    ///
    /// # Errors
    /// `internal` if the caches or pages do not fit each other; the device failed.
    fn copy_kv_pages(&mut self, from: KvId, from_pages: &[u32], to: KvId, to_pages: &[u32]) -> Result<()>;

    /// Copies keys and values of positions of a layer, bit for bit, to as many positions of another cache that has the same shape
    /// but for the number of its pages, or of the same one, where the two may overlap. `keys`, `[positions, kv_heads, head_dim]`,
    /// take the place of those that are copied, and are stored as [`Compute::attend`] stores those that are normed and rotated.
    /// Returns whether all of them that are finite are so as stored.
    ///
    /// # Errors
    /// `internal` if the caches, positions or keys do not fit each other; `memory_exhausted`; the device failed.
    fn copy_kv_positions(
        &mut self,
        layer: usize,
        from: KvPositions<'_>,
        to: KvPositions<'_>,
        keys: Option<&[f32]>,
    ) -> Result<bool>;

    /// Moves an adapter into a free slot. Takes microseconds.
    ///
    /// # Errors
    /// `internal` if the slot is taken, or another backend prepared the adapter.
    fn install_adapter(&mut self, slot: SlotId, adapter: PreparedAdapter) -> Result<()>;

    /// Empties a slot. An empty slot is ignored.
    fn drop_adapter(&mut self, slot: SlotId);

    /// `out[i] = multiplier * table[tokens[i]]`, with what row i's adapters change there: `linear`'s formula for a one-hot
    /// input.
    ///
    /// # Errors
    /// `token_out_of_range`, where a row's adapter has more tokens than the base only beyond those; `checkpoint_unreadable` or
    /// `checkpoint_truncated` if rows are read from a file that was changed in place since; the device failed.
    fn embed(
        &mut self,
        table: EmbeddingId,
        tokens: &[u32],
        multiplier: f32,
        batch: &AdapterBatch,
        out: BufferId,
    ) -> Result<()>;

    /// `out[i] = weight * normed(x[i]) + bias`, see [`NormKind`], with the weight and bias of row i's adapter where it has
    /// them. `write` says whether that replaces `out[i]` or is added to it, once.
    ///
    /// # Errors
    /// The device failed.
    fn norm(
        &mut self,
        norm: &NormSpec,
        x: BufferId,
        rows: usize,
        batch: &AdapterBatch,
        out: BufferId,
        write: Write,
    ) -> Result<()>;

    /// `y[i] = W x[i] + b`, then for each of row i's (slot, w) in order `y[i] += w * scale * (B (A x[i]) + b_B)`, or with a
    /// magnitude `y[i] = b + (m / n) (y[i] - b + w * scale * B (A x[i]))`; W and b are those of the adapter of the row
    /// that replaces them, if one does. The members' outputs follow each other in `y`. Every projection is computed here.
    /// The sum W x is finished first, then each adapter acts on it in turn, and b is outside of what a magnitude rescales;
    /// [`Write::Add`] adds the result, times its factor, to the old `y` once.
    ///
    /// # Errors
    /// `internal` if a row names an empty slot: it is never computed as the base. The device failed.
    fn linear(
        &mut self,
        group: GroupId,
        x: BufferId,
        rows: usize,
        batch: &AdapterBatch,
        y: BufferId,
        write: Write,
    ) -> Result<()>;

    /// Norms and rotates q and k, appends k and v to the cache, multiplies q by the temperature of its position, then
    /// `out[i] = softmax(cap(scale q k^T)) v` over the positions that row i sees. `qkv` is `[rows, (heads + 2 kv_heads) * head_dim]`, `out` `[rows, heads * head_dim]`. Keys and
    /// values are read back as stored, also those of this step. `batch` is for the norms, as in [`Compute::norm`].
    ///
    /// What is not finite as stored is stored as NaN, so that every row that sees it becomes NaN: an infinite key would
    /// silently get a weight of 0 or 1. See [`Compute::take_kv_overflows`].
    ///
    /// # Errors
    /// The device failed.
    fn attend(
        &mut self,
        spec: &AttentionSpec,
        kv: KvId,
        rows: &StepRows,
        batch: &AdapterBatch,
        qkv: BufferId,
        out: BufferId,
    ) -> Result<()>;

    /// The rows of the step, ascending, that had a finite key or value beyond the range of their cache's element type so far;
    /// they are reported once.
    ///
    /// # Errors
    /// The device failed.
    fn take_kv_overflows(&mut self) -> Result<Vec<u32>>;

    /// The rows of the step, ascending, that had a finite activation beyond the range of the type in which the device computes,
    /// so far, as [`Compute::take_kv_overflows`], which is to be called first, found them; they are reported once. Where
    /// everything is computed in f32 there are none.
    ///
    /// # Errors
    /// The device failed.
    fn take_activation_overflows(&mut self) -> Result<Vec<u32>> {
        Ok(Vec::new())
    }

    /// `out[i] = act(gate) * up` with `x[i] = gate | up`, or `out[i] = act(x[i])`, as `shape` says.
    ///
    /// # Errors
    /// The device failed.
    fn activate(
        &mut self,
        activation: Activation,
        shape: MlpShape,
        x: BufferId,
        rows: usize,
        out: BufferId,
    ) -> Result<()>;

    /// Logits of some rows of `x` through a head: `logits` is `[rows, stride]`. Multiplier and cap act on the whole, what adapters
    /// change included. A row whose adapter replaces the head by one with more outputs has those too; outputs that a row does not
    /// have are not written. Nor are those of greedy rows, where [`Compute::take_largest_logits`] tells them.
    ///
    /// # Errors
    /// The device failed.
    fn head(
        &mut self,
        head: &HeadSpec,
        x: BufferId,
        rows: LogitRows<'_>,
        logits: &mut [f32],
        stride: usize,
    ) -> Result<()>;

    /// The largest logit of each row of the last [`Compute::head`], as [`Compute::take_kv_overflows`], which is to be called first,
    /// found it: `None` of a row whose logits were written. Empty where those of all were: a device that shares the host's
    /// memory has no use for more.
    ///
    /// # Errors
    /// The device failed.
    fn take_largest_logits(&mut self) -> Result<Vec<Option<LargestLogit>>> {
        Ok(Vec::new())
    }
}
