//! The kernels that finish a linear's products with the adapters' deltas, and turn them into what the next one reads.

use std::sync::{Arc, OnceLock};

use bytemuck::{Pod, Zeroable};

use super::embed::SQUARES_COLUMNS;
use super::grid_rows;
use super::kv_layout::{self, KvLayer};
use crate::backend::cuda::compiler::sources::{
    Define, EXPAND_ACTIVATE, EXPAND_LOGITS, EXPAND_RESIDUAL, EXPAND_ROPE_KV, KernelSource,
};
use crate::backend::cuda::driver::{Arguments, Device, Kernel};
use crate::backend::cuda::layout::ElementType;
use crate::backend::cuda::tables::{GROUP_LINEARS, RoutedNorm};
use crate::backend::{Activation, KvDType, LargestLogit, MlpShape};
use crate::error::Result;

/// Columns of a block of [`ExpandActivate`] and [`ExpandLogits`].
const COLUMNS: u32 = 256;
/// Lanes of a warp.
const WARP_LANES: u32 = 32;

/// A group's products for the rows of a step, and what finishes them.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Projection {
    /// `[rows, outputs]` f32: W x of the group's linears, one beside the other.
    pub projected: u64,
    /// `[entries, shrunk_stride]` f32: the products of each entry's stack; 0 where no row has one.
    pub shrunk: u64,
    /// `[out_features]` f32: the base's bias of each linear, or 0.
    pub bias: [u64; GROUP_LINEARS],
    /// Where each linear's outputs begin in a row; the last is the length of a row.
    pub starts: [u32; GROUP_LINEARS + 1],
    /// Outputs of each of the base's linears.
    pub out_features: [u32; GROUP_LINEARS],
    /// 1 if an adapter of the step replaces rows of a weight of the group, or takes something out of one.
    pub changes_weights: u32,
    /// Values from one entry's t to the next.
    pub shrunk_stride: u32,
    /// Index of the group in the slots' arrays of groups.
    pub group: u32,
}

impl Projection {
    /// The sizes of linears with those outputs, at most three; the rest is 0.
    pub fn of_outputs(outputs: impl IntoIterator<Item = usize>) -> Self {
        let mut projection = Self::default();
        for (out_features, outputs) in projection.out_features.iter_mut().zip(outputs) {
            *out_features = outputs as u32;
        }
        for linear in 0..GROUP_LINEARS {
            projection.starts[linear + 1] = projection.starts[linear] + projection.out_features[linear];
        }
        projection
    }
}

/// `hidden[i] += factor * y[i]`
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct ExpandResidual {
    /// A group of one linear.
    pub projection: Projection,
    /// The step's [`StepTables`](crate::backend::cuda::tables::StepTables).
    pub step: u64,
    /// `[rows, hidden_size]` f32, read and written.
    pub hidden: u64,
    /// `[rows, ceil(hidden_size / 256)]` f32, written.
    pub sum_squares: u64,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Factor on what is added.
    pub factor: f32,
}

/// `activated[i] = act(gate[i]) * up[i]`, or `act(up[i])`
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct ExpandActivate {
    /// The group of gate and up, or of up alone.
    pub projection: Projection,
    /// The step's [`StepTables`](crate::backend::cuda::tables::StepTables).
    pub step: u64,
    /// `[rows, intermediate_size]` of the element type, written.
    pub activated: u64,
    /// `[rows]` u32: becomes 1 where a finite value is beyond the element type.
    pub overflow_rows: u64,
    /// Width of up, and of gate.
    pub intermediate_size: u32,
    /// Kind of activation; see [`activation_kind`].
    pub activation: u32,
}

/// The number by which kernels know an activation.
pub fn activation_kind(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
        Activation::Gelu => 2,
    }
}

