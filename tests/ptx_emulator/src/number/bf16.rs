//! bfloat16, one value at a time.
use super::{Rounding, round_to};

/// The NaN that operations make.
pub const NAN: u16 = 0x7fff;

/// The value of `bits`.
pub fn to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// `value` rounded to the nearest bfloat16, to the even one of two.
pub fn from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() { NAN } else { ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16 }
}

/// `value` rounded once. It must be exact, or rounded to odd.
pub fn from_f64(value: f64, rounding: Rounding) -> u16 {
    if value.is_nan() { NAN } else { ((round_to(value, 7, -126, 127, rounding) as f32).to_bits() >> 16) as u16 }
}
