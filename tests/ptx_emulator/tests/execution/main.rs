//! Each check of the executor: a kernel that violates it, and one next to it that does not.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up its kernel has failed")]
mod async_copies;
mod barriers;
mod counters;
mod divergence;
mod memory;
mod races;
mod schedules;
mod support;
