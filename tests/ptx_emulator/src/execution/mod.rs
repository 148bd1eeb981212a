//! Execution of kernels: warps of 32 lanes in lockstep, their divergence, barriers, memory with checks.
//!
//! Blocks run one after another on the calling thread, and the memory model is sequential: what a card may reorder shows through
//! the race checks alone.

mod access;
mod async_copy;
mod atomics;
mod barriers;
mod block;
mod collectives;
mod divergence;
mod launch;
mod load_store;
mod matrix;
mod ordering;
mod settings;
mod special;
mod traffic;
mod warp;

pub use async_copy::{commit_group, copy_async, wait_group};
pub use atomics::{atomic, fence};
pub use collectives::{active_mask, reduce_warp, shuffle, sync_warp, vote};
pub use launch::{Configuration, Outcome, run};
pub use load_store::{load, store};
pub use matrix::{ldmatrix, mma};
pub use settings::{AsyncCopies, MatrixSum, Order, RaceChecks, Settings};
pub use special::{assert_failed, is_in_space, no_operation, special_register, trap};
pub use warp::WarpContext;

pub use crate::memory::{SHARED_BASE, generic_window as window};
