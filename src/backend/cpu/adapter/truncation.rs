//! What KaSA drops of a linear's weight, as a delta that no weight of a request scales.

use super::Base;
use crate::adapter::delta::{LowRank, SiteDelta};
use crate::backend::cpu::group::Group;
use crate::backend::cpu::isa::LANES;
use crate::backend::cpu::kernels::{Kernels, MAX_ROWS};
use crate::backend::cpu::pack::PADDING;
use crate::backend::cpu::singular::{Smallest, smallest};
use crate::backend::cpu::threads::{Disjoint, Pool};
use crate::backend::cpu::tile::{BLOCK, Tiles};
use crate::error::Result;
use crate::tensor::Tensor;

/// The delta that takes the smallest singular values out of a member's weight: the adapter's own, or the base's.
///
/// # Errors
/// `internal` if the decomposition does not converge, or a task panicked.
pub(super) fn truncation(
    pool: &mut Pool,
    base: &Base<'_>,
    group: &Group,
    member: usize,
    delta: &SiteDelta<'_>,
) -> Result<Option<LowRank<'static>>> {
    let Some(count) = delta.low_rank.as_ref().map(|low| low.truncated).filter(|&count| count > 0) else {
        return Ok(None);
    };
    let linear = &group.members[member];
    let (outputs, inputs) = (linear.out_features(), group.in_features);
    let (weight, outputs) = match &delta.weight {
        Some(weight) => (weight.view().to_f32(), weight.shape()[0]),
        None => {
            let (tiles, order) = (linear.tiles(base.arena), group.order(member));
            (unpacked(pool, base.kernels, &tiles, order, outputs, inputs)?, outputs)
        }
    };
    let Smallest { left, right } = smallest(&weight, outputs, inputs, count)?;
    let (a, b) = (Tensor::from_f32(&[count, inputs], &right), Tensor::from_f32(&[outputs, count], &left));
    Ok(Some(LowRank::new(a, b, -1.0)))
}

/// A packed weight as the kernels see it, `[outputs, inputs]`: its product with each unit vector.
fn unpacked(
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
