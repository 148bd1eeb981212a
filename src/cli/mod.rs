//! The command line. SKELETON

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the command line; 0 done, 1 the work failed, 2 wrong usage.
pub fn run(_args: impl IntoIterator<Item = OsString>) -> ExitCode {
    todo!()
}

/// As [`run`], with the exit code as a number, for callers that are not a process of their own.
pub fn run_code(_args: impl IntoIterator<Item = OsString>) -> u8 {
    todo!()
}
