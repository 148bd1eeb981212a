//! Logic, shifts, bit fields, permutations of bytes and selections by sign.
#![allow(unsafe_code, reason = "lane loops")]
use super::instruction_set::{Handlers, LaneLoop};
use super::lanes::{binary, quaternary, read_source, ternary, unary, write_destination};
use super::{Operation, with_arithmetic_integer};
use crate::data_type::{DataType, Width};
use crate::execution::WarpContext;
use crate::instruction::{Class, Instruction};

pub(super) fn select(name: &str, modifiers: &[&str], data_type: DataType) -> Option<Operation> {
    if data_type == DataType::Pred {
        return None;
    }
    let width = data_type.width();
    let bits_64 = width == Width::Bits64;
    let shift = [width, Width::Bits32];
    let (handlers, sources, destination): (_, &[Width], _) = match (name, modifiers) {
        ("and" | "or" | "xor", []) => (logic(name, data_type)?, &[width; 2], width),
        ("not", []) => (with_arithmetic_integer!(data_type, T => unary(|a: T| !a))?, &[width], width),
        ("cnot", []) => (with_arithmetic_integer!(data_type, T => unary(|a: T| T::from(a == 0)))?, &[width], width),
        ("shl" | "shr", []) => (shift_clamped(name, data_type)?, &shift, width),
        ("shf", [direction, mode]) => (funnel_shift(direction, mode)?, &[Width::Bits32; 3], Width::Bits32),
        ("popc", []) if bits_64 => (unary(u64::count_ones), &[width], Width::Bits32),
        ("popc", []) => (unary(u32::count_ones), &[width], Width::Bits32),
        ("clz", []) if bits_64 => (unary(u64::leading_zeros), &[width], Width::Bits32),
        ("clz", []) => (unary(u32::leading_zeros), &[width], Width::Bits32),
        ("brev", []) if bits_64 => (unary(u64::reverse_bits), &[width], width),
        ("brev", []) => (unary(u32::reverse_bits), &[width], width),
        ("bfind", []) => (find_bit(data_type, false)?, &[width], Width::Bits32),
        ("bfind", ["shiftamt"]) => (find_bit(data_type, true)?, &[width], Width::Bits32),
        ("bfe", []) => (extract_field(data_type)?, &[width, Width::Bits32, Width::Bits32], width),
        ("bfi", []) => (insert_field(data_type)?, &[width, width, Width::Bits32, Width::Bits32], width),
        ("prmt", []) => (permute_bytes(None)?, &[Width::Bits32; 3], Width::Bits32),
        ("slct", [selected]) => return select_by_sign(DataType::named(selected)?, data_type),
        _ => return None,
    };
    Some(Operation::new(handlers, Class::Integer, sources, destination))
}

fn logic(name: &str, data_type: DataType) -> Option<Handlers> {
    with_arithmetic_integer!(data_type, T => match name {
        "and" => binary(|a: T, b: T| a & b),
        "or" => binary(|a: T, b: T| a | b),
        _ => binary(|a: T, b: T| a ^ b),
    })
}

/// `shl` and `shr`: amounts above the width count as the width.
fn shift_clamped(name: &str, data_type: DataType) -> Option<Handlers> {
    with_arithmetic_integer!(data_type, T => match name {
        "shl" => binary(|a: T, amount: u32| if amount < T::BITS { a << amount } else { 0 }),
        // a signed type fills with its sign
        _ => binary(|a: T, amount: u32| if amount < T::BITS { a >> amount } else { a >> (T::BITS - 1) >> 1 }),
    })
}

/// `shf`: the upper half of b:a shifted left, or the lower half of it shifted right.
fn funnel_shift(direction: &str, mode: &str) -> Option<Handlers> {
    #[inline(always)]
    fn joined(a: u32, b: u32) -> u64 {
        u64::from(b) << 32 | u64::from(a)
    }
    Some(match (direction, mode) {
        ("l", "wrap") => ternary(|a: u32, b: u32, c: u32| (joined(a, b) << (c & 31) >> 32) as u32),
        ("l", "clamp") => ternary(|a: u32, b: u32, c: u32| (joined(a, b) << c.min(32) >> 32) as u32),
        ("r", "wrap") => ternary(|a: u32, b: u32, c: u32| (joined(a, b) >> (c & 31)) as u32),
        ("r", "clamp") => ternary(|a: u32, b: u32, c: u32| (joined(a, b) >> c.min(32)) as u32),
        _ => return None,
    })
}

