//! Lane-wise arithmetic: a loop over 32 lanes for each instruction, chosen when a kernel is loaded.
pub mod bits;
pub mod compare;
mod convert;
mod float;
mod half;
mod instruction_set;
mod integer;
pub mod lanes;
pub mod moves;

pub use instruction_set::{Handlers, InstructionSet, LaneLoop};

use crate::data_type::Width;
use crate::instruction::{Class, Modifiers};
use crate::number::Rounding;
use crate::parser::syntax::Opcode;

/// A lane-wise instruction.
pub struct Operation {
    /// What executes it.
    pub handlers: Handlers,
    /// What it is counted as.
    pub class: Class,
    /// Widths of the sources.
    pub sources: Vec<Width>,
    /// Width of the destination.
    pub destination: Width,
    /// Whether the result is sign-extended in a wider destination register.
    pub signed: bool,
    /// What is left for execution.
    pub modifiers: Modifiers,
}

impl Operation {
    fn new(handlers: Handlers, class: Class, sources: &[Width], destination: Width) -> Self {
        let sources = sources.to_vec();
        Self { handlers, class, sources, destination, signed: false, modifiers: Modifiers::None }
    }
}

/// The operation of an opcode; none if it is not supported, or one of its modifiers is not.
pub fn select(opcode: &Opcode) -> Option<Operation> {
    if opcode.name == "cvt" {
        return convert::select(opcode);
    }
    if opcode.name == "prmt" && opcode.modifiers.len() == 2 {
        return bits::select_permutation(&opcode.modifiers);
    }
    let (_, modifiers) = opcode.modifiers.split_last()?;
    let modifiers = modifiers.iter().map(String::as_str).collect::<Vec<_>>();
    let data_type = opcode.data_type()?;
    if data_type.is_half() {
        half::select(&opcode.name, &modifiers, data_type)
    } else if data_type.is_float() && opcode.name != "slct" {
        float::select(&opcode.name, &modifiers, data_type)
    } else {
        let operation = integer::select(&opcode.name, &modifiers, data_type)
            .or_else(|| bits::select(&opcode.name, &modifiers, data_type))?;
        Some(Operation { signed: data_type.is_signed(), ..operation })
    }
}

/// Whether every modifier is one of `allowed`.
fn only(modifiers: &[&str], allowed: &[&str]) -> bool {
    modifiers.iter().all(|modifier| allowed.contains(modifier))
}

/// The rounding mode that a modifier names, to a value or to an integral value.
fn rounding(modifier: &str) -> Option<Rounding> {
    Some(match modifier {
        "rn" | "rni" => Rounding::NearestEven,
        "rz" | "rzi" => Rounding::TowardZero,
        "rm" | "rmi" => Rounding::Down,
        "rp" | "rpi" => Rounding::Up,
        _ => return None,
    })
}

/// Binds `$rounding` to a constant, so that the expression is compiled for each rounding mode.
macro_rules! with_rounding {
    ($value:expr, $rounding:ident => $expression:expr) => {
        match $value {
            Rounding::NearestEven => {
                const $rounding: Rounding = Rounding::NearestEven;
                $expression
            }
            Rounding::TowardZero => {
                const $rounding: Rounding = Rounding::TowardZero;
                $expression
            }
            Rounding::Down => {
                const $rounding: Rounding = Rounding::Down;
                $expression
            }
            Rounding::Up => {
                const $rounding: Rounding = Rounding::Up;
                $expression
            }
        }
    };
}
use with_rounding;

/// Binds names to constants of the flags' values, so that the expression is compiled for each combination.
macro_rules! with_flags {
    ($first:expr, $second:expr, $a:ident, $b:ident => $expression:expr) => {
        match ($first, $second) {
            (false, false) => {
                const $a: bool = false;
                const $b: bool = false;
                $expression
            }
            (false, true) => {
                const $a: bool = false;
                const $b: bool = true;
                $expression
            }
            (true, false) => {
                const $a: bool = true;
                const $b: bool = false;
                $expression
            }
            (true, true) => {
                const $a: bool = true;
                const $b: bool = true;
                $expression
            }
        }
    };
    ($flag:expr, $a:ident => $expression:expr) => {
        if $flag {
            const $a: bool = true;
            $expression
        } else {
            const $a: bool = false;
            $expression
        }
    };
}
use with_flags;

/// Binds `$lane` to the Rust type of an integer type of 8 to 64 bits, so that the expression is compiled for each.
macro_rules! with_integer {
    ($data_type:expr, $lane:ident => $expression:expr) => {
        match $data_type {
            DataType::U8 | DataType::B8 => {
                type $lane = u8;
                Some($expression)
            }
            DataType::S8 => {
                type $lane = i8;
                Some($expression)
            }
            _ => $crate::arithmetic::with_arithmetic_integer!($data_type, $lane => $expression),
        }
    };
}
use with_integer;

/// Binds `$lane` to the Rust type of an integer type of 16 to 64 bits, which arithmetic has.
macro_rules! with_arithmetic_integer {
    ($data_type:expr, $lane:ident => $expression:expr) => {
        match $data_type {
            DataType::U16 | DataType::B16 => {
                type $lane = u16;
                Some($expression)
            }
            DataType::S16 => {
                type $lane = i16;
                Some($expression)
            }
            DataType::U32 | DataType::B32 => {
                type $lane = u32;
                Some($expression)
            }
            DataType::S32 => {
                type $lane = i32;
                Some($expression)
            }
            DataType::U64 | DataType::B64 => {
                type $lane = u64;
                Some($expression)
            }
            DataType::S64 => {
                type $lane = i64;
                Some($expression)
            }
            _ => None,
        }
    };
}
use with_arithmetic_integer;
