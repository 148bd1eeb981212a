//! The integration tests, one binary: linking is most of what a test binary costs.

mod adapters;
mod architecture;
mod backend;
mod batches;
mod chat_templates;
#[cfg(feature = "cli")]
mod cli;
mod engine;
mod errors;
mod formats;
mod hostile;
#[cfg(feature = "cli")]
mod printing;
mod reference;
#[cfg(feature = "server")]
mod server;
mod tokenizer_files;

use support::allocator::CountingAllocator;

/// `hostile` measures what files make the readers allocate.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;
