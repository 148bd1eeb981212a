//! A parsed template. Chains of operators, attributes, calls and filters are flat lists, so that only brackets and blocks
//! nest, and the parser bounds those.

use std::sync::Arc;

use super::error::TemplateError;
use super::ops::Math;
use super::runtime::Native;

/// A name of a variable, as an index into the template's names.
pub(super) type Name = u32;

/// A statement, or text to print, and its line.
#[derive(Debug)]
pub(super) struct Statement {
    pub kind: Kind,
    pub line: u32,
}

/// What a statement does.
#[derive(Debug)]
pub(super) enum Kind {
    Data(Arc<str>),
    Print(Expr),
    /// `if` and its `elif`s, then `else`.
    If(Vec<(Expr, Vec<Statement>)>, Vec<Statement>),
    For(Box<For>),
    Set(Target, Expr),
    /// `{% set x | filters %}…{% endset %}`.
    SetBlock(Target, Vec<Step>, Vec<Statement>),
    With(Vec<(Target, Expr)>, Vec<Statement>),
    Macro(Box<Macro>),
    /// `{% call(parameters) function(arguments) %}…{% endcall %}`.
    Call(Box<Macro>, Box<Expr>),
    Filter(Vec<Step>, Vec<Statement>),
    /// `{% generation %}…{% endgeneration %}`, which only has a scope of its own.
    Scope(Vec<Statement>),
    Break,
    Continue,
}

/// A `for`.
#[derive(Debug)]
pub(super) struct For {
    pub target: Target,
    pub items: Expr,
    pub test: Option<Expr>,
    pub recursive: bool,
    /// Whether the body reads the variable `loop`.
    pub reads_loop: bool,
    pub body: Vec<Statement>,
    pub otherwise: Vec<Statement>,
}

/// A macro, or the block of a `call`.
#[derive(Debug)]
pub(super) struct Macro {
    pub name: Arc<str>,
    pub variable: Name,
    pub parameters: Vec<(Name, Arc<str>)>,
    /// Defaults of the last parameters.
    pub defaults: Vec<Expr>,
    /// The special names, where the body reads them.
    pub varargs: Option<Name>,
    pub kwargs: Option<Name>,
    pub caller: Option<Name>,
    pub body: Vec<Statement>,
}

/// What is assigned to.
#[derive(Debug)]
pub(super) enum Target {
    Name(Name),
    Tuple(Vec<Target>),
    /// An attribute of a namespace.
    Attribute(Name, Arc<str>),
}

/// An expression.
#[derive(Debug)]
pub(super) enum Expr {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
    Name(Name, Arc<str>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    /// Operators of one precedence, from left to right.
    Math(Box<Expr>, Vec<(Math, Expr)>),
    Concat(Vec<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    /// `not`, and how often beyond once it stands there: `true` if an even number of times.
    Not(Box<Expr>, bool),
    /// Signs, the innermost last; `true` is a minus.
    Signs(Vec<bool>, Box<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    /// Condition, value, and what else.
    Conditional(Box<(Expr, Expr, Option<Expr>)>),
    Chain(Box<Expr>, Vec<Step>),
}

/// The comparison operators.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
}

/// One step of a chain like `a.b[0](x) | f is g`.
#[derive(Debug)]
pub(super) enum Step {
    Attribute(Arc<str>),
    Item(Expr),
    Slice(Box<[Option<Expr>; 3]>),
    Call(Arguments),
    Filter(Native, Arguments),
    /// A test, and whether it is negated.
    Test(Native, Arguments, bool),
    /// A filter or test that is not there, which matters only where it is reached.
    Missing(TemplateError),
}

/// The arguments of a call.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub positional: Vec<Expr>,
    pub named: Vec<(Arc<str>, Expr)>,
    pub list: Option<Expr>,
    pub dict: Option<Expr>,
}
