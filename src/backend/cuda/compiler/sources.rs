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

/// Every header of `cuda/`; each source can include each of them.
pub static HEADERS: &[Header] = &[];

/// Every source of `cuda/`.
pub static SOURCES: &[&KernelSource] = &[];
