//! Adapters in their slots, re-laid for the kernels, each in a region of its own.
//!
//! Everything that multiplies the input of a group is stacked and packed like any dense weight: the A's of its members, and
//! the rows that stand in the place of some of their outputs. So shrink, `t = A x`, is the product of a few more tiles in one
//! pass over x, and a replaced row's output is one of the t. B and what belongs to it stand by tiles of outputs
//! (`factors.rs`); replaced weights are tiles beside the base's. Numbers keep the type they are stored in; a site or group
//! that an adapter leaves alone has no bytes and costs nothing.
//!
//! ```text
//! group, repeat   [A of q | rows of q | A of k | …]   tiles of 16      member: W?  b?  ids of its rows  B, b_B, m, a b c
//! table, repeat   E?  rows  A^T [token][rank]  B …                     norm: values
//! ```

use super::embedding::EmbeddingDelta;
use super::linear::GroupDelta;
use super::validate::Sorted;
use crate::adapter::delta::SiteDelta;
use crate::backend::PrepareError;
use crate::backend::cpu::runtime::arena::{Part, Region, RegionLayout};
use crate::backend::cpu::runtime::threads::Pool;
use crate::backend::cpu::weights::BaseWeights;
use crate::error::Result;

/// Things by the index of what they are at, and by repeat.
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

/// An adapter in a slot.
pub(crate) struct Adapter {
    region: Region,
    groups: ByRepeat<GroupDelta>,
    tables: ByRepeat<EmbeddingDelta>,
    norms: ByRepeat<Part>,
}

impl Adapter {
    /// Re-lays an adapter.
    ///
    /// # Errors
    /// `memory_exhausted`; a DoRA norm of 0; `internal` if a delta does not fit its site, or
    /// a site stands twice in one repeat of its layer.
    pub(crate) fn new(pool: &mut Pool, base: &BaseWeights, deltas: &[SiteDelta<'_>]) -> Result<Self, PrepareError> {
        let sorted = Sorted::new(base, deltas)?;
        let mut layout = RegionLayout::default();
        let (mut groups, mut tables, mut norms) = (ByRepeat::new(), ByRepeat::new(), ByRepeat::new());
        for (&at, members) in &sorted.groups {
            groups.set(at, GroupDelta::lay_out(&mut layout, base.groups[at.0].in_features, members));
        }
        for (&at, delta) in &sorted.tables {
            tables.set(at, EmbeddingDelta::lay_out(&mut layout, delta));
        }
        for (&at, weight) in &sorted.norms {
            norms.set(at, layout.take::<f32>(weight.view().len()));
        }
        let mut adapter = Self { region: layout.map()?, groups, tables, norms };
        adapter.fill(pool, base, &sorted)?;
        Ok(adapter)
    }

    fn fill(&mut self, pool: &mut Pool, base: &BaseWeights, sorted: &Sorted<'_>) -> Result<(), PrepareError> {
        let region = &mut self.region;
        for (&(group, repeat), members) in &sorted.groups {
            let Some(delta) = self.groups.get(group, repeat) else { continue };
            delta.fill(pool, region, members)?;
            for &(member, source) in members {
                delta.fill_magnitude(pool, base, &base.groups[group], region, member, source)?;
            }
        }
        for (&(table, repeat), source) in &sorted.tables {
            let Some(delta) = self.tables.get(table, repeat) else { continue };
            delta.fill(region, source);
            delta.fill_magnitude(pool, base, &base.tables[table], region, source)?;
        }
        for (&(norm, repeat), weight) in &sorted.norms {
            let Some(&part) = self.norms.get(norm, repeat) else { continue };
            weight.view().read_f32(0..weight.view().len(), region.part_mut(part));
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

    /// The norm's weight that it brings.
    pub(crate) fn norm(&self, norm: usize, repeat: u32) -> Option<&[f32]> {
        self.norms.get(norm, repeat).map(|&part| self.region.part(part))
    }

    /// Its memory, in which its deltas stand.
    pub(crate) fn region(&self) -> &Region {
        &self.region
    }
}
