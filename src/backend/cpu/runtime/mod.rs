//! Threads and memory.

pub(crate) mod arena;
pub(crate) mod buffers;
pub(crate) mod cores;
pub(crate) mod kv_cache;
pub(crate) mod kv_layout;
pub(crate) mod threads;

mod gate;
mod sync;
