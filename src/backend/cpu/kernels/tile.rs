//! Tiles, and the product of a tile of floats with a few rows: the inner loop of dense linears and adapters' factors.
//!
//! `y[t, r, n] = sum over k of W[t, n, k] x[r, k]` for T tiles of 16 outputs and R rows. Lanes are outputs, so nothing
//! is ever summed across lanes. One (row, output) sees the same operations whatever T and R are:
//!
//! ```text
//! y = 0;  for each span:  acc = 0;  for each k in stored order: acc += w[k] * x[k]     (fused)
//!                         y += acc
//! ```
//!
//! R rows share the loading of a weight (prefill); T tiles give a single row enough independent sums to hide the latency of
//! the multiply-add (decode). Codes are multiplied in `digits.rs`.

#![allow(unsafe_code, reason = "vector loads through pointers, inside loops that must not check bounds")]

use super::vector::{Bf16, Element, F16, F32, LANES, LINE, Vector};

/// Inputs of a block, the unit in which weights are packed.
pub(crate) const BLOCK: usize = 32;

/// How the weights of a span are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    Code2,
    Code3,
    Code4,
    Code5,
    Code6,
    Code8,
    F16,
    Bf16,
    F32,
}

impl Width {
    /// The width of codes with that many bits.
    pub(crate) fn of_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            2 => Width::Code2,
            3 => Width::Code3,
            4 => Width::Code4,
            5 => Width::Code5,
            6 => Width::Code6,
            8 => Width::Code8,
            _ => return None,
        })
    }

    /// Bits of one weight.
    pub(crate) const fn bits(self) -> usize {
        match self {
            Width::Code2 => 2,
            Width::Code3 => 3,
            Width::Code4 => 4,
            Width::Code5 => 5,
            Width::Code6 => 6,
            Width::Code8 => 8,
            Width::F16 | Width::Bf16 => 16,
            Width::F32 => 32,
        }
    }

    /// Widths of the bit planes a code is split into, low bits first; the second is 0 where one plane holds the whole code.
    pub(crate) const fn planes(self) -> (usize, usize) {
        match self {
            Width::Code3 => (2, 1),
            Width::Code5 => (4, 1),
            Width::Code6 => (4, 2),
            other => (other.bits(), 0),
        }
    }

    /// Bytes of a block: 32 inputs of 16 outputs.
    pub(crate) const fn block_bytes(self) -> usize {
        self.bits() * LINE
    }
}

/// Consecutive blocks that share a width and, if they are codes, a scale and a zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) width: Width,
    pub(crate) blocks: usize,
}

/// The tiles of a packed weight. `weights/pack.rs` alone makes them, so that spans, bytes and inputs agree: kernels rely on
/// that.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<'a> {
    /// `[tile][span][block]`, see `pack.rs`.
    pub(crate) codes: &'a [u8],
    /// `[tile][coded span][scale, zero][16]`, f16 or, if `wide`, f32.
    pub(crate) scales: &'a [u8],
    pub(crate) spans: &'a [Span],
    /// Inputs of all spans, padding included.
    pub(crate) inputs: usize,
    pub(crate) tile_bytes: usize,
    pub(crate) scale_bytes: usize,
    pub(crate) wide: bool,
}

impl Tiles<'_> {
    /// Whether they hold plain numbers, not codes.
    pub(crate) fn is_dense(&self) -> bool {
        self.spans.iter().all(|span| matches!(span.width, Width::F16 | Width::Bf16 | Width::F32))
    }
}

