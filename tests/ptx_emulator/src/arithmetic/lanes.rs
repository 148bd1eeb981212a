//! Loops over the 32 lanes of a warp, made from functions of one lane.
#![allow(unsafe_code, reason = "registers are raw memory, whose type the instruction decides")]
use std::marker::PhantomData;

use super::instruction_set::{Handlers, LaneLoop};
use crate::execution::WarpContext;
use crate::instruction::{Instruction, Modifiers, NONE, PredicateOperation};

/// A type of one lane's value.
pub trait Lane: Copy + 'static {
    /// What the register holds.
    type Register: Copy + Default;
    /// The value in a register.
    fn from_register(register: Self::Register) -> Self;
    /// The register that holds the value.
    fn into_register(self) -> Self::Register;
}

macro_rules! impl_lane {
    ($($lane:ty: $register:ty, |$bits:ident| $from:expr, |$value:ident| $into:expr;)*) => {$(
        impl Lane for $lane {
            type Register = $register;
            #[inline(always)]
            fn from_register($bits: $register) -> Self {
                $from
            }
            #[inline(always)]
            fn into_register(self) -> $register {
                let $value = self;
                $into
            }
        }
    )*};
}
impl_lane! {
    u8: u32, |bits| bits as u8, |value| u32::from(value);
    i8: u32, |bits| bits as i8, |value| i32::from(value) as u32;
    u16: u32, |bits| bits as u16, |value| u32::from(value);
    i16: u32, |bits| bits as i16, |value| i32::from(value) as u32;
    u32: u32, |bits| bits, |value| value;
    i32: u32, |bits| bits as i32, |value| value as u32;
    u64: u64, |bits| bits, |value| value;
    i64: u64, |bits| bits as i64, |value| value as u64;
    f32: u32, |bits| f32::from_bits(bits), |value| value.to_bits();
    f64: u64, |bits| f64::from_bits(bits), |value| value.to_bits();
}

/// Writes the lanes of a register that are set in `mask`.
///
/// # Safety
/// `register` must be valid for writes.
#[inline(always)]
pub unsafe fn write_lanes<S: Copy>(register: *mut [S; 32], values: &[S; 32], mask: u32) {
    // SAFETY: the caller's contract
    let register = unsafe { &mut *register };
    if mask == !0 {
        *register = *values;
        return;
    }
    for lane in 0..32 {
        register[lane] = if mask >> lane & 1 != 0 { values[lane] } else { register[lane] };
    }
}

/// Reads a source operand.
///
/// # Safety
/// The operand must be a slot of the context's kernel with the width of `S`.
#[inline(always)]
pub unsafe fn read_source<S: Copy>(context: &WarpContext, instruction: &Instruction, index: usize) -> [S; 32] {
    // SAFETY: the caller's contract
    unsafe { *context.lanes::<S>(instruction.sources[index]) }
}

/// Writes the active lanes of the first destination operand.
///
/// # Safety
/// The operand must be a slot of the context's kernel with the width of `S`.
#[inline(always)]
pub unsafe fn write_destination<S: Copy>(context: &WarpContext, instruction: &Instruction, values: &[S; 32]) {
    // SAFETY: the caller's contract
    unsafe { write_lanes(context.lanes::<S>(instruction.destinations[0]), values, context.mask) }
}

/// The value of a closure type without captures.
#[inline(always)]
pub fn closure<F>() -> F {
    const { assert!(size_of::<F>() == 0, "the closure captures something") };
    // SAFETY: a type without size has one value, and a closure that captures nothing can be called at any time
    unsafe { std::ptr::NonNull::<F>::dangling().read() }
}

struct Unary<A, R, F>(PhantomData<(A, R, F)>);
struct Binary<A, B, R, F>(PhantomData<(A, B, R, F)>);
struct Ternary<A, B, C, R, F>(PhantomData<(A, B, C, R, F)>);
struct Quaternary<A, B, C, D, R, F>(PhantomData<(A, B, C, D, R, F)>);

impl<A: Lane, R: Lane, F: Fn(A) -> R> LaneLoop for Unary<A, R, F> {
    #[inline(always)]
    unsafe fn run<const AVX2: bool>(context: &mut WarpContext, instruction: &Instruction) {
        let function = closure::<F>();
        // SAFETY: lowering has given the operands these widths
        unsafe {
            let a = &*context.lanes::<A::Register>(instruction.sources[0]);
            let mut results = [R::Register::default(); 32];
            for lane in 0..32 {
                results[lane] = function(A::from_register(a[lane])).into_register();
            }
            write_destination(context, instruction, &results);
        }
    }
}

impl<A: Lane, B: Lane, R: Lane, F: Fn(A, B) -> R> LaneLoop for Binary<A, B, R, F> {
    #[inline(always)]
    unsafe fn run<const AVX2: bool>(context: &mut WarpContext, instruction: &Instruction) {
        let function = closure::<F>();
        // SAFETY: lowering has given the operands these widths
        unsafe {
            let a = &*context.lanes::<A::Register>(instruction.sources[0]);
            let b = &*context.lanes::<B::Register>(instruction.sources[1]);
            let mut results = [R::Register::default(); 32];
            for lane in 0..32 {
                results[lane] = function(A::from_register(a[lane]), B::from_register(b[lane])).into_register();
            }
            write_destination(context, instruction, &results);
        }
    }
}

