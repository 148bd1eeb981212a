//! The backends, through their traits.

mod parity;
mod parity_adapters;
