//! Dequantizing a packed weight with the product kernels, so that it is exactly what they see: its product with each unit
//! vector.

use super::pack::PADDING;
use crate::backend::cpu::kernels::dispatch::{Kernels, MAX_ROWS};
use crate::backend::cpu::kernels::tile::{BLOCK, Tiles};
use crate::backend::cpu::kernels::vector::LANES;
use crate::backend::cpu::runtime::threads::{Disjoint, Pool};
use crate::error::Result;

/// The weight `[outputs, inputs]`, row-major; `order` is the model's input of each packed one, unless they are the same.
///
/// # Errors
/// `internal` if a task panicked.
pub(crate) fn dequantize(
    pool: &mut Pool,
    kernels: &Kernels,
    tiles: &Tiles<'_>,
    order: Option<&[u32]>,
    outputs: usize,
    inputs: usize,
) -> Result<Vec<f32>> {
    let packed: usize = tiles.spans.iter().map(|span| span.blocks * BLOCK).sum();
    let input_of = |k: usize| order.map_or(k, |order| order[k] as usize);
    let is_input = |&k: &usize| order.map_or(k < inputs, |order| order[k] != PADDING);
    let places: Vec<usize> = (0..packed).filter(is_input).collect();
    let mut weight = vec![0.0; outputs * inputs];
    let parts = Disjoint::new(&mut weight);
    pool.run(outputs.div_ceil(LANES), |tile, _| {
        let range = tile * LANES..outputs.min((tile + 1) * LANES);
        // SAFETY: each tile's rows belong to one task.
        let out = unsafe { parts.part(range.start * inputs..range.end * inputs) };
        let mut units = vec![0.0; MAX_ROWS * packed];
        for places in places.chunks(MAX_ROWS) {
            let mut x = [std::ptr::null(); MAX_ROWS];
            for (unit, (x, &k)) in units.chunks_exact_mut(packed).zip(x.iter_mut().zip(places)) {
                unit[k] = 1.0;
                *x = unit.as_ptr();
            }
            let mut products = [[0.0; LANES]; MAX_ROWS];
            // SAFETY: rows are as long as the tiles' inputs.
            unsafe { kernels.product(tiles, tile, 1, &x[..places.len()], &mut products) };
            for (unit, (products, &k)) in units.chunks_exact_mut(packed).zip(products.iter().zip(places)) {
                unit[k] = 0.0;
                out.chunks_exact_mut(inputs).zip(products).for_each(|(row, &value)| row[input_of(k)] = value);
            }
        }
    })?;
    Ok(weight)
}
