//! What becomes of a row's sums before they are written: replaced rows, each adapter in the order of the request, the bias.
//!
//! The bias stands outside of what DoRA rescales, `y = b + (m / n) (y - b + …)`, so it is added last, and `y - b` is what the
//! tile holds until then.

use super::shrink::Shrunk;
use crate::backend::cpu::adapter::routing::Routing;
use crate::backend::cpu::kernels::dispatch::Kernels;
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
    /// Whether an adapter of the step replaces a bias or rows of the group, or takes something out of a weight.
    is_replacing: bool,
}

impl<'a> Epilogue<'a> {
    /// Of a group, once the stacks' products are there.
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

    /// Finishes a tile of a row.
    pub(crate) fn finish(&self, linear: &Linear, member: usize, tile: usize, row: usize, y: &mut [f32; LANES]) {
        let mut bias = linear.bias(self.arena).and_then(|bias| bias.get(tile * LANES..));
        if !self.routing.is_base_only() {
            let repeat = self.routing.repeat();
            let deltas = self.routing.of_row(row).filter_map(|(entry, weight, adapter)| {
                Some((entry, weight, adapter.region(), adapter.group(self.group, repeat)?.member(member)?))
            });
            if self.is_replacing {
                for (entry, _, region, delta) in deltas.clone() {
                    delta.replace_rows(region, tile, self.shrunk.of(entry), y);
                    bias = delta.bias(region, tile).or(bias);
                }
                for (entry, _, region, delta) in deltas.clone() {
                    delta.remove(region, self.kernels, tile, self.shrunk.of(entry), y);
                }
            }
            for (entry, weight, region, delta) in deltas {
                delta.apply(region, self.kernels, tile, self.shrunk.of(entry), weight, y);
            }
        }
        for (y, bias) in y.iter_mut().zip(bias.unwrap_or(&[])) {
            *y += bias;
        }
    }
}
