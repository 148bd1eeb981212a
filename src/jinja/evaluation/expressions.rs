//! Expressions.

use std::cmp::Ordering;
use std::rc::Rc;
use std::sync::Arc;

use indexmap::IndexMap;

use super::interpreter::{Frame, Interpreter};
use crate::jinja::ast::{Arguments, Comparison, Expr, Step};
use crate::jinja::attributes::{get_attribute, get_item, is_method};
use crate::jinja::budget::NODE_WORK;
use crate::jinja::error::{Result, fail, undefined};
use crate::jinja::methods;
use crate::jinja::ops::{contains, equal, math, order, sign, slice};
use crate::jinja::runtime::Args;
use crate::jinja::text::write_str;
use crate::jinja::value::Value;

impl<'t> Interpreter<'t> {
    /// The value of an expression.
    pub(super) fn value(&mut self, expr: &'t Expr, frame: &Rc<Frame>) -> Result<Value> {
        match expr {
            Expr::None => Ok(Value::None),
            Expr::Bool(value) => Ok(Value::Bool(*value)),
            Expr::Int(value) => Ok(Value::Int(*value)),
            Expr::Float(value) => Ok(Value::Float(*value)),
            Expr::Str(text) => Ok(Value::Str(Arc::clone(text))),
            Expr::Name(name, spelled) => {
                self.runtime.budget.work(NODE_WORK / 4)?;
                self.lookup(*name, spelled, frame)
            }
            other => self.deeper(|this| this.compound(other, frame)),
        }
    }

    fn compound(&mut self, expr: &'t Expr, frame: &Rc<Frame>) -> Result<Value> {
        match expr {
            Expr::Chain(first, steps) => self.chain(first, steps, frame),
            Expr::Compare(first, rest) => self.compare(first, rest, frame),
            Expr::And(operands) => self.decide(operands, false, frame),
            Expr::Or(operands) => self.decide(operands, true, frame),
            Expr::Not(operand, twice) => Ok(Value::Bool(self.value(operand, frame)?.truth() == *twice)),
            Expr::Conditional(parts) => {
                let (test, value, otherwise) = &**parts;
                if self.value(test, frame)?.truth() {
                    return self.value(value, frame);
                }
                match otherwise {
                    Some(otherwise) => self.value(otherwise, frame),
                    None => Ok(Value::Undefined("an inline 'if' without 'else'".into())),
                }
            }
            Expr::Math(first, rest) => {
                let mut value = self.value(first, frame)?;
                for (operator, operand) in rest {
                    self.runtime.budget.work(NODE_WORK)?;
                    let operand = self.value(operand, frame)?;
                    value = math(&self.runtime, *operator, &value, &operand)?;
                }
                Ok(value)
            }
            Expr::Concat(operands) => self.concat(operands, frame),
            Expr::Signs(signs, operand) => {
                let mut value = self.value(operand, frame)?;
                for negative in signs.iter().rev() {
                    self.runtime.budget.work(NODE_WORK)?;
                    value = sign(&value, *negative)?;
                }
                Ok(value)
            }
            Expr::List(items) => {
                let items = self.values(items, frame)?;
                self.runtime.list(items)
            }
            Expr::Tuple(items) => {
                let items = self.values(items, frame)?;
                self.runtime.tuple(items)
            }
            Expr::Dict(entries) => {
                let mut dict = IndexMap::new();
                for (key, value) in entries {
                    self.runtime.budget.elements(2)?;
                    let key = self.value(key, frame)?;
                    let key = self.runtime.key(&key)?;
                    dict.insert(key, self.value(value, frame)?);
                }
                self.runtime.dict(dict)
            }
            simple => self.value(simple, frame),
        }
    }

    fn values(&mut self, exprs: &'t [Expr], frame: &Rc<Frame>) -> Result<Vec<Value>> {
        self.runtime.budget.elements(exprs.len())?;
        exprs.iter().map(|expr| self.value(expr, frame)).collect()
    }

    /// `and` and `or`: the operand that decides.
    fn decide(&mut self, operands: &'t [Expr], decisive: bool, frame: &Rc<Frame>) -> Result<Value> {
        let mut value = Value::None;
        for operand in operands {
            self.runtime.budget.work(NODE_WORK / 4)?;
            value = self.value(operand, frame)?;
            if value.truth() == decisive {
                break;
            }
        }
        Ok(value)
    }

    fn concat(&mut self, operands: &'t [Expr], frame: &Rc<Frame>) -> Result<Value> {
        let values = self.values(operands, frame)?;
        let mut text = self.runtime.text();
        for value in &values {
            write_str(&self.runtime, value, &mut text)?;
        }
        Ok(Value::Str(text.into_string().into()))
    }

