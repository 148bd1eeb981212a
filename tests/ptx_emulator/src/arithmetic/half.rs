//! Arithmetic of f16 and bf16, packed or not: computed in f32 so that the one rounding to 16 bits is right.
#![allow(unsafe_code, reason = "lane loops")]
use std::marker::PhantomData;

use super::float::{maximum, maximum_or_nan, minimum, minimum_or_nan, saturated};
use super::instruction_set::{Handlers, LaneLoop};
use super::lanes::{closure, read_source, unary, write_destination};
use super::{Operation, only};
use crate::data_type::{DataType, Width};
use crate::execution::WarpContext;
use crate::instruction::{Class, Instruction};
use crate::number::half_lanes::{Bf16, F16, HalfFormat};
use crate::number::{f32_to_odd, fma_to_odd};

pub(super) fn select(name: &str, modifiers: &[&str], data_type: DataType) -> Option<Operation> {
    let is_f16 = matches!(data_type, DataType::F16 | DataType::F16x2);
    let allowed: &[&str] = match name {
        "add" | "sub" | "mul" if is_f16 => &["rn", "ftz", "sat"],
        "add" | "sub" | "mul" => &["rn"],
        "fma" if is_f16 => &["rn", "ftz", "sat", "relu"],
        "fma" => &["rn", "relu"],
        "min" | "max" if is_f16 => &["ftz", "NaN"],
        "min" | "max" => &["NaN"],
        "ex2" => &["approx", "ftz"],
        "tanh" => &["approx"],
        "neg" | "abs" if is_f16 => &["ftz"],
        "neg" | "abs" => &[],
        _ => return None,
    };
    if !only(modifiers, allowed) {
        return None;
    }
    let has = |modifier| modifiers.contains(&modifier);
    let flush = has("ftz") && is_f16;
    if !flush && matches!(name, "neg" | "abs") {
        return sign_operation(name, data_type);
    }
    let format = Format { is_bf16: !is_f16, is_packed: data_type.is_packed(), flush };
    let (handlers, sources) = match name {
        "add" if has("sat") => (format.binary(|a, b| saturated::<true>(a + b)), 2),
        "add" => (format.binary(|a, b| a + b), 2),
        "sub" if has("sat") => (format.binary(|a, b| saturated::<true>(a - b)), 2),
        "sub" => (format.binary(|a, b| a - b), 2),
        "mul" if has("sat") => (format.binary(|a, b| saturated::<true>(a * b)), 2),
        // the product of two f16 fits f32; that of two bf16 may be too small for it
        "mul" if is_f16 => (format.binary(|a, b| a * b), 2),
        "mul" => (format.binary(|a, b| f32_to_odd(f64::from(a) * f64::from(b))), 2),
        "fma" if has("relu") => (format.ternary(|a, b, c| rectified(fma(a, b, c))), 3),
        "fma" if has("sat") => (format.ternary(|a, b, c| saturated::<true>(fma(a, b, c))), 3),
        "fma" => (format.ternary(fma), 3),
        "min" if has("NaN") => (format.binary(minimum_or_nan), 2),
        "max" if has("NaN") => (format.binary(maximum_or_nan), 2),
        "min" => (format.binary(minimum), 2),
        "max" => (format.binary(maximum), 2),
        "ex2" => (format.unary(f32::exp2), 1),
        "tanh" => (format.unary(f32::tanh), 1),
        "neg" => (format.unary(|a| -a), 1),
        "abs" => (format.unary(f32::abs), 1),
        _ => return None,
    };
    Some(Operation::new(handlers, Class::Half, &vec![Width::Bits32; sources], Width::Bits32))
}

/// `neg` and `abs` of the bits, which keep what a NaN carries.
fn sign_operation(name: &str, data_type: DataType) -> Option<Operation> {
    let handlers = match (name, data_type.is_packed()) {
        ("neg", false) => unary(|a: u32| a ^ 0x8000),
        ("neg", true) => unary(|a: u32| a ^ 0x8000_8000),
        ("abs", false) => unary(|a: u32| a & 0x7fff),
        ("abs", true) => unary(|a: u32| a & 0x7fff_7fff),
        _ => return None,
    };
    Some(Operation::new(handlers, Class::Half, &[Width::Bits32], Width::Bits32))
}

/// a * b + c, good for rounding to 16 bits.
#[inline(always)]
fn fma(a: f32, b: f32, c: f32) -> f32 {
    f32_to_odd(fma_to_odd(f64::from(a), f64::from(b), f64::from(c)))
}

/// Negative values become zero.
#[inline(always)]
pub(super) fn rectified(value: f32) -> f32 {
    if value > 0.0 || value.is_nan() { value } else { 0.0 }
}

