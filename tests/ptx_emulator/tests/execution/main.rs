//! Each check of the executor: a kernel that violates it, and one next to it that does not.
mod async_copies;
mod barriers;
mod counters;
mod divergence;
mod memory;
mod races;
mod schedules;
mod support;
