//! Grammars in GBNF, llama.cpp's variant of Backus-Naur form, as llguidance takes them.
//!
//! A rule that does not contain itself, not even by way of others, describes a regular language and becomes a terminal; the
//! others become rules. If `root` is such a terminal, the text is matched as a whole. Otherwise llguidance cuts it into terminals,
//! each of which goes on for as long as it can: what a model writes is in the language of the grammar, but where the end of
//! a terminal is ambiguous, not all of the language can be written (docs/structured-output.md).

mod lark;
mod parser;
mod rules;

/// A grammar in GBNF as one in llguidance's variant of Lark.
///
/// # Errors
/// What is wrong with it, and where.
pub(super) fn to_lark(gbnf: &str) -> Result<String, String> {
    lark::write(&parser::parse(gbnf)?)
}
