//! Expressions, with Jinja2's precedences.

use std::sync::Arc;

use super::stream::Stream;
use crate::jinja::ast::{Arguments, Comparison, Expr, Step};
use crate::jinja::error::{Result, fail};
use crate::jinja::lexer::Kind;
use crate::jinja::ops::Math;
use crate::jinja::{filters, is_tests};

/// An expression, or the value itself where there is only one operand.
fn joined(mut operands: Vec<Expr>, make: fn(Vec<Expr>) -> Expr) -> Expr {
    match operands.len() {
        1 => operands.remove(0),
        _ => make(operands),
    }
}

impl Stream {
    /// An expression; `a if b else c` only where `conditional`.
    pub(super) fn expression(&mut self, conditional: bool) -> Result<Expr> {
        self.nested(|stream| if conditional { stream.conditional() } else { stream.or() })
    }

    fn conditional(&mut self) -> Result<Expr> {
        let value = self.or()?;
        if !self.skip_name("if") {
            return Ok(value);
        }
        let test = self.or()?;
        let otherwise = if self.skip_name("else") { Some(self.nested(Self::conditional)?) } else { None };
        if self.is_name("if") {
            return fail("a conditional expression behind another one needs parentheses");
        }
        Ok(Expr::Conditional(Box::new((test, value, otherwise))))
    }

    fn or(&mut self) -> Result<Expr> {
        let mut operands = vec![self.and()?];
        while self.skip_name("or") {
            operands.push(self.and()?);
        }
        Ok(joined(operands, Expr::Or))
    }

    fn and(&mut self) -> Result<Expr> {
        let mut operands = vec![self.not()?];
        while self.skip_name("and") {
            operands.push(self.not()?);
        }
        Ok(joined(operands, Expr::And))
    }

    fn not(&mut self) -> Result<Expr> {
        let mut count = 0;
        while self.skip_name("not") {
            count += 1;
        }
        let operand = self.compare()?;
        Ok(if count == 0 { operand } else { Expr::Not(Box::new(operand), count % 2 == 0) })
    }

