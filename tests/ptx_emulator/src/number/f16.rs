//! IEEE half precision, one value at a time.
use super::{Rounding, round_to};

/// The NaN that operations make.
pub const NAN: u16 = 0x7fff;

/// The value of `bits`.
pub fn to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let (exponent, mantissa) = (u32::from(bits >> 10 & 31), u32::from(bits & 0x3ff));
    match exponent {
        0 => f32::from_bits(sign | (mantissa as f32 * f32::from_bits(0x3380_0000)).to_bits()),
        31 => f32::from_bits(sign | 0x7f80_0000 | mantissa << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | mantissa << 13),
    }
}

/// `value` rounded to the nearest half, to the even one of two.
pub fn from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, magnitude) = ((bits >> 16 & 0x8000) as u16, bits & 0x7fff_ffff);
    if magnitude > 0x7f80_0000 {
        return NAN;
    }
    if magnitude >= 0x477f_f000 {
        return sign | 0x7c00;
    }
    if magnitude < 0x3880_0000 {
        // subnormal: adding 0.5 aligns the last place of f32 with 2^-24
        let aligned = f32::from_bits(magnitude) + 0.5;
        return sign | (aligned.to_bits() - 0x3f00_0000) as u16;
    }
    let rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    sign | ((rounded - 0x3800_0000) >> 13) as u16
}

/// `value` rounded once. It must be exact, or rounded to odd.
pub fn from_f64(value: f64, rounding: Rounding) -> u16 {
    if value.is_nan() { NAN } else { from_f32(round_to(value, 10, -14, 15, rounding) as f32) }
}
