//! The exit statuses of the command.

/// Exit status of a command that succeeded.
pub(super) const SUCCESS: u8 = 0;

/// Exit status of a command that failed.
pub(super) const FAILED: u8 = 1;

/// Exit status of an invalid command line.
pub(super) const WRONG_USAGE: u8 = 2;

/// Exit status of a batch of which some requests failed.
pub(super) const SOME_FAILED: u8 = 3;

/// Exit status of a command that Ctrl-C ended, as shells have it.
pub(super) const INTERRUPTED: u8 = 130;
