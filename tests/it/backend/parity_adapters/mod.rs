//! What an adapter can change, each kind and mixtures of them: the fast paths against the oracle, which forms the changed
//! weight itself, and against themselves under every way to share a step.
//!
//! Agreement is within 1e-5 of a row's largest value, as in `parity.rs`; what rows promise each other is an equality of bits.

mod by_hand;
mod embeddings;
mod linears;
mod norms;
mod random;