/// `logits[i] = cap * tanh(multiplier * y[i] / cap)`, and the largest of each row.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct ExpandLogits {
    /// The head's group.
    pub projection: Projection,
    /// The [`StepTables`](crate::backend::cuda::tables::StepTables) of the rows whose logits are wanted.
    pub step: u64,
    /// `[rows, stride]` f32, written.
    pub logits: u64,
    /// `[rows]` u64 for [`LargestKey::read`], zero before; 0 where they are not wanted.
    pub argmax: u64,
    /// Values from one row's logits to the next.
    pub stride: u32,
    /// Logits of the row that has the most.
    pub columns: u32,
    /// Factor on the logits.
    pub multiplier: f32,
    /// Cap of the logits, or 0.
    pub cap: f32,
}

/// What a key of [`ExpandLogits::argmax`] says of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LargestKey {
    /// Its largest logit, the first of equal ones.
    Finite(LargestLogit),
    /// Its first token whose logit is infinite or NaN.
    NotFinite(u32),
}

impl LargestKey {
    /// Takes a key apart: the order of the logit's bits in the upper half, the inverted token in the lower.
    pub fn read(key: u64) -> Self {
        const SIGN: u32 = 1 << 31;
        let (order, token) = ((key >> 32) as u32, !(key as u32));
        if order == u32::MAX {
            return LargestKey::NotFinite(token);
        }
        let bits = if order & SIGN != 0 { order ^ SIGN } else { !order };
        LargestKey::Finite(LargestLogit { token, logit: f32::from_bits(bits) })
    }
}

/// Norms, rotates and stores q, k, v.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct ExpandRopeKv {
    /// The group of q, k, v.
    pub projection: Projection,
    /// The step's [`StepTables`](crate::backend::cuda::tables::StepTables).
    pub step: u64,
    /// The step's [`AttentionTables`](crate::backend::cuda::tables::AttentionTables).
    pub attention: u64,
    /// The layer of the cache, written at the rows' positions.
    pub kv: KvLayer,
    /// `[rows, heads * head_dim]` f32, written.
    pub queries: u64,
    /// `[rows]` u32: becomes 1 where a finite key or value is beyond the cache's element type.
    pub kv_overflow_rows: u64,
    /// The norm over each query head.
    pub q_norm: RoutedNorm,
    /// The norm over each key head.
    pub k_norm: RoutedNorm,
    /// `[rope_pairs]` f32: radians per position.
    pub inv_freq: u64,
    /// Query heads.
    pub heads: u32,
    /// Width of a head, at most [`MAX_HEAD_DIM`](super::kv_layout::MAX_HEAD_DIM).
    pub head_dim: u32,
    /// Pairs of channels that are rotated.
    pub rope_pairs: u32,
    /// 1 if channel 2i pairs with 2i + 1, and not i with i + `rope_pairs`.
    pub is_interleaved: u32,
    /// Factor on cosine and sine.
    pub rope_factor: f32,
    /// Epsilon of both norms.
    pub norm_eps: f32,
    /// Factor on rotated queries, `1 + temperature_beta * ln(1 + floor(position / temperature_positions))`; 0 for none.
    pub temperature_beta: f32,
    /// Positions for which the factor stays the same.
    pub temperature_positions: f32,
}

/// The compiled kernels.
pub struct ExpandKernels {
    residual: Kernel,
    activate: Kernel,
    /// Of an MLP without gate, compiled when it is first needed.
    activate_plain: OnceLock<Kernel>,
    logits: Kernel,
    rope_kv: Kernel,
    /// Of queries that are scaled by their position, compiled when it is first needed.
    rope_kv_scaled: OnceLock<Kernel>,
    device: Arc<Device>,
    element: ElementType,
    kv: KvDType,
}

