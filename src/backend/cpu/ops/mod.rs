//! The operations of a step: kernels over all rows, with all threads.

pub(crate) mod attention;
pub(crate) mod embed;
pub(crate) mod kv_append;
pub(crate) mod linear;
pub(crate) mod rowwise;

mod epilogue;
mod shrink;
