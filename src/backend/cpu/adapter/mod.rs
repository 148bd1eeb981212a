//! Adapters in their slots, re-laid for the kernels, each in a region of its own.
//!
//! Everything that multiplies the input of a group is stacked and packed like any dense weight: the A's of its members, and
//! the rows that stand in the place of some of their outputs. So shrink, `t = A x`, is the product of a few more tiles in one
//! pass over x, and a replaced row's output is one of the t. B and what belongs to it stand by tiles of outputs
//! (`factors.rs`); replaced weights are tiles beside the base's. Numbers keep the type they are stored in; a site or group
//! that an adapter leaves alone has no bytes and costs nothing.
//!
//! ```text
//! group, pass   [A of q | rows of q | A of k | …]   tiles of 16      member: W?  b?  ids of its rows  B, b_B, m, a b c
//! table, pass   E?  rows  A^T [token][rank]  B …                     vector: values
//! ```

mod check;
mod factors;
mod moments;

use std::collections::HashMap;
use std::ops::Range;

use self::check::Sorted;
use self::factors::Expand;
use super::Table;
use super::arena::{Arena, ArenaSlice, Part, Region, RegionLayout};
use super::elementwise::read_row;
use super::group::Group;
use super::isa::LANES;
use super::kernels::Kernels;
use super::pack::DenseTiles;
use super::threads::Pool;
use super::tile::{Tiles, Width};
use super::zero_norm;
use crate::adapter::delta::{LowRank, SiteDelta};
use crate::error::Result;
use crate::sites::SiteId;
use crate::tensor::{DType, Tensor, TensorView};

/// Where a site is.
#[derive(Clone, Copy)]
pub(super) enum SitePlace {
    Linear { group: usize, member: usize },
    Table(usize),
    Vector(usize),
}

/// The base that adapters change.
pub(super) struct Base<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) arena: &'a Arena,
    pub(super) sites: &'a HashMap<SiteId, SitePlace>,
    pub(super) groups: &'a [Group],
    pub(super) tables: &'a [Table],
    pub(super) vectors: &'a [ArenaSlice],
}

/// Things by the index of what they are at, and by pass.
struct ByPass<T>(Vec<Vec<Option<T>>>);

impl<T> ByPass<T> {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn get(&self, index: usize, pass: u32) -> Option<&T> {
        self.0.get(index)?.get(pass as usize)?.as_ref()
    }

    fn set(&mut self, (index, pass): (usize, u32), thing: T) {
        if self.0.len() <= index {
            self.0.resize_with(index + 1, Vec::new);
        }
        let passes = &mut self.0[index];
        if passes.len() <= pass as usize {
            passes.resize_with(pass as usize + 1, || None);
        }
        passes[pass as usize] = Some(thing);
    }
}

/// An adapter in a slot.
pub(super) struct Adapter {
    region: Region,
    groups: ByPass<GroupDelta>,
    tables: ByPass<TableDelta>,
    vectors: ByPass<Part>,
}

/// What an adapter changes at the sites of one group.
pub(super) struct GroupDelta {
    /// Rows that multiply the input: A's and replaced rows.
    stack: DenseTiles,
    members: Vec<Option<LinearDelta>>,
    /// Whether it replaces a weight, bias or row.
    pub(super) is_replacing: bool,
}

/// What an adapter changes at one linear.
pub(super) struct LinearDelta {
    weight: Option<DenseTiles>,
    bias: Option<Part>,
    rows: Option<StackedRows>,
    low: Option<StackedLow>,
}

/// Rows of a weight that are replaced, and where they stand in the stack.
struct StackedRows {
    ids: Part,
    first: usize,
}

/// A low-rank delta, and where its A stands in the stack.
struct StackedLow {
    first: usize,
    expand: Expand,
}

/// What an adapter changes at an embedding.
pub(super) struct TableDelta {
    weight: Option<Rows>,
    ids: Option<Part>,
    rows: Option<Rows>,
    /// A^T `[tokens, rank]`, and the rest.
    low: Option<(Rows, Expand)>,
}

/// Rows of numbers in the type they are stored in.
struct Rows {
    dtype: DType,
    rows: usize,
    width: usize,
    part: Part,
}

impl Rows {
    fn lay_out(layout: &mut RegionLayout, dtype: DType, rows: usize, width: usize) -> Self {
        Self { dtype, rows, width, part: layout.take::<u8>(rows * width * dtype.bytes()) }
    }

