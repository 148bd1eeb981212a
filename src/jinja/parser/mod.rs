//! Jinja2's parser, with bounds on what nests.

mod expressions;
mod statements;
mod stream;

use std::sync::Arc;

use super::ast::Statement;
use super::error::Result;
use super::lexer::tokens;
use stream::Stream;

/// Bytes of a template. The largest public ones have some 50 KB.
pub(super) const MAX_SOURCE_BYTES: usize = 1 << 20;

/// The statements of a template, and the names of the variables they use.
pub(super) fn parse(source: &str) -> Result<(Vec<Statement>, Vec<Arc<str>>)> {
    if source.len() > MAX_SOURCE_BYTES {
        return super::error::fail(format!("the template is larger than {MAX_SOURCE_BYTES} bytes"));
    }
    let mut stream = Stream::new(tokens(source)?);
    let body = stream.template();
    let line = stream.line();
    Ok((body.map_err(|e| e.at(line))?, stream.into_names()))
}