/// Which loop an operation needs.
#[derive(Clone, Copy)]
struct Format {
    is_bf16: bool,
    is_packed: bool,
    flush: bool,
}

impl Format {
    fn unary<F: Fn(f32) -> f32>(self, _function: F) -> Handlers {
        self.handlers::<1, Applied<F>>()
    }

    fn binary<F: Fn(f32, f32) -> f32>(self, _function: F) -> Handlers {
        self.handlers::<2, Applied<F>>()
    }

    fn ternary<F: Fn(f32, f32, f32) -> f32>(self, _function: F) -> Handlers {
        self.handlers::<3, Applied<F>>()
    }

    fn handlers<const SOURCES: usize, G: Function<SOURCES>>(self) -> Handlers {
        match (self.is_bf16, self.is_packed, self.flush) {
            (false, false, false) => Handlers::new::<HalfLoop<F16, G, SOURCES, false, false>>(),
            (false, false, true) => Handlers::new::<HalfLoop<F16, G, SOURCES, false, true>>(),
            (false, true, false) => Handlers::new::<HalfLoop<F16, G, SOURCES, true, false>>(),
            (false, true, true) => Handlers::new::<HalfLoop<F16, G, SOURCES, true, true>>(),
            (true, false, _) => Handlers::new::<HalfLoop<Bf16, G, SOURCES, false, false>>(),
            (true, true, _) => Handlers::new::<HalfLoop<Bf16, G, SOURCES, true, false>>(),
        }
    }
}

/// A function of several values.
trait Function<const SOURCES: usize> {
    fn apply(sources: [f32; SOURCES]) -> f32;
}

/// A closure without captures as a [`Function`].
struct Applied<F>(PhantomData<F>);

impl<F: Fn(f32) -> f32> Function<1> for Applied<F> {
    #[inline(always)]
    fn apply([a]: [f32; 1]) -> f32 {
        closure::<F>()(a)
    }
}

impl<F: Fn(f32, f32) -> f32> Function<2> for Applied<F> {
    #[inline(always)]
    fn apply([a, b]: [f32; 2]) -> f32 {
        closure::<F>()(a, b)
    }
}

impl<F: Fn(f32, f32, f32) -> f32> Function<3> for Applied<F> {
    #[inline(always)]
    fn apply([a, b, c]: [f32; 3]) -> f32 {
        closure::<F>()(a, b, c)
    }
}

/// Applies the function to the lower halves, and to the upper ones if `PACKED`.
struct HalfLoop<H, G, const SOURCES: usize, const PACKED: bool, const FLUSH: bool>(PhantomData<(H, G)>);

impl<H: HalfFormat, G: Function<SOURCES>, const SOURCES: usize, const PACKED: bool, const FLUSH: bool>
    HalfLoop<H, G, SOURCES, PACKED, FLUSH>
{
    #[inline(always)]
    fn apply<const AVX2: bool>(mut sources: [[f32; 32]; SOURCES]) -> [u32; 32] {
        if FLUSH {
            for value in sources.iter_mut().flatten() {
                if value.abs() < H::MIN_POSITIVE {
                    *value = 0f32.copysign(*value);
                }
            }
        }
        let mut results = [0.0; 32];
        for lane in 0..32 {
            results[lane] = G::apply(std::array::from_fn(|source| sources[source][lane]));
        }
        let mut rounded = H::round::<AVX2>(&results);
        if FLUSH {
            for bits in &mut rounded {
                if *bits & H::EXPONENT_MASK == 0 {
                    *bits &= 0x8000;
                }
            }
        }
        rounded
    }
}

impl<H: HalfFormat, G: Function<SOURCES>, const SOURCES: usize, const PACKED: bool, const FLUSH: bool> LaneLoop
    for HalfLoop<H, G, SOURCES, PACKED, FLUSH>
{
    #[inline(always)]
    unsafe fn run<const AVX2: bool>(context: &mut WarpContext, instruction: &Instruction) {
        // SAFETY: lowering has given the operands these widths
        unsafe {
            let sources: [[u32; 32]; SOURCES] =
                std::array::from_fn(|source| read_source::<u32>(context, instruction, source));
            let mut results = Self::apply::<AVX2>(std::array::from_fn(|source| H::low::<AVX2>(&sources[source])));
            if PACKED {
                let high = Self::apply::<AVX2>(std::array::from_fn(|source| H::high::<AVX2>(&sources[source])));
                for lane in 0..32 {
                    results[lane] |= high[lane] << 16;
                }
            }
            write_destination(context, instruction, &results);
        }
    }
}