    fn of(layout: &mut RegionLayout, matrix: &Tensor<'_>) -> Self {
        Self::lay_out(layout, matrix.dtype(), matrix.shape()[0], matrix.shape()[1])
    }

    fn read(&self, region: &Region, row: usize, columns: Range<usize>, out: &mut [f32]) {
        read_row(self.dtype, region.part(self.part), self.width, row, columns, out);
    }
}

impl Adapter {
    /// Re-lays an adapter.
    ///
    /// # Errors
    /// `memory_exhausted`; `adapter_scale_invalid` where a DoRA norm is 0; `internal` if a delta does not fit its site, or
    /// a site stands twice in one pass.
    pub(super) fn new(pool: &mut Pool, base: &Base<'_>, deltas: &[SiteDelta<'_>]) -> Result<Self> {
        let sorted = Sorted::new(base, deltas)?;
        let mut layout = RegionLayout::default();
        let (mut groups, mut tables, mut vectors) = (ByPass::new(), ByPass::new(), ByPass::new());
        for (&at, members) in &sorted.groups {
            groups.set(at, GroupDelta::lay_out(&mut layout, base.groups[at.0].in_features, members));
        }
        for (&at, delta) in &sorted.tables {
            tables.set(at, TableDelta::lay_out(&mut layout, delta));
        }
        for (&at, weight) in &sorted.vectors {
            vectors.set(at, layout.take::<f32>(weight.view().len()));
        }
        let mut adapter = Self { region: layout.map()?, groups, tables, vectors };
        adapter.fill(pool, base, &sorted)?;
        Ok(adapter)
    }

    fn fill(&mut self, pool: &mut Pool, base: &Base<'_>, sorted: &Sorted<'_>) -> Result<()> {
        let region = &mut self.region;
        for (&(group, pass), members) in &sorted.groups {
            let Some(delta) = self.groups.get(group, pass) else { continue };
            delta.fill(pool, region, members)?;
            for &(member, source) in members {
                delta.fill_magnitude(pool, base, &base.groups[group], region, member, source)?;
            }
        }
        for (&(table, pass), source) in &sorted.tables {
            let Some(delta) = self.tables.get(table, pass) else { continue };
            delta.fill(region, source);
            delta.fill_magnitude(pool, base, &base.tables[table], region, source)?;
        }
        for (&(vector, pass), weight) in &sorted.vectors {
            let Some(&part) = self.vectors.get(vector, pass) else { continue };
            weight.view().read_f32(0..weight.view().len(), region.part_mut(part));
        }
        Ok(())
    }

    /// Bytes it occupies.
    pub(super) fn bytes(&self) -> usize {
        self.region.len()
    }

    /// What it changes at the sites of a group.
    pub(super) fn group(&self, group: usize, pass: u32) -> Option<&GroupDelta> {
        self.groups.get(group, pass)
    }

    /// What it changes at an embedding.
    pub(super) fn table(&self, table: usize, pass: u32) -> Option<&TableDelta> {
        self.tables.get(table, pass)
    }

    /// The norm's weight that it brings.
    pub(super) fn vector(&self, vector: usize, pass: u32) -> Option<&[f32]> {
        self.vectors.get(vector, pass).map(|&part| self.region.part(part))
    }

    /// Its memory, in which its deltas stand.
    pub(super) fn region(&self) -> &Region {
        &self.region
    }
}

