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

/// The variants of the activation: element type, shape of the MLP.
pub const ACTIVATE_VARIANTS: &[&[Define]] =
    &[&[], &[("ELEMENT_BF16", "1")], &[("PLAIN_MLP", "1")], &[("PLAIN_MLP", "1"), ("ELEMENT_BF16", "1")]];

/// The variants of what stores keys and values: type of the cache, whether queries are scaled by their position.
pub const ROPE_KV_VARIANTS: &[&[Define]] = &[
    &[],
    &[("KV_F32", "1")],
    &[("KEY_BITS", "8"), ("VALUE_BITS", "8")],
    &[("KEY_BITS", "8"), ("VALUE_BITS", "4")],
    &[("KEY_BITS", "4"), ("VALUE_BITS", "4")],
    &[("QUERY_TEMPERATURE", "1")],
    &[("KV_F32", "1"), ("QUERY_TEMPERATURE", "1")],
    &[("KEY_BITS", "8"), ("VALUE_BITS", "8"), ("QUERY_TEMPERATURE", "1")],
    &[("KEY_BITS", "8"), ("VALUE_BITS", "4"), ("QUERY_TEMPERATURE", "1")],
    &[("KEY_BITS", "4"), ("VALUE_BITS", "4"), ("QUERY_TEMPERATURE", "1")],
];

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
    header!("kv_codes.cuh"),
    header!("kv_floats.cuh"),
    header!("linear_inputs.cuh"),
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
/// Norms of many rows.
pub static NORM_ELEMENTS: KernelSource = source!("norm_elements.cu", ELEMENT_TYPES);
/// Packing of weights.
pub static REPACK: KernelSource = source!("repack.cu", ELEMENT_TYPES);
/// Rows of the embedding.
pub static EMBED: KernelSource = source!("embed.cu", ONE_VARIANT);
/// The residual stream's sums.
pub static EXPAND_RESIDUAL: KernelSource = source!("expand_residual.cu", ONE_VARIANT);
/// Activations.
pub static EXPAND_ACTIVATE: KernelSource = source!("expand_activate.cu", ACTIVATE_VARIANTS);
/// Logits.
pub static EXPAND_LOGITS: KernelSource = source!("expand_logits.cu", ONE_VARIANT);
/// Queries, keys and values.
pub static EXPAND_ROPE_KV: KernelSource = source!("expand_rope_kv.cu", ROPE_KV_VARIANTS);
/// Paged attention.
pub static ATTENTION: KernelSource = source!("attention.cu", ATTENTION_VARIANTS);

/// What bounds every other kernel.
pub static CEILINGS: KernelSource = source!("ceilings.cu", ONE_VARIANT);

/// Norms that are computed alone.
pub static NORMS: KernelSource = source!("norms.cu", ONE_VARIANT);

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

/// The variants of attention for each width and number of query heads of a pass: floats, then codes.
macro_rules! attention_variants {
    ($($max_head_dim:literal $heads:literal;)+) => {
        &[
            $(
                &[("MAX_HEAD_DIM", $max_head_dim), ("HEADS", $heads)],
                &[("MAX_HEAD_DIM", $max_head_dim), ("HEADS", $heads), ("KV_F32", "1")],
                &[("MAX_HEAD_DIM", $max_head_dim), ("HEADS", $heads), ("KEY_BITS", "8"), ("VALUE_BITS", "8")],
                &[("MAX_HEAD_DIM", $max_head_dim), ("HEADS", $heads), ("KEY_BITS", "8"), ("VALUE_BITS", "4")],
                &[("MAX_HEAD_DIM", $max_head_dim), ("HEADS", $heads), ("KEY_BITS", "4"), ("VALUE_BITS", "4")],
            )+
        ]
    };
}

/// The variants of attention: widest head, query heads of a pass, type of the cache.
const ATTENTION_VARIANTS: &[&[Define]] = attention_variants! {
    "64" "1";
    "64" "4";
    "64" "8";
    "128" "1";
    "128" "4";
    "128" "8";
    "256" "1";
    "256" "4";
};

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
    &NORM_ELEMENTS,
    &NORMS,
    &REPACK,
    &ROWS,
];
