//! The values a template computes with: Python's, as far as Jinja2 and its sandbox show them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;

use indexmap::IndexMap;

/// A value. Cheap to clone; lists and dicts never change, as in Jinja2's immutable sandbox.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// A missing variable, attribute or item, with the name that was asked for.
    Undefined(Arc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
    /// What `safe` and `escape` make: a text that joins others only by escaping them.
    Markup(Arc<str>),
    List(Rc<Items>),
    Tuple(Rc<Items>),
    Dict(Rc<Dict>),
    View(View, Rc<Dict>),
    Range(Range),
    Generator(Rc<Generator>),
    /// Index among the namespaces of a rendering. They live there because only they can make a circle.
    Namespace(usize),
    /// Index among the macros of a rendering.
    Macro(usize),
    Loop(Rc<Loop>),
    Cycler(Rc<Cycler>),
    Joiner(Rc<Joiner>),
    Function(Function),
    Method(Rc<Method>),
}

/// The elements of a list or tuple.
#[derive(Debug)]
pub(super) struct Items {
    pub values: Vec<Value>,
    /// One more than that of the deepest element.
    pub depth: u32,
    /// Whether it is a pair (grouper, list) of the filter `groupby`, whose parts have names.
    pub group: bool,
}

/// A dict, in the order of insertion.
#[derive(Debug)]
pub(super) struct Dict {
    pub entries: IndexMap<Key, Value>,
    pub depth: u32,
}

/// `dict.keys()`, `dict.values()` or `dict.items()`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum View {
    Keys,
    Values,
    Items,
}

/// `range(start, stop, step)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Range {
    pub start: i128,
    pub step: i128,
    pub len: usize,
    /// As it was given, which only printing shows.
    pub stop: i128,
}

impl Range {
    pub(super) fn get(&self, index: usize) -> Value {
        Value::Int(self.start + self.step * index as i128)
    }
}

/// What filters like `map` return: it can be walked once.
#[derive(Debug)]
pub(super) struct Generator {
    pub left: RefCell<VecDeque<Value>>,
    pub depth: u32,
}

/// The variable `loop` of one run of a `for`.
#[derive(Debug)]
pub(super) struct Loop {
    pub items: Rc<Items>,
    pub index: Cell<usize>,
    pub depth0: usize,
    /// Values of the last `loop.changed`. Cleared when the loop ends, because they can contain the loop itself.
    pub changed: RefCell<Option<Vec<Value>>>,
    /// Number of the run, by which `loop(…)` finds what to run again.
    pub run: usize,
}

/// `cycler(…)`.
#[derive(Debug)]
pub(super) struct Cycler {
    pub items: Rc<Items>,
    pub at: Cell<usize>,
}

/// `joiner(…)`.
#[derive(Debug)]
pub(super) struct Joiner {
    pub separator: Value,
    pub used: Cell<bool>,
}

/// A method of a value, not called yet.
#[derive(Debug)]
pub(super) struct Method {
    pub receiver: Value,
    pub name: Arc<str>,
}

/// The global functions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Function {
    Range,
    Dict,
    Namespace,
    Cycler,
    Joiner,
    Lipsum,
    RaiseException,
    StrftimeNow,
}

impl Value {
    /// How deep lists and dicts are nested in it.
    pub(super) fn depth(&self) -> u32 {
        match self {
            Value::List(items) | Value::Tuple(items) => items.depth,
            Value::Dict(dict) | Value::View(_, dict) => dict.depth,
            Value::Generator(generator) => generator.depth,
            Value::Loop(run) => run.items.depth + 1,
            Value::Cycler(cycler) => cycler.items.depth + 1,
            Value::Joiner(joiner) => joiner.separator.depth() + 1,
            Value::Method(method) => method.receiver.depth() + 1,
            _ => 0,
        }
    }