impl<A: Lane, B: Lane, C: Lane, R: Lane, F: Fn(A, B, C) -> R> LaneLoop for Ternary<A, B, C, R, F> {
    #[inline(always)]
    unsafe fn run<const AVX2: bool>(context: &mut WarpContext, instruction: &Instruction) {
        let function = closure::<F>();
        // SAFETY: lowering has given the operands these widths
        unsafe {
            let a = &*context.lanes::<A::Register>(instruction.sources[0]);
            let b = &*context.lanes::<B::Register>(instruction.sources[1]);
            let c = &*context.lanes::<C::Register>(instruction.sources[2]);
            let mut results = [R::Register::default(); 32];
            for lane in 0..32 {
                let (a, b, c) = (A::from_register(a[lane]), B::from_register(b[lane]), C::from_register(c[lane]));
                results[lane] = function(a, b, c).into_register();
            }
            write_destination(context, instruction, &results);
        }
    }
}

impl<A: Lane, B: Lane, C: Lane, D: Lane, R: Lane, F: Fn(A, B, C, D) -> R> LaneLoop for Quaternary<A, B, C, D, R, F> {
    #[inline(always)]
    unsafe fn run<const AVX2: bool>(context: &mut WarpContext, instruction: &Instruction) {
        let function = closure::<F>();
        // SAFETY: lowering has given the operands these widths
        unsafe {
            let a = &*context.lanes::<A::Register>(instruction.sources[0]);
            let b = &*context.lanes::<B::Register>(instruction.sources[1]);
            let c = &*context.lanes::<C::Register>(instruction.sources[2]);
            let d = &*context.lanes::<D::Register>(instruction.sources[3]);
            let mut results = [R::Register::default(); 32];
            for lane in 0..32 {
                let (a, b) = (A::from_register(a[lane]), B::from_register(b[lane]));
                let (c, d) = (C::from_register(c[lane]), D::from_register(d[lane]));
                results[lane] = function(a, b, c, d).into_register();
            }
            write_destination(context, instruction, &results);
        }
    }
}

/// Handlers that apply `function`, which captures nothing, to every lane.
pub fn unary<A: Lane, R: Lane, F: Fn(A) -> R>(_function: F) -> Handlers {
    Handlers::new::<Unary<A, R, F>>()
}

/// Handlers that apply `function`, which captures nothing, to every lane.
pub fn binary<A: Lane, B: Lane, R: Lane, F: Fn(A, B) -> R>(_function: F) -> Handlers {
    Handlers::new::<Binary<A, B, R, F>>()
}

/// Handlers that apply `function`, which captures nothing, to every lane.
pub fn ternary<A: Lane, B: Lane, C: Lane, R: Lane, F: Fn(A, B, C) -> R>(_function: F) -> Handlers {
    Handlers::new::<Ternary<A, B, C, R, F>>()
}

/// Handlers that apply `function`, which captures nothing, to every lane.
pub fn quaternary<A: Lane, B: Lane, C: Lane, D: Lane, R: Lane, F: Fn(A, B, C, D) -> R>(_function: F) -> Handlers {
    Handlers::new::<Quaternary<A, B, C, D, R, F>>()
}

/// The lanes whose truth value is all ones, as bits.
#[inline(always)]
pub fn bits_of<const AVX2: bool>(truths: &[u32; 32]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if AVX2 {
        // SAFETY: the caller has chosen the instruction set that the CPU has
        return unsafe { x86::sign_bits(truths) };
    }
    truths.iter().enumerate().fold(0, |bits, (lane, truth)| bits | truth >> 31 << lane)
}

/// Writes a comparison's result, and its complement or second result, combined with the predicate source if the
/// modifiers say so.
#[inline(always)]
pub fn write_comparison(context: &mut WarpContext, instruction: &Instruction, first: u32, second: u32) {
    let combined = |result: u32| match instruction.modifiers {
        Modifiers::Combine(operation) => {
            let other = context.predicate(instruction.sources[2]);
            match operation {
                PredicateOperation::And => result & other,
                PredicateOperation::Or => result | other,
                PredicateOperation::Xor => result ^ other,
            }
        }
        _ => result,
    };
    let (first, second) = (combined(first), combined(second));
    context.set_predicate(instruction.destinations[0], first);
    if instruction.destinations[1] != NONE {
        context.set_predicate(instruction.destinations[1], second);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn sign_bits(lanes: &[u32; 32]) -> u32 {
        let mut bits = 0;
        for (index, chunk) in lanes.chunks_exact(8).enumerate() {
            // SAFETY: the chunk has eight elements
            let chunk = unsafe { _mm256_loadu_ps(chunk.as_ptr().cast()) };
            bits |= (_mm256_movemask_ps(chunk) as u32) << (8 * index);
        }
        bits
    }
}
