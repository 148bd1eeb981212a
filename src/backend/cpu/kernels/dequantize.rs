//! The weights of a packed tile as f32, exactly as the product kernels see them.

#![allow(unsafe_code, reason = "vector loads and stores through pointers, inside loops that must not check bounds")]

use super::tile::{BLOCK, Tiles, Width, scale_and_zero, unpack_quads};
use super::vector::{Bf16, Element, F16, F32, LANES, LINE, Vector};

/// `out[k][n] = W[n, k]` of a tile's 16 outputs n and its packed inputs k, padding included.
pub(crate) type DequantizeFn = unsafe fn(tiles: &Tiles<'_>, tile: usize, out: &mut [f32]);

/// See [`DequantizeFn`].
///
/// # Safety
/// The instruction set of `V` must be available, `tile` within the tiles, and `out` hold 16 values for each of their inputs.
#[inline(always)]
pub(crate) unsafe fn dequantize<V: Vector>(tiles: &Tiles<'_>, tile: usize, out: &mut [f32]) {
    debug_assert!(out.len() >= tiles.inputs * LANES);
    // SAFETY: the caller's promises; pointers advance span by span, as in `product`.
    unsafe {
        let mut block = tiles.codes.as_ptr().add(tile * tiles.tile_bytes);
        let mut scales = tiles.scales.as_ptr().add(tile * tiles.scale_bytes);
        let mut out = out.as_mut_ptr();
        for span in tiles.spans {
            let count = span.blocks;
            match span.width {
                Width::Code2 => codes::<V, 2>(count, tiles.wide, block, &mut scales, out),
                Width::Code3 => codes::<V, 3>(count, tiles.wide, block, &mut scales, out),
                Width::Code4 => codes::<V, 4>(count, tiles.wide, block, &mut scales, out),
                Width::Code5 => codes::<V, 5>(count, tiles.wide, block, &mut scales, out),
                Width::Code6 => codes::<V, 6>(count, tiles.wide, block, &mut scales, out),
                Width::Code8 => codes::<V, 8>(count, tiles.wide, block, &mut scales, out),
                Width::F16 => dense::<V, F16>(count, block, out),
                Width::Bf16 => dense::<V, Bf16>(count, block, out),
                Width::F32 => dense::<V, F32>(count, block, out),
            }
            block = block.add(count * span.width.block_bytes());
            out = out.add(count * BLOCK * LANES);
        }
    }
}

/// One span of `BITS`-bit codes.
///
/// # Safety
/// As [`dequantize`].
#[inline(always)]
unsafe fn codes<V: Vector, const BITS: usize>(
    count: usize,
    wide: bool,
    block: *const u8,
    scales: &mut *const u8,
    out: *mut f32,
) {
    // SAFETY: as `dequantize`; a block has 32 inputs.
    unsafe {
        let (scale, zero) = scale_and_zero::<V>(wide, scales);
        for i in 0..count {
            let (block, out) = (block.add(i * BITS * LINE), out.add(i * BLOCK * LANES));
            for byte in 0..4 {
                for (quad, code) in unpack_quads::<V, BITS>(block, byte).into_iter().enumerate() {
                    code.sub(zero).mul(scale).store(out.add((4 * quad + byte) * LANES));
                }
            }
        }
    }
}

/// One span of plain numbers.
///
/// # Safety
/// As [`dequantize`].
#[inline(always)]
unsafe fn dense<V: Vector, E: Element>(count: usize, block: *const u8, out: *mut f32) {
    for k in 0..count * BLOCK {
        // SAFETY: as `dequantize`.
        unsafe { E::load::<V>(block.add(k * LANES * E::BYTES)).store(out.add(k * LANES)) };
    }
}
