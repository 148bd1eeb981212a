//! What the native functions of a rendering share: the budget, the makers of values, and what can change.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use indexmap::IndexMap;

use super::budget::{Budget, MAX_DEPTH, Text};
use super::error::{Result, TemplateError, fail, quoted};
use super::value::{Dict, Generator, Items, Key, Value, View};

/// A filter, or a test (which returns a `Bool`): the value on its left, and the arguments.
pub(super) type Native = fn(&Runtime, Value, Args) -> Result<Value>;

/// What the native functions of one rendering share.
pub(super) struct Runtime {
    pub budget: Budget,
    /// The namespaces that were made. They alone can contain themselves, so they are freed all at once.
    pub namespaces: RefCell<Vec<IndexMap<Arc<str>, Value>>>,
    /// Names of the macros that were defined.
    pub macro_names: RefCell<Vec<Arc<str>>>,
    /// Filters and tests by name, for the filters that take one by name.
    pub find_filter: fn(&str) -> Result<Native>,
    pub find_test: fn(&str) -> Result<Native>,
    /// Nesting of natives that walk values, beyond what the depth of a value bounds.
    nested: Cell<u32>,
}

impl Runtime {
    pub(super) fn new(
        budget: Budget,
        find_filter: fn(&str) -> Result<Native>,
        find_test: fn(&str) -> Result<Native>,
    ) -> Self {
        Self {
            budget,
            namespaces: RefCell::default(),
            macro_names: RefCell::default(),
            find_filter,
            find_test,
            nested: Cell::new(0),
        }
    }

    /// Runs a step of a walk that follows namespaces, whose nesting no value's depth bounds.
    pub(super) fn nested<T>(&self, step: impl FnOnce() -> Result<T>) -> Result<T> {
        self.nested.set(self.nested.get() + 1);
        let result = if self.nested.get() > MAX_DEPTH { fail("values are nested too deeply") } else { step() };
        self.nested.set(self.nested.get() - 1);
        result
    }

