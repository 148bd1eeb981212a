//! The epilogue of a linear, applied to a row's sums before they are written: replaced rows, each adapter in the order of
//! the request, the bias.
//!
//! DoRA does not rescale the bias, `y = b + (m / n) (y - b + …)`, so it is added last; until then
//! the tile holds `y - b`.

use std::ops::Range;

use super::shrink::Shrunk;
use crate::backend::cpu::adapter::routing::Routing;
use crate::backend::cpu::kernels::dispatch::{Kernels, MAX_ROWS};
use crate::backend::cpu::kernels::vector::LANES;
use crate::backend::cpu::runtime::arena::Arena;
use crate::backend::cpu::weights::group::Linear;

/// The epilogue of a group's tiles.
pub(crate) struct Epilogue<'a> {
    kernels: &'a Kernels,
    arena: &'a Arena,
    routing: Routing<'a>,
    group: usize,
    shrunk: &'a Shrunk,
    /// Whether an adapter of the step replaces a bias or rows of the group, or truncates a weight.
    is_replacing: bool,
}

impl<'a> Epilogue<'a> {
    /// Of a group, once shrink has computed its products.
    pub(crate) fn new(
        kernels: &'a Kernels,
        arena: &'a Arena,
        routing: Routing<'a>,
        group: usize,
        shrunk: &'a Shrunk,
    ) -> Self {
        let deltas = || routing.segments().filter_map(|(_, adapter, _)| adapter.group(group, routing.repeat()));
        Self { kernels, arena, routing, group, shrunk, is_replacing: deltas().any(|delta| delta.is_replacing) }
    }

    /// Requests what finishing some tiles of a row reads, to arrive while their product is computed.
    pub(crate) fn prefetch(&self, member: usize, tiles: Range<usize>, row: usize) {
        for (.., adapter) in self.routing.of_row(row) {
            let delta = adapter.group(self.group, self.routing.repeat()).and_then(|delta| delta.member(member));
            if let Some(delta) = delta {
                delta.prefetch(adapter.region(), tiles.clone());
            }
        }
    }

    /// Finishes some tiles of a row: `y[0]`, `y[MAX_ROWS]` and so on are those from `first_tile` on.
    pub(crate) fn finish(&self, linear: &Linear, member: usize, first_tile: usize, row: usize, y: &mut [[f32; LANES]]) {
        let repeat = self.routing.repeat();
        let deltas = self.routing.of_row(row).filter_map(|(entry, weight, adapter)| {
            Some((self.shrunk.of(entry), weight, adapter.region(), adapter.group(self.group, repeat)?.member(member)?))
        });
        if self.is_replacing {
            for (t, _, region, delta) in deltas.clone() {
                tiles(y, first_tile).for_each(|(y, tile)| delta.replace_rows(region, tile, t, y));
            }
            for (t, _, region, delta) in deltas.clone() {
                tiles(y, first_tile).for_each(|(y, tile)| delta.remove(region, self.kernels, tile, t, y));
            }
        }
        for (t, weight, region, delta) in deltas.clone() {
            tiles(y, first_tile).for_each(|(y, tile)| delta.apply(region, self.kernels, tile, t, weight, y));
        }
        for (y, tile) in tiles(y, first_tile) {
            let mut bias = linear.bias(self.arena).and_then(|bias| bias.get(tile * LANES..));
            if self.is_replacing {
                bias = deltas.clone().fold(bias, |bias, (_, _, region, delta)| delta.bias(region, tile).or(bias));
            }
            y.iter_mut().zip(bias.unwrap_or(&[])).for_each(|(y, bias)| *y += bias);
        }
    }
}

/// A row's tiles among those of [`MAX_ROWS`] rows, each with its number.
fn tiles(y: &mut [[f32; LANES]], first: usize) -> impl Iterator<Item = (&mut [f32; LANES], usize)> {
    y.iter_mut().step_by(MAX_ROWS).zip(first..)
}
