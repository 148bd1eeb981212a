//! Operands of instructions.
use super::lexer::Token;
use super::syntax::Operand;
use super::{Parser, Result};

impl Parser<'_> {
    pub(super) fn operand(&mut self) -> Result<Operand> {
        match self.token.clone() {
            Token::Punctuation('-') => self.negative_number(),
            Token::Punctuation(opening @ ('[' | '{' | '(' | '!')) => {
                self.advance()?;
                match opening {
                    '[' => self.address(),
                    '{' => Ok(Operand::Vector(self.list('}', Self::operand)?)),
                    '(' => Ok(Operand::List(self.list(')', Self::operand)?)),
                    _ => Ok(Operand::NegatedPredicate(self.identifier()?)),
                }
            }
            Token::Integer(value) => {
                self.advance()?;
                Ok(Operand::Integer(value))
            }
            Token::Float32(bits) => {
                self.advance()?;
                Ok(Operand::Float32(bits))
            }
            Token::Float64(bits) => {
                self.advance()?;
                Ok(Operand::Float64(bits))
            }
            Token::Identifier(name) => {
                self.advance()?;
                if self.accept('|')? {
                    return Ok(Operand::Pair(Box::new(Operand::Symbol(name)), Box::new(self.operand()?)));
                }
                match self.offset()? {
                    Some(offset) => Ok(Operand::SymbolOffset(name, offset)),
                    None => Ok(Operand::Symbol(name)),
                }
            }
            token => self.unexpected(token, "an operand"),
        }
    }

    /// The rest of an address whose opening bracket is taken.
    fn address(&mut self) -> Result<Operand> {
        let address = match self.operand()? {
            Operand::SymbolOffset(name, offset) => Operand::Address(Box::new(Operand::Symbol(name)), offset),
            base => Operand::Address(Box::new(base), self.offset()?.unwrap_or(0)),
        };
        self.expect(']')?;
        Ok(address)
    }

    /// `+` or `-` and an integer.
    fn offset(&mut self) -> Result<Option<i64>> {
        // "+-8" is what the compiler writes for negative offsets; a bare "-8" is read with its sign
        if !self.accept('+')? && !self.is_at('-') {
            return Ok(None);
        }
        Ok(Some(self.integer()? as i64))
    }

    fn negative_number(&mut self) -> Result<Operand> {
        self.advance()?;
        let number = match self.token {
            Token::Integer(value) => Operand::Integer(-value),
            Token::Float32(bits) => Operand::Float32(bits ^ 1 << 31),
            Token::Float64(bits) => Operand::Float64(bits ^ 1 << 63),
            ref token => return self.unexpected(token, "a number"),
        };
        self.advance()?;
        Ok(number)
    }
}