impl ExpandKernels {
    /// Compiles them, or takes them from the cache, for activations and a cache of those types.
    ///
    /// # Errors
    /// As [`Device::module`].
    pub fn load(device: &Arc<Device>, element: ElementType, kv: KvDType) -> Result<Self> {
        let kernel = |source: &'static KernelSource, defines: &[Define], name: &str| {
            device.module(source, defines)?.kernel(name)
        };
        let of_element: &[Define] = match element {
            ElementType::F16 => &[],
            ElementType::Bf16 => &[("ELEMENT_BF16", "1")],
        };
        Ok(Self {
            residual: kernel(&EXPAND_RESIDUAL, &[], "expand_residual")?,
            activate: kernel(&EXPAND_ACTIVATE, of_element, "expand_activate")?,
            activate_plain: OnceLock::new(),
            logits: kernel(&EXPAND_LOGITS, &[], "expand_logits")?,
            rope_kv: kernel(&EXPAND_ROPE_KV, kv_layout::defines(kv), "expand_rope_kv")?,
            rope_kv_scaled: OnceLock::new(),
            device: Arc::clone(device),
            element,
            kv,
        })
    }

    /// Computes that many rows.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    pub fn residual(&self, expand: &ExpandResidual, rows: usize) -> Result<()> {
        let columns = expand.hidden_size.div_ceil(SQUARES_COLUMNS as u32);
        self.residual.launch([columns, grid_rows(rows), 1], SQUARES_COLUMNS as u32, 0, &Arguments::of(expand))
    }

    /// Computes that many rows of an MLP of that shape.
    ///
    /// # Errors
    /// As [`Kernel::launch`] and [`Device::module`].
    pub fn activate(&self, expand: &ExpandActivate, shape: MlpShape, rows: usize) -> Result<()> {
        let columns = expand.intermediate_size.div_ceil(COLUMNS);
        let kernel = match shape {
            MlpShape::Gated => &self.activate,
            MlpShape::Plain => self.activate_plain()?,
        };
        kernel.launch([columns, grid_rows(rows), 1], COLUMNS, 0, &Arguments::of(expand))
    }

    fn activate_plain(&self) -> Result<&Kernel> {
        let defines: &[Define] = match self.element {
            ElementType::F16 => &[("PLAIN_MLP", "1")],
            ElementType::Bf16 => &[("PLAIN_MLP", "1"), ("ELEMENT_BF16", "1")],
        };
        compiled(&self.activate_plain, || self.device.module(&EXPAND_ACTIVATE, defines)?.kernel("expand_activate"))
    }

    fn rope_kv_scaled(&self) -> Result<&Kernel> {
        let defines = [kv_layout::defines(self.kv), &[("QUERY_TEMPERATURE", "1")]].concat();
        compiled(&self.rope_kv_scaled, || self.device.module(&EXPAND_ROPE_KV, &defines)?.kernel("expand_rope_kv"))
    }

    /// Computes that many rows.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    pub fn logits(&self, expand: &ExpandLogits, rows: usize) -> Result<()> {
        let columns = expand.columns.div_ceil(COLUMNS);
        self.logits.launch([columns, grid_rows(rows), 1], COLUMNS, 0, &Arguments::of(expand))
    }

    /// Computes that many rows.
    ///
    /// # Errors
    /// As [`Kernel::launch`] and [`Device::module`].
    pub fn rope_kv(&self, expand: &ExpandRopeKv, rows: usize) -> Result<()> {
        let heads = expand.heads + 2 * expand.kv.kv_heads;
        let channels = expand.head_dim.next_multiple_of(WARP_LANES);
        let kernel = if expand.temperature_beta == 0.0 { &self.rope_kv } else { self.rope_kv_scaled()? };
        kernel.launch([heads, grid_rows(rows), 1], channels, 0, &Arguments::of(expand))
    }
}

/// A kernel that is compiled when it is first needed.
fn compiled(kernel: &OnceLock<Kernel>, compile: impl FnOnce() -> Result<Kernel>) -> Result<&Kernel> {
    if let Some(kernel) = kernel.get() {
        return Ok(kernel);
    }
    let compiled = compile()?;
    Ok(kernel.get_or_init(|| compiled))
}
