//! Adapters in the layout of the kernels, and which of them act on a row.

pub(crate) mod embedding;
pub(crate) mod linear;
pub(crate) mod low_rank;
pub(crate) mod resident;
pub(crate) mod routing;

mod dora_norms;
