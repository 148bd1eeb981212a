//! The sources of all kernels, embedded, with the headers that they include.

/// A name and a value for `#define`.
pub type Define = (&'static str, &'static str);

/// A file of kernels, and how it may be compiled.
#[derive(Debug, PartialEq, Eq)]
pub struct KernelSource {
    /// The file's name in `cuda/`.
    pub name: &'static str,
    /// CUDA C++.
    pub text: &'static str,
    /// Each set of defines that a module is made of.
    pub variants: &'static [&'static [Define]],
}

/// A header that kernels include by name.
#[derive(Debug, PartialEq, Eq)]
pub struct Header {
    /// The name in `#include "…"`.
    pub name: &'static str,
    /// CUDA C++.
    pub text: &'static str,
}

/// The variants of a source whose code does not depend on the element type.
pub const ONE_VARIANT: &[&[Define]] = &[&[]];

/// The variants of a source that is compiled for f16 and for bf16 activations.
pub const ELEMENT_TYPES: &[&[Define]] = &[&[], &[("ELEMENT_BF16", "1")]];

/// The variants of a source that reads or writes a KV cache of either element type.
pub const KV_TYPES: &[&[Define]] = &[&[], &[("KV_F32", "1")]];

/// A header of `cuda/`.
macro_rules! header {
    ($name:literal) => {
        Header { name: $name, text: include_str!(concat!("../../../../cuda/", $name)) }
    };
}

/// A source of `cuda/`.
macro_rules! source {
    ($name:literal, $variants:expr) => {
        KernelSource { name: $name, text: include_str!(concat!("../../../../cuda/", $name)), variants: $variants }
    };
}

/// Every header of `cuda/`; each source can include each of them.
pub static HEADERS: &[Header] = &[
    header!("element.cuh"),
    header!("expand.cuh"),
    header!("kv_cache.cuh"),
    header!("linear_multiply.cuh"),
    header!("linear_tiles.cuh"),
    header!("low_rank.cuh"),
    header!("ptx.cuh"),
    header!("reduce.cuh"),
    header!("residual.cuh"),
    header!("rope.cuh"),
    header!("tables.cuh"),
    header!("weight.cuh"),
];

/// Products of packed weights.
pub static LINEAR: KernelSource = source!("linear.cu", LINEAR_VARIANTS);
/// Packing of weights.
pub static REPACK: KernelSource = source!("repack.cu", ELEMENT_TYPES);
/// Rows of the embedding.
pub static EMBED: KernelSource = source!("embed.cu", ONE_VARIANT);
/// The residual stream's sums.
pub static EXPAND_RESIDUAL: KernelSource = source!("expand_residual.cu", ONE_VARIANT);
/// Gated activations.
pub static EXPAND_ACTIVATE: KernelSource = source!("expand_activate.cu", ELEMENT_TYPES);
/// Logits.
pub static EXPAND_LOGITS: KernelSource = source!("expand_logits.cu", ONE_VARIANT);
/// Queries, keys and values.
pub static EXPAND_ROPE_KV: KernelSource = source!("expand_rope_kv.cu", KV_TYPES);
/// Paged attention.
pub static ATTENTION: KernelSource = source!("attention.cu", ATTENTION_VARIANTS);

/// What bounds every other kernel.
pub static CEILINGS: KernelSource = source!("ceilings.cu", ONE_VARIANT);

/// Plain operations on rows.
pub static ROWS: KernelSource = source!("rows.cu", ONE_VARIANT);

/// The variants of linear: rows that a tile has, element type.
pub const LINEAR_VARIANTS: &[&[Define]] = &[
    &[("TOKENS", "8")],
    &[("TOKENS", "16")],
    &[("TOKENS", "32")],
    &[("TOKENS", "64")],
    &[("TOKENS", "8"), ("ELEMENT_BF16", "1")],
    &[("TOKENS", "16"), ("ELEMENT_BF16", "1")],
    &[("TOKENS", "32"), ("ELEMENT_BF16", "1")],
    &[("TOKENS", "64"), ("ELEMENT_BF16", "1")],
];

/// The variants of attention: widest head, query heads of a pass, element type of the cache.
const ATTENTION_VARIANTS: &[&[Define]] = &[
    &[("MAX_HEAD_DIM", "64"), ("HEADS", "1")],
    &[("MAX_HEAD_DIM", "64"), ("HEADS", "4")],
    &[("MAX_HEAD_DIM", "64"), ("HEADS", "8")],
    &[("MAX_HEAD_DIM", "128"), ("HEADS", "1")],
    &[("MAX_HEAD_DIM", "128"), ("HEADS", "4")],
    &[("MAX_HEAD_DIM", "128"), ("HEADS", "8")],
    &[("MAX_HEAD_DIM", "256"), ("HEADS", "1")],
    &[("MAX_HEAD_DIM", "256"), ("HEADS", "4")],
    &[("MAX_HEAD_DIM", "64"), ("HEADS", "1"), ("KV_F32", "1")],
    &[("MAX_HEAD_DIM", "64"), ("HEADS", "4"), ("KV_F32", "1")],
    &[("MAX_HEAD_DIM", "64"), ("HEADS", "8"), ("KV_F32", "1")],
    &[("MAX_HEAD_DIM", "128"), ("HEADS", "1"), ("KV_F32", "1")],
    &[("MAX_HEAD_DIM", "128"), ("HEADS", "4"), ("KV_F32", "1")],
    &[("MAX_HEAD_DIM", "128"), ("HEADS", "8"), ("KV_F32", "1")],
    &[("MAX_HEAD_DIM", "256"), ("HEADS", "1"), ("KV_F32", "1")],
    &[("MAX_HEAD_DIM", "256"), ("HEADS", "4"), ("KV_F32", "1")],
];

/// Every source of `cuda/`.
pub static SOURCES: &[&KernelSource] = &[
    &ATTENTION,
    &CEILINGS,
    &EMBED,
    &EXPAND_ACTIVATE,
    &EXPAND_LOGITS,
    &EXPAND_RESIDUAL,
    &EXPAND_ROPE_KV,
    &LINEAR,
    &REPACK,
    &ROWS,
];
