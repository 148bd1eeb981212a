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
    header!("linear_multiply.cuh"),
    header!("linear_tiles.cuh"),
    header!("ptx.cuh"),
    header!("tables.cuh"),
    header!("weight.cuh"),
];

/// Products of packed weights.
pub static LINEAR: KernelSource = source!("linear.cu", ELEMENT_TYPES);
/// Packing of weights.
pub static REPACK: KernelSource = source!("repack.cu", ELEMENT_TYPES);

/// Every source of `cuda/`.
pub static SOURCES: &[&KernelSource] = &[&LINEAR, &REPACK];
