//! Statements and the blocks they open.

use std::sync::Arc;

use super::stream::Stream;
use crate::jinja::ast::{Expr, For, Kind as StatementKind, Macro, Statement, Step, Target};
use crate::jinja::error::{Result, fail, quoted};
use crate::jinja::lexer::Kind;

impl Stream {
    /// The whole template.
    pub(super) fn template(&mut self) -> Result<Vec<Statement>> {
        let body = self.statements(&[])?;
        self.expect_kind(&Kind::End, "the end of the template")?;
        Ok(body)
    }

    /// Statements up to a tag with one of these names, of which `{%` is taken and the name is not.
    fn statements(&mut self, ends: &[&str]) -> Result<Vec<Statement>> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            let kind = match self.kind().clone() {
                Kind::Data(text) => {
                    self.next();
                    StatementKind::Data(text)
                }
                Kind::VariableBegin => {
                    self.next();
                    let value = self.tuple(true, false, &[])?;
                    self.expect_kind(&Kind::VariableEnd, "'}}'")?;
                    StatementKind::Print(value)
                }
                Kind::BlockBegin => {
                    self.next();
                    if ends.iter().any(|end| self.is_name(end)) {
                        return Ok(body);
                    }
                    let name = self.expect_name()?;
                    let kind = self.nested(|stream| stream.statement(&name, &mut body))?;
                    self.expect_kind(&Kind::BlockEnd, "'%}'")?;
                    match kind {
                        Some(kind) => kind,
                        None => continue,
                    }
                }
                Kind::End if ends.is_empty() => return Ok(body),
                Kind::End => return self.unexpected(&format!("'{{% {} %}}'", ends.join(" or "))),
                _ => return self.unexpected("a tag"),
            };
            body.push(Statement { kind, line });
        }
    }

    /// The body of a block, from the end of its first tag up to one of these names.
    fn body(&mut self, ends: &[&str]) -> Result<Vec<Statement>> {
        self.skip(":");
        self.expect_kind(&Kind::BlockEnd, "'%}'")?;
        self.statements(ends)
    }

    /// The body of a block with one end, whose name is taken.
    fn block(&mut self, end: &str) -> Result<Vec<Statement>> {
        let body = self.body(&[end])?;
        self.next();
        Ok(body)
    }

    /// A statement, behind its name. `print` makes several.
    fn statement(&mut self, name: &str, body: &mut Vec<Statement>) -> Result<Option<StatementKind>> {
        Ok(Some(match name {
            "if" => self.if_block()?,
            "for" => self.for_block()?,
            "set" => self.set()?,
            "with" => self.with()?,
            "macro" => {
                let name = self.expect_name()?;
                StatementKind::Macro(Box::new(self.macro_block(name, "endmacro")?))
            }
            "call" => self.call()?,
            "filter" => {
                let mut filters = vec![self.filter()?];
                filters.extend(self.filters()?);
                StatementKind::Filter(filters, self.block("endfilter")?)
            }
            "generation" => {
                // Jinja2 makes a macro of it.
                let loops = std::mem::take(&mut self.loops);
                let body = self.block("endgeneration")?;
                self.loops = loops;
                StatementKind::Scope(body)
            }
            "break" | "continue" if self.loops == 0 => return fail(format!("'{name}' outside of a loop")),
            "break" => StatementKind::Break,
            "continue" => StatementKind::Continue,
            "print" => {
                let line = self.line();
                let mut first = true;
                while !matches!(self.kind(), Kind::BlockEnd) {
                    if !first {
                        self.expect(",")?;
                    }
                    first = false;
                    body.push(Statement { kind: StatementKind::Print(self.expression(true)?), line });
                }
                return Ok(None);
            }
            "autoescape" | "block" | "extends" | "from" | "import" | "include" => {
                return fail(format!("the tag '{name}' is not supported in chat templates"));
            }
            _ => return fail(format!("the template is not valid: unknown tag '{}'", quoted(name))),
        }))
    }

    fn if_block(&mut self) -> Result<StatementKind> {
        let mut branches = Vec::new();
        loop {
            let test = self.tuple(false, false, &[])?;
            branches.push((test, self.body(&["elif", "else", "endif"])?));
            if self.skip_name("elif") {
                continue;
            }
            let otherwise = if self.skip_name("else") { self.body(&["endif"])? } else { Vec::new() };
            self.next();
            return Ok(StatementKind::If(branches, otherwise));
        }
    }

    fn for_block(&mut self) -> Result<StatementKind> {
        let target = self.target(false, &["in"])?;
        if self.assigns_loop(&target) {
            return fail("can't assign to the special variable 'loop' in a for-loop");
        }
        if !self.skip_name("in") {
            return self.unexpected("'in'");
        }
        let items = self.tuple(false, false, &["recursive"])?;
        let test = if self.skip_name("if") { Some(self.expression(true)?) } else { None };
        let recursive = self.skip_name("recursive");
        let before = self.reads()[3];
        self.loops += 1;
        let body = self.body(&["endfor", "else"])?;
        self.loops -= 1;
        let reads_loop = self.reads()[3] > before;
        let otherwise = if self.skip_name("else") { self.body(&["endfor"])? } else { Vec::new() };
        self.next();
        let block = For { target, items, test, recursive, reads_loop, body, otherwise };
        Ok(StatementKind::For(Box::new(block)))
    }

    fn assigns_loop(&mut self, target: &Target) -> bool {
        match target {
            Target::Name(name) => *name == self.name(&"loop".into()),
            Target::Tuple(targets) => targets.iter().any(|target| self.assigns_loop(target)),
            Target::Attribute(..) => false,
        }
    }

    fn filters(&mut self) -> Result<Vec<Step>> {
        let mut filters = Vec::new();
        while self.skip("|") {
            filters.push(self.filter()?);
        }
        Ok(filters)
    }

    fn set(&mut self) -> Result<StatementKind> {
        let target = self.target(true, &[])?;
        if self.skip("=") {
            return Ok(StatementKind::Set(target, self.tuple(true, false, &[])?));
        }
        let filters = self.filters()?;
        Ok(StatementKind::SetBlock(target, filters, self.block("endset")?))
    }

    fn with(&mut self) -> Result<StatementKind> {
        let mut assignments = Vec::new();
        while !matches!(self.kind(), Kind::BlockEnd | Kind::Op(":")) {
            if !assignments.is_empty() {
                self.expect(",")?;
            }
            let target = self.target(false, &[])?;
            self.expect("=")?;
            assignments.push((target, self.expression(true)?));
        }
        Ok(StatementKind::With(assignments, self.block("endwith")?))
    }

    fn call(&mut self) -> Result<StatementKind> {
        let mut block = Macro {
            name: "caller".into(),
            variable: 0,
            parameters: Vec::new(),
            defaults: Vec::new(),
            varargs: None,
            kwargs: None,
            caller: None,
            body: Vec::new(),
        };
        if self.is("(") {
            (block.parameters, block.defaults) = self.signature()?;
        }
        let call = self.expression(true)?;
        if !matches!(&call, Expr::Chain(_, steps) if matches!(steps.last(), Some(Step::Call(_)))) {
            return fail("expected call");
        }
        self.macro_body(&mut block, "endcall")?;
        Ok(StatementKind::Call(Box::new(block), Box::new(call)))
    }

    fn macro_block(&mut self, name: Arc<str>, end: &str) -> Result<Macro> {
        let variable = self.name(&name);
        let (parameters, defaults) = self.signature()?;
        let (varargs, kwargs, caller) = (None, None, None);
        let mut block = Macro { name, variable, parameters, defaults, varargs, kwargs, caller, body: Vec::new() };
        self.macro_body(&mut block, end)?;
        Ok(block)
    }

    fn macro_body(&mut self, block: &mut Macro, end: &str) -> Result<()> {
        let before = self.reads();
        let loops = std::mem::take(&mut self.loops);
        block.body = self.block(end)?;
        self.loops = loops;
        let reads = self.reads();
        let mut special = |at: usize, name: &str| {
            let is_parameter = block.parameters.iter().any(|(_, parameter)| **parameter == *name);
            (reads[at] > before[at] && !is_parameter).then(|| self.name(&name.into()))
        };
        block.varargs = special(0, "varargs");
        block.kwargs = special(1, "kwargs");
        block.caller = special(2, "caller");
        Ok(())
    }

    /// The parameters of a macro and the defaults of the last ones.
    #[allow(clippy::type_complexity)]
    fn signature(&mut self) -> Result<(Vec<(u32, Arc<str>)>, Vec<Expr>)> {
        self.expect("(")?;
        let (mut parameters, mut defaults) = (Vec::new(), Vec::new());
        while !self.is(")") {
            if !parameters.is_empty() {
                self.expect(",")?;
            }
            let name = self.expect_name()?;
            if self.skip("=") {
                defaults.push(self.expression(true)?);
            } else if !defaults.is_empty() {
                return fail("non-default argument follows default argument");
            }
            parameters.push((self.name(&name), name));
        }
        self.expect(")")?;
        Ok((parameters, defaults))
    }

    /// What is assigned to: names between commas, or an attribute of a namespace where that is allowed.
    fn target(&mut self, attributes: bool, ends: &[&str]) -> Result<Target> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            if !targets.is_empty() {
                self.expect(",")?;
            }
            let at_end = matches!(self.kind(), Kind::VariableEnd | Kind::BlockEnd | Kind::Op(")"));
            if at_end || ends.iter().any(|end| self.is_name(end)) {
                break;
            }
            targets.push(self.nested(|stream| stream.one_target(attributes))?);
            if !self.is(",") {
                break;
            }
            is_tuple = true;
        }
        match targets.pop() {
            Some(only) if !is_tuple => Ok(only),
            Some(last) => {
                targets.push(last);
                Ok(Target::Tuple(targets))
            }
            None => self.unexpected("a name to assign to"),
        }
    }

    fn one_target(&mut self, attributes: bool) -> Result<Target> {
        if self.skip("(") {
            let target = self.target(attributes, &[])?;
            self.expect(")")?;
            return Ok(target);
        }
        let name = self.expect_name()?;
        if matches!(&*name, "true" | "True" | "false" | "False" | "none" | "None") {
            return fail(format!("can't assign to '{name}'"));
        }
        let variable = self.name(&name);
        if attributes && self.skip(".") {
            return Ok(Target::Attribute(variable, self.expect_name()?));
        }
        Ok(Target::Name(variable))
    }
}
