//! Checks of the CPU backend's thread pool that need types or flags of their own.
//!
//! `loom` explores the interleavings of `gate.rs`, and finds each of the mistakes that `build.rs` plants in it. `native`
//! holds the pool's own tests, to be run under ThreadSanitizer.

#![allow(dead_code, reason = "the included files are tested in part")]

#[cfg(test)]
mod error;

#[cfg(test)]
mod model;
#[cfg(test)]
mod native;
