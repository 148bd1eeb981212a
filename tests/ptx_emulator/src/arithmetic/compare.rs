//! Comparisons and tests, whose results are predicates.
#![allow(unsafe_code, reason = "lane loops")]
use std::marker::PhantomData;

use super::float::flushed;
use super::instruction_set::{Handlers, LaneLoop};
use super::lanes::{Lane, bits_of, closure, read_source, write_comparison};
use super::{with_flags, with_integer};
use crate::data_type::DataType;
use crate::execution::WarpContext;
use crate::instruction::Instruction;
use crate::number::half_lanes::{Bf16, F16, HalfFormat};

/// Handlers of `setp` and `set`; subnormal f32 and f16 count as zero if `flush`.
pub fn select(comparison: &str, data_type: DataType, flush: bool) -> Option<Handlers> {
    macro_rules! float_comparison {
        ($make:expr, $value:ty) => {
            match comparison {
                "eq" => $make(|a: $value, b: $value| a == b),
                "ne" => $make(|a: $value, b: $value| a != b && !a.is_nan() && !b.is_nan()),
                "lt" => $make(|a: $value, b: $value| a < b),
                "le" => $make(|a: $value, b: $value| a <= b),
                "gt" => $make(|a: $value, b: $value| a > b),
                "ge" => $make(|a: $value, b: $value| a >= b),
                "equ" => $make(|a: $value, b: $value| a == b || a.is_nan() || b.is_nan()),
                "neu" => $make(|a: $value, b: $value| a != b),
                "ltu" => $make(|a: $value, b: $value| a < b || a.is_nan() || b.is_nan()),
                "leu" => $make(|a: $value, b: $value| a <= b || a.is_nan() || b.is_nan()),
                "gtu" => $make(|a: $value, b: $value| a > b || a.is_nan() || b.is_nan()),
                "geu" => $make(|a: $value, b: $value| a >= b || a.is_nan() || b.is_nan()),
                "num" => $make(|a: $value, b: $value| !a.is_nan() && !b.is_nan()),
                "nan" => $make(|a: $value, b: $value| a.is_nan() || b.is_nan()),
                _ => return None,
            }
        };
    }
    Some(match data_type {
        DataType::F32 => with_flags!(flush, Z => float_comparison!(of_f32::<Z, _>, f32)),
        DataType::F64 => float_comparison!(of_lanes::<f64, _>, f64),
        DataType::F16 => with_flags!(flush, Z => float_comparison!(of_halves::<F16, false, Z, _>, f32)),
        DataType::F16x2 => with_flags!(flush, Z => float_comparison!(of_halves::<F16, true, Z, _>, f32)),
        DataType::Bf16 => float_comparison!(of_halves::<Bf16, false, false, _>, f32),
        DataType::Bf16x2 => float_comparison!(of_halves::<Bf16, true, false, _>, f32),
        _ => return select_integer(comparison, data_type),
    })
}

fn select_integer(comparison: &str, data_type: DataType) -> Option<Handlers> {
    with_integer!(data_type, T => match comparison {
        "eq" => of_lanes(|a: T, b: T| a == b),
        "ne" => of_lanes(|a: T, b: T| a != b),
        "lt" | "lo" => of_lanes(|a: T, b: T| a < b),
        "le" | "ls" => of_lanes(|a: T, b: T| a <= b),
        "gt" | "hi" => of_lanes(|a: T, b: T| a > b),
        "ge" | "hs" => of_lanes(|a: T, b: T| a >= b),
        _ => return None,
    })
}

/// Handlers of `testp`.
pub fn test_property(property: &str, data_type: DataType) -> Option<Handlers> {
    macro_rules! tests_of {
        ($value:ty) => {
            match property {
                "finite" => of_property(|a: $value| a.is_finite()),
                "infinite" => of_property(|a: $value| a.is_infinite()),
                "number" => of_property(|a: $value| !a.is_nan()),
                "notanumber" => of_property(|a: $value| a.is_nan()),
                "normal" => of_property(|a: $value| a.is_normal()),
                "subnormal" => of_property(|a: $value| a.is_subnormal()),
                _ => return None,
            }
        };
    }
    Some(match data_type {
        DataType::F32 => tests_of!(f32),
        DataType::F64 => tests_of!(f64),
        _ => return None,
    })
}

