//! The syntax tree of a PTX module.
use std::collections::HashMap;
use std::fmt;

use crate::data_type::DataType;
use crate::instruction::StateSpace;

/// A PTX module.
#[derive(Debug, Default)]
pub struct Module {
    /// The directive `.version`.
    pub version: String,
    /// The directive `.target`, such as `sm_80`.
    pub target: String,
    /// Variables outside functions.
    pub variables: Vec<Variable>,
    /// Entry and device functions.
    pub functions: Vec<Function>,
    /// Names of source files by their number.
    pub files: HashMap<u32, String>,
}

/// An entry or device function.
#[derive(Debug, Clone, Default)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Whether it is a kernel.
    pub is_entry: bool,
    /// Its parameters.
    pub parameters: Vec<Variable>,
    /// What a device function returns.
    pub results: Vec<Variable>,
    /// Its statements; none for a declaration.
    pub body: Option<Vec<Statement>>,
    /// The directive `.maxntid`.
    pub maxntid: Option<[u32; 3]>,
    /// The directive `.reqntid`.
    pub reqntid: Option<[u32; 3]>,
    /// Line of the PTX text.
    pub line: u32,
}

/// A variable or parameter.
#[derive(Debug, Clone)]
pub struct Variable {
    /// Where it lives.
    pub space: StateSpace,
    /// Its name.
    pub name: String,
    /// Its size in bytes; 0 for an array without a size.
    pub bytes: u64,
    /// Its alignment in bytes.
    pub alignment: u64,
    /// Its first contents.
    pub initializers: Vec<Initializer>,
    /// Whether it is defined elsewhere or sized at the launch.
    pub is_external: bool,
}

/// An element of a variable's first contents.
#[derive(Debug, Clone)]
pub struct Initializer {
    /// Offset in the variable in bytes.
    pub offset: u64,
    /// Size in bytes.
    pub bytes: u32,
    /// The value.
    pub value: InitialValue,
}

/// A value that is known when the module is loaded.
#[derive(Debug, Clone)]
pub enum InitialValue {
    /// Plain bits.
    Bits(u64),
    /// The address of a variable.
    Address {
        /// The variable's name.
        symbol: String,
        /// What is added in bytes.
        offset: i64,
    },
}

/// A statement of a function's body.
#[derive(Debug, Clone)]
pub enum Statement {
    /// Statements in braces.
    Scope(Vec<Statement>),
    /// The directive `.reg`.
    Registers {
        /// Their type.
        data_type: DataType,
        /// The name, or the prefix of numbered names.
        name: String,
        /// How many numbered names there are.
        count: Option<u32>,
    },
    /// A variable.
    Variable(Variable),
    /// A label.
    Label(String),
    /// The directive `.branchtargets`.
    BranchTargets {
        /// Name of the table.
        name: String,
        /// Its labels.
        labels: Vec<String>,
    },
    /// An instruction.
    Instruction(InstructionText),
}

/// An instruction as it is written.
#[derive(Debug, Clone)]
pub struct InstructionText {
    /// The guard predicate.
    pub guard: Option<Guard>,
    /// What it does.
    pub opcode: Opcode,
    /// Destinations and sources.
    pub operands: Vec<Operand>,
    /// Line of the PTX text.
    pub line: u32,
    /// Place in the CUDA source.
    pub location: SourceLocation,
}

/// A guard predicate.
#[derive(Debug, Clone)]
pub struct Guard {
    /// The predicate register.
    pub register: String,
    /// Whether the instruction runs where it is false.
    pub negated: bool,
}

/// An operation's name with its modifiers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opcode {
    /// The name, such as `add`.
    pub name: String,
    /// The modifiers, such as `rn` and `f32`.
    pub modifiers: Vec<String>,
}

impl Opcode {
    /// The opcode written as `text`.
    pub fn new(text: &str) -> Self {
        let mut parts = text.split('.').map(str::to_string);
        Self { name: parts.next().unwrap_or_default(), modifiers: parts.collect() }
    }

    /// Whether a modifier is there.
    pub fn has(&self, modifier: &str) -> bool {
        self.modifiers.iter().any(|m| m == modifier)
    }

    /// The last modifier as a type.
    pub fn data_type(&self) -> Option<DataType> {
        self.modifiers.last().and_then(|name| DataType::named(name))
    }

    /// The last two modifiers as types: of the destination and of the source.
    pub fn data_types(&self) -> Option<(DataType, DataType)> {
        let [.., destination, source] = self.modifiers.as_slice() else { return None };
        Some((DataType::named(destination)?, DataType::named(source)?))
    }
}

impl fmt::Display for Opcode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)?;
        self.modifiers.iter().try_for_each(|modifier| write!(formatter, ".{modifier}"))
    }
}

/// An operand as it is written.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// A register, variable or label.
    Symbol(String),
    /// A variable's address with an offset in bytes, outside brackets.
    SymbolOffset(String, i64),
    /// An integer.
    Integer(i128),
    /// Bits of an f32.
    Float32(u32),
    /// Bits of an f64.
    Float64(u64),
    /// Operands in braces.
    Vector(Vec<Operand>),
    /// Base and offset in brackets.
    Address(Box<Operand>, i64),
    /// A predicate behind an exclamation mark.
    NegatedPredicate(String),
    /// Two operands with a bar between them.
    Pair(Box<Operand>, Box<Operand>),
    /// Operands in parentheses.
    List(Vec<Operand>),
}

/// A place in the CUDA source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceLocation {
    /// Number of the file.
    pub file: u32,
    /// The line, or 0 if unknown.
    pub line: u32,
    /// Line of the outermost caller if the code was inlined, or 0.
    pub inlined_at: u32,
}
