//! What an adapter changes at the linears of one group, in one repeat of its layer.

use std::ops::Range;

use super::dora_norms;
use super::low_rank::{Expand, with_magnitude};
use crate::adapter::delta::{LowRank, SiteDelta};
use crate::backend::PrepareError;
use crate::backend::cpu::kernels::dispatch::Kernels;
use crate::backend::cpu::kernels::tile::{Tiles, Width};
use crate::backend::cpu::kernels::vector::LANES;
use crate::backend::cpu::runtime::arena::{Part, Region, RegionLayout};
use crate::backend::cpu::runtime::threads::Pool;
use crate::backend::cpu::weights::BaseWeights;
use crate::backend::cpu::weights::group::Group;
use crate::backend::cpu::weights::pack::DenseTiles;
use crate::error::Result;
use crate::tensor::{Tensor, TensorView};

/// What an adapter changes at the sites of one group.
pub(crate) struct GroupDelta {
    /// Rows that multiply the input: A's and replaced rows.
    stack: DenseTiles,
    members: Vec<Option<LinearDelta>>,
    /// Whether it replaces a weight, bias or row, or truncates a weight: these act on the base's sums before any delta is added.
    pub(crate) is_replacing: bool,
}

/// What an adapter changes at one linear.
pub(crate) struct LinearDelta {
    weight: Option<DenseTiles>,
    bias: Option<Part>,
    rows: Option<StackedRows>,
    /// What truncation (KaSA) subtracts from the weight, at any request weight.
    removed: Option<StackedLow>,
    low: Option<StackedLow>,
}

/// Replaced rows of a weight, and where they begin in the stack.
struct StackedRows {
    ids: Part,
    first: usize,
}

/// A low-rank delta, and where its A begins in the stack.
struct StackedLow {
    first: usize,
    expand: Expand,
}