impl GroupDelta {
    fn lay_out(layout: &mut RegionLayout, in_features: usize, sources: &[(usize, &SiteDelta<'_>)]) -> Self {
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
            let low = source
                .low_rank
                .as_ref()
                .map(|low| StackedLow { first: stack(low.rank()), expand: Expand::lay_out(layout, low) });
            let rows = source
                .rows
                .as_ref()
                .map(|rows| StackedRows { ids: layout.take::<u32>(rows.ids.len()), first: stack(rows.ids.len()) });
            members.resize_with(member + 1, || None);
            members[member] = Some(LinearDelta { weight, bias, rows, low });
        }
        // A stack of one type keeps it; a mixed one is widened.
        let mut widths = stacked(sources).filter_map(|matrix| Width::of_dtype(matrix.dtype()));
        let width = widths.next().unwrap_or(Width::F32);
        let width = if widths.all(|other| other == width) { width } else { Width::F32 };
        let is_replacing = sources.iter().any(|(_, source)| source.is_replacing());
        Self { stack: DenseTiles::lay_out(layout, first, in_features, width), members, is_replacing }
    }

    fn fill(&self, pool: &mut Pool, region: &mut Region, sources: &[(usize, &SiteDelta<'_>)]) -> Result<()> {
        let rows: Vec<(TensorView<'_>, usize)> =
            stacked(sources).flat_map(|matrix| (0..matrix.shape()[0]).map(|row| (matrix.view(), row))).collect();
        self.stack.fill(pool, region, |row| rows[row])?;
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
                stacked.expand.fill(region, low);
            }
        }
        Ok(())
    }

    /// Takes the norms of a member's weight, where the adapter rescales by them.
    fn fill_magnitude(
        &self,
        pool: &mut Pool,
        base: &Base<'_>,
        group: &Group,
        region: &mut Region,
        member: usize,
        source: &SiteDelta<'_>,
    ) -> Result<()> {
        let (Some(delta), Some(low)) = (self.member(member), rescaling(source)) else { return Ok(()) };
        let (tiles, order) = match &delta.weight {
            Some(weight) => (weight.view(region), None),
            None => (group.members[member].tiles(base.arena), group.order(member)),
        };
        let moments = moments::of_linear(pool, base.kernels, &tiles, order, low, source.rows.as_ref())?;
        let Some(stacked) = &delta.low else { return Ok(()) };
        stacked.expand.fill_magnitude(region, low, &moments).map_err(|output| zero_norm(source.site, output))
    }

    /// What is changed at a member of the group.
    pub(super) fn member(&self, index: usize) -> Option<&LinearDelta> {
        self.members.get(index)?.as_ref()
    }

    /// Tiles of the stack.
    pub(super) fn stack_tiles(&self) -> usize {
        self.stack.tiles
    }

    /// The stack, for a kernel.
    pub(super) fn stack<'a>(&'a self, region: &'a Region) -> Tiles<'a> {
        self.stack.view(region)
    }
}

/// The matrices of a stack, in its order.
fn stacked<'a>(sources: &[(usize, &'a SiteDelta<'a>)]) -> impl Iterator<Item = &'a Tensor<'a>> {
    let of_source = |&(_, source): &(usize, &'a SiteDelta<'a>)| {
        let (low, rows) = (source.low_rank.as_ref(), source.rows.as_ref());
        low.map(|low| &low.a).into_iter().chain(rows.map(|rows| &rows.values))
    };
    sources.iter().flat_map(of_source)
}

/// The low-rank part, if it has a magnitude.
fn rescaling<'a>(source: &'a SiteDelta<'a>) -> Option<&'a LowRank<'a>> {
    source.low_rank.as_ref().filter(|low| low.magnitude.is_some())
}

impl LinearDelta {
    /// The weight that stands in the base's place.
    pub(super) fn weight(&self) -> Option<&DenseTiles> {
        self.weight.as_ref()
    }

    /// The bias that stands in the base's place, from a tile on.
    pub(super) fn bias<'a>(&self, region: &'a Region, tile: usize) -> Option<&'a [f32]> {
        self.bias.map(|bias| region.part(bias).get(tile * LANES..).unwrap_or(&[]))
    }

    /// Writes the outputs of a tile whose rows are replaced; `t` is the product of the stack.
    pub(super) fn replace_rows(&self, region: &Region, tile: usize, t: &[f32], y: &mut [f32; LANES]) {
        let Some(rows) = &self.rows else { return };
        let ids: &[u32] = region.part(rows.ids);
        let start = ids.partition_point(|&id| (id as usize) < tile * LANES);
        let within = ids[start..].iter().take_while(|&&id| (id as usize) < (tile + 1) * LANES);
        for (&id, &value) in within.zip(&t[rows.first + start..]) {
            y[id as usize - tile * LANES] = value;
        }
    }

    /// Applies the low-rank part to a tile of outputs; `t` is the product of the stack.
    pub(super) fn apply(
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
}

