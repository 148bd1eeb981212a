//! Running other people's parsers on untrusted input: on a stack of their own, with panics turned into errors.
//!
//! A stack overflow ends the process, and no thread can be stopped from outside. So a guard is only half of the protection:
//! what a parser is given must have been checked first, such that it needs no more than [`STACK_BYTES`] of stack, and
//! ends.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, Result};

/// Stack for a guarded call. It is address space; the kernel backs what is used.
pub const STACK_BYTES: usize = 256 << 20;

thread_local! {
    /// How many guarded calls this thread is in.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Runs `f` on a stack of [`STACK_BYTES`]. A panic in it becomes the error that `on_panic` makes of the panic's message.
///
/// What `f` changes must still be usable after a panic, or be given up by the caller.
///
/// # Errors
/// Those of `f`, and that of `on_panic`.
pub fn guarded<T>(on_panic: impl FnOnce(&str) -> Error, f: impl FnOnce() -> Result<T>) -> Result<T> {
    // The unwinding must not cross the switch of stacks.
    stacker::grow(STACK_BYTES, || catch_panic(on_panic, f))
}

/// [`guarded`] on the caller's stack, for code whose recursion is known to be shallow: it costs no system calls.
///
/// # Errors
/// Those of `f`, and that of `on_panic`.
pub fn catch_panic<T>(on_panic: impl FnOnce(&str) -> Error, f: impl FnOnce() -> Result<T>) -> Result<T> {
    DEPTH.set(DEPTH.get() + 1);
    let outcome = catch_unwind(AssertUnwindSafe(f));
    DEPTH.set(DEPTH.get() - 1);
    outcome.unwrap_or_else(|panic| Err(on_panic(message_of(&*panic))))
}

/// Keeps panics of guarded calls off standard error: they are reported as errors. Any other panic goes to the hook that was
/// installed before.
///
/// A library leaves the hook of its process alone, so only the command and the extension module call this, once.
pub fn silence_guarded_panics() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // A thread whose thread-locals are gone is in no guarded call.
        if !DEPTH.try_with(|depth| depth.get() > 0).unwrap_or(false) {
            previous(info);
        }
    }));
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    let message = panic.downcast_ref::<&str>().copied();
    message.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    fn internal(message: &str) -> Error {
        Error::new(ErrorCode::Internal, message)
    }

    #[test]
    fn values_and_errors_pass_through() {
        assert_eq!(guarded(internal, || Ok(7)).expect("a value"), 7);
        let error = guarded(internal, || Err::<(), _>(Error::new(ErrorCode::TokenizerInvalid, "no"))).expect_err("no");
        assert_eq!(error.code(), ErrorCode::TokenizerInvalid);
    }

    #[test]
    fn a_panic_is_an_error_with_its_message() {
        let error = guarded(internal, || -> Result<()> { panic!("value {}", 3) }).expect_err("a panic");
        assert_eq!((error.code(), error.message()), (ErrorCode::Internal, "value 3"));
        let error = guarded(internal, || -> Result<()> { panic!("plain") }).expect_err("a panic");
        assert_eq!(error.message(), "plain");
    }

    #[test]
    fn a_panic_on_the_callers_stack_is_an_error_too() {
        let error = catch_panic(internal, || -> Result<()> { panic!("value {}", 4) }).expect_err("a panic");
        assert_eq!(error.message(), "value 4");
        assert_eq!(DEPTH.get(), 0);
    }

    #[test]
    fn deep_recursion_fits() {
        fn depth(levels: usize) -> usize {
            let frame = std::hint::black_box([levels; 64]);
            if levels == 0 { 0 } else { 1 + depth(frame[0] - 1) }
        }
        assert_eq!(guarded(internal, || Ok(depth(200_000))).expect("returns"), 200_000);
    }
}
