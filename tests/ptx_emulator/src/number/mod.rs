//! Number formats: conversions that round once.
pub mod bf16;
pub mod f16;
pub mod half_lanes;
mod rounding;

pub use rounding::{Rounding, add_to_odd, f32_from_f64, f32_to_odd, fma_to_odd, power_of_two, round_to};
