//! Directives and functions at the level of the module.
use super::declarations::space_of_directive;
use super::lexer::Token;
use super::syntax::{Function, Module, SourceLocation};
use super::{Parser, Result};
use crate::instruction::StateSpace;

impl Parser<'_> {
    pub(super) fn module(&mut self) -> Result<Module> {
        let mut module = Module::default();
        let mut is_extern = false;
        loop {
            let line = self.line;
            let directive = match self.advance()? {
                Token::End => break,
                Token::Directive(name) => name,
                token => return Err(format!("PTX line {line}: expected a directive, found {token:?}")),
            };
            match directive.as_str() {
                "version" => {
                    // "8.0" is read as the number 8 and the directive .0
                    let major = self.integer()?;
                    let minor = self.directive()?.unwrap_or_default();
                    module.version = format!("{major}.{minor}");
                }
                "target" => {
                    module.target = self.identifier()?;
                    while self.accept(',')? {
                        self.identifier()?;
                    }
                }
                "address_size" => {
                    if self.integer()? != 64 {
                        return self.error("only 64-bit addresses are supported");
                    }
                }
                "visible" | "weak" | "common" => {}
                "extern" => is_extern = true,
                "file" => self.source_file(&mut module.files)?,
                "loc" => self.source_location()?,
                "pragma" => self.skip_past(';')?,
                "section" => self.skip_past('}')?,
                "entry" | "func" => {
                    let function = self.function(directive == "entry", &mut module)?;
                    add_function(&mut module.functions, function);
                    is_extern = false;
                }
                name => {
                    let Some(space) = space_of_directive(name) else {
                        return self.error(format!("unknown directive .{name}"));
                    };
                    let mut variable = self.variable(space)?;
                    variable.is_external |= is_extern && space != StateSpace::Shared;
                    is_extern = false;
                    self.expect(';')?;
                    module.variables.push(variable);
                }
            }
        }
        if module.version.is_empty() {
            return Err("not PTX: no .version directive".into());
        }
        Ok(module)
    }

    fn function(&mut self, is_entry: bool, module: &mut Module) -> Result<Function> {
        let mut function = Function { is_entry, line: self.line, ..Function::default() };
        if !is_entry && self.is_at('(') {
            function.results = self.parameters()?;
        }
        function.name = self.identifier()?;
        if self.is_at('(') {
            function.parameters = self.parameters()?;
        }
        while let Some(directive) = self.directive()? {
            match directive.as_str() {
                "maxntid" => function.maxntid = Some(self.block_size()?),
                "reqntid" => function.reqntid = Some(self.block_size()?),
                "minnctapersm" | "maxnctapersm" | "maxnreg" => {
                    self.integer()?;
                }
                "noreturn" => {}
                "pragma" => self.skip_past(';')?,
                name => return self.error(format!("unknown directive .{name} of a function")),
            }
        }
        if self.accept('{')? {
            self.location = SourceLocation::default();
            function.body = Some(self.statements(&mut module.files)?);
        } else {
            self.expect(';')?;
        }
        Ok(function)
    }

    /// One to three dimensions.
    fn block_size(&mut self) -> Result<[u32; 3]> {
        let mut size = [1; 3];
        for dimension in &mut size {
            *dimension = self.unsigned()?;
            if !self.accept(',')? {
                break;
            }
        }
        Ok(size)
    }
}

/// A definition replaces an earlier declaration.
fn add_function(functions: &mut Vec<Function>, function: Function) {
    match functions.iter_mut().find(|known| known.name == function.name) {
        None => functions.push(function),
        Some(known) if known.body.is_none() => *known = function,
        Some(_) => {}
    }
}
