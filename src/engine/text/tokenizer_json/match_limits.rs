//! The limits of one attempt of a regular expression.

#![allow(unsafe_code, reason = "Oniguruma takes the function that it calls at a checkpoint as a pointer")]

use std::cell::Cell;
use std::ffi::{c_int, c_void};

use onig::MatchParam;
use onig_sys::{ONIG_ABORT, OnigCalloutArgs, onig_set_progress_callout_of_match_param};

use super::limits;

/// Checkpoints between two looks at the clock, which takes longer than passing a checkpoint.
const CHECKPOINTS_PER_LOOK: u32 = 16;

thread_local! {
    static CHECKPOINTS: Cell<u32> = const { Cell::new(0) };
}

/// Limits of the backtracking, by the length of the text, and of the time, by that of the call.
pub(super) fn match_limits(text: &str) -> MatchParam {
    let retries = u32::try_from(text.len().saturating_mul(32)).unwrap_or(u32::MAX).saturating_add(100_000);
    let mut limits = MatchParam::default();
    limits.set_retry_limit_in_match(retries.min(10_000_000));
    limits.set_match_stack_limit(retries);
    // SAFETY: the parameters are allocated, and the function does nothing with its arguments.
    unsafe { onig_set_progress_callout_of_match_param(limits.as_raw(), Some(at_checkpoint)) };
    limits
}

/// Ends the search once the call has taken too long. It must not panic: the caller is not Rust.
extern "C" fn at_checkpoint(_: *mut OnigCalloutArgs, _: *mut c_void) -> c_int {
    let passed = CHECKPOINTS.get().wrapping_add(1);
    CHECKPOINTS.set(passed);
    if passed.is_multiple_of(CHECKPOINTS_PER_LOOK) && limits::exceeded_time().is_some() { ONIG_ABORT } else { 0 }
}
