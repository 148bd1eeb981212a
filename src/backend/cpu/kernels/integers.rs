//! The integer vectors that quantized products are written over.
//!
//! A value proves that its instruction set is available: functions that make one from nothing are unsafe, those that take one
//! are not.

#![allow(unsafe_code, reason = "vector loads and stores through pointers")]

/// Lanes of 32 bits for outputs: four codes in bytes, or an integer.
pub(crate) trait Integers: Copy {
    /// Outputs of a vector: a tile's, or half of them.
    const LANES: usize;
    /// How many quads of codes of each number of bits may be summed in [`Integers::Pairs`]; 0 where they never are.
    const PAIRED_QUADS: [usize; 9];
    /// Sums in 16 bits.
    type Pairs: Pairs<Self>;
    /// Scales and zeros of the outputs, in f32.
    type Scales: Copy;
    /// A number of each lane, in f32.
    type Floats: Copy;

    /// # Safety
    /// The instruction set must be available, here and below.
    unsafe fn zero() -> Self;
    unsafe fn zero_floats() -> Self::Floats;
    unsafe fn splat(word: u32) -> Self;
    /// # Safety
    /// `from` must be valid for all lanes.
    unsafe fn load(from: *const u8) -> Self;
    /// # Safety
    /// `to` must be valid for all lanes.
    unsafe fn store(self, to: *mut u32);
    /// Four lanes for every four values: the lowest bytes of `value * factor` rounded to an integer, to even at ties, as
    /// digits from -128 to 127, then the next two, and a lane without meaning.
    ///
    /// # Safety
    /// `from` must be valid for as many values as there are lanes.
    unsafe fn split(from: *const f32, factor: f32) -> Self;
    /// The scales and zeros of the outputs from `lane` on, of 16 each in f16 or f32.
    ///
    /// # Safety
    /// `from` must be valid for both.
    unsafe fn scale_and_zero(wide: bool, from: *const u8, lane: usize) -> Self::Scales;
    /// In each byte the `BITS` bits from bit `shift` on, as bits from bit `PLACE` on.
    fn fields<const BITS: u32, const PLACE: u32>(self, shift: u32) -> Self;
    fn or(self, other: Self) -> Self;
    /// `self` plus in each lane the sum of four products of an unsigned byte of `codes` and a signed one of `digits`.
    fn dot(self, codes: Self, digits: Self) -> Self;
    /// Adds a span's sums to `y`, see `digits.rs`; `self` are those of the lowest digit, and `span` its four numbers.
    ///
    /// # Safety
    /// `span` must be valid for four values and `y` for all lanes.
    unsafe fn fold(self, mid: Self, high: Self, scales: Self::Scales, span: *const f32, y: *mut f32);
    /// `scaled` plus a block's sums of its one digit times its step, fused.
    ///
    /// # Safety
    /// `step` must be valid.
    unsafe fn scale_onto(self, step: *const f32, scaled: Self::Floats) -> Self::Floats;
    /// Adds a span's scaled sums of one digit to `y`, see `digits.rs`; `span` points to the first of its numbers.
    ///
    /// # Safety
    /// `span` must be valid and `y` for all lanes.
    unsafe fn fold_scaled(scaled: Self::Floats, scales: Self::Scales, span: *const f32, y: *mut f32);
}

/// Two sums of 16 bits in each lane.
pub(crate) trait Pairs<I>: Copy {
    /// # Safety
    /// The instruction set must be available.
    unsafe fn zero() -> Self;
    /// Adds the products of bytes, two to a sum.
    fn add_products(self, codes: I, digits: I) -> Self;
    /// Adds both sums of each lane to the lane.
    fn widen_onto(self, sums: I) -> I;
}
