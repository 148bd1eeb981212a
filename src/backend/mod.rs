//! The backend: six coarse operations over memory of its own.
//!
//! A decoder is a walk that names buffers and calls [`Backend::embed`], [`norm`](Backend::norm),
//! [`linear`](Backend::linear), [`attend`](Backend::attend), [`activate`](Backend::activate) and
//! [`head`](Backend::head). Buffers, weights, KV and adapters live inside the backend and are named by small ids, so
//! the same walk drives a CPU and a graphics card, and a captured graph sees fixed addresses.
//!
//! An operation reads one buffer and writes another, never the same. What does not exist or does not fit together is an
//! `internal` error.
//!
//! **Rows are independent.** Whatever shares the step, however it is chunked, a row's result has the same bits: every
//! sum over inputs, ranks or positions has one order that depends on the row alone.

pub mod cpu;

use std::ops::Range;
use std::sync::Arc;

use crate::adapter::batch::{AdapterBatch, SlotId};
use crate::adapter::delta::SiteDelta;
use crate::error::{Error, Result};
use crate::quant::StoredWeight;
use crate::sites::{SiteId, SitePart};
use crate::tensor::TensorView;

/// Activations `[rows, width]` in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferId(pub u32);

/// Linears that read the same input: q,k,v; o; gate,up; down; lm_head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupId(pub u32);

/// A vector of parameters, such as a norm's weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormId(pub u32);

/// An embedding table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddingId(pub u32);

/// Storage of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvId(pub u32);

/// One linear of a group while it is packed.
pub struct LinearSource<'a> {
    /// Where adapters find it.
    pub site: SiteId,
    /// The stored weight `[out_features, in_features]`.
    pub weight: StoredWeight<'a>,
    /// The base's bias `[out_features]`; what a format pads it with beyond that is not read.
    pub bias: Option<TensorView<'a>>,
}

/// Element type of cached keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvDType {
    /// Half precision: the default.
    #[default]
    F16,
    /// Single precision.
    F32,
}

impl KvDType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            KvDType::F16 => 2,
            KvDType::F32 => 4,
        }
    }
}

/// Size of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Decoder layers.
    pub layers: usize,
    /// Pages; each holds `page_tokens` positions of every layer.
    pub pages: usize,
    /// Positions of a page.
    pub page_tokens: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Element type.
    pub dtype: KvDType,
}

impl KvShape {
    /// Bytes of keys and values together, or `None` on overflow.
    pub fn bytes(&self) -> Option<usize> {
        [self.layers, self.pages, self.page_tokens, self.kv_heads, self.head_dim, self.dtype.bytes()]
            .into_iter()
            .try_fold(2usize, |n, d| n.checked_mul(d))
    }
}

/// Rotary embedding of a layer: the first `2 * inv_freq.len()` channels of each head turn, the rest pass.
///
/// Channel `i` pairs with channel `i + inv_freq.len()` (the "NeoX" halves that Hugging Face models use).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians per position of each channel pair.
    pub inv_freq: Vec<f32>,
    /// Factor on cosine and sine (yarn's attention factor; 1 otherwise).
    pub factor: f32,
}

/// What one layer's attention does with its q,k,v.
#[derive(Clone, Debug)]
pub struct AttentionSpec {
    /// Index of the layer in the KV cache.
    pub layer: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; `heads` is a multiple of it.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A row sees this many positions, its own included; `None` sees all before it.
    pub window: Option<usize>,
    /// RMS norm over each query head, before the rotation.
    pub q_norm: Option<NormId>,
    /// RMS norm over each key head, before the rotation.
    pub k_norm: Option<NormId>,
    /// Epsilon of both norms.
    pub norm_eps: f32,
    /// The rotation, shared by layers.
    pub rope: Arc<Rope>,
}

/// Where the rows of a step stand in their sequences.
#[derive(Clone, Debug, Default)]
pub struct StepRows {
    /// Position of each row in its sequence. Rows of a sequence stand in ascending order of position.
    pub positions: Vec<u32>,
    /// Index into `block_tables` of each row.
    pub sequences: Vec<u32>,
    /// The pages of each sequence, in order of position.
    pub block_tables: Vec<Vec<u32>>,
}

impl StepRows {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether the step has no rows.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Adds the rows of one more sequence, which has those pages.
    pub fn push(&mut self, positions: Range<usize>, pages: impl IntoIterator<Item = u32>) {
        let sequence = self.sequences.last().map_or(0, |last| last + 1);
        if self.block_tables.len() <= sequence as usize {
            self.block_tables.push(Vec::new());
        }
        let table = &mut self.block_tables[sequence as usize];
        table.clear();
        table.extend(pages);
        self.sequences.extend(positions.clone().map(|_| sequence));
        self.positions.extend(positions.map(|position| position as u32));
    }

    /// Forgets the rows, keeping the buffers.
    pub fn clear(&mut self) {
        self.positions.clear();
        self.sequences.clear();
    }
}

/// Gate functions of a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
}

/// Whether a linear replaces its output or adds to it (the residual stream).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// `y = …`
    Replace,
    /// `y += …`
    Add,
}

/// Why an adapter was not taken.
#[derive(Clone, Debug, PartialEq)]
pub enum UploadError {
    /// DoRA would divide by the norm of an output, which is 0. Only who knows the sites can name it.
    ZeroNorm {
        /// Where.
        site: SiteId,
        /// Which of its outputs.
        output: usize,
    },
    /// Anything else.
    Failed(Error),
}

impl From<Error> for UploadError {
    fn from(error: Error) -> Self {
        UploadError::Failed(error)
    }
}

