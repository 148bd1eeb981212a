//! Dequantizing a packed weight with a kernel that unpacks as the product does, so that it is exactly what the product sees.

use super::pack::PADDING;
use crate::backend::cpu::kernels::dispatch::Kernels;
use crate::backend::cpu::kernels::tile::Tiles;
use crate::backend::cpu::kernels::vector::LANES;
use crate::backend::cpu::runtime::threads::Pool;
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::zeros;

/// The weight `[outputs, inputs]`, row-major; `order` is the model's input of each packed one, unless they are the same.
///
/// # Errors
/// `memory_exhausted`; `internal` if a task panicked.
pub(crate) fn dequantize(
    pool: &mut Pool,
    kernels: &Kernels,
    tiles: &Tiles<'_>,
    order: Option<&[u32]>,
    outputs: usize,
    inputs: usize,
) -> Result<Vec<f32>> {
    let too_large = || Error::new(ErrorCode::MemoryExhausted, "a dequantized weight exceeds the address space");
    let mut weight = zeros(outputs.checked_mul(inputs).ok_or_else(too_large)?)?;
    let mut unpacked = (0..pool.threads()).map(|_| zeros(tiles.inputs * LANES)).collect::<Result<Vec<_>>>()?;
    pool.for_chunks_with(&mut weight, LANES * inputs, &mut unpacked, |tile, out, unpacked| {
        kernels.dequantize(tiles, tile, unpacked);
        for (lane, row) in out.chunks_exact_mut(inputs).enumerate() {
            match order {
                None => row.iter_mut().enumerate().for_each(|(k, value)| *value = unpacked[k * LANES + lane]),
                Some(order) => {
                    for (k, &input) in order.iter().enumerate().filter(|(_, input)| **input != PADDING) {
                        row[input as usize] = unpacked[k * LANES + lane];
                    }
                }
            }
        }
    })?;
    Ok(weight)
}