    pub(super) fn text(&self) -> Text<'_> {
        Text::new(&self.budget)
    }

    pub(super) fn str(&self, text: impl Into<Arc<str>> + AsRef<str>) -> Result<Value> {
        self.budget.memory(text.as_ref().len() + 32)?;
        Ok(Value::Str(text.into()))
    }

    fn items(&self, values: Vec<Value>) -> Result<Rc<Items>> {
        self.budget.elements(values.len() + 1)?;
        let depth = self.depth(values.iter())?;
        Ok(Rc::new(Items { values, depth, group: false }))
    }

    /// The depth of a container of these values.
    fn depth<'v>(&self, values: impl Iterator<Item = &'v Value>) -> Result<u32> {
        let depth = 1 + values.map(Value::depth).max().unwrap_or(0);
        if depth > MAX_DEPTH { fail("values are nested too deeply") } else { Ok(depth) }
    }

    pub(super) fn list(&self, values: Vec<Value>) -> Result<Value> {
        self.items(values).map(Value::List)
    }

    pub(super) fn tuple(&self, values: Vec<Value>) -> Result<Value> {
        self.items(values).map(Value::Tuple)
    }

    /// A pair of `groupby`.
    pub(super) fn group(&self, grouper: Value, values: Vec<Value>) -> Result<Value> {
        let values = vec![grouper, self.list(values)?];
        self.budget.elements(3)?;
        let depth = self.depth(values.iter())?;
        Ok(Value::Tuple(Rc::new(Items { values, depth, group: true })))
    }

    pub(super) fn generator(&self, values: Vec<Value>) -> Result<Value> {
        self.budget.elements(values.len() + 1)?;
        let depth = self.depth(values.iter())?;
        Ok(Value::Generator(Rc::new(Generator { left: RefCell::new(VecDeque::from(values)), depth })))
    }

    pub(super) fn dict(&self, entries: IndexMap<Key, Value>) -> Result<Value> {
        self.budget.elements(2 * entries.len() + 1)?;
        let depth = self.depth(entries.values())?;
        Ok(Value::Dict(Rc::new(Dict { entries, depth })))
    }

    pub(super) fn key(&self, value: &Value) -> Result<Key> {
        if let Value::Str(text) = value {
            self.budget.work(text.len())?;
        }
        Key::new(value).ok_or_else(|| match value {
            Value::Tuple(_) | Value::Range(_) | Value::Undefined(_) | Value::Markup(_) | Value::Generator(_) => {
                TemplateError::new(format!("keys of type {} are not supported", value.type_name()))
            }
            _ => TemplateError::new(format!("unhashable type: '{}'", value.type_name())),
        })
    }

    pub(super) fn namespace(&self, attributes: IndexMap<Arc<str>, Value>) -> Result<Value> {
        self.budget.elements(2 * attributes.len() + 2)?;
        let mut namespaces = self.namespaces.borrow_mut();
        namespaces.push(attributes);
        Ok(Value::Namespace(namespaces.len() - 1))
    }

    /// The elements that iterating over a value gives. A generator is used up.
    pub(super) fn iterate(&self, value: &Value) -> Result<Rc<Items>> {
        let values = match value {
            Value::List(items) | Value::Tuple(items) => {
                // What the caller does with each element beyond this, it pays itself.
                self.budget.work(4 * items.values.len())?;
                return Ok(Rc::clone(items));
            }
            Value::Undefined(_) => Vec::new(),
            Value::Str(text) => {
                self.budget.elements(text.len())?;
                text.chars().map(|c| Value::Str(Arc::from(&*c.encode_utf8(&mut [0; 4])))).collect()
            }
            Value::Dict(dict) | Value::View(View::Keys, dict) => {
                self.budget.elements(dict.entries.len())?;
                dict.entries.keys().map(|key| key.value().clone()).collect()
            }
            Value::View(View::Values, dict) => {
                self.budget.elements(dict.entries.len())?;
                dict.entries.values().cloned().collect()
            }
            Value::View(View::Items, dict) => {
                let pair = |(key, value): (&Key, &Value)| self.tuple(vec![key.value().clone(), value.clone()]);
                dict.entries.iter().map(pair).collect::<Result<_>>()?
            }
            Value::Range(range) => {
                self.budget.elements(range.len)?;
                (0..range.len).map(|i| range.get(i)).collect()
            }
            Value::Generator(generator) => generator.left.take().into(),
            Value::Markup(_) | Value::Loop(_) | Value::Cycler(_) | Value::Namespace(_) => {
                return fail(format!("iterating over a {} is not supported", value.type_name()));
            }
            other => return fail(format!("'{}' object is not iterable", other.type_name())),
        };
        self.items(values)
    }
}

/// The arguments of a call.
#[derive(Default)]
pub(super) struct Args {
    pub positional: Vec<Value>,
    pub named: Vec<(Arc<str>, Value)>,
}

impl Args {
    /// The arguments of these parameters. A parameter without a name ("") is by position only.
    pub(super) fn bind<const N: usize>(self, what: &str, parameters: [&str; N]) -> Result<[Option<Value>; N]> {
        if self.positional.len() > N {
            return fail(format!("{what} takes at most {N} arguments, {} were given", self.positional.len()));
        }
        let mut bound = [const { None }; N];
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            match parameters.iter().position(|&parameter| parameter == &*name && !name.is_empty()) {
                Some(at) if bound[at].is_none() => bound[at] = Some(value),
                Some(_) => return fail(format!("{what} got two values for '{name}'")),
                None => return fail(format!("{what} has no parameter '{}'", quoted(&name))),
            }
        }
        Ok(bound)
    }

    /// For a function without parameters.
    pub(super) fn none(self, what: &str) -> Result<()> {
        self.bind(what, [""; 0]).map(|[]| ())
    }
}

/// An argument that has no default.
pub(super) fn required(argument: Option<Value>, what: &str) -> Result<Value> {
    argument.ok_or_else(|| TemplateError::new(format!("{what} needs more arguments")))
}

/// An integer argument.
pub(super) fn int_argument(argument: &Value, what: &str) -> Result<i128> {
    match argument.as_int() {
        Some(value) => Ok(value),
        None => fail(format!("{what} needs an integer, not a {}", argument.type_name())),
    }
}

/// A text argument.
pub(super) fn str_argument<'v>(argument: &'v Value, what: &str) -> Result<&'v Arc<str>> {
    match argument {
        Value::Str(text) => Ok(text),
        Value::Markup(_) => fail(format!("{what} of a text marked as safe is not supported")),
        other => fail(format!("{what} needs a text, not a {}", other.type_name())),
    }
}
