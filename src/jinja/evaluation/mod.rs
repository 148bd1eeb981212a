//! Runs a parsed template.

mod calls;
mod expressions;
mod interpreter;
mod statements;

pub(super) use interpreter::Interpreter;
