//! The tokens that are left, and what the parser knows so far.

use std::collections::HashMap;
use std::sync::Arc;

use crate::jinja::ast::Name;
use crate::jinja::error::{Result, fail, quoted};
use crate::jinja::lexer::{Kind, Token};

/// Deepest nesting of brackets, conditional expressions and blocks. CPython's stack ends Jinja2 before that.
const MAX_NESTING: usize = 100;

/// The tokens that are left, and what the parser knows so far.
pub(super) struct Stream {
    tokens: Vec<Token>,
    at: usize,
    nesting: usize,
    names: HashMap<Arc<str>, Name>,
    listed: Vec<Arc<str>>,
    /// How often each of the names was read, in the order of `SPECIAL`.
    reads: [usize; 4],
    /// Loops around the current statement, within the innermost macro.
    pub(super) loops: usize,
}

/// Names that a macro or a loop defines only if they are read.
pub(super) const SPECIAL: [&str; 4] = ["varargs", "kwargs", "caller", "loop"];

impl Stream {
    pub(super) fn new(tokens: Vec<Token>) -> Self {
        Self { tokens, at: 0, nesting: 0, names: HashMap::new(), listed: Vec::new(), reads: [0; 4], loops: 0 }
    }

    pub(super) fn into_names(self) -> Vec<Arc<str>> {
        self.listed
    }

    pub(super) fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |token| token.line)
    }

    pub(super) fn kind(&self) -> &Kind {
        self.tokens.get(self.at).map_or(&Kind::End, |token| &token.kind)
    }

    pub(super) fn next(&mut self) -> Kind {
        let kind = self.kind().clone();
        self.at += 1;
        kind
    }

    pub(super) fn is(&self, operator: &str) -> bool {
        matches!(self.kind(), Kind::Op(found) if *found == operator)
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.kind(), Kind::Name(found) if **found == *name)
    }

    /// What follows the current token.
    pub(super) fn following(&self) -> &Kind {
        self.tokens.get(self.at + 1).map_or(&Kind::End, |token| &token.kind)
    }

    pub(super) fn skip(&mut self, operator: &str) -> bool {
        let is_it = self.is(operator);
        self.at += usize::from(is_it);
        is_it
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let is_it = self.is_name(name);
        self.at += usize::from(is_it);
        is_it
    }

    pub(super) fn expect(&mut self, operator: &str) -> Result<()> {
        if self.skip(operator) { Ok(()) } else { self.unexpected(&format!("'{operator}'")) }
    }

    pub(super) fn expect_kind(&mut self, kind: &Kind, what: &str) -> Result<()> {
        if self.kind() == kind {
            self.at += 1;
            return Ok(());
        }
        self.unexpected(what)
    }

    pub(super) fn expect_name(&mut self) -> Result<Arc<str>> {
        match self.kind() {
            Kind::Name(name) => {
                let name = Arc::clone(name);
                self.at += 1;
                Ok(name)
            }
            _ => self.unexpected("a name"),
        }
    }

    /// The error of finding the current token instead of what is expected.
    pub(super) fn unexpected<T>(&self, expected: &str) -> Result<T> {
        let found = match self.kind() {
            Kind::Data(_) => "text".to_owned(),
            Kind::VariableBegin => "'{{'".to_owned(),
            Kind::VariableEnd => "'}}'".to_owned(),
            Kind::BlockBegin => "'{%'".to_owned(),
            Kind::BlockEnd => "'%}'".to_owned(),
            Kind::Name(name) => format!("'{}'", quoted(name)),
            Kind::Str(_) => "a string".to_owned(),
            Kind::Int(_) | Kind::Float(_) => "a number".to_owned(),
            Kind::Op(operator) => format!("'{operator}'"),
            Kind::End => "the end of the template".to_owned(),
        };
        fail(format!("the template is not valid: expected {expected}, found {found}"))
    }

    /// Parses something that can contain itself.
    pub(super) fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.nesting == MAX_NESTING {
            return fail("the template is nested too deeply");
        }
        self.nesting += 1;
        let parsed = parse(self);
        self.nesting -= 1;
        parsed
    }

    /// The index of a variable's name.
    pub(super) fn name(&mut self, name: &Arc<str>) -> Name {
        let listed = &mut self.listed;
        *self.names.entry(Arc::clone(name)).or_insert_with(|| {
            listed.push(Arc::clone(name));
            listed.len() as Name - 1
        })
    }

    /// The index of the name of a variable that is read.
    pub(super) fn read(&mut self, name: &Arc<str>) -> Name {
        if let Some(at) = SPECIAL.iter().position(|&special| special == &**name) {
            self.reads[at] += 1;
        }
        self.name(name)
    }

    /// How often the special names were read so far.
    pub(super) fn reads(&self) -> [usize; 4] {
        self.reads
    }
}
