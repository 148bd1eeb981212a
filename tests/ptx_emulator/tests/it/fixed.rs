//! Rounding as a reference: numbers as integers in units of 2^-90.

/// Binary places.
const PLACES: i32 = 90;

/// The rounding modes, as PTX writes them.
pub const MODES: [&str; 4] = ["rn", "rz", "rm", "rp"];

/// A floating-point format: bits behind the point, and the exponents of the least and greatest normal numbers.
#[derive(Clone, Copy)]
pub struct Format {
    pub mantissa_bits: i32,
    pub min_exponent: i32,
    pub max_exponent: i32,
}

pub const F32: Format = Format { mantissa_bits: 23, min_exponent: -126, max_exponent: 127 };
pub const F16: Format = Format { mantissa_bits: 10, min_exponent: -14, max_exponent: 15 };
pub const BF16: Format = Format { mantissa_bits: 7, min_exponent: -126, max_exponent: 127 };

/// A number that is a multiple of 2^-90 and less than 2^36.
pub fn from_f64(value: f64) -> i128 {
    if value == 0.0 {
        return 0;
    }
    let bits = value.to_bits();
    let exponent = (bits >> 52 & 0x7ff) as i32 - 1023 - 52 + PLACES;
    let mantissa = i128::from(bits & ((1 << 52) - 1) | 1 << 52);
    let magnitude = if exponent >= 0 {
        mantissa << exponent
    } else {
        assert!(mantissa & ((1 << -exponent) - 1) == 0, "{value} has too many places");
        mantissa >> -exponent
    };
    if value < 0.0 { -magnitude } else { magnitude }
}

/// The product of two numbers of at most 45 places each.
pub fn product(a: i128, b: i128) -> i128 {
    let half = PLACES / 2;
    let (short_a, short_b) = (a >> half, b >> half);
    assert!(short_a << half == a && short_b << half == b, "too many places");
    short_a * short_b
}

/// The value rounded in a mode to a format, as f64. Zero is positive.
pub fn round(value: i128, mode: &str, format: Format) -> f64 {
    let magnitude = value.unsigned_abs();
    if magnitude == 0 {
        return 0.0;
    }
    let exponent = (127 - magnitude.leading_zeros() as i32 - PLACES).max(format.min_exponent);
    let dropped = exponent - format.mantissa_bits + PLACES;
    let (kept, rest, half) = match dropped {
        ..=0 => (magnitude, 0, 1),
        128.. => (0, 1, 2),
        _ => (magnitude >> dropped, magnitude & ((1 << dropped) - 1), 1 << (dropped - 1)),
    };
    let away = match mode {
        "rn" => rest > half || rest == half && kept & 1 == 1,
        "rz" => false,
        "rm" => rest != 0 && value < 0,
        "rp" => rest != 0 && value > 0,
        _ => panic!("{mode} is no rounding mode"),
    };
    let result = (kept + u128::from(away)) as f64 * 2f64.powi(dropped.max(0) - PLACES);
    let max = (2.0 - 2f64.powi(-format.mantissa_bits)) * 2f64.powi(format.max_exponent);
    let result = if result <= max {
        result
    } else if mode == "rn" || mode == "rm" && value < 0 || mode == "rp" && value > 0 {
        f64::INFINITY
    } else {
        max
    };
    if value < 0 { -result } else { result }
}