    fn compare(&mut self) -> Result<Expr> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let comparison = match self.kind() {
                Kind::Op("==") => Comparison::Equal,
                Kind::Op("!=") => Comparison::NotEqual,
                Kind::Op("<") => Comparison::Less,
                Kind::Op("<=") => Comparison::LessOrEqual,
                Kind::Op(">") => Comparison::Greater,
                Kind::Op(">=") => Comparison::GreaterOrEqual,
                Kind::Name(name) if &**name == "in" => Comparison::In,
                Kind::Name(name) if &**name == "not" => match self.following() {
                    Kind::Name(next) if &**next == "in" => {
                        self.next();
                        Comparison::NotIn
                    }
                    _ => break,
                },
                _ => break,
            };
            self.next();
            rest.push((comparison, self.sum()?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Compare(Box::new(first), rest) })
    }

    /// Operands joined by operators of one precedence.
    fn math(&mut self, operators: &[(&str, Math)], operand: fn(&mut Self) -> Result<Expr>) -> Result<Expr> {
        let first = operand(self)?;
        let mut rest = Vec::new();
        while let Some(&(_, math)) = operators.iter().find(|(operator, _)| self.is(operator)) {
            self.next();
            rest.push((math, operand(self)?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Math(Box::new(first), rest) })
    }

    fn sum(&mut self) -> Result<Expr> {
        self.math(&[("+", Math::Add), ("-", Math::Sub)], Self::concat)
    }

    fn concat(&mut self) -> Result<Expr> {
        let mut operands = vec![self.product()?];
        while self.skip("~") {
            operands.push(self.product()?);
        }
        Ok(joined(operands, Expr::Concat))
    }

    fn product(&mut self) -> Result<Expr> {
        let operators = [("*", Math::Mul), ("/", Math::Div), ("//", Math::FloorDiv), ("%", Math::Mod)];
        self.math(&operators, Self::power)
    }

    fn power(&mut self) -> Result<Expr> {
        self.math(&[("**", Math::Pow)], Self::unary)
    }

    /// Signs, a value, what is taken from it, and its filters and tests.
    fn unary(&mut self) -> Result<Expr> {
        let mut signs = Vec::new();
        while self.is("-") || self.is("+") {
            signs.push(self.is("-"));
            self.next();
        }
        let primary = self.primary()?;
        let mut value = self.postfix(primary)?;
        if !signs.is_empty() {
            value = Expr::Signs(signs, Box::new(value));
        }
        let mut steps = Vec::new();
        loop {
            if self.skip("|") {
                steps.push(self.filter()?);
            } else if self.skip_name("is") {
                steps.push(self.test()?);
            } else if self.is("(") {
                steps.push(Step::Call(self.arguments()?));
            } else {
                break;
            }
        }
        Ok(chain(value, steps))
    }

    /// A literal, a name, or an expression in brackets.
    pub(super) fn primary(&mut self) -> Result<Expr> {
        match self.kind().clone() {
            Kind::Name(name) => {
                self.next();
                Ok(match &*name {
                    "true" | "True" => Expr::Bool(true),
                    "false" | "False" => Expr::Bool(false),
                    "none" | "None" => Expr::None,
                    _ => Expr::Name(self.read(&name), name),
                })
            }
            Kind::Str(text) => {
                self.next();
                let mut parts = vec![text];
                while let Kind::Str(text) = self.kind() {
                    parts.push(Arc::clone(text));
                    self.next();
                }
                Ok(Expr::Str(if parts.len() == 1 { parts.remove(0) } else { parts.concat().into() }))
            }
            Kind::Int(value) => {
                self.next();
                Ok(Expr::Int(value))
            }
            Kind::Float(value) => {
                self.next();
                Ok(Expr::Float(value))
            }
            Kind::Op("(") => {
                self.next();
                let value = self.tuple(true, true, &[])?;
                self.expect(")")?;
                Ok(value)
            }
            Kind::Op("[") => {
                self.next();
                let mut items = Vec::new();
                while !self.is("]") {
                    if !items.is_empty() {
                        self.expect(",")?;
                        if self.is("]") {
                            break;
                        }
                    }
                    items.push(self.expression(true)?);
                }
                self.expect("]")?;
                Ok(Expr::List(items))
            }
            Kind::Op("{") => self.dict(),
            _ => self.unexpected("an expression"),
        }
    }

    fn dict(&mut self) -> Result<Expr> {
        self.next();
        let mut entries = Vec::new();
        while !self.is("}") {
            if !entries.is_empty() {
                self.expect(",")?;
                if self.is("}") {
                    break;
                }
            }
            let key = self.expression(true)?;
            self.expect(":")?;
            entries.push((key, self.expression(true)?));
        }
        self.expect("}")?;
        Ok(Expr::Dict(entries))
    }

    /// One expression, or several between commas, which make a tuple. It ends at a tag's end, a parenthesis, or one of
    /// the names in `ends`.
    pub(super) fn tuple(&mut self, conditional: bool, parentheses: bool, ends: &[&str]) -> Result<Expr> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() {
                self.expect(",")?;
            }
            let at_end = matches!(self.kind(), Kind::VariableEnd | Kind::BlockEnd | Kind::Op(")"));
            if at_end || ends.iter().any(|end| self.is_name(end)) {
                break;
            }
            items.push(self.expression(conditional)?);
            if !self.is(",") {
                break;
            }
            is_tuple = true;
        }
        match items.pop() {
            Some(only) if !is_tuple => Ok(only),
            Some(last) => {
                items.push(last);
                Ok(Expr::Tuple(items))
            }
            None if parentheses => Ok(Expr::Tuple(Vec::new())),
            None => self.unexpected("an expression"),
        }
    }

    /// Attributes, items, slices and calls behind a value.
    fn postfix(&mut self, value: Expr) -> Result<Expr> {
        let mut steps = Vec::new();
        loop {
            if self.skip(".") {
                steps.push(match self.next() {
                    Kind::Name(name) => Step::Attribute(name),
                    Kind::Int(index) => Step::Item(Expr::Int(index)),
                    _ => return fail("the template is not valid: expected a name or number behind '.'"),
                });
            } else if self.skip("[") {
                steps.push(self.subscript()?);
            } else if self.is("(") {
                steps.push(Step::Call(self.arguments()?));
            } else {
                return Ok(chain(value, steps));
            }
        }
    }

    fn subscript(&mut self) -> Result<Step> {
        let mut items = Vec::new();
        while !self.is("]") {
            if !items.is_empty() {
                self.expect(",")?;
            }
            let start = if self.is(":") { None } else { Some(self.expression(true)?) };
            if !self.skip(":") {
                items.extend(start);
                continue;
            }
            let ends = |stream: &Self| stream.is("]") || stream.is(",");
            let stop = if ends(self) || self.is(":") { None } else { Some(self.expression(true)?) };
            let step = if self.skip(":") && !ends(self) { Some(self.expression(true)?) } else { None };
            if !items.is_empty() || !self.is("]") {
                return fail("slices of several dimensions are not supported");
            }
            self.expect("]")?;
            return Ok(Step::Slice(Box::new([start, stop, step])));
        }
        self.expect("]")?;
        Ok(Step::Item(match items.len() {
            1 => items.remove(0),
            _ => Expr::Tuple(items),
        }))
    }

    pub(super) fn arguments(&mut self) -> Result<Arguments> {
        self.expect("(")?;
        let invalid = || fail("invalid syntax for function call expression");
        let mut arguments = Arguments::default();
        let mut first = true;
        while !self.is(")") {
            if !first {
                self.expect(",")?;
                if self.is(")") {
                    break;
                }
            }
            first = false;
            if self.skip("*") {
                if arguments.list.is_some() || arguments.dict.is_some() {
                    return invalid();
                }
                arguments.list = Some(self.expression(true)?);
            } else if self.skip("**") {
                if arguments.dict.is_some() {
                    return invalid();
                }
                arguments.dict = Some(self.expression(true)?);
            } else if matches!((self.kind(), self.following()), (Kind::Name(_), Kind::Op("="))) {
                let name = self.expect_name()?;
                self.next();
                if arguments.dict.is_some() || arguments.named.iter().any(|(other, _)| *other == name) {
                    return invalid();
                }
                if arguments.named.len() > 1000 {
                    return fail("a call has too many named arguments");
                }
                arguments.named.push((name, self.expression(true)?));
            } else {
                if arguments.list.is_some() || arguments.dict.is_some() || !arguments.named.is_empty() {
                    return invalid();
                }
                arguments.positional.push(self.expression(true)?);
            }
        }
        self.expect(")")?;
        Ok(arguments)
    }

    fn dotted_name(&mut self) -> Result<String> {
        let mut name = self.expect_name()?.to_string();
        while self.skip(".") {
            name.push('.');
            name.push_str(&self.expect_name()?);
        }
        Ok(name)
    }

    /// A filter, behind its `|`.
    pub(super) fn filter(&mut self) -> Result<Step> {
        let name = self.dotted_name()?;
        let arguments = if self.is("(") { self.arguments()? } else { Arguments::default() };
        Ok(match filters::find(&name) {
            Ok(filter) => Step::Filter(filter, arguments),
            Err(missing) => Step::Missing(missing),
        })
    }

    /// A test, behind its `is`.
    fn test(&mut self) -> Result<Step> {
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let mut arguments = Arguments::default();
        let has_argument = match self.kind() {
            Kind::Op("(") => {
                arguments = self.arguments()?;
                false
            }
            Kind::Name(name) => !matches!(&**name, "else" | "or" | "and"),
            Kind::Str(_) | Kind::Int(_) | Kind::Float(_) | Kind::Op("[" | "{") => true,
            _ => false,
        };
        if has_argument {
            if self.is_name("is") {
                return fail("You cannot chain multiple tests with is");
            }
            let argument = self.nested(|stream| {
                let primary = stream.primary()?;
                stream.postfix(primary)
            })?;
            arguments.positional.push(argument);
        }
        Ok(match is_tests::find(&name) {
            Ok(test) => Step::Test(test, arguments, negated),
            Err(missing) => Step::Missing(missing),
        })
    }
}

/// A value and the steps from it.
fn chain(value: Expr, steps: Vec<Step>) -> Expr {
    if steps.is_empty() {
        return value;
    }
    match value {
        // One flat chain, however it was written.
        Expr::Chain(first, mut before) => {
            before.extend(steps);
            Expr::Chain(first, before)
        }
        value => Expr::Chain(Box::new(value), steps),
    }
}
