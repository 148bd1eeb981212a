//! The backends, through their traits.

mod digits;
mod int8_activations;
mod kv_overflow;
mod kv_states;
mod parity;
mod parity_adapters;
mod rows;
#[cfg(feature = "cuda")]
mod strip64;
