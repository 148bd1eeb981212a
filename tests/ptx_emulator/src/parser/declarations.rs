//! Variables, parameters and registers.
use super::lexer::Token;
use super::syntax::{InitialValue, Initializer, Statement, Variable};
use super::{Parser, Result};
use crate::data_type::DataType;
use crate::instruction::StateSpace;

/// The state space that a directive declares variables in.
pub(super) fn space_of_directive(name: &str) -> Option<StateSpace> {
    Some(match name {
        "global" => StateSpace::Global,
        "shared" => StateSpace::Shared,
        "local" => StateSpace::Local,
        "param" => StateSpace::Param,
        "const" => StateSpace::Const,
        _ => return None,
    })
}

impl Parser<'_> {
    /// A variable behind its space: `[.align n] .type [.ptr …] name [sizes] [= contents]`.
    pub(super) fn variable(&mut self, space: StateSpace) -> Result<Variable> {
        let (mut alignment, mut element_bytes, mut elements, mut is_pointer) = (0, 0, 1, false);
        while let Some(directive) = self.directive()? {
            match directive.as_str() {
                "align" => {
                    let bytes = u64::from(self.unsigned()?);
                    // that of a pointer is the alignment of what it points to
                    alignment = if is_pointer { alignment } else { bytes };
                }
                "ptr" => is_pointer = true,
                "v2" => elements = 2,
                "v4" => elements = 4,
                // the state space that a pointer points to
                "global" | "shared" | "const" | "local" if is_pointer => {}
                name => match DataType::named(name) {
                    Some(data_type) => element_bytes = u64::from(data_type.bytes()),
                    None => return self.error(format!("unknown type .{name}")),
                },
            }
        }
        element_bytes *= elements;
        let name = self.identifier()?;
        let mut count = 1;
        let mut is_external = false;
        while self.accept('[')? {
            if self.is_at(']') {
                is_external = true;
                count = 0;
            } else {
                count *= u64::from(self.unsigned()?);
            }
            self.expect(']')?;
        }
        let initializers = if self.accept('=')? { self.initializers(element_bytes)? } else { vec![] };
        let alignment = alignment.max(element_bytes.min(16)).max(1);
        Ok(Variable { space, name, bytes: count * element_bytes, alignment, initializers, is_external })
    }

    /// One value, or values in braces, nested or not.
    fn initializers(&mut self, element_bytes: u64) -> Result<Vec<Initializer>> {
        let mut initializers = vec![];
        let mut depth = 0;
        loop {
            if self.accept('{')? {
                depth += 1;
                continue;
            }
            if self.accept('}')? {
                depth -= 1;
            } else {
                let offset = initializers.len() as u64 * element_bytes;
                let value = self.initial_value()?;
                initializers.push(Initializer { offset, bytes: element_bytes as u32, value });
            }
            if depth == 0 {
                return Ok(initializers);
            }
            self.accept(',')?;
        }
    }

    fn initial_value(&mut self) -> Result<InitialValue> {
        match self.token.clone() {
            Token::Float32(bits) => {
                self.advance()?;
                Ok(InitialValue::Bits(u64::from(bits)))
            }
            Token::Float64(bits) => {
                self.advance()?;
                Ok(InitialValue::Bits(bits))
            }
            Token::Identifier(mut symbol) => {
                self.advance()?;
                if symbol == "generic" {
                    self.expect('(')?;
                    symbol = self.identifier()?;
                    self.expect(')')?;
                }
                let offset = if self.accept('+')? { self.integer()? as i64 } else { 0 };
                Ok(InitialValue::Address { symbol, offset })
            }
            _ => Ok(InitialValue::Bits(self.integer()? as u64)),
        }
    }

    /// Parameters in parentheses.
    pub(super) fn parameters(&mut self) -> Result<Vec<Variable>> {
        self.expect('(')?;
        self.list(')', |parser| match parser.directive()?.as_deref() {
            Some("param" | "reg") => parser.variable(StateSpace::Param),
            directive => parser.unexpected(directive, "a parameter"),
        })
    }

    /// The rest of a `.reg` directive.
    pub(super) fn registers(&mut self, statements: &mut Vec<Statement>) -> Result<()> {
        let Some(type_name) = self.directive()? else { return self.error(".reg without a type") };
        let Some(data_type) = DataType::named(&type_name) else {
            return self.error(format!("registers of type .{type_name} are not supported"));
        };
        let declared = self.list(';', |parser| {
            let name = parser.identifier()?;
            let count = if parser.accept('<')? { Some(parser.unsigned()?) } else { None };
            if count.is_some() {
                parser.expect('>')?;
            }
            Ok(Statement::Registers { data_type, name, count })
        })?;
        statements.extend(declared);
        Ok(())
    }
}
