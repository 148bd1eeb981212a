//! The plain data that backend traits speak in: ids, shapes, and what one step's rows and attention are.

use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use super::kv_shape::KvShape;
use crate::adapter::batch::AdapterBatch;
use crate::error::{Error, ErrorCode, Result};
use crate::quant::StoredWeight;
use crate::sites::SiteId;
use crate::tensor::TensorView;

/// Activations `[rows, width]` in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferId(pub u32);

/// Linears that read the same input: q,k,v; o; gate,up; down; lm_head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupId(pub u32);

/// A norm's weight.
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
    /// The base's bias `[out_features]`; a format's padding beyond that is not read.
    pub bias: Option<TensorView<'a>>,
}

/// How quantized linears of the CPU take their activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActivationDType {
    /// As exactly as f32 has them: the default.
    #[default]
    F32,
    /// Rounded to 8 bits, with a scale for every 32: multiplied with fewer instructions, and all logits move.
    Int8,
}

impl ActivationDType {
    /// All of them.
    pub const ALL: [ActivationDType; 2] = [ActivationDType::F32, ActivationDType::Int8];

    /// Its name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            ActivationDType::F32 => "f32",
            ActivationDType::Int8 => "int8",
        }
    }
}

impl FromStr for ActivationDType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == text).ok_or_else(|| {
            Error::new(ErrorCode::RequestInvalid, "linears cannot take such activations")
                .with_expected(Self::ALL.map(Self::name).join(" or "))
                .with_found(text)
        })
    }
}

/// Rotary embedding of a layer: the first `2 * inv_freq.len()` channels of each head are rotated, the rest are kept.
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

impl AttentionSpec {
    /// Checks that the spec and every row lie within a cache of that shape.
    ///
    /// # Errors
    /// `internal` if they don't.
    pub fn check(&self, shape: &KvShape, rows: &StepRows) -> Result<()> {
        let fits = self.layer < shape.layers
            && self.kv_heads == shape.kv_heads
            && self.head_dim == shape.head_dim
            && self.heads > 0
            && self.kv_heads > 0
            && self.head_dim > 0
            && shape.page_tokens > 0
            && self.heads.is_multiple_of(self.kv_heads)
            && 2 * self.rope.inv_freq.len() <= self.head_dim
            && self.window != Some(0)
            && rows.sequences.len() == rows.len()
            && rows.block_tables.iter().flatten().all(|&page| (page as usize) < shape.pages);
        let is_paged = |(&position, &sequence): (&u32, &u32)| {
            let table = rows.block_tables.get(sequence as usize);
            table.is_some_and(|table| position as usize / shape.page_tokens < table.len())
        };
        if fits && rows.positions.iter().zip(&rows.sequences).all(is_paged) {
            return Ok(());
        }
        Err(Error::new(ErrorCode::Internal, "a step's rows or its attention do not lie within the KV cache"))
    }
}

/// The positions of a step's rows in their sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepRows {
    /// Position of each row in its sequence. Rows of a sequence are in ascending order of position.
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

/// All that the operations of a step will be called with, beside weights.
#[derive(Clone, Copy, Debug)]
pub struct StepInputs<'a> {
    /// Token of each row.
    pub tokens: &'a [u32],
    /// Adapters of each row.
    pub adapters: &'a AdapterBatch,
    /// Positions and pages of each row, by KV group.
    pub kv_groups: &'a [StepRows],
    /// Rows whose logits are wanted.
    pub logit_rows: &'a [u32],
    /// Adapters of each of those rows.
    pub logit_adapters: &'a AdapterBatch,
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