/// `bfind`: the position of the highest bit that differs from the sign, or the shift that brings it to the top.
fn find_bit(data_type: DataType, as_shift: bool) -> Option<Handlers> {
    Some(match (data_type, as_shift) {
        (DataType::U32, false) => unary(|a: u32| a.checked_ilog2().unwrap_or(!0)),
        (DataType::S32, false) => unary(|a: i32| ((a ^ a >> 31) as u32).checked_ilog2().unwrap_or(!0)),
        (DataType::U64, false) => unary(|a: u64| a.checked_ilog2().unwrap_or(!0)),
        (DataType::S64, false) => unary(|a: i64| ((a ^ a >> 63) as u64).checked_ilog2().unwrap_or(!0)),
        (DataType::U32, true) => unary(|a: u32| a.checked_ilog2().map_or(!0, |bit| 31 - bit)),
        (DataType::S32, true) => unary(|a: i32| ((a ^ a >> 31) as u32).checked_ilog2().map_or(!0, |bit| 31 - bit)),
        (DataType::U64, true) => unary(|a: u64| a.checked_ilog2().map_or(!0, |bit| 63 - bit)),
        (DataType::S64, true) => unary(|a: i64| ((a ^ a >> 63) as u64).checked_ilog2().map_or(!0, |bit| 63 - bit)),
        _ => return None,
    })
}

/// The lowest `length` bits.
#[inline(always)]
fn low_bits(length: u32) -> u64 {
    if length < 64 { (1 << length) - 1 } else { !0 }
}

/// `bfe`: `length` bits from `position` on. What lies above the value is its sign, or zero.
#[inline(always)]
fn bit_field(value: u64, width: u32, position: u32, length: u32, signed: bool) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let field = if position < width { value >> position & low_bits(length) } else { 0 };
    if !signed || length == 0 {
        return field;
    }
    // the highest bit of the field, or of the value if that ends before
    let sign = value >> (position + length - 1).min(width - 1) & 1 != 0;
    let filled = length.min(width.saturating_sub(position));
    if sign { field | !low_bits(filled) } else { field }
}

fn extract_field(data_type: DataType) -> Option<Handlers> {
    Some(match data_type {
        DataType::U32 => {
            ternary(|a: u32, position: u32, length: u32| bit_field(u64::from(a), 32, position, length, false) as u32)
        }
        DataType::S32 => {
            ternary(|a: u32, position: u32, length: u32| bit_field(u64::from(a), 32, position, length, true) as u32)
        }
        DataType::U64 => ternary(|a: u64, position: u32, length: u32| bit_field(a, 64, position, length, false)),
        DataType::S64 => ternary(|a: u64, position: u32, length: u32| bit_field(a, 64, position, length, true)),
        _ => return None,
    })
}

/// `bfi`: the lowest `length` bits of a go into b from `position` on.
#[inline(always)]
fn with_field(a: u64, b: u64, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if position > 63 {
        return b;
    }
    let mask = low_bits(length) << position;
    b & !mask | a << position & mask
}

fn insert_field(data_type: DataType) -> Option<Handlers> {
    Some(match data_type {
        DataType::B32 => quaternary(|a: u32, b: u32, position: u32, length: u32| {
            with_field(u64::from(a), u64::from(b), position, length) as u32
        }),
        DataType::B64 => quaternary(with_field),
        _ => return None,
    })
}

/// `prmt`: each hexadecimal digit of the selector picks a byte of b:a, or its sign eight times.
#[inline(always)]
fn permuted(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |result, index| {
        let digit = selector >> (4 * index) & 15;
        let byte = (bytes >> (8 * (digit & 7))) as u8;
        let byte = if digit & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
        result | u32::from(byte) << (8 * index)
    })
}