/// Bytes that are resident in the backend's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendMemory {
    /// Packed weights, tables and vectors.
    pub weights_bytes: usize,
    /// Adapters in slots.
    pub adapters_bytes: usize,
    /// KV caches.
    pub kv_bytes: usize,
}

/// A device that holds a model and computes steps of it. See the module for its one law: rows are independent.
pub trait Backend: Send {
    /// What computes, for reports: `cpu (avx512, 2 threads)`.
    fn describe(&self) -> String;

    /// Resident bytes.
    fn memory(&self) -> BackendMemory;

    /// Packs the linears of one group, in the order in which their outputs stand in `y`.
    ///
    /// # Errors
    /// `memory_exhausted`.
    fn load_linears(&mut self, members: &[LinearSource<'_>]) -> Result<GroupId>;

    /// Takes an embedding table `[vocab, hidden]`; adapters find it at `site`.
    ///
    /// # Errors
    /// `memory_exhausted`.
    fn load_embedding(&mut self, site: SiteId, table: TensorView<'_>) -> Result<EmbeddingId>;

    /// Takes a norm's weight; adapters find it at `site`.
    ///
    /// # Errors
    /// `memory_exhausted`.
    fn load_norm(&mut self, site: SiteId, vector: TensorView<'_>) -> Result<NormId>;

    /// A buffer of rows of `width` values; it grows to the rows of the largest step.
    fn create_buffer(&mut self, width: usize) -> BufferId;

    /// Makes every buffer hold at least that many rows. Their contents are undefined afterwards.
    ///
    /// # Errors
    /// `memory_exhausted`.
    fn reserve_rows(&mut self, rows: usize) -> Result<()>;

    /// Storage of a KV cache; its contents are undefined until written.
    ///
    /// # Errors
    /// `memory_exhausted`.
    fn create_kv(&mut self, shape: KvShape) -> Result<KvId>;

    /// Gives a KV cache back. An unknown id is ignored.
    fn drop_kv(&mut self, kv: KvId);

    /// Whether the base's weight or bias at a site is stored as numbers and holds exactly these: an adapter's copy of it
    /// then replaces nothing. `false` wherever it can't be told.
    fn equals_base(&self, site: SiteId, part: SitePart, values: TensorView<'_>) -> bool;

    /// The base's weight at a linear site as plain numbers, `[out_features, in_features]`.
    ///
    /// # Errors
    /// `internal`: no linear was packed there.
    fn dense_weight(&mut self, site: SiteId) -> Result<Vec<f32>>;

    /// Takes an adapter into a free slot and returns the bytes it occupies there.
    ///
    /// # Errors
    /// `memory_exhausted`, or a norm of 0 that DoRA would divide by. The slot is then still free.
    fn upload_adapter(&mut self, slot: SlotId, deltas: &[SiteDelta<'_>]) -> Result<usize, UploadError>;

    /// Empties a slot. An empty slot is ignored.
    fn drop_adapter(&mut self, slot: SlotId);

    /// `out[i] = multiplier * table[tokens[i]]`, with what row i's adapters change there: `linear`'s formula for a one-hot
    /// input.
    ///
    /// # Errors
    /// `token_out_of_range`, where a row's adapter has more tokens than the base only beyond those; the device failed.
    fn embed(
        &mut self,
        table: EmbeddingId,
        tokens: &[u32],
        multiplier: f32,
        batch: &AdapterBatch,
        out: BufferId,
    ) -> Result<()>;

    /// RMS norm: `out[i] = weight * x[i] / sqrt(mean(x[i]^2) + eps)`, with the weight of row i's adapter where it has one.
    ///
    /// # Errors
    /// The device failed.
    fn norm(
        &mut self,
        weight: NormId,
        eps: f32,
        x: BufferId,
        rows: usize,
        batch: &AdapterBatch,
        out: BufferId,
    ) -> Result<()>;

    /// `y[i] = W x[i] + b`, then for each of row i's (slot, w) in order `y[i] += w * scale * (B (A x[i]) + b_B)`, or with a
    /// magnitude `y[i] = b + (m / n) (y[i] - b + w * scale * B (A x[i]))`; W and b are those of the adapter of the row
    /// that replaces them, if one does. Each member's outputs stand after the one before. The only way a projection is
    /// computed. The sum W x is finished first, then each adapter acts on it in turn, and b stands outside of what a magnitude
    /// rescales; [`Write::Add`] adds the result to the old `y` once.
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

    /// Norms and turns q and k, appends k and v to the cache, then `out[i] = softmax(scale q k^T) v` over the positions
    /// that row i sees. `qkv` is `[rows, (heads + 2 kv_heads) * head_dim]`, `out` `[rows, heads * head_dim]`. Keys and
    /// values are read back as stored, also those of this step. `batch` is for the norms, as in [`Backend::norm`].
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

    /// `out[i] = act(gate) * up`, with `gate_up[i] = gate | up`.
    ///
    /// # Errors
    /// The device failed.
    fn activate(&mut self, activation: Activation, gate_up: BufferId, rows: usize, out: BufferId) -> Result<()>;

    /// Logits of some rows of `x` through the head's group: `logits` is `[rows.len(), stride]`, and `batch` routes the
    /// picked rows (its row `j` is row `rows[j]` of `x`). A row whose adapter replaces the head by one with more outputs
    /// has those too; what a row has no outputs for is not written.
    ///
    /// # Errors
    /// The device failed.
    fn head(
        &mut self,
        group: GroupId,
        x: BufferId,
        rows: &[u32],
        batch: &AdapterBatch,
        logits: &mut [f32],
        stride: usize,
    ) -> Result<()>;
}
