//! Integer arithmetic.
#![allow(unsafe_code, reason = "the carry flag is a register of its own")]
use super::instruction_set::{Handlers, LaneLoop};
use super::lanes::{Lane, binary, read_source, ternary, unary, write_destination};
use super::{Operation, only, with_arithmetic_integer};
use crate::data_type::{DataType, Width};
use crate::execution::WarpContext;
use crate::instruction::{Class, Instruction, Modifiers};

pub(super) fn select(name: &str, modifiers: &[&str], data_type: DataType) -> Option<Operation> {
    if matches!(name, "addc" | "subc") || modifiers == ["cc"] {
        return carry(name, modifiers, data_type);
    }
    if data_type == DataType::Pred {
        return None;
    }
    let width = data_type.width();
    if modifiers == ["wide"] {
        return wide(name, data_type);
    }
    if name == "dp4a" {
        return dot_product(modifiers, data_type);
    }
    let (handlers, sources) = match (name, modifiers) {
        ("add" | "sub" | "mul" | "mad" | "div" | "rem" | "min" | "max", _) => basic(name, modifiers, data_type)?,
        ("neg", []) => match data_type {
            DataType::S16 => (unary(i16::wrapping_neg), 1),
            DataType::S32 => (unary(i32::wrapping_neg), 1),
            DataType::S64 => (unary(i64::wrapping_neg), 1),
            _ => return None,
        },
        ("abs", []) => match data_type {
            DataType::S16 => (unary(i16::wrapping_abs), 1),
            DataType::S32 => (unary(i32::wrapping_abs), 1),
            DataType::S64 => (unary(i64::wrapping_abs), 1),
            _ => return None,
        },
        ("sad", []) => match data_type {
            DataType::U32 => (ternary(|a: u32, b: u32, c: u32| a.abs_diff(b).wrapping_add(c)), 3),
            DataType::S32 => (ternary(|a: i32, b: i32, c: u32| a.abs_diff(b).wrapping_add(c)), 3),
            _ => return None,
        },
        ("mul24", ["lo"]) => match data_type {
            DataType::U32 => (binary(|a: u32, b: u32| (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff)), 2),
            DataType::S32 => (binary(|a: i32, b: i32| (a << 8 >> 8).wrapping_mul(b << 8 >> 8)), 2),
            _ => return None,
        },
        _ => return None,
    };
    Some(Operation::new(handlers, Class::Integer, &vec![width; sources], width))
}

/// Operations with results of the operands' width; with the number of sources.
fn basic(name: &str, modifiers: &[&str], data_type: DataType) -> Option<(Handlers, usize)> {
    if let (["sat"], DataType::S32) = (modifiers, data_type) {
        return match name {
            "add" => Some((binary(i32::saturating_add), 2)),
            "sub" => Some((binary(i32::saturating_sub), 2)),
            _ => None,
        };
    }
    with_arithmetic_integer!(data_type, T => match (name, modifiers) {
        ("add", []) => (binary(T::wrapping_add), 2),
        ("sub", []) => (binary(T::wrapping_sub), 2),
        ("mul", ["lo"]) => (binary(T::wrapping_mul), 2),
        ("mul", ["hi"]) => (binary(|a: T, b: T| a.high_product(b)), 2),
        ("mad", ["lo"]) => (ternary(|a: T, b: T, c: T| a.wrapping_mul(b).wrapping_add(c)), 3),
        ("mad", ["hi"]) => (ternary(|a: T, b: T, c: T| a.high_product(b).wrapping_add(c)), 3),
        // what a GPU makes of a zero divisor is unspecified; these are its usual results
        ("div", []) => (binary(|a: T, b: T| if b == 0 { !0 } else { a.wrapping_div(b) }), 2),
        ("rem", []) => (binary(|a: T, b: T| if b == 0 { a } else { a.wrapping_rem(b) }), 2),
        ("min", []) => (binary(|a: T, b: T| a.min(b)), 2),
        ("max", []) => (binary(|a: T, b: T| a.max(b)), 2),
        _ => return None,
    })
}

/// The upper half of a product.
trait HighProduct {
    fn high_product(self, other: Self) -> Self;
}

macro_rules! impl_high_product {
    ($($lane:ty => $wide:ty),*) => {$(
        impl HighProduct for $lane {
            #[inline(always)]
            fn high_product(self, other: Self) -> Self {
                ((self as $wide * other as $wide) >> Self::BITS) as Self
            }
        }
    )*};
}
impl_high_product!(u16 => u32, i16 => i32, u32 => u64, i32 => i64, u64 => u128, i64 => i128);

