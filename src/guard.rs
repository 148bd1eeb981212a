//! Panics turned into errors; and for other people's parsers of untrusted input, a stack of their own.
//!
//! A stack overflow ends the process, and no thread can be stopped from outside. So a guard is only half of the protection:
//! what a parser is given must have been checked first, such that it needs no more than [`STACK_BYTES`] of stack, and
//! ends.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, Result};

/// Stack for a guarded call. It is address space; the kernel backs what is used.
pub const STACK_BYTES: usize = 256 << 20;

/// Runs `f` on a stack of [`STACK_BYTES`]. A panic in it becomes the error that `on_panic` makes of the panic's message.
///
/// What `f` changes must still be usable after a panic, or be given up by the caller.
///
/// # Errors
/// Those of `f`, and that of `on_panic`.
pub fn guarded<T>(on_panic: impl FnOnce(&str) -> Error, f: impl FnOnce() -> Result<T>) -> Result<T> {
    // The unwinding must not cross the switch of stacks.
    stacker::grow(STACK_BYTES, || catching_panics(on_panic, f))
}

/// Runs `f` on this stack. A panic in it becomes the error that `on_panic` makes of the panic's message.
///
/// What `f` changes must still be usable after a panic, or be given up by the caller.
///
/// # Errors
/// Those of `f`, and that of `on_panic`.
pub fn catching_panics<T>(on_panic: impl FnOnce(&str) -> Error, f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<&str>().copied();
        let message = message.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(on_panic(message.unwrap_or("no message")))
    })
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
    fn deep_recursion_fits() {
        fn depth(levels: usize) -> usize {
            let frame = std::hint::black_box([levels; 64]);
            if levels == 0 { 0 } else { 1 + depth(frame[0] - 1) }
        }
        assert_eq!(guarded(internal, || Ok(depth(200_000))).expect("returns"), 200_000);
    }
}