impl GroupDelta {
    pub(crate) fn lay_out(layout: &mut RegionLayout, in_features: usize, sources: &[(usize, &SiteDelta<'_>)]) -> Self {
        let mut members: Vec<Option<LinearDelta>> = Vec::new();
        let mut first = 0;
        let mut stack = |rows: usize| {
            first += rows;
            first - rows
        };
        for &(member, source) in sources {
            let weight = source.weight.as_ref().map(|weight| {
                let width = Width::of_dtype(weight.dtype()).unwrap_or(Width::F32);
                DenseTiles::lay_out(layout, weight.shape()[0], in_features, width)
            });
            let bias = source.bias.as_ref().map(|bias| layout.take::<f32>(bias.shape()[0].next_multiple_of(LANES)));
            let mut stacked_low = |low: &LowRank<'_>| {
                let expand = Expand::lay_out(layout, low);
                StackedLow { first: stack(low.rank()), expand }
            };
            let low = source.low_rank.as_ref().map(&mut stacked_low);
            let removed = source.removed.as_ref().map(&mut stacked_low);
            let rows = source
                .rows
                .as_ref()
                .map(|rows| StackedRows { ids: layout.take::<u32>(rows.ids.len()), first: stack(rows.ids.len()) });
            members.resize_with(member + 1, || None);
            members[member] = Some(LinearDelta { weight, bias, rows, removed, low });
        }
        // A stack of one float type keeps it; a mixed one is widened.
        let mut widths = stacked(sources).filter_map(|matrix| Width::of_dtype(matrix.dtype()));
        let width = widths.next().unwrap_or(Width::F32);
        let width = if widths.all(|other| other == width) { width } else { Width::F32 };
        let is_replacing = sources.iter().any(|(_, source)| source.is_replacing() || source.removed.is_some());
        Self { stack: DenseTiles::lay_out(layout, first, in_features, width), members, is_replacing }
    }

    pub(crate) fn fill(&self, pool: &mut Pool, region: &mut Region, sources: &[(usize, &SiteDelta<'_>)]) -> Result<()> {
        let mut end = 0;
        let ends: Vec<(usize, TensorView<'_>)> = stacked(sources)
            .map(|matrix| {
                end += matrix.shape()[0];
                (end, matrix.view())
            })
            .collect();
        self.stack.fill(pool, region, |row| {
            let (end, matrix) = ends[ends.partition_point(|(end, _)| *end <= row)];
            (matrix, row + matrix.shape()[0] - end)
        })?;
        for &(member, source) in sources {
            let Some(delta) = self.member(member) else { continue };
            if let (Some(tiles), Some(weight)) = (&delta.weight, &source.weight) {
                tiles.fill(pool, region, |row| (weight.view(), row))?;
            }
            if let (Some(part), Some(bias)) = (delta.bias, &source.bias) {
                let len = bias.view().len();
                bias.view().read_f32(0..len, &mut region.part_mut(part)[..len]);
            }
            if let (Some(stacked), Some(rows)) = (&delta.rows, &source.rows) {
                region.part_mut(stacked.ids).copy_from_slice(&rows.ids);
            }
            if let (Some(stacked), Some(low)) = (&delta.low, &source.low_rank) {
                stacked.expand.fill(pool, region, low)?;
            }
            if let (Some(stacked), Some(low)) = (&delta.removed, &source.removed) {
                stacked.expand.fill(pool, region, low)?;
            }
        }
        Ok(())
    }

    /// Computes the DoRA norms of a member's weight, if the adapter has a magnitude.
    pub(crate) fn fill_magnitude(
        &self,
        pool: &mut Pool,
        base: &BaseWeights,
        group: &Group,
        region: &mut Region,
        (member, source): (usize, &SiteDelta<'_>),
        between_parts: &mut dyn FnMut() -> Result<()>,
    ) -> Result<(), PrepareError> {
        let (Some(delta), Some(low)) = (self.member(member), with_magnitude(source)) else { return Ok(()) };
        let (tiles, order) = match &delta.weight {
            Some(weight) => (weight.view(region), None),
            None => (group.members[member].tiles(&base.arena), group.order(member)),
        };
        let rows = source.rows.as_ref();
        let terms = dora_norms::of_linear(pool, base.kernels, &tiles, order, low, rows, between_parts)?;
        let Some(stacked) = &delta.low else { return Ok(()) };
        stacked
            .expand
            .fill_magnitude(region, low, &terms)
            .map_err(|output| PrepareError::ZeroNorm { site: source.site, output })
    }

    /// What is changed at a member of the group.
    pub(crate) fn member(&self, index: usize) -> Option<&LinearDelta> {
        self.members.get(index)?.as_ref()
    }

    /// Tiles of the stack.
    pub(crate) fn stack_tiles(&self) -> usize {
        self.stack.tiles
    }

    /// The stack's bytes.
    pub(crate) fn stack_bytes<'a>(&'a self, region: &'a Region) -> &'a [u8] {
        self.stack.view(region).codes
    }

    /// The stack, for a kernel.
    pub(crate) fn stack<'a>(&'a self, region: &'a Region) -> Tiles<'a> {
        self.stack.view(region)
    }
}

/// The matrices of a stack, in its order.
fn stacked<'a>(sources: &[(usize, &'a SiteDelta<'a>)]) -> impl Iterator<Item = &'a Tensor<'a>> {
    sources.iter().flat_map(|&(_, source)| {
        let factors = source.low_rank.iter().chain(&source.removed).map(|low| &low.a);
        factors.chain(source.rows.as_ref().map(|rows| &rows.values))
    })
}

impl LinearDelta {
    /// The weight that replaces the base's.
    pub(crate) fn weight(&self) -> Option<&DenseTiles> {
        self.weight.as_ref()
    }

    /// The bias that replaces the base's, from a tile on.
    pub(crate) fn bias<'a>(&self, region: &'a Region, tile: usize) -> Option<&'a [f32]> {
        self.bias.map(|bias| region.part(bias).get(tile * LANES..).unwrap_or(&[]))
    }

    /// Writes the outputs of a tile whose rows are replaced; `t` is the product of the stack.
    pub(crate) fn replace_rows(&self, region: &Region, tile: usize, t: &[f32], y: &mut [f32; LANES]) {
        let Some(rows) = &self.rows else { return };
        let ids: &[u32] = region.part(rows.ids);
        let start = ids.partition_point(|&id| (id as usize) < tile * LANES);
        let within = ids[start..].iter().take_while(|&&id| (id as usize) < (tile + 1) * LANES);
        for (&id, &value) in within.zip(&t[rows.first + start..]) {
            y[id as usize - tile * LANES] = value;
        }
    }

    /// Requests what the low-rank part needs for some tiles of outputs.
    pub(crate) fn prefetch(&self, region: &Region, tiles: Range<usize>) {
        if let Some(StackedLow { expand, .. }) = &self.low {
            expand.prefetch(region, tiles);
        }
    }

    /// Applies the low-rank part to a tile of outputs; `t` is the product of the stack.
    pub(crate) fn apply(
        &self,
        region: &Region,
        kernels: &Kernels,
        tile: usize,
        t: &[f32],
        weight: f32,
        y: &mut [f32; LANES],
    ) {
        if let Some(StackedLow { first, expand }) = &self.low {
            expand.apply(region, kernels, tile, &t[*first..*first + expand.rank], weight, y);
        }
    }

    /// Subtracts from a tile of outputs what the weight is truncated by; `t` is the product of the stack.
    pub(crate) fn remove(&self, region: &Region, kernels: &Kernels, tile: usize, t: &[f32], y: &mut [f32; LANES]) {
        if let Some(StackedLow { first, expand }) = &self.removed {
            expand.apply(region, kernels, tile, &t[*first..*first + expand.rank], 1.0, y);
        }
    }
}
