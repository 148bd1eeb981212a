//! PEFT adapters: read from a folder, checked against a model's sites, kept in slots, routed to rows.
//!
//! ```text
//! folder --read--> AdapterFiles --check(sites)--> CheckedAdapter --without_copies(base)--> ReducedAdapter
//!        --resolve(base)--> ResolvedAdapter --backend prepares and installs it--> pool --> lease --> mixture --> batch
//! ```
//!
//! The tensors decide what an adapter changes. Its config gives their scale and is cross-checked against them. Whatever an
//! adapter asks for that is not supported is refused by name: an adapter is applied as a whole, or not at all.

#[doc(hidden)]
pub mod alora;
#[doc(hidden)]
pub mod batch;
pub mod config;
pub mod constraints;
pub mod delta;
mod files;
pub(crate) mod folder;
#[doc(hidden)]
pub mod forward_plan;
mod keys;
mod layer_map;
#[doc(hidden)]
pub mod mixture;
mod module_tensors;
pub mod peft_support;
pub mod plan;
pub mod pool;
mod problems;
#[cfg(feature = "kasa")]
mod svd;
mod target_modules;
mod unsupported;

pub use self::files::AdapterFiles;