    fn compare(&mut self, first: &'t Expr, rest: &'t [(Comparison, Expr)], frame: &Rc<Frame>) -> Result<Value> {
        let mut left = self.value(first, frame)?;
        for (comparison, operand) in rest {
            self.runtime.budget.work(NODE_WORK / 4)?;
            let right = self.value(operand, frame)?;
            let runtime = &self.runtime;
            let ordered =
                |fits: fn(Ordering) -> bool| -> Result<bool> { Ok(order(runtime, &left, &right)?.is_some_and(fits)) };
            let holds = match comparison {
                Comparison::Equal => equal(runtime, &left, &right)?,
                Comparison::NotEqual => !equal(runtime, &left, &right)?,
                Comparison::Less => ordered(Ordering::is_lt)?,
                Comparison::LessOrEqual => ordered(Ordering::is_le)?,
                Comparison::Greater => ordered(Ordering::is_gt)?,
                Comparison::GreaterOrEqual => ordered(Ordering::is_ge)?,
                Comparison::In => contains(runtime, &right, &left)?,
                Comparison::NotIn => !contains(runtime, &right, &left)?,
            };
            if !holds {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    /// A value and what is taken from it, step by step.
    pub(super) fn chain(&mut self, first: &'t Expr, steps: &'t [Step], frame: &Rc<Frame>) -> Result<Value> {
        let mut value = self.value(first, frame)?;
        let mut steps = steps.iter().peekable();
        while let Some(step) = steps.next() {
            self.runtime.budget.work(NODE_WORK / 2)?;
            value = match step {
                Step::Attribute(name) => match steps.peek() {
                    // The usual call of a method, without making a value of the method.
                    Some(Step::Call(arguments)) if is_method(&value, name) => {
                        steps.next();
                        let args = self.arguments(arguments, frame)?;
                        methods::call(&self.runtime, &value, name, args)?
                    }
                    _ => get_attribute(&self.runtime, &value, name)?,
                },
                other => self.step(value, other, frame)?,
            };
        }
        Ok(value)
    }

    fn step(&mut self, value: Value, step: &'t Step, frame: &Rc<Frame>) -> Result<Value> {
        match step {
            Step::Attribute(name) => get_attribute(&self.runtime, &value, name),
            Step::Item(key) => {
                let key = self.value(key, frame)?;
                get_item(&self.runtime, &value, &key)
            }
            Step::Slice(bounds) => {
                let mut given = [const { None }; 3];
                for (given, bound) in given.iter_mut().zip(&**bounds) {
                    *given = bound.as_ref().map(|bound| self.value(bound, frame)).transpose()?;
                }
                slice(&self.runtime, &value, &given)
            }
            Step::Call(arguments) => {
                if let Value::Undefined(name) = &value {
                    return undefined(name);
                }
                let args = self.arguments(arguments, frame)?;
                self.call(&value, args)
            }
            Step::Filter(filter, arguments) => {
                let args = self.arguments(arguments, frame)?;
                filter(&self.runtime, value, args)
            }
            Step::Test(test, arguments, negated) => {
                let args = self.arguments(arguments, frame)?;
                Ok(Value::Bool(test(&self.runtime, value, args)?.truth() != *negated))
            }
            Step::Missing(error) => Err(error.clone()),
        }
    }

    /// The values of a call's arguments.
    pub(super) fn arguments(&mut self, arguments: &'t Arguments, frame: &Rc<Frame>) -> Result<Args> {
        let mut args = Args::default();
        if arguments.positional.is_empty() && arguments.named.is_empty() && arguments.list.is_none() {
            if arguments.dict.is_none() {
                return Ok(args);
            }
        } else {
            args.positional = self.values(&arguments.positional, frame)?;
            self.runtime.budget.elements(arguments.named.len())?;
            for (name, value) in &arguments.named {
                args.named.push((Arc::clone(name), self.value(value, frame)?));
            }
        }
        if let Some(list) = &arguments.list {
            let list = self.value(list, frame)?;
            let list = self.runtime.iterate(&list)?;
            self.runtime.budget.elements(list.values.len())?;
            args.positional.extend(list.values.iter().cloned());
        }
        if let Some(dict) = &arguments.dict {
            let Value::Dict(dict) = self.value(dict, frame)? else { return fail("the argument behind ** is no dict") };
            for (key, value) in &dict.entries {
                self.runtime.budget.elements(1)?;
                // A parameter is looked for among all names.
                self.runtime.budget.work(args.named.len())?;
                let Value::Str(name) = key.value() else { return fail("keywords must be strings") };
                if args.named.iter().any(|(other, _)| other == name) {
                    return fail("a call has two values for one keyword");
                }
                args.named.push((Arc::clone(name), value.clone()));
            }
        }
        Ok(args)
    }
}
