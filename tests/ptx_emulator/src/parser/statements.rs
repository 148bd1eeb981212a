//! Statements of function bodies.
use std::collections::HashMap;

use super::declarations::space_of_directive;
use super::lexer::Token;
use super::syntax::{Guard, InstructionText, Opcode, SourceLocation, Statement};
use super::{Parser, Result};

impl Parser<'_> {
    /// Statements up to the closing brace, which is taken.
    pub(super) fn statements(&mut self, files: &mut HashMap<u32, String>) -> Result<Vec<Statement>> {
        let mut statements = vec![];
        while !self.accept('}')? {
            match self.token.clone() {
                Token::Punctuation('{') => {
                    self.advance()?;
                    statements.push(Statement::Scope(self.statements(files)?));
                }
                Token::Punctuation(';') => {
                    self.advance()?;
                }
                Token::Punctuation('@') => {
                    self.advance()?;
                    let negated = self.accept('!')?;
                    let register = self.identifier()?;
                    statements.push(self.instruction(Some(Guard { register, negated }))?);
                }
                Token::Directive(name) => {
                    self.advance()?;
                    self.body_directive(&name, &mut statements, files)?;
                }
                Token::Identifier(_) => {
                    let statement = self.label_or_instruction()?;
                    statements.push(statement);
                }
                token => return self.unexpected(token, "a statement"),
            }
        }
        Ok(statements)
    }

    fn body_directive(
        &mut self,
        name: &str,
        statements: &mut Vec<Statement>,
        files: &mut HashMap<u32, String>,
    ) -> Result<()> {
        match name {
            "reg" => self.registers(statements),
            "loc" => self.source_location(),
            "file" => self.source_file(files),
            "pragma" => self.skip_past(';'),
            _ => match space_of_directive(name) {
                Some(space) => {
                    statements.push(Statement::Variable(self.variable(space)?));
                    self.expect(';')
                }
                None => self.error(format!("unknown directive .{name}")),
            },
        }
    }

    fn label_or_instruction(&mut self) -> Result<Statement> {
        let at_word = (self.lexer, self.token.clone(), self.line);
        let name = self.identifier()?;
        if !self.accept(':')? {
            (self.lexer, self.token, self.line) = at_word;
            return self.instruction(None);
        }
        if self.token == Token::Directive("branchtargets".into()) {
            self.advance()?;
            return Ok(Statement::BranchTargets { name, labels: self.list(';', Self::identifier)? });
        }
        Ok(Statement::Label(name))
    }

    fn instruction(&mut self, guard: Option<Guard>) -> Result<Statement> {
        let line = self.line;
        let opcode = Opcode::new(&self.identifier()?);
        let operands = self.list(';', Self::operand)?;
        Ok(Statement::Instruction(InstructionText { guard, opcode, operands, line, location: self.location.clone() }))
    }

    /// The rest of a `.loc` directive: file, line and column, perhaps where the code was inlined.
    pub(super) fn source_location(&mut self) -> Result<()> {
        let (file, line) = (self.unsigned()?, self.unsigned()?);
        self.integer()?;
        let mut inlined_at = 0;
        while self.accept(',')? {
            if self.identifier()? == "function_name" {
                self.identifier()?;
                if self.accept('+')? {
                    self.integer()?;
                }
            } else {
                // inlined_at: file, line and column
                self.integer()?;
                inlined_at = self.unsigned()?;
                self.integer()?;
            }
        }
        if line != 0 {
            self.location = SourceLocation { file, line, inlined_at };
        }
        Ok(())
    }

    /// The rest of a `.file` directive: the number, the name, perhaps time and size.
    pub(super) fn source_file(&mut self, files: &mut HashMap<u32, String>) -> Result<()> {
        let number = self.unsigned()?;
        match self.advance()? {
            Token::Text(path) => {
                let name = path.rsplit('/').next().unwrap_or(&path);
                files.insert(number, name.to_string());
            }
            token => return self.unexpected(token, "a file's name"),
        }
        while self.accept(',')? {
            self.integer()?;
        }
        Ok(())
    }
}
