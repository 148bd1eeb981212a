//! PTX text to a syntax tree: what NVRTC and inline assembly produce. Anything unknown is an error with its line.
mod declarations;
mod lexer;
mod module;
mod operands;
mod statements;
pub mod syntax;

use std::fmt::{Debug, Display};

use lexer::{Lexer, Token};
use syntax::{Module, SourceLocation};

type Result<T> = std::result::Result<T, String>;

/// The syntax tree of a PTX module.
///
/// # Errors
/// A text that starts with the line: syntax errors, unknown directives, 32-bit addresses.
pub fn parse(text: &str) -> Result<Module> {
    Parser::new(text)?.module()
}

/// Reads the text by recursive descent, one token ahead.
struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The next token.
    token: Token,
    /// Its line.
    line: u32,
    /// The CUDA source line of the instructions that follow.
    location: SourceLocation,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self> {
        let mut parser =
            Self { lexer: Lexer::new(text), token: Token::End, line: 1, location: SourceLocation::default() };
        parser.advance()?;
        Ok(parser)
    }

    fn error<T>(&self, message: impl Display) -> Result<T> {
        Err(format!("PTX line {}: {message}", self.line))
    }

    fn unexpected<T>(&self, found: impl Debug, wanted: &str) -> Result<T> {
        self.error(format!("expected {wanted}, found {found:?}"))
    }

    /// Takes the next token.
    fn advance(&mut self) -> Result<Token> {
        let next = self.lexer.next()?;
        self.line = self.lexer.line();
        Ok(std::mem::replace(&mut self.token, next))
    }

    fn is_at(&self, character: char) -> bool {
        self.token == Token::Punctuation(character)
    }

    /// Takes `character` if it is next.
    fn accept(&mut self, character: char) -> Result<bool> {
        if !self.is_at(character) {
            return Ok(false);
        }
        self.advance()?;
        Ok(true)
    }

    fn expect(&mut self, character: char) -> Result<()> {
        if self.accept(character)? { Ok(()) } else { self.unexpected(&self.token, &format!("'{character}'")) }
    }

    fn identifier(&mut self) -> Result<String> {
        match self.token.clone() {
            Token::Identifier(name) => {
                self.advance()?;
                Ok(name)
            }
            token => self.unexpected(token, "a name"),
        }
    }

    /// A word behind a dot, if one is next.
    fn directive(&mut self) -> Result<Option<String>> {
        let Token::Directive(name) = self.token.clone() else { return Ok(None) };
        self.advance()?;
        Ok(Some(name))
    }

    fn integer(&mut self) -> Result<i128> {
        let negative = self.accept('-')?;
        match self.token {
            Token::Integer(value) => {
                self.advance()?;
                Ok(if negative { -value } else { value })
            }
            ref token => self.unexpected(token, "an integer"),
        }
    }

    fn unsigned(&mut self) -> Result<u32> {
        let value = self.integer()?;
        value.try_into().or_else(|_| self.error(format!("{value} is out of range")))
    }

    /// Items separated by commas up to `end`, which is taken.
    fn list<T>(&mut self, end: char, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = vec![];
        while !self.accept(end)? {
            items.push(item(self)?);
            if !self.is_at(end) {
                self.expect(',')?;
            }
        }
        Ok(items)
    }

    /// Skips everything up to `end`, which is taken.
    fn skip_past(&mut self, end: char) -> Result<()> {
        while !self.accept(end)? {
            if self.advance()? == Token::End {
                return self.error(format!("the text ends before '{end}'"));
            }
        }
        Ok(())
    }
}
