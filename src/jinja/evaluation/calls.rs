//! Calls of functions and macros, and loops that call themselves.

use std::rc::Rc;
use std::sync::Arc;

use super::interpreter::{Frame, Interpreter};
use crate::jinja::ast::{Expr, Macro, Step};
use crate::jinja::error::{Result, fail, quoted, undefined};
use crate::jinja::functions;
use crate::jinja::methods;
use crate::jinja::runtime::Args;
use crate::jinja::value::{Key, Value};

impl<'t> Interpreter<'t> {
    /// Calls a value.
    pub(super) fn call(&mut self, callee: &Value, args: Args) -> Result<Value> {
        match callee {
            Value::Macro(index) => self.deeper(|this| this.call_macro(*index, args)),
            Value::Function(function) => functions::call(&self.runtime, *function, args),
            Value::Method(method) => methods::call(&self.runtime, &method.receiver, &method.name, args),
            Value::Joiner(joiner) => {
                args.none("a joiner")?;
                let first = !joiner.used.replace(true);
                Ok(if first { Value::Str("".into()) } else { joiner.separator.clone() })
            }
            Value::Loop(run) => {
                let [items] = args.bind("loop", ["iterable"])?;
                let Some(items) = items else { return fail("loop needs an argument") };
                let Some(found) = self.runs.iter().rfind(|active| active.number == run.run) else {
                    return fail("this loop has ended");
                };
                if !found.block.recursive {
                    return fail("The loop must have the 'recursive' marker to be called recursively.");
                }
                let (block, frame) = (found.block, Rc::clone(&found.frame));
                let depth = run.depth0 + 1;
                self.deeper(|this| {
                    let ((), printed) = this.captured(|this| this.run_loop(block, &items, &frame, depth))?;
                    this.runtime.str(printed)
                })
            }
            Value::Undefined(name) => undefined(name),
            other => fail(format!("'{}' object is not callable", other.type_name())),
        }
    }

    /// Makes a macro that sees the variables of a frame.
    pub(super) fn define(&mut self, block: &'t Macro, frame: &Rc<Frame>) -> Result<Value> {
        self.runtime.budget.elements(4)?;
        self.runtime.macro_names.borrow_mut().push(Arc::clone(&block.name));
        self.macros.push((block, Rc::clone(frame)));
        Ok(Value::Macro(self.macros.len() - 1))
    }

    /// Prints what a call returns, with a block as the argument `caller`.
    pub(super) fn call_block(&mut self, block: &'t Macro, call: &'t Expr, frame: &Rc<Frame>) -> Result<()> {
        let Expr::Chain(first, steps) = call else { return fail("expected call") };
        let Some((Step::Call(arguments), steps)) = steps.split_last() else { return fail("expected call") };
        let caller = self.define(block, frame)?;
        let callee = self.chain(first, steps, frame)?;
        let mut args = self.arguments(arguments, frame)?;
        args.named.push(("caller".into(), caller));
        let value = self.call(&callee, args)?;
        self.print_value(&value)
    }

    fn call_macro(&mut self, index: usize, args: Args) -> Result<Value> {
        let (block, outer) = &self.macros[index];
        let (block, frame) = (*block, Frame::inside(outer));
        self.runtime.budget.elements(block.parameters.len() + 2)?;
        self.bind(block, args, &frame)?;
        let (_, printed) = self.captured(|this| this.run(&block.body, &frame))?;
        self.runtime.str(printed)
    }

    /// Sets a macro's parameters.
    fn bind(&mut self, block: &'t Macro, args: Args, frame: &Rc<Frame>) -> Result<()> {
        let name = &block.name;
        let Args { positional, mut named } = args;
        self.runtime.budget.work(block.parameters.len() * (1 + named.len()))?;
        let mut positional = positional.into_iter();
        let first_default = block.parameters.len() - block.defaults.len();
        for (i, (parameter, spelled)) in block.parameters.iter().enumerate() {
            let given = positional.next().or_else(|| {
                let at = named.iter().position(|(other, _)| other == spelled)?;
                Some(named.remove(at).1)
            });
            let value = match (given, i.checked_sub(first_default)) {
                (Some(value), _) => value,
                (None, Some(default)) => self.value(&block.defaults[default], frame)?,
                (None, None) => Value::Undefined(Arc::clone(spelled)),
            };
            self.set(frame, *parameter, value)?;
        }
        if let Some(variable) = block.caller {
            let at = named.iter().position(|(other, _)| &**other == "caller");
            let caller = at.map(|at| named.remove(at).1);
            let caller = caller.unwrap_or_else(|| Value::Undefined("caller".into()));
            self.set(frame, variable, caller)?;
        }
        if let Some(variable) = block.kwargs {
            let entries = named.drain(..).map(|(name, value)| (Key::text(name), value)).collect();
            self.set(frame, variable, self.runtime.dict(entries)?)?;
        } else if let Some((keyword, _)) = named.first() {
            return fail(format!("macro '{}' takes no keyword argument '{}'", quoted(name), quoted(keyword)));
        }
        let rest: Vec<Value> = positional.collect();
        if let Some(variable) = block.varargs {
            self.set(frame, variable, self.runtime.tuple(rest)?)?;
        } else if !rest.is_empty() {
            let most = block.parameters.len();
            return fail(format!("macro '{}' takes not more than {most} argument(s)", quoted(name)));
        }
        Ok(())
    }
}
