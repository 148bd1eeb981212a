//! Everything an adapter can change, each kind and mixtures of them: the fast paths against the reference, which forms the
//! changed weight itself, and against themselves in every batch composition.
//!
//! Agreement is within 1e-5 of a row's largest value, as in `parity.rs`; batch invariance is an equality of bits.

mod by_hand;
mod dora_norms;
mod embeddings;
mod linears;
mod memory;
mod norms;
mod preparing;