/// The selectors of the modes of `prmt`, by the two lowest bits of its third source.
fn permute_bytes(mode: Option<&str>) -> Option<Handlers> {
    macro_rules! by_index {
        ($selectors:expr) => {
            ternary(|a: u32, b: u32, c: u32| permuted(a, b, $selectors[c as usize & 3]))
        };
    }
    Some(match mode {
        None => ternary(permuted),
        Some("f4e") => by_index!([0x3210, 0x4321, 0x5432, 0x6543]),
        Some("b4e") => by_index!([0x5670, 0x6701, 0x7012, 0x0123]),
        Some("rc8") => by_index!([0x0000, 0x1111, 0x2222, 0x3333]),
        Some("ecl") => by_index!([0x3210, 0x3211, 0x3222, 0x3333]),
        Some("ecr") => by_index!([0x0000, 0x1110, 0x2210, 0x3210]),
        Some("rc16") => by_index!([0x1010, 0x3232, 0x1010, 0x3232]),
        Some(_) => return None,
    })
}

/// `prmt.b32.mode`, whose type stands in front of the mode.
pub(super) fn select_permutation(type_and_mode: &[String]) -> Option<Operation> {
    let [data_type, mode] = type_and_mode else { return None };
    let handlers = permute_bytes(Some(mode)).filter(|_| data_type == "b32")?;
    Some(Operation::new(handlers, Class::Integer, &[Width::Bits32; 3], Width::Bits32))
}

/// `slct`: a where the sign type's c is not negative, else b.
fn select_by_sign(selected: DataType, sign_type: DataType) -> Option<Operation> {
    let handlers = match (selected.width(), sign_type) {
        (Width::Bits32, DataType::S32) => ternary(|a: u32, b: u32, c: i32| if c >= 0 { a } else { b }),
        (Width::Bits64, DataType::S32) => ternary(|a: u64, b: u64, c: i32| if c >= 0 { a } else { b }),
        (Width::Bits32, DataType::F32) => ternary(|a: u32, b: u32, c: f32| if c >= 0.0 { a } else { b }),
        (Width::Bits64, DataType::F32) => ternary(|a: u64, b: u64, c: f32| if c >= 0.0 { a } else { b }),
        _ => return None,
    };
    let width = selected.width();
    Some(Operation::new(handlers, Class::Move, &[width, width, Width::Bits32], width))
}

/// `lop3` with a table of the results for the bits of a, b and c; frequent tables have loops of their own.
pub fn lop3(table: u8) -> Handlers {
    match table {
        0x80 => ternary(|a: u32, b: u32, c: u32| a & b & c),
        0x96 => ternary(|a: u32, b: u32, c: u32| a ^ b ^ c),
        0xc0 => ternary(|a: u32, b: u32, _: u32| a & b),
        0xca => ternary(|a: u32, b: u32, c: u32| (a & b) | (!a & c)),
        0xea => ternary(|a: u32, b: u32, c: u32| (a & b) | c),
        0xf8 => ternary(|a: u32, b: u32, c: u32| a | (b & c)),
        0xfe => ternary(|a: u32, b: u32, c: u32| a | b | c),
        _ => Handlers::new::<TruthTable>(),
    }
}

/// The table is the immediate: its bit 4a + 2b + c is the result.
struct TruthTable;

impl LaneLoop for TruthTable {
    #[inline(always)]
    unsafe fn run<const AVX2: bool>(context: &mut WarpContext, instruction: &Instruction) {
        // SAFETY: lowering has given the operands these widths
        unsafe {
            let a = read_source::<u32>(context, instruction, 0);
            let b = read_source::<u32>(context, instruction, 1);
            let c = read_source::<u32>(context, instruction, 2);
            let mut results = [0; 32];
            for row in (0..8).filter(|row| instruction.immediate >> row & 1 != 0) {
                let inverted = |bit: u32| if row & bit != 0 { 0 } else { !0u32 };
                let (not_a, not_b, not_c) = (inverted(4), inverted(2), inverted(1));
                for lane in 0..32 {
                    results[lane] |= (a[lane] ^ not_a) & (b[lane] ^ not_b) & (c[lane] ^ not_c);
                }
            }
            write_destination(context, instruction, &results);
        }
    }
}
