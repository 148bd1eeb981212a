//! Rounding modes, and intermediate results that can be rounded a second time without harm.

/// Rounding modes of the PTX ISA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rounding {
    /// `.rn`, `.rni`: to the nearest value, to the even one of two.
    NearestEven,
    /// `.rz`, `.rzi`: toward zero.
    TowardZero,
    /// `.rm`, `.rmi`: toward negative infinity.
    Down,
    /// `.rp`, `.rpi`: toward positive infinity.
    Up,
}

impl Rounding {
    /// The integral value next to `value`.
    #[inline(always)]
    pub fn to_integral(self, value: f64) -> f64 {
        match self {
            Self::NearestEven => value.round_ties_even(),
            Self::TowardZero => value.trunc(),
            Self::Down => value.floor(),
            Self::Up => value.ceil(),
        }
    }
}

/// Rounds `value` to a format with `mantissa_bits` bits behind the point and the exponents of normal numbers from
/// `min_exponent` to `max_exponent`. `value` must be exact, or rounded to odd.
pub fn round_to(value: f64, mantissa_bits: i32, min_exponent: i32, max_exponent: i32, rounding: Rounding) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let exponent = (((value.to_bits() >> 52 & 0x7ff) as i32) - 1023).max(min_exponent);
    let last_place = power_of_two(exponent - mantissa_bits);
    let rounded = rounding.to_integral(value / last_place) * last_place;
    let max = (2.0 - power_of_two(-mantissa_bits)) * power_of_two(max_exponent);
    if rounded.abs() > max {
        let to_infinity = match rounding {
            Rounding::NearestEven => true,
            Rounding::TowardZero => false,
            Rounding::Down => rounded < 0.0,
            Rounding::Up => rounded > 0.0,
        };
        return if to_infinity { f64::INFINITY } else { max }.copysign(value);
    }
    rounded.copysign(value)
}

/// 2 to the power of `exponent`, which is -1074 or more.
pub fn power_of_two(exponent: i32) -> f64 {
    if exponent < -1022 {
        f64::from_bits(1 << (exponent + 1074))
    } else {
        f64::from_bits(((exponent + 1023) as u64) << 52)
    }
}

/// `value` as f32. It must be exact, or rounded to odd.
pub fn f32_from_f64(value: f64, rounding: Rounding) -> f32 {
    match rounding {
        Rounding::NearestEven => value as f32,
        _ => round_to(value, 23, -126, 127, rounding) as f32,
    }
}

/// a + b rounded to odd: rounding the result to 51 bits or fewer is then a single rounding.
#[inline(always)]
pub fn add_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let b_part = sum - a;
    let error = (a - (sum - b_part)) + (b - b_part);
    let bits = sum.to_bits();
    // an inexact even result takes a step toward the exact value, which makes it odd
    let away_from_zero = (error > 0.0) == (sum > 0.0);
    let odd = if away_from_zero { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
    if error != 0.0 && bits & 1 == 0 && sum.is_finite() && error.is_finite() { f64::from_bits(odd) } else { sum }
}

/// a * b + c rounded to odd. The product must be exact, as that of values that were f32 is.
#[inline(always)]
pub fn fma_to_odd(a: f64, b: f64, c: f64) -> f64 {
    add_to_odd(a * b, c)
}

/// An exact value, or one rounded to odd, as f32 rounded to odd: good for rounding to f16 or bf16 afterwards.
#[inline(always)]
pub fn f32_to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let back = f64::from(nearest);
    let bits = nearest.to_bits();
    let truncated = if back.abs() > value.abs() { bits.wrapping_sub(1) } else { bits };
    if back == value || value.is_nan() { nearest } else { f32::from_bits(truncated | 1) }
}
