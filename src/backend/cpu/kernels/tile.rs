//! Tiles, and the product in f32 of a tile with a few rows: the inner loop of dense linears, of adapters' factors, and of codes
//! that the instruction set does not multiply faster in integers (`digits.rs`).
//!
//! `y[t, r, n] = sum over k of W[t, n, k] x[r, k]` for T tiles of 16 outputs and R rows. Lanes are outputs, so nothing
//! is ever summed across lanes. One (row, output) sees the same operations whatever T and R are:
//!
//! ```text
//! y = 0;  for each span:  acc = 0;  for each k in stored order: acc += (code[k] - zero) * x[k]     (fused)
//!                         y += scale * acc                                                          (fused)
//! ```
//!
//! `code - zero` is exact, so nothing cancels; dense weights take `code - zero = w` and `scale = 1`. R rows share the
//! unpacking of a weight (prefill); T tiles give a single row enough independent sums to hide the latency of the
//! multiply-add (decode).

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
    /// What is read after the product of the tiles, and may be requested meanwhile; of the packed weight itself nothing.
    pub(crate) ahead: &'a [u8],
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
        let mut scales = [tiles.scales.as_ptr(); T];
        for t in 0..T {
            blocks[t] = blocks[t].add((tile + t) * tiles.tile_bytes);
            scales[t] = scales[t].add((tile + t) * tiles.scale_bytes);
        }
        let mut sums = [[V::splat(0.0); R]; T];
        let mut spans = tiles.spans;
        while let Some(span) = spans.first() {
            let (count, is_dense) = (span.blocks, span.width.bits() >= 16);
            let are_alike =
                R * T == 1 && is_dense && spans.iter().take(ALIKE).filter(|&other| other == span).count() == ALIKE;
            spans = &spans[if are_alike { ALIKE } else { 1 }..];
            match (span.width, are_alike) {
                (Width::Code2, _) => {
                    codes::<V, 2, R, T>(count, tiles.wide, &mut blocks, &mut scales, &mut rows, &mut sums)
                }
                (Width::Code3, _) => {
                    codes::<V, 3, R, T>(count, tiles.wide, &mut blocks, &mut scales, &mut rows, &mut sums)
                }
                (Width::Code4, _) => {
                    codes::<V, 4, R, T>(count, tiles.wide, &mut blocks, &mut scales, &mut rows, &mut sums)
                }
                (Width::Code5, _) => {
                    codes::<V, 5, R, T>(count, tiles.wide, &mut blocks, &mut scales, &mut rows, &mut sums)
                }
                (Width::Code6, _) => {
                    codes::<V, 6, R, T>(count, tiles.wide, &mut blocks, &mut scales, &mut rows, &mut sums)
                }
                (Width::Code8, _) => {
                    codes::<V, 8, R, T>(count, tiles.wide, &mut blocks, &mut scales, &mut rows, &mut sums)
                }
                (Width::F16, false) => dense::<V, F16, R, T, 1>(count, &mut blocks, &mut rows, &mut sums),
                (Width::F16, true) => dense::<V, F16, R, T, ALIKE>(count, &mut blocks, &mut rows, &mut sums),
                (Width::Bf16, false) => dense::<V, Bf16, R, T, 1>(count, &mut blocks, &mut rows, &mut sums),
                (Width::Bf16, true) => dense::<V, Bf16, R, T, ALIKE>(count, &mut blocks, &mut rows, &mut sums),
                (Width::F32, false) => dense::<V, F32, R, T, 1>(count, &mut blocks, &mut rows, &mut sums),
                (Width::F32, true) => dense::<V, F32, R, T, ALIKE>(count, &mut blocks, &mut rows, &mut sums),
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            for (r, sum) in sums.iter().enumerate() {
                sum.store(y.add(t * stride + r * LANES));
            }
        }
    }
}

/// One span of `BITS`-bit codes.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn codes<V: Vector, const BITS: usize, const R: usize, const T: usize>(
    count: usize,
    wide: bool,
    blocks: &mut [*const u8; T],
    scales: &mut [*const u8; T],
    rows: &mut [*const f32; R],
    sums: &mut [[V; R]; T],
) {
    // SAFETY: as `product`; a coded span has 16 scales and 16 zeros of 2 or 4 bytes.
    unsafe {
        let mut scale = [V::splat(0.0); T];
        let mut zero = [V::splat(0.0); T];
        for t in 0..T {
            (scale[t], zero[t]) = scale_and_zero(wide, &mut scales[t]);
        }
        let mut acc = [[V::splat(0.0); R]; T];
        for _ in 0..count {
            prefetch_lines::<T>(blocks, BITS);
            quad::<V, BITS, 0, R, T>(blocks, &zero, rows, &mut acc);
            quad::<V, BITS, 1, R, T>(blocks, &zero, rows, &mut acc);
            quad::<V, BITS, 2, R, T>(blocks, &zero, rows, &mut acc);
            quad::<V, BITS, 3, R, T>(blocks, &zero, rows, &mut acc);
            quad::<V, BITS, 4, R, T>(blocks, &zero, rows, &mut acc);
            quad::<V, BITS, 5, R, T>(blocks, &zero, rows, &mut acc);
            quad::<V, BITS, 6, R, T>(blocks, &zero, rows, &mut acc);
            quad::<V, BITS, 7, R, T>(blocks, &zero, rows, &mut acc);
            for block in &mut *blocks {
                *block = block.add(BITS * LINE);
            }
            for row in &mut *rows {
                *row = row.add(BLOCK);
            }
        }
        for t in 0..T {
            for r in 0..R {
                sums[t][r] = scale[t].mul_add(acc[t][r], sums[t][r]);
            }
        }
    }
}

