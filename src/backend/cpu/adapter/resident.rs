//! An adapter in the layout of the kernels, in a region of its own.
//!
//! Everything that multiplies the input of a group is stacked and packed like any dense weight: the A's of its members, and
//! the rows that replace rows of their weights. So shrink, `t = A x`, is the product of a few more tiles with the same x, and
//! the output of a replaced row is one of the t. B, its bias and magnitude are in tiles of outputs (`low_rank.rs`); replaced weights are tiles beside the base's. Values keep their stored type; a site or
//! group that an adapter does not change takes no bytes and no time.
//!
//! ```text
//! group, repeat   [A of q | rows of q | A of k | …]   tiles of 16      member: W?  b?  ids of its rows  B, b_B, m, a b c
//! table, repeat   E?  rows  A^T [token][rank]  B …                     norm: its packed values
//! ```

use super::embedding::EmbeddingDelta;
use super::linear::GroupDelta;
use crate::adapter::delta::SiteDelta;
use crate::backend::PrepareError;
use crate::backend::cpu::runtime::arena::{Part, Region, RegionLayout};
use crate::backend::cpu::runtime::threads::Pool;
use crate::backend::cpu::weights::BaseWeights;
use crate::backend::sorted_deltas::Sorted;
use crate::error::Result;

/// Deltas by the index of the weight they change, and by repeat.
struct ByRepeat<T>(Vec<Vec<Option<T>>>);

impl<T> ByRepeat<T> {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn get(&self, index: usize, repeat: u32) -> Option<&T> {
        self.0.get(index)?.get(repeat as usize)?.as_ref()
    }

    fn set(&mut self, (index, repeat): (usize, u32), thing: T) {
        if self.0.len() <= index {
            self.0.resize_with(index + 1, Vec::new);
        }
        let repeats = &mut self.0[index];
        if repeats.len() <= repeat as usize {
            repeats.resize_with(repeat as usize + 1, || None);
        }
        repeats[repeat as usize] = Some(thing);
    }
}

/// A prepared adapter.
pub(crate) struct Adapter {
    region: Region,
    groups: ByRepeat<GroupDelta>,
    tables: ByRepeat<EmbeddingDelta>,
    norms: ByRepeat<Part>,
}

impl Adapter {
    /// Packs an adapter.
    ///
    /// # Errors
    /// `memory_exhausted`; a DoRA norm of 0; what `between_parts` returned; `internal` if a delta does not fit its site, or a
    /// site appears twice in one repeat of its layer.
    pub(crate) fn new(
        pool: &mut Pool,
        base: &BaseWeights,
        deltas: &[SiteDelta<'_>],
        between_parts: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Self, PrepareError> {
        let sorted = Sorted::new(|site| base.find(site), deltas)?;
        let mut layout = RegionLayout::default();
        let (mut groups, mut tables, mut norms) = (ByRepeat::new(), ByRepeat::new(), ByRepeat::new());
        for (&at, members) in &sorted.groups {
            groups.set(at, GroupDelta::lay_out(&mut layout, base.groups[at.0].in_features, members));
        }
        for (&at, delta) in &sorted.tables {
            tables.set(at, EmbeddingDelta::lay_out(&mut layout, delta));
        }
        for &at in sorted.norms.keys() {
            norms.set(at, layout.take::<f32>(base.norm(at.0).map_or(0, |(form, _)| form.len())));
        }
        let mut adapter = Self { region: layout.map()?, groups, tables, norms };
        adapter.fill(pool, base, &sorted, between_parts)?;
        Ok(adapter)
    }

    fn fill(
        &mut self,
        pool: &mut Pool,
        base: &BaseWeights,
        sorted: &Sorted<'_>,
        between_parts: &mut dyn FnMut() -> Result<()>,
    ) -> Result<(), PrepareError> {
        let region = &mut self.region;
        for (&(group, repeat), members) in &sorted.groups {
            let Some(delta) = self.groups.get(group, repeat) else { continue };
            between_parts()?;
            delta.fill(pool, region, members)?;
            for &(member, source) in members {
                delta.fill_magnitude(pool, base, &base.groups[group], region, (member, source), between_parts)?;
            }
        }
        for (&(table, repeat), source) in &sorted.tables {
            let Some(delta) = self.tables.get(table, repeat) else { continue };
            between_parts()?;
            delta.fill(pool, region, source)?;
            delta.fill_magnitude(pool, base, &base.tables[table], region, source, between_parts)?;
        }
        for (&(norm, repeat), source) in &sorted.norms {
            let (Some(&part), Some((form, packed))) = (self.norms.get(norm, repeat), base.norm(norm)) else { continue };
            form.replace(packed, source, region.part_mut(part))?;
        }
        Ok(())
    }

    /// Bytes it occupies.
    pub(crate) fn bytes(&self) -> usize {
        self.region.len()
    }

    /// What it changes at the sites of a group.
    pub(crate) fn group(&self, group: usize, repeat: u32) -> Option<&GroupDelta> {
        self.groups.get(group, repeat)
    }

    /// What it changes at an embedding.
    pub(crate) fn embedding(&self, table: usize, repeat: u32) -> Option<&EmbeddingDelta> {
        self.tables.get(table, repeat)
    }

    /// The packed values that replace a norm's.
    pub(crate) fn norm(&self, norm: usize, repeat: u32) -> Option<&[f32]> {
        self.norms.get(norm, repeat).map(|&part| self.region.part(part))
    }

    /// The memory of its deltas.
    pub(crate) fn region(&self) -> &Region {
        &self.region
    }
}
