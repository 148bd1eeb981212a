//! Headings in the help text that mean something elsewhere.

/// Heading of the options that name what a run reads and writes, which no file of settings may set.
pub(in crate::cli) const INPUT_AND_OUTPUT: &str = "Input and output";