    /// Python's name of the type.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Value::Undefined(_) => "Undefined",
            Value::None => "NoneType",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Str(_) => "str",
            Value::Markup(_) => "Markup",
            Value::List(_) => "list",
            Value::Tuple(_) => "tuple",
            Value::Dict(_) => "dict",
            Value::View(View::Keys, _) => "dict_keys",
            Value::View(View::Values, _) => "dict_values",
            Value::View(View::Items, _) => "dict_items",
            Value::Range(_) => "range",
            Value::Generator(_) => "generator",
            Value::Namespace(_) => "Namespace",
            Value::Macro(_) => "Macro",
            Value::Loop(_) => "LoopContext",
            Value::Cycler(_) => "Cycler",
            Value::Joiner(_) => "Joiner",
            Value::Function(_) => "function",
            Value::Method(_) => "method",
        }
    }

    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Value::Undefined(_))
    }

    /// `len(value)`, where it has one. That of a text is the number of its characters.
    pub(super) fn len(&self) -> Option<usize> {
        match self {
            Value::Undefined(_) => Some(0),
            Value::Str(text) | Value::Markup(text) => {
                Some(if text.is_ascii() { text.len() } else { text.chars().count() })
            }
            Value::List(items) | Value::Tuple(items) => Some(items.values.len()),
            Value::Dict(dict) | Value::View(_, dict) => Some(dict.entries.len()),
            Value::Range(range) => Some(range.len),
            Value::Loop(run) => Some(run.items.values.len()),
            _ => None,
        }
    }

    /// `bool(value)`.
    pub(super) fn truth(&self) -> bool {
        match self {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(value) => *value,
            Value::Int(value) => *value != 0,
            Value::Float(value) => *value != 0.0,
            Value::Str(text) | Value::Markup(text) => !text.is_empty(),
            Value::List(items) | Value::Tuple(items) => !items.values.is_empty(),
            Value::Dict(dict) | Value::View(_, dict) => !dict.entries.is_empty(),
            Value::Range(range) => range.len != 0,
            Value::Loop(run) => !run.items.values.is_empty(),
            _ => true,
        }
    }

    /// An integer; Python's `True` is one.
    pub(super) fn as_int(&self) -> Option<i128> {
        match self {
            Value::Int(value) => Some(*value),
            Value::Bool(value) => Some(i128::from(*value)),
            _ => None,
        }
    }

    /// A number as a float.
    pub(super) fn as_float(&self) -> Option<f64> {
        match self {
            Value::Float(value) => Some(*value),
            other => other.as_int().map(|value| value as f64),
        }
    }

    pub(super) fn as_str(&self) -> Option<&Arc<str>> {
        match self {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }
}

/// A value that can be a key of a dict: `None`, a number or a text.
#[derive(Clone, Debug)]
pub(super) struct Key(Value);

impl Key {
    /// The key, unless this value cannot be one.
    pub(super) fn new(value: &Value) -> Option<Self> {
        match value {
            Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Str(_) => Some(Self(value.clone())),
            _ => None,
        }
    }

    pub(super) fn text(text: Arc<str>) -> Self {
        Self(Value::Str(text))
    }

    pub(super) fn value(&self) -> &Value {
        &self.0
    }
}

/// A number as an integer, if it is a whole one.
fn whole(value: &Value) -> Option<i128> {
    match value {
        Value::Float(f) if f.fract() == 0.0 && f.abs() < 1e38 => Some(*f as i128),
        Value::Float(_) => None,
        other => other.as_int(),
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Value::Str(a), Value::Str(b)) => a == b,
            (Value::None, Value::None) => true,
            (Value::Float(a), Value::Float(b)) => a == b,
            (a, b) => matches!((whole(a), whole(b)), (Some(a), Some(b)) if a == b),
        }
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match &self.0 {
            Value::Str(text) => text.hash(state),
            Value::Float(f) if whole(&self.0).is_none() => f.to_bits().hash(state),
            number => whole(number).hash(state),
        }
    }
}

/// Looks up a text without making a key of it.
#[derive(PartialEq, Eq, Hash)]
struct TextKey<'a>(&'a str);

impl indexmap::Equivalent<Key> for TextKey<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        matches!(&key.0, Value::Str(text) if **text == *self.0)
    }
}

impl Dict {
    /// The value of a key that is a text.
    pub(super) fn get_text(&self, key: &str) -> Option<&Value> {
        self.entries.get(&TextKey(key))
    }
}