/// The pointers, each `count` elements on. A loop, since `map` is a call for each where a build inlines nothing across the parts
/// of a crate.
#[inline(always)]
pub(super) fn advanced<P, const N: usize>(pointers: &[*const P; N], count: usize) -> [*const P; N] {
    let mut advanced = *pointers;
    for pointer in &mut advanced {
        *pointer = pointer.wrapping_add(count);
    }
    advanced
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
    for block in blocks {
        for line in 0..lines {
            prefetch_line(block.wrapping_add(PREFETCH_BYTES + line * LINE));
        }
    }
}

/// Requests bytes ahead of their use; of long ones the first, which the hardware's own prefetching continues.
#[inline]
pub(crate) fn prefetch(bytes: &[u8]) {
    for line in bytes[..bytes.len().min(2 * PREFETCH_BYTES)].chunks(LINE) {
        prefetch_line(line.as_ptr());
    }
}

/// Requests bytes of the second-level cache, for what comes after this product: the first keeps what it needs itself.
#[inline(always)]
pub(super) fn prefetch_for_later(bytes: &[u8]) {
    for line in bytes.chunks(LINE) {
        request_line::<2>(line.as_ptr());
    }
}

/// Requests the cache line at an address, whatever it is: nothing is read.
#[inline(always)]
pub(super) fn prefetch_line(from: *const u8) {
    request_line::<3>(from);
}

/// Requests a cache line with one of x86's hints: 3 (T0) for all levels, 2 (T1) for the second and those behind it.
#[inline(always)]
fn request_line<const HINT: i32>(from: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: part of every x86-64; nothing is read.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<HINT>(from.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
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

/// Inputs `4 Q .. 4 Q + 4` of a block: byte `b` of each 32-bit lane is input `4 Q + b`, in the same bits of each byte.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn quad<V: Vector, const BITS: usize, const Q: usize, const R: usize, const T: usize>(
    blocks: &[*const u8; T],
    zero: &[V; T],
    rows: &[*const f32; R],
    acc: &mut [[V; R]; T],
) {
    for byte in 0..4 {
        for t in 0..T {
            // SAFETY: as `product`; rows have the block's inputs.
            unsafe {
                let code = unpack::<V, BITS, Q>(blocks[t], byte);
                let weight = code.sub(zero[t]);
                for r in 0..R {
                    acc[t][r] = weight.mul_add(V::splat(*rows[r].add(4 * Q + byte)), acc[t][r]);
                }
            }
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

/// Spans of plain numbers that a single row and tile sums side by side: one sum would wait for each of its additions.
const ALIKE: usize = 4;

/// `S` equal spans of plain numbers, `[input][16]`.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn dense<V: Vector, E: Element, const R: usize, const T: usize, const S: usize>(
    count: usize,
    blocks: &mut [*const u8; T],
    rows: &mut [*const f32; R],
    sums: &mut [[V; R]; T],
) {
    // SAFETY: as `product`.
    unsafe {
        let (span_inputs, input_bytes) = (count * BLOCK, LANES * E::BYTES);
        let mut acc = [[[V::splat(0.0); R]; T]; S];
        for first in (0..span_inputs).step_by(4) {
            for (s, acc) in acc.iter_mut().enumerate() {
                let input = s * span_inputs + first;
                let blocks = advanced(blocks, input * input_bytes);
                prefetch_lines::<T>(&blocks, 4 * input_bytes / LINE);
                for k in 0..4 {
                    for t in 0..T {
                        let weight = E::load::<V>(blocks[t].add(k * input_bytes));
                        for r in 0..R {
                            acc[t][r] = weight.mul_add(V::splat(*rows[r].add(input + k)), acc[t][r]);
                        }
                    }
                }
            }
        }
        for acc in acc {
            for t in 0..T {
                for r in 0..R {
                    sums[t][r] = sums[t][r].add(acc[t][r]);
                }
            }
        }
        for block in &mut *blocks {
            *block = block.add(S * span_inputs * input_bytes);
        }
        for row in &mut *rows {
            *row = row.add(S * span_inputs);
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