impl TableDelta {
    fn lay_out(layout: &mut RegionLayout, source: &SiteDelta<'_>) -> Self {
        Self {
            weight: source.weight.as_ref().map(|weight| Rows::of(layout, weight)),
            ids: source.rows.as_ref().map(|rows| layout.take::<u32>(rows.ids.len())),
            rows: source.rows.as_ref().map(|rows| Rows::of(layout, &rows.values)),
            low: source.low_rank.as_ref().map(|low| {
                let a = Rows::lay_out(layout, low.a.dtype(), low.a.shape()[1], low.rank());
                (a, Expand::lay_out(layout, low))
            }),
        }
    }

    fn fill(&self, region: &mut Region, source: &SiteDelta<'_>) {
        if let (Some(rows), Some(weight)) = (&self.weight, &source.weight) {
            region.part_mut(rows.part).copy_from_slice(weight.bytes());
        }
        if let (Some(ids), Some(rows), Some(replaced)) = (self.ids, &self.rows, &source.rows) {
            region.part_mut(ids).copy_from_slice(&replaced.ids);
            region.part_mut(rows.part).copy_from_slice(replaced.values.bytes());
        }
        if let (Some((a, expand)), Some(low)) = (&self.low, &source.low_rank) {
            let (bytes, size) = (low.a.bytes(), a.dtype.bytes());
            let out: &mut [u8] = region.part_mut(a.part);
            for (r, row) in bytes.chunks_exact((a.rows * size).max(1)).enumerate() {
                for (token, value) in row.chunks_exact(size).enumerate() {
                    out[(token * a.width + r) * size..][..size].copy_from_slice(value);
                }
            }
            expand.fill(region, low);
        }
    }

    /// Takes the norms of the table's channels, where the adapter rescales by them.
    fn fill_magnitude(
        &self,
        pool: &mut Pool,
        base: &Base<'_>,
        table: &Table,
        region: &mut Region,
        source: &SiteDelta<'_>,
    ) -> Result<()> {
        let (Some((_, expand)), Some(low)) = (&self.low, rescaling(source)) else { return Ok(()) };
        let read = |token: usize, channels: Range<usize>, out: &mut [f32]| match self.row(region, token) {
            Some((rows, row, _)) => rows.read(region, row, channels, out),
            None => table.read(base.arena, token, channels, out),
        };
        let moments = moments::of_table(pool, low, read)?;
        expand.fill_magnitude(region, low, &moments).map_err(|output| zero_norm(source.site, output))
    }

    /// The row of a token that this adapter brings, and whether it replaces it alone and not with the whole table.
    fn row(&self, region: &Region, token: usize) -> Option<(&Rows, usize, bool)> {
        let id = self.ids.and_then(|ids| region.part::<u32>(ids).binary_search(&(token as u32)).ok());
        let alone = self.rows.as_ref().zip(id).map(|(rows, row)| (rows, row, true));
        alone.or_else(|| Some((self.weight.as_ref().filter(|weight| token < weight.rows)?, token, false)))
    }

    /// Tokens of the table that stands in the base's place.
    pub(super) fn tokens(&self) -> Option<usize> {
        self.weight.as_ref().map(|weight| weight.rows)
    }

    /// Reads the row of a token that this adapter brings, if it does and, if so asked, only one that it replaces alone.
    pub(super) fn read(&self, region: &Region, token: usize, only_alone: bool, out: &mut [f32]) -> bool {
        let Some((rows, row, is_alone)) = self.row(region, token) else { return false };
        if is_alone || !only_alone {
            rows.read(region, row, 0..out.len(), out);
        }
        is_alone || !only_alone
    }

    /// Length of t.
    pub(super) fn rank(&self) -> usize {
        self.low.as_ref().map_or(0, |(_, expand)| expand.rank)
    }

    /// `t = A x` of a token: a column of A; of a token that it has not, zeros.
    pub(super) fn shrink(&self, region: &Region, token: usize, t: &mut [f32]) {
        match &self.low {
            Some((a, _)) if token < a.rows => a.read(region, token, 0..a.width, t),
            _ => t.fill(0.0),
        }
    }

    /// Applies the low-rank part to a tile of channels.
    pub(super) fn apply(
        &self,
        region: &Region,
        kernels: &Kernels,
        tile: usize,
        t: &[f32],
        weight: f32,
        y: &mut [f32; LANES],
    ) {
        if let Some((_, expand)) = &self.low {
            expand.apply(region, kernels, tile, t, weight, y);
        }
    }
}
