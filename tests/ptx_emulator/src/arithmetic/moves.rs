//! Moves, packing, selections and the logic of predicates.
#![allow(unsafe_code, reason = "lane loops")]
use std::marker::PhantomData;

use super::instruction_set::{Handlers, LaneLoop};
use super::lanes::{binary, closure, quaternary, read_source, unary, write_destination};
use crate::data_type::Width;
use crate::execution::WarpContext;
use crate::instruction::Instruction;

/// Copies a register.
pub fn copy(width: Width) -> Handlers {
    match width {
        Width::Bits32 => unary(|a: u32| a),
        Width::Bits64 => unary(|a: u64| a),
    }
}

/// The lower half of a 64-bit register.
pub fn truncate() -> Handlers {
    unary(|a: u64| a as u32)
}

/// A 32-bit register with zeros above.
pub fn zero_extend() -> Handlers {
    unary(|a: u32| u64::from(a))
}

/// A 32-bit register with its sign above.
pub fn sign_extend() -> Handlers {
    unary(|a: i32| i64::from(a))
}

/// Parts of `part_bits` each, the lowest first, as a register of `bits`.
pub fn pack(bits: u32, part_bits: u32) -> Option<Handlers> {
    Some(match (bits, part_bits) {
        (16, 8) => binary(|a: u32, b: u32| a & 0xff | (b & 0xff) << 8),
        (32, 8) => quaternary(|a: u32, b: u32, c: u32, d: u32| a & 0xff | (b & 0xff) << 8 | (c & 0xff) << 16 | d << 24),
        (32, 16) => binary(|a: u32, b: u32| a & 0xffff | b << 16),
        (64, 16) => quaternary(|a: u16, b: u16, c: u16, d: u16| {
            u64::from(a) | u64::from(b) << 16 | u64::from(c) << 32 | u64::from(d) << 48
        }),
        (64, 32) => binary(|a: u32, b: u32| u64::from(a) | u64::from(b) << 32),
        _ => return None,
    })
}

/// The part of `part_bits` that starts at the bit that the immediate names.
pub fn unpack(width: Width, part_bits: u32) -> Option<Handlers> {
    Some(match (width, part_bits) {
        (Width::Bits32, 8) => Handlers::new::<Part<u32, 8>>(),
        (Width::Bits32, 16) => Handlers::new::<Part<u32, 16>>(),
        (Width::Bits64, 8) => Handlers::new::<Part<u64, 8>>(),
        (Width::Bits64, 16) => Handlers::new::<Part<u64, 16>>(),
        (Width::Bits64, 32) => Handlers::new::<Part<u64, 32>>(),
        _ => return None,
    })
}

struct Part<S, const BITS: u32>(PhantomData<S>);

impl<S: Copy + Into<u64>, const BITS: u32> LaneLoop for Part<S, BITS> {
    #[inline(always)]
    unsafe fn run<const AVX2: bool>(context: &mut WarpContext, instruction: &Instruction) {
        // SAFETY: lowering has given the operands these widths
        unsafe {
            let whole = read_source::<S>(context, instruction, 0);
            let parts = whole.map(|bits| (bits.into() >> instruction.immediate) as u32 & !0 >> (32 - BITS));
            write_destination(context, instruction, &parts);
        }
    }
}

/// The first source where the predicate is true, else the second.
pub fn select(width: Width) -> Handlers {
    match width {
        Width::Bits32 => Handlers::new::<Selection<u32>>(),
        Width::Bits64 => Handlers::new::<Selection<u64>>(),
    }
}

struct Selection<S>(PhantomData<S>);

impl<S: Copy> LaneLoop for Selection<S> {
    #[inline(always)]
    unsafe fn run<const AVX2: bool>(context: &mut WarpContext, instruction: &Instruction) {
        // SAFETY: lowering has given the operands these widths
        unsafe {
            let (a, mut selected) =
                (read_source::<S>(context, instruction, 0), read_source::<S>(context, instruction, 1));
            let predicate = context.predicate(instruction.sources[2]);
            for lane in 0..32 {
                selected[lane] = if predicate >> lane & 1 != 0 { a[lane] } else { selected[lane] };
            }
            write_destination(context, instruction, &selected);
        }
    }
}

/// The same truth value for every lane.
pub fn constant_predicate(value: bool) -> Handlers {
    if value { of_predicates::<0, _>(|_| !0) } else { of_predicates::<0, _>(|_| 0) }
}

/// Copies a predicate.
pub fn copy_predicate() -> Handlers {
    of_predicates::<1, _>(|[a, _]| a)
}

/// `and`, `or`, `xor` and `not` of as many predicates as there are sources.
pub fn predicate_logic(name: &str, sources: usize) -> Option<Handlers> {
    Some(match (name, sources) {
        ("and", 2) => of_predicates::<2, _>(|[a, b]| a & b),
        ("or", 2) => of_predicates::<2, _>(|[a, b]| a | b),
        ("xor", 2) => of_predicates::<2, _>(|[a, b]| a ^ b),
        ("not", 1) => of_predicates::<1, _>(|[a, _]| !a),
        _ => return None,
    })
}

fn of_predicates<const SOURCES: usize, F: Fn([u32; 2]) -> u32>(_function: F) -> Handlers {
    Handlers::new::<PredicateLoop<SOURCES, F>>()
}

struct PredicateLoop<const SOURCES: usize, F>(PhantomData<F>);

impl<const SOURCES: usize, F: Fn([u32; 2]) -> u32> LaneLoop for PredicateLoop<SOURCES, F> {
    #[inline(always)]
    unsafe fn run<const AVX2: bool>(context: &mut WarpContext, instruction: &Instruction) {
        let source = |index: usize| if index < SOURCES { context.predicate(instruction.sources[index]) } else { 0 };
        let result = closure::<F>()([source(0), source(1)]);
        context.set_predicate(instruction.destinations[0], result);
    }
}
