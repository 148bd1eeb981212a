//! The state of a rendering: variables, macros, loops, and what was printed.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use crate::jinja::ast::{For, Macro, Name, Target};
use crate::jinja::budget::{MAX_EVALUATION_DEPTH, NODE_WORK};
use crate::jinja::error::{Result, fail, quoted};
use crate::jinja::functions::check_attribute;
use crate::jinja::runtime::Runtime;
use crate::jinja::text::write_str;
use crate::jinja::value::Value;

/// The variables of a block. What is not here is looked for in the block around it.
pub(super) struct Frame {
    variables: RefCell<Vec<(Name, Value)>>,
    parent: Option<Rc<Frame>>,
}

impl Frame {
    pub(super) fn inside(parent: &Rc<Frame>) -> Rc<Frame> {
        Rc::new(Frame { variables: RefCell::default(), parent: Some(Rc::clone(parent)) })
    }
}

/// A loop that runs, which `loop(…)` may run again with other items.
pub(super) struct Run<'t> {
    pub number: usize,
    pub block: &'t For,
    pub frame: Rc<Frame>,
}

/// The state of a rendering.
pub(in crate::jinja) struct Interpreter<'t> {
    pub(super) runtime: Runtime,
    names: &'t [Arc<str>],
    /// Variables that were given, and functions, by name.
    globals: Vec<Option<Value>>,
    /// What was printed, into the innermost block that is captured.
    pub(super) out: String,
    pub(super) macros: Vec<(&'t Macro, Rc<Frame>)>,
    pub(super) runs: Vec<Run<'t>>,
    pub(super) next_run: usize,
    /// The name of the variable `loop`, if the template uses it.
    pub(super) loop_name: Option<Name>,
    depth: usize,
}

impl<'t> Interpreter<'t> {
    /// A rendering of a template that uses these names, with the values that they have at its start.
    pub(in crate::jinja) fn new(runtime: Runtime, names: &'t [Arc<str>], globals: Vec<Option<Value>>) -> Self {
        Self {
            runtime,
            names,
            globals,
            out: String::new(),
            macros: Vec::new(),
            runs: Vec::new(),
            next_run: 0,
            loop_name: names.iter().position(|name| &**name == "loop").map(|at| at as Name),
            depth: 0,
        }
    }

    /// The frame of the template itself.
    pub(super) fn outermost() -> Rc<Frame> {
        Rc::new(Frame { variables: RefCell::default(), parent: None })
    }

    /// Runs a step that can contain others, and pays for it.
    pub(super) fn deeper<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.runtime.budget.work(NODE_WORK)?;
        if self.depth == MAX_EVALUATION_DEPTH {
            return fail("the template calls macros too deeply");
        }
        self.depth += 1;
        let result = step(self);
        self.depth -= 1;
        result
    }

    /// The value of a variable.
    pub(super) fn lookup(&self, name: Name, spelled: &Arc<str>, frame: &Frame) -> Result<Value> {
        let mut frame = Some(frame);
        while let Some(here) = frame {
            let variables = here.variables.borrow();
            self.runtime.budget.work(variables.len())?;
            if let Some((_, value)) = variables.iter().find(|(other, _)| *other == name) {
                return Ok(value.clone());
            }
            frame = here.parent.as_deref();
        }
        let global = self.globals.get(name as usize).cloned().flatten();
        Ok(global.unwrap_or_else(|| Value::Undefined(Arc::clone(spelled))))
    }

    /// Gives a variable of this frame a value.
    pub(super) fn set(&self, frame: &Frame, name: Name, value: Value) -> Result<()> {
        let mut variables = frame.variables.borrow_mut();
        self.runtime.budget.work(variables.len())?;
        match variables.iter_mut().find(|(other, _)| *other == name) {
            Some((_, old)) => *old = value,
            None => {
                self.runtime.budget.memory(64)?;
                variables.push((name, value));
            }
        }
        Ok(())
    }

    /// Assigns to names, to the parts of a tuple, or to an attribute of a namespace.
    pub(super) fn assign(&mut self, target: &Target, value: Value, frame: &Frame) -> Result<()> {
        match target {
            Target::Name(name) => self.set(frame, *name, value),
            Target::Tuple(targets) => {
                let items = self.runtime.iterate(&value)?;
                if items.values.len() != targets.len() {
                    return fail(format!("cannot unpack {} values into {}", items.values.len(), targets.len()));
                }
                targets
                    .iter()
                    .zip(&items.values)
                    .try_for_each(|(target, value)| self.assign(target, value.clone(), frame))
            }
            Target::Attribute(name, attribute) => {
                let spelled = Arc::clone(&self.names[*name as usize]);
                match self.lookup(*name, &spelled, frame)? {
                    Value::Namespace(index) => {
                        check_attribute(attribute)?;
                        self.runtime.budget.memory(64)?;
                        self.runtime.namespaces.borrow_mut()[index].insert(Arc::clone(attribute), value);
                        Ok(())
                    }
                    _ => {
                        fail(format!("cannot assign an attribute to '{}', which is not a namespace", quoted(&spelled)))
                    }
                }
            }
        }
    }

    /// Prints a text.
    pub(super) fn print(&mut self, text: &str) -> Result<()> {
        if self.out.len() + text.len() > self.runtime.budget.max_printed() {
            return fail("the template prints too much");
        }
        self.runtime.budget.memory(2 * text.len())?;
        self.out.push_str(text);
        Ok(())
    }

    /// Prints a value.
    pub(super) fn print_value(&mut self, value: &Value) -> Result<()> {
        match value {
            Value::Str(text) | Value::Markup(text) => self.print(text),
            other => {
                let mut text = self.runtime.text();
                write_str(&self.runtime, other, &mut text)?;
                let text = text.into_string();
                self.print(&text)
            }
        }
    }

    /// What a step prints.
    pub(super) fn captured<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T>) -> Result<(T, String)> {
        let outer = std::mem::take(&mut self.out);
        let result = step(self);
        let printed = std::mem::replace(&mut self.out, outer);
        Ok((result?, printed))
    }
}