/// Computes tiles `tile..tile + T` for R rows: `x` points to R pointers to rows of the packed inputs' length, `y` to
/// `[T][stride]` values of which the first `R * 16` are written.
pub(crate) type ProductFn = unsafe fn(tiles: &Tiles<'_>, tile: usize, x: *const *const f32, y: *mut f32, stride: usize);

/// See [`ProductFn`].
///
/// # Safety
/// The instruction set of `V` must be available; `tile + T` within the tiles; `x` and `y` valid as [`ProductFn`] says.
#[inline(always)]
pub(crate) unsafe fn product<V: Vector, const R: usize, const T: usize>(
    tiles: &Tiles<'_>,
    tile: usize,
    x: *const *const f32,
    y: *mut f32,
    stride: usize,
) {
    debug_assert!((tile + T) * tiles.tile_bytes <= tiles.codes.len());
    // SAFETY: the caller's promises. Pointers advance block by block and span by span through the T tiles, whose bytes
    // are `tile_bytes` and `scale_bytes` apart, and through the rows, which are as long as the blocks' inputs.
    unsafe {
        let mut rows = [std::ptr::null::<f32>(); R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = *x.add(r);
        }
        let mut blocks = [tiles.codes.as_ptr(); T];
        for (t, block) in blocks.iter_mut().enumerate() {
            *block = block.add((tile + t) * tiles.tile_bytes);
        }
        let mut sums = [[V::splat(0.0); R]; T];
        for span in tiles.spans {
            let count = span.blocks;
            match span.width {
                Width::F16 => dense::<V, F16, R, T>(count, &mut blocks, &mut rows, &mut sums),
                Width::Bf16 => dense::<V, Bf16, R, T>(count, &mut blocks, &mut rows, &mut sums),
                Width::F32 => dense::<V, F32, R, T>(count, &mut blocks, &mut rows, &mut sums),
                _ => {}
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            for (r, sum) in sums.iter().enumerate() {
                sum.store(y.add(t * stride + r * LANES));
            }
        }
    }
}

/// How far ahead of their use weights are requested, in bytes.
///
/// The hardware's own prefetching does not keep up with T streams: on an AMD EPYC guest, one thread decoded a 1.1B model in
/// 4 bits at 11 to 20 tokens per second without this (the same loop, at other addresses in the program), and at 25 to 35 with
/// it. 1 KiB to 4 KiB differ little.
const PREFETCH_BYTES: usize = 2048;

/// Requests the next `lines` cache lines of each tile. Any address is allowed: nothing is read.
#[inline(always)]
pub(super) fn prefetch_lines<const T: usize>(blocks: &[*const u8; T], lines: usize) {
    #[cfg(target_arch = "x86_64")]
    for block in blocks {
        for line in 0..lines {
            let from = block.wrapping_add(PREFETCH_BYTES + line * LINE);
            // SAFETY: part of every x86-64; nothing is read.
            unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(from.cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (blocks, lines);
}

/// The next span's scales and zeros.
///
/// # Safety
/// As [`product`].
#[inline(always)]
pub(super) unsafe fn scale_and_zero<V: Vector>(wide: bool, scales: &mut *const u8) -> (V, V) {
    // SAFETY: a coded span has 16 scales and 16 zeros of 2 or 4 bytes.
    unsafe {
        let at = *scales;
        if wide {
            *scales = at.add(4 * 2 * LANES);
            (V::load(at.cast()), V::load(at.cast::<f32>().add(LANES)))
        } else {
            *scales = at.add(2 * 2 * LANES);
            (V::load_f16(at.cast()), V::load_f16(at.cast::<u16>().add(LANES)))
        }
    }
}

/// Input `4 Q + byte` of a block of codes.
///
/// # Safety
/// The instruction set of `V` must be available, and `block` valid for a block.
#[inline(always)]
unsafe fn unpack<V: Vector, const BITS: usize, const Q: usize>(block: *const u8, byte: usize) -> V {
    // SAFETY: a plane of b bits has b lines in a block, so that line `Q b / 8` is within.
    unsafe {
        let line = |plane: usize, bits: usize| V::load_line(block.add((plane + Q * bits / 8) * LINE));
        let shift = |bits: usize| (Q * bits % 8 + 8 * byte) as u32;
        match BITS {
            2 => V::codes::<2>(line(0, 2), shift(2)),
            3 => V::codes_joined::<2, 1>(line(0, 2), shift(2), line(2, 1), shift(1)),
            4 => V::codes::<4>(line(0, 4), shift(4)),
            5 => V::codes_joined::<4, 1>(line(0, 4), shift(4), line(4, 1), shift(1)),
            6 => V::codes_joined::<4, 2>(line(0, 4), shift(4), line(4, 2), shift(2)),
            _ => V::codes::<8>(line(0, 8), shift(8)),
        }
    }
}

/// Inputs `byte`, `4 + byte`, ..., `28 + byte` of a block of codes.
///
/// # Safety
/// As [`unpack`].
#[inline(always)]
pub(super) unsafe fn unpack_quads<V: Vector, const BITS: usize>(block: *const u8, byte: usize) -> [V; 8] {
    // SAFETY: the caller's promises.
    unsafe {
        [
            unpack::<V, BITS, 0>(block, byte),
            unpack::<V, BITS, 1>(block, byte),
            unpack::<V, BITS, 2>(block, byte),
            unpack::<V, BITS, 3>(block, byte),
            unpack::<V, BITS, 4>(block, byte),
            unpack::<V, BITS, 5>(block, byte),
            unpack::<V, BITS, 6>(block, byte),
            unpack::<V, BITS, 7>(block, byte),
        ]
    }
}

/// One span of plain numbers, `[input][16]`.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn dense<V: Vector, E: Element, const R: usize, const T: usize>(
    count: usize,
    blocks: &mut [*const u8; T],
    rows: &mut [*const f32; R],
    sums: &mut [[V; R]; T],
) {
    // SAFETY: as `product`.
    unsafe {
        let mut acc = [[V::splat(0.0); R]; T];
        for _ in 0..count * BLOCK / 4 {
            prefetch_lines::<T>(blocks, 4 * LANES * E::BYTES / LINE);
            for k in 0..4 {
                for t in 0..T {
                    let weight = E::load::<V>(blocks[t].add(k * LANES * E::BYTES));
                    for r in 0..R {
                        acc[t][r] = weight.mul_add(V::splat(*rows[r].add(k)), acc[t][r]);
                    }
                }
            }
            for block in &mut *blocks {
                *block = block.add(4 * LANES * E::BYTES);
            }
            for row in &mut *rows {
                *row = row.add(4);
            }
        }
        for t in 0..T {
            for r in 0..R {
                sums[t][r] = sums[t][r].add(acc[t][r]);
            }
        }
    }
}

/// `squares[n] = sum over k of mask[k] W[n, k]^2` of a tile's outputs; `mask` is 0 at padding, else 1.
pub(crate) type SquaresFn = unsafe fn(tiles: &Tiles<'_>, tile: usize, mask: &[f32], squares: &mut [f64; LANES]);

/// See [`SquaresFn`].
///
/// # Safety
/// The instruction set of `V` must be available, `tile` within the tiles, and `mask` as long as their blocks.
#[inline(always)]
pub(crate) unsafe fn squares<V: Vector>(tiles: &Tiles<'_>, tile: usize, mask: &[f32], squares: &mut [f64; LANES]) {
    // SAFETY: the caller's promises; pointers advance span by span, as in `product`.
    unsafe {
        let mut block = tiles.codes.as_ptr().add(tile * tiles.tile_bytes);
        let mut scales = tiles.scales.as_ptr().add(tile * tiles.scale_bytes);
        let mut mask = mask.as_ptr();
        for span in tiles.spans {
            let count = span.blocks;
            let sums = match span.width {
                Width::Code2 => squared_codes::<V, 2>(count, tiles.wide, block, &mut scales, mask),
                Width::Code3 => squared_codes::<V, 3>(count, tiles.wide, block, &mut scales, mask),
                Width::Code4 => squared_codes::<V, 4>(count, tiles.wide, block, &mut scales, mask),
                Width::Code5 => squared_codes::<V, 5>(count, tiles.wide, block, &mut scales, mask),
                Width::Code6 => squared_codes::<V, 6>(count, tiles.wide, block, &mut scales, mask),
                Width::Code8 => squared_codes::<V, 8>(count, tiles.wide, block, &mut scales, mask),
                Width::F16 => squared::<V, F16>(count, block, mask),
                Width::Bf16 => squared::<V, Bf16>(count, block, mask),
                Width::F32 => squared::<V, F32>(count, block, mask),
            };
            for (square, sum) in squares.iter_mut().zip(sums.to_array()) {
                *square += f64::from(sum);
            }
            block = block.add(count * span.width.block_bytes());
            mask = mask.add(count * BLOCK);
        }
    }
}

/// The squares of one span of `BITS`-bit codes.
///
/// # Safety
/// As [`squares`].
#[inline(always)]
unsafe fn squared_codes<V: Vector, const BITS: usize>(
    count: usize,
    wide: bool,
    block: *const u8,
    scales: &mut *const u8,
    mask: *const f32,
) -> V {
    // SAFETY: as `squares`.
    unsafe {
        let (scale, zero) = scale_and_zero::<V>(wide, scales);
        let mut acc = V::splat(0.0);
        for i in 0..count {
            let (block, mask) = (block.add(i * BITS * LINE), mask.add(i * BLOCK));
            for byte in 0..4 {
                for (quad, code) in unpack_quads::<V, BITS>(block, byte).into_iter().enumerate() {
                    let weight = code.sub(zero);
                    acc = weight.mul(V::splat(*mask.add(4 * quad + byte))).mul_add(weight, acc);
                }
            }
        }
        acc.mul(scale).mul(scale)
    }
}

/// The squares of one span of plain numbers.
///
/// # Safety
/// As [`squares`].
#[inline(always)]
unsafe fn squared<V: Vector, E: Element>(count: usize, block: *const u8, mask: *const f32) -> V {
    // SAFETY: as `squares`.
    unsafe {
        let mut acc = V::splat(0.0);
        for k in 0..count * BLOCK {
            let weight = E::load::<V>(block.add(k * LANES * E::BYTES));
            acc = weight.mul(V::splat(*mask.add(k))).mul_add(weight, acc);
        }
        acc
    }
}

/// `y += coefficient * sum over rank of t[r] B[r]`, one tile of B `[rank][16]` on one row.
pub(crate) type ExpandFn = unsafe fn(b: *const u8, width: Width, t: &[f32], coefficient: f32, y: &mut [f32; LANES]);

/// See [`ExpandFn`].
///
/// # Safety
/// The instruction set of `V` must be available, `b` valid for `[t.len()][16]` values of that width.
#[inline(always)]
pub(crate) unsafe fn expand<V: Vector>(b: *const u8, width: Width, t: &[f32], coefficient: f32, y: &mut [f32; LANES]) {
    // SAFETY: the caller's promise.
    unsafe {
        let delta = match width {
            Width::F16 => combine::<V, F16>(b, t),
            Width::Bf16 => combine::<V, Bf16>(b, t),
            _ => combine::<V, F32>(b, t),
        };
        delta.mul_add(V::splat(coefficient), V::load(y.as_ptr())).store(y.as_mut_ptr());
    }
}

/// `sum over r of t[r] B[r]`, in order.
///
/// # Safety
/// As [`expand`].
#[inline(always)]
unsafe fn combine<V: Vector, E: Element>(b: *const u8, t: &[f32]) -> V {
    // SAFETY: as `expand`.
    unsafe {
        let mut sum = V::splat(0.0);
        for (r, &value) in t.iter().enumerate() {
            sum = E::load::<V>(b.add(r * LANES * E::BYTES)).mul_add(V::splat(value), sum);
        }
        sum
    }
}
