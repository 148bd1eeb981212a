//! From an adapter's files to its final deltas. Each state is a type, made from the one before and never changed afterwards.
//!
//! ```text
//! AdapterFiles    config and tensors, parsed
//!   check(sites)              every name, shape, rank, dtype and value against the config and the model's sites
//! CheckedAdapter  one delta per site
//!   without_copies(base)      copies of the base's own weights are left out
//! ReducedAdapter  its summary and its size are final, so that a slot can be reserved before anything takes long
//!   resolve(base)             truncated weights are decomposed
//! ResolvedAdapter the deltas that a backend prepares
//! ```
//!
//! All problems are reported at once. PEFT loads many faulty files silently (single factors, NaN, names that match nothing)
//! and then computes the base model or garbage; here they are errors that name the tensor, what was expected and what was
//! found.

mod check;
mod checked_tensor;
mod checker;
mod completeness;
mod factors;
mod fused_modules;
mod inferred_sites;
mod module;
mod module_delta;
mod states;
mod structured_factors;
mod summary;
mod tied_embeddings;

pub use self::states::{CheckedAdapter, ReducedAdapter, ResolvedAdapter};
pub use self::summary::AdapterSummary;
