//! The plain data that backend traits speak in: ids, shapes, and what one step's rows and attention are.

use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use super::kv_shape::KvShape;
use super::rope::Rope;
use crate::adapter::batch::AdapterBatch;
use crate::checkpoint::Checkpoint;
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

/// A norm's weight, and its bias if it has one.
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
    /// Whose pages a backend releases while it packs a large weight; `None` if the weight is not of a checkpoint.
    pub checkpoint: Option<&'a Checkpoint>,
}

/// A norm as a checkpoint stores it.
pub struct NormSource<'a> {
    /// Where adapters find it.
    pub site: SiteId,
    /// The stored weight: `[width]`, or `[heads, head_dim]` where each head has its own.
    pub weight: TensorView<'a>,
    /// The stored bias, of the weight's shape.
    pub bias: Option<TensorView<'a>>,
    /// What is added to a stored weight, the base's or an adapter's, in f32: 1 for Gemma, whose norms multiply by `1 + weight`.
    pub offset: f32,
}

impl<'a> NormSource<'a> {
    /// A weight that is taken as it is stored, without bias.
    pub fn plain(site: SiteId, weight: TensorView<'a>) -> Self {
        Self { site, weight, bias: None, offset: 0.0 }
    }
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

/// What a norm divides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// The root of the mean square: `weight * x / sqrt(mean(x^2) + eps)`.
    Rms,
    /// The standard deviation, after the mean was subtracted: `weight * (x - mean(x)) / sqrt(var(x) + eps)`.
    Layer,
}

/// A norm of a decoder: `weight * normed + bias`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    /// Its weight and bias.
    pub id: NormId,
    /// What it divides by.
    pub kind: NormKind,
    /// Added to the mean of squares.
    pub eps: f32,
}

impl NormSpec {
    /// An RMS norm.
    pub fn rms(id: NormId, eps: f32) -> Self {
        Self { id, kind: NormKind::Rms, eps }
    }
}

/// What a norm of queries or keys takes its mean over, and which weights it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadNormScope {
    /// Each head; one weight `[head_dim]` for all.
    Head,
    /// Each head; a weight `[heads, head_dim]` with a row for each.
    HeadOwn,
    /// All heads together; a weight `[heads * head_dim]`.
    All,
}

impl HeadNormScope {
    /// Shape of the weight for that many heads.
    pub fn weight_shape(self, heads: usize, head_dim: usize) -> Vec<usize> {
        match self {
            HeadNormScope::Head => vec![head_dim],
            HeadNormScope::HeadOwn => vec![heads, head_dim],
            HeadNormScope::All => vec![heads * head_dim],
        }
    }
}

/// A norm of the queries or keys of a layer, before the rotation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadNorm {
    /// The norm.
    pub norm: NormSpec,
    /// Over what.
    pub scope: HeadNormScope,
}

impl HeadNorm {
    /// An RMS norm over each head.
    pub fn rms(id: NormId, eps: f32) -> Self {
        Self { norm: NormSpec::rms(id, eps), scope: HeadNormScope::Head }
    }
}

/// A factor on queries that grows with their position: `1 + beta * ln(1 + floor(position / positions))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryTemperature {
    /// How fast it grows.
    pub beta: f32,
    /// Positions for which it stays the same.
    pub positions: f32,
}

impl QueryTemperature {
    /// The factor at a position.
    pub fn at(&self, position: u32) -> f32 {
        1.0 + self.beta * (1.0 + (position as f32 / self.positions).floor()).ln()
    }
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
    /// Bound of the scaled scores: `cap * tanh(score / cap)`.
    pub score_cap: Option<f32>,
    /// A row sees this many positions, its own included; `None` sees all before it.
    pub window: Option<usize>,
    /// Norm of the queries, before the rotation.
    pub q_norm: Option<HeadNorm>,
    /// Norm of the keys, before the rotation.
    pub k_norm: Option<HeadNorm>,
    /// The rotation, shared by layers; `None` where queries and keys are not rotated.
    pub rope: Option<Arc<Rope>>,
    /// Factor on the rotated queries.
    pub query_temperature: Option<QueryTemperature>,
}

impl AttentionSpec {
    /// Attention of layer 0 to all positions, scaled by `1 / sqrt(head_dim)`, with neither norms nor a rotation.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self {
            layer: 0,
            heads,
            kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            score_cap: None,
            window: None,
            q_norm: None,
            k_norm: None,
            rope: None,
            query_temperature: None,
        }
    }

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
            && self.rope.as_ref().is_none_or(|rope| 2 * rope.inv_freq.len() <= self.head_dim)
            && self.score_cap.is_none_or(|cap| cap > 0.0)
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
    pub logits: LogitRows<'a>,
}

/// The rows of a step that go through the head.
#[derive(Clone, Copy, Debug)]
pub struct LogitRows<'a> {
    /// Which rows of the step they are.
    pub rows: &'a [u32],
    /// Adapters of each of them.
    pub adapters: &'a AdapterBatch,
    /// Whether each of them wants its largest logit alone, as greedy decoding does; empty where none does.
    pub is_greedy: &'a [bool],
}

impl<'a> LogitRows<'a> {
    /// Rows that want all their logits.
    pub fn all(rows: &'a [u32], adapters: &'a AdapterBatch) -> Self {
        Self { rows, adapters, is_greedy: &[] }
    }
}

/// The largest logit of a row, or, if some are infinite or NaN, the first of those.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LargestLogit {
    /// The lowest token that has it.
    pub token: u32,
    /// The logit.
    pub logit: f32,
}

/// Activation functions of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x P(x)`, with the normal distribution P in its approximation by a tanh: `x / (1 + exp(-2 u))`, where
    /// `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
    GeluTanh,
    /// `x P(x)`, with the normal distribution `P(x) = erfc(-x / sqrt(2)) / 2`.
    Gelu,
}

/// What an MLP's activation reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpShape {
    /// `gate | up`: `act(gate) * up`.
    Gated,
    /// `x`: `act(x)`.
    Plain,
}

/// Whether an operation replaces its output or adds to it (the residual stream).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Write {
    /// `y = …`
    Replace,
    /// `y += factor * …`, what adapters change included.
    Add {
        /// The residual multiplier; 1 for most models.
        factor: f32,
    },
}

impl Write {
    /// `y += …`
    pub const ADD: Write = Write::Add { factor: 1.0 };
}

/// An output head and what is done with its products, in this order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadSpec {
    /// Its weight.
    pub group: GroupId,
    /// Factor on the logits.
    pub multiplier: f32,
    /// Bound of the logits: `cap * tanh(logit / cap)`.
    pub cap: Option<f32>,
}

impl HeadSpec {
    /// A head whose products are the logits.
    pub fn of(group: GroupId) -> Self {
        Self { group, multiplier: 1.0, cap: None }
    }
}
