//! `cvt`.
#![allow(unsafe_code, reason = "lane loops")]
use std::marker::PhantomData;

use super::float::{flushed, saturated};
use super::half::rectified;
use super::instruction_set::{Handlers, LaneLoop};
use super::lanes::{binary, read_source, unary, write_destination};
use super::{Operation, only, rounding, with_flags, with_integer, with_rounding};
use crate::data_type::{DataType, Width};
use crate::execution::WarpContext;
use crate::instruction::{Class, Instruction};
use crate::number::half_lanes::{Bf16, F16, HalfFormat};
use crate::number::{Rounding, add_to_odd, f32_from_f64};
use crate::parser::syntax::Opcode;

/// The modifiers in front of the types.
struct Modifiers {
    rounding: Rounding,
    /// Rounds to an integral value.
    integral: bool,
    flush: bool,
    saturate: bool,
    rectify: bool,
}

impl Modifiers {
    fn parse(modifiers: &[&str]) -> Option<Self> {
        if !only(modifiers, &["rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "ftz", "sat", "relu"]) {
            return None;
        }
        let has = |modifier| modifiers.contains(&modifier);
        Some(Self {
            rounding: modifiers.iter().find_map(|modifier| rounding(modifier)).unwrap_or(Rounding::NearestEven),
            integral: has("rni") || has("rzi") || has("rmi") || has("rpi"),
            flush: has("ftz"),
            saturate: has("sat"),
            rectify: has("relu"),
        })
    }
}

/// `cvt[.rounding][.relu][.ftz][.sat].destination.source`
pub(super) fn select(opcode: &Opcode) -> Option<Operation> {
    let (to, from) = opcode.data_types()?;
    if to == DataType::Pred || from == DataType::Pred {
        return None;
    }
    let names = opcode.modifiers.iter().map(String::as_str).collect::<Vec<_>>();
    let modifiers = Modifiers::parse(&names[..names.len() - 2])?;
    if modifiers.rectify && !(to.is_half() && from == DataType::F32) {
        return None;
    }
    if to.is_packed() || from.is_packed() {
        return pack(to, from, &modifiers);
    }
    let handlers = match (to.is_float(), from.is_float()) {
        (false, false) => integer_to_integer(to, from, &modifiers),
        (true, false) => integer_to_float(to, from, &modifiers),
        (false, true) => float_to_integer(to, from, &modifiers),
        (true, true) => float_to_float(to, from, &modifiers),
    }?;
    let operation = Operation::new(handlers, Class::Convert, &[from.width()], to.width());
    Some(Operation { signed: to.is_signed(), ..operation })
}

fn integer_to_integer(to: DataType, from: DataType, modifiers: &Modifiers) -> Option<Handlers> {
    with_integer!(to, T => with_integer!(from, S => if modifiers.saturate {
        unary(|a: S| (a as i128).clamp(T::MIN as i128, T::MAX as i128) as T)
    } else {
        unary(|a: S| a as T)
    })?)
}

/// An integer as f64 rounded to odd.
#[inline(always)]
fn integer_to_odd(value: i128) -> f64 {
    // 64 bits in two parts that f64 holds exactly
    let low = value & 0xffff;
    add_to_odd((value - low) as f64, low as f64)
}

fn integer_to_float(to: DataType, from: DataType, modifiers: &Modifiers) -> Option<Handlers> {
    if modifiers.saturate {
        return None;
    }
    let rounding = modifiers.rounding;
    let nearest = rounding == Rounding::NearestEven;
    match to {
        DataType::F32 if nearest => with_integer!(from, S => unary(|a: S| a as f32)),
        DataType::F64 if nearest => with_integer!(from, S => unary(|a: S| a as f64)),
        DataType::F32 => with_rounding!(rounding, R => with_integer!(from, S =>
            unary(|a: S| f32_from_f64(integer_to_odd(a as i128), R)))),
        DataType::F16 => with_rounding!(rounding, R => with_integer!(from, S =>
            unary(|a: S| F16::from_f64(integer_to_odd(a as i128), R)))),
        DataType::Bf16 => with_rounding!(rounding, R => with_integer!(from, S =>
            unary(|a: S| Bf16::from_f64(integer_to_odd(a as i128), R)))),
        _ => None,
    }
}

/// Rounds to an integral value and clamps to the type; NaN becomes 0.
fn float_to_integer(to: DataType, from: DataType, modifiers: &Modifiers) -> Option<Handlers> {
    if !modifiers.integral {
        return None;
    }
    with_rounding!(modifiers.rounding, R => match from {
        DataType::F32 => with_flags!(modifiers.flush, Z => with_integer!(to, T =>
            unary(|a: f32| R.to_integral(f64::from(flushed::<Z>(a))) as T))),
        DataType::F64 => with_integer!(to, T => unary(|a: f64| R.to_integral(a) as T)),
        DataType::F16 => with_integer!(to, T => unary(|a: u16| R.to_integral(f64::from(F16::to_f32(a))) as T)),
        DataType::Bf16 => with_integer!(to, T => unary(|a: u16| R.to_integral(f64::from(Bf16::to_f32(a))) as T)),
        _ => None,
    })
}

fn float_to_float(to: DataType, from: DataType, modifiers: &Modifiers) -> Option<Handlers> {
    use DataType::{Bf16 as BF16, F16 as FP16, F32, F64};
    let Modifiers { rounding, integral, flush, saturate, rectify } = *modifiers;
    let nearest = rounding == Rounding::NearestEven;
    Some(match (to, from) {
        (F32, F32) if integral => with_rounding!(rounding, R => with_flags!(flush, saturate, Z, S => {
            unary(|a: f32| saturated::<S>(R.to_integral(f64::from(flushed::<Z>(a))) as f32))
        })),
        (F64, F64) if integral => with_rounding!(rounding, R => unary(|a: f64| R.to_integral(a))),
        (FP16, FP16) if integral => round_half_to_integral::<F16>(rounding),
        (BF16, BF16) if integral => round_half_to_integral::<Bf16>(rounding),
        _ if integral => return None,
        (F32, F32) => with_flags!(flush, saturate, Z, S => unary(|a: f32| saturated::<S>(flushed::<Z>(a)))),
        (F64, F64) => unary(|a: f64| a),
        (F64, F32) => with_flags!(flush, Z => unary(|a: f32| f64::from(flushed::<Z>(a)))),
        (F32, F64) => with_rounding!(rounding, R => with_flags!(flush, saturate, Z, S => {
            unary(|a: f64| saturated::<S>(flushed::<Z>(f32_from_f64(a, R))))
        })),
        (F32, FP16) if !saturate => Handlers::new::<WidenHalf<F16>>(),
        (F32, BF16) if !saturate => Handlers::new::<WidenHalf<Bf16>>(),
        (F64, FP16) => unary(|a: u16| f64::from(F16::to_f32(a))),
        (F64, BF16) => unary(|a: u16| f64::from(Bf16::to_f32(a))),
        (FP16, F32) if nearest && !saturate && !flush => round_to_half::<F16>(rectify),
        (BF16, F32) if nearest && !saturate && !flush => round_to_half::<Bf16>(rectify),
        (FP16, F32) => half_from_f32::<F16>(modifiers),
        (BF16, F32) => half_from_f32::<Bf16>(modifiers),
        (FP16, F64) => with_rounding!(rounding, R => unary(|a: f64| F16::from_f64(a, R))),
        (BF16, F64) => with_rounding!(rounding, R => unary(|a: f64| Bf16::from_f64(a, R))),
        (FP16, FP16) | (BF16, BF16) => unary(|a: u16| a),
        (FP16, BF16) => with_rounding!(rounding, R => unary(|a: u16| F16::from_f64(f64::from(Bf16::to_f32(a)), R))),
        (BF16, FP16) => with_rounding!(rounding, R => unary(|a: u16| Bf16::from_f64(f64::from(F16::to_f32(a)), R))),
        _ => return None,
    })
}

fn round_half_to_integral<H: HalfFormat>(rounding: Rounding) -> Handlers {
    with_rounding!(rounding, R =>
        unary(|a: u16| H::from_f64(R.to_integral(f64::from(H::to_f32(a))), Rounding::NearestEven)))
}

/// f32 to a half, one lane at a time.
fn half_from_f32<H: HalfFormat>(modifiers: &Modifiers) -> Handlers {
    with_rounding!(modifiers.rounding, R => with_flags!(modifiers.flush, modifiers.saturate, Z, S => {
        if modifiers.rectify {
            unary(|a: f32| H::from_f64(f64::from(rectified(saturated::<S>(flushed::<Z>(a)))), R))
        } else {
            unary(|a: f32| H::from_f64(f64::from(saturated::<S>(flushed::<Z>(a))), R))
        }
    }))
}

/// f32 to the nearest half.
fn round_to_half<H: HalfFormat>(rectify: bool) -> Handlers {
    if rectify { Handlers::new::<RoundToHalf<H, true>>() } else { Handlers::new::<RoundToHalf<H, false>>() }
}

/// Two f32 to a packed pair, the first source above.
fn pack(to: DataType, from: DataType, modifiers: &Modifiers) -> Option<Operation> {
    if from != DataType::F32 || modifiers.saturate || modifiers.integral || modifiers.flush {
        return None;
    }
    let handlers = match (to, modifiers.rounding, modifiers.rectify) {
        (DataType::F16x2, Rounding::NearestEven, false) => Handlers::new::<RoundToPair<F16, false>>(),
        (DataType::F16x2, Rounding::NearestEven, true) => Handlers::new::<RoundToPair<F16, true>>(),
        (DataType::Bf16x2, Rounding::NearestEven, false) => Handlers::new::<RoundToPair<Bf16, false>>(),
        (DataType::Bf16x2, Rounding::NearestEven, true) => Handlers::new::<RoundToPair<Bf16, true>>(),
        (DataType::F16x2, Rounding::TowardZero, rectify) => truncated_pair::<F16>(rectify),
        (DataType::Bf16x2, Rounding::TowardZero, rectify) => truncated_pair::<Bf16>(rectify),
        _ => return None,
    };
    Some(Operation::new(handlers, Class::Convert, &[Width::Bits32; 2], Width::Bits32))
}

fn truncated_pair<H: HalfFormat>(rectify: bool) -> Handlers {
    with_flags!(rectify, RELU => binary(|high: f32, low: f32| {
        let half = |value: f32| {
            let value = if RELU { rectified(value) } else { value };
            u32::from(H::from_f64(f64::from(value), Rounding::TowardZero))
        };
        half(high) << 16 | half(low)
    }))
}

struct WidenHalf<H>(PhantomData<H>);
struct RoundToHalf<H, const RELU: bool>(PhantomData<H>);
struct RoundToPair<H, const RELU: bool>(PhantomData<H>);

impl<H: HalfFormat> LaneLoop for WidenHalf<H> {
    #[inline(always)]
    unsafe fn run<const AVX2: bool>(context: &mut WarpContext, instruction: &Instruction) {
        // SAFETY: lowering has given the operands these widths
        unsafe {
            let values = H::low::<AVX2>(&read_source::<u32>(context, instruction, 0));
            write_destination(context, instruction, &values);
        }
    }
}

#[inline(always)]
unsafe fn rounded<H: HalfFormat, const RELU: bool, const AVX2: bool>(
    context: &WarpContext,
    instruction: &Instruction,
    source: usize,
) -> [u32; 32] {
    // SAFETY: the caller's contract is that of reading the source
    let mut values = unsafe { read_source::<f32>(context, instruction, source) };
    if RELU {
        for value in &mut values {
            *value = rectified(*value);
        }
    }
    H::round::<AVX2>(&values)
}

impl<H: HalfFormat, const RELU: bool> LaneLoop for RoundToHalf<H, RELU> {
    #[inline(always)]
    unsafe fn run<const AVX2: bool>(context: &mut WarpContext, instruction: &Instruction) {
        // SAFETY: lowering has given the operands these widths
        unsafe {
            let results = rounded::<H, RELU, AVX2>(context, instruction, 0);
            write_destination(context, instruction, &results);
        }
    }
}

impl<H: HalfFormat, const RELU: bool> LaneLoop for RoundToPair<H, RELU> {
    #[inline(always)]
    unsafe fn run<const AVX2: bool>(context: &mut WarpContext, instruction: &Instruction) {
        // SAFETY: lowering has given the operands these widths
        unsafe {
            let high = rounded::<H, RELU, AVX2>(context, instruction, 0);
            let mut results = rounded::<H, RELU, AVX2>(context, instruction, 1);
            for lane in 0..32 {
                results[lane] |= high[lane] << 16;
            }
            write_destination(context, instruction, &results);
        }
    }
}