/// `mul.wide` and `mad.wide`: results of twice the width.
fn wide(name: &str, data_type: DataType) -> Option<Operation> {
    let handlers = match (name, data_type) {
        ("mul", DataType::U16) => binary(|a: u16, b: u16| u32::from(a) * u32::from(b)),
        ("mul", DataType::S16) => binary(|a: i16, b: i16| i32::from(a) * i32::from(b)),
        ("mul", DataType::U32) => binary(|a: u32, b: u32| u64::from(a) * u64::from(b)),
        ("mul", DataType::S32) => binary(|a: i32, b: i32| i64::from(a) * i64::from(b)),
        ("mad", DataType::U16) => ternary(|a: u16, b: u16, c: u32| (u32::from(a) * u32::from(b)).wrapping_add(c)),
        ("mad", DataType::S16) => ternary(|a: i16, b: i16, c: i32| (i32::from(a) * i32::from(b)).wrapping_add(c)),
        ("mad", DataType::U32) => ternary(|a: u32, b: u32, c: u64| (u64::from(a) * u64::from(b)).wrapping_add(c)),
        ("mad", DataType::S32) => ternary(|a: i32, b: i32, c: i64| (i64::from(a) * i64::from(b)).wrapping_add(c)),
        _ => return None,
    };
    let result = if data_type.bytes() == 4 { Width::Bits64 } else { Width::Bits32 };
    let sources = [Width::Bits32, Width::Bits32, result];
    let count = if name == "mul" { 2 } else { 3 };
    Some(Operation::new(handlers, Class::Integer, &sources[..count], result))
}

/// `dp4a.atype.btype`: the products of four bytes each are added to c.
fn dot_product(modifiers: &[&str], b_type: DataType) -> Option<Operation> {
    fn handlers<A: Lane + Byte, B: Lane + Byte>() -> Handlers {
        ternary(|a: u32, b: u32, c: u32| {
            (0..4).fold(c, |sum, byte| sum.wrapping_add((A::byte(a, byte) * B::byte(b, byte)) as u32))
        })
    }
    let handlers = match (modifiers, b_type) {
        (["u32"], DataType::U32) => handlers::<u8, u8>(),
        (["u32"], DataType::S32) => handlers::<u8, i8>(),
        (["s32"], DataType::U32) => handlers::<i8, u8>(),
        (["s32"], DataType::S32) => handlers::<i8, i8>(),
        _ => return None,
    };
    Some(Operation::new(handlers, Class::Integer, &[Width::Bits32; 3], Width::Bits32))
}

/// One of the four bytes of a word.
trait Byte {
    fn byte(word: u32, index: u32) -> i32;
}

impl Byte for u8 {
    #[inline(always)]
    fn byte(word: u32, index: u32) -> i32 {
        i32::from((word >> (8 * index)) as u8)
    }
}

impl Byte for i8 {
    #[inline(always)]
    fn byte(word: u32, index: u32) -> i32 {
        i32::from((word >> (8 * index)) as i8)
    }
}

/// `add.cc`, `addc`, `sub.cc` and `subc` of 32 bits.
fn carry(name: &str, modifiers: &[&str], data_type: DataType) -> Option<Operation> {
    if !only(modifiers, &["cc"]) || !matches!(data_type, DataType::U32 | DataType::S32 | DataType::B32) {
        return None;
    }
    let (subtract, carry_in) = match name {
        "add" => (false, false),
        "addc" => (false, true),
        "sub" => (true, false),
        "subc" => (true, true),
        _ => return None,
    };
    let handlers = Handlers::new::<AddWithCarry>();
    let operation = Operation::new(handlers, Class::Integer, &[Width::Bits32; 2], Width::Bits32);
    let modifiers = Modifiers::Carry { subtract, carry_in, carry_out: !modifiers.is_empty() };
    Some(Operation { modifiers, ..operation })
}

struct AddWithCarry;

impl LaneLoop for AddWithCarry {
    #[inline(always)]
    unsafe fn run<const AVX2: bool>(context: &mut WarpContext, instruction: &Instruction) {
        let Modifiers::Carry { subtract, carry_in, carry_out } = instruction.modifiers else { return };
        // SAFETY: lowering has given the operands these widths
        unsafe {
            let (a, b) = (read_source::<u32>(context, instruction, 0), read_source::<u32>(context, instruction, 1));
            let old_flags = context.carry_flags();
            let (mut results, mut flags) = ([0; 32], 0);
            for lane in 0..32 {
                // a - b is a + !b + 1; the flag of a subtraction is set where nothing is borrowed
                let carry = if carry_in { old_flags >> lane & 1 } else { u32::from(subtract) };
                let b = if subtract { !b[lane] } else { b[lane] };
                let sum = u64::from(a[lane]) + u64::from(b) + u64::from(carry);
                results[lane] = sum as u32;
                flags |= ((sum >> 32) as u32) << lane;
            }
            if carry_out {
                context.set_carry_flags(old_flags & !context.mask | flags & context.mask);
            }
            write_destination(context, instruction, &results);
        }
    }
}