fn of_lanes<A: Lane, F: Fn(A, A) -> bool>(_function: F) -> Handlers {
    Handlers::new::<Comparison<A, F>>()
}

fn of_f32<const FLUSH: bool, F: Fn(f32, f32) -> bool>(_function: F) -> Handlers {
    of_lanes(|a: f32, b: f32| closure::<F>()(flushed::<FLUSH>(a), flushed::<FLUSH>(b)))
}

fn of_halves<H: HalfFormat, const PACKED: bool, const FLUSH: bool, F: Fn(f32, f32) -> bool>(_function: F) -> Handlers {
    Handlers::new::<HalfComparison<H, F, PACKED, FLUSH>>()
}

fn of_property<A: Lane, F: Fn(A) -> bool>(_function: F) -> Handlers {
    Handlers::new::<Property<A, F>>()
}

struct Comparison<A, F>(PhantomData<(A, F)>);
struct HalfComparison<H, F, const PACKED: bool, const FLUSH: bool>(PhantomData<(H, F)>);
struct Property<A, F>(PhantomData<(A, F)>);

impl<A: Lane, F: Fn(A, A) -> bool> LaneLoop for Comparison<A, F> {
    #[inline(always)]
    unsafe fn run<const AVX2: bool>(context: &mut WarpContext, instruction: &Instruction) {
        let function = closure::<F>();
        // SAFETY: lowering has given the operands these widths
        unsafe {
            let a = &*context.lanes::<A::Register>(instruction.sources[0]);
            let b = &*context.lanes::<A::Register>(instruction.sources[1]);
            let mut truths = [0; 32];
            for lane in 0..32 {
                let truth = function(A::from_register(a[lane]), A::from_register(b[lane]));
                truths[lane] = if truth { !0 } else { 0 };
            }
            let bits = bits_of::<AVX2>(&truths);
            write_comparison(context, instruction, bits, !bits);
        }
    }
}

impl<H: HalfFormat, F: Fn(f32, f32) -> bool, const PACKED: bool, const FLUSH: bool>
    HalfComparison<H, F, PACKED, FLUSH>
{
    #[inline(always)]
    fn compare<const AVX2: bool>(a: [f32; 32], b: [f32; 32]) -> u32 {
        let function = closure::<F>();
        let value = |x: f32| if FLUSH && x.abs() < H::MIN_POSITIVE { 0.0 } else { x };
        let mut truths = [0; 32];
        for lane in 0..32 {
            truths[lane] = if function(value(a[lane]), value(b[lane])) { !0 } else { 0 };
        }
        bits_of::<AVX2>(&truths)
    }
}

impl<H: HalfFormat, F: Fn(f32, f32) -> bool, const PACKED: bool, const FLUSH: bool> LaneLoop
    for HalfComparison<H, F, PACKED, FLUSH>
{
    #[inline(always)]
    unsafe fn run<const AVX2: bool>(context: &mut WarpContext, instruction: &Instruction) {
        // SAFETY: lowering has given the operands these widths
        unsafe {
            let (a, b) = (read_source::<u32>(context, instruction, 0), read_source::<u32>(context, instruction, 1));
            let low = Self::compare::<AVX2>(H::low::<AVX2>(&a), H::low::<AVX2>(&b));
            // packed comparisons have one predicate for each half
            let second = if PACKED { Self::compare::<AVX2>(H::high::<AVX2>(&a), H::high::<AVX2>(&b)) } else { !low };
            write_comparison(context, instruction, low, second);
        }
    }
}

impl<A: Lane, F: Fn(A) -> bool> LaneLoop for Property<A, F> {
    #[inline(always)]
    unsafe fn run<const AVX2: bool>(context: &mut WarpContext, instruction: &Instruction) {
        let function = closure::<F>();
        // SAFETY: lowering has given the operands these widths
        unsafe {
            let a = read_source::<A::Register>(context, instruction, 0);
            let truths = a.map(|register| if function(A::from_register(register)) { !0 } else { 0 });
            context.set_predicate(instruction.destinations[0], bits_of::<AVX2>(&truths));
        }
    }
}
