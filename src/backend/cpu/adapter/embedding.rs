//! What an adapter changes at an embedding, in one repeat of its layer.

use std::ops::Range;

use parking_lot::Mutex;

use super::dora_norms;
use super::low_rank::{Expand, with_magnitude};
use crate::adapter::delta::SiteDelta;
use crate::backend::PrepareError;
use crate::backend::cpu::kernels::dispatch::Kernels;
use crate::backend::cpu::kernels::vector::LANES;
use crate::backend::cpu::runtime::arena::{Part, Region, RegionLayout};
use crate::backend::cpu::runtime::threads::Pool;
use crate::backend::cpu::weights::BaseWeights;
use crate::backend::cpu::weights::embedding::{EmbeddingTable, read_row};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// What an adapter changes at an embedding.
pub(crate) struct EmbeddingDelta {
    weight: Option<Rows>,
    ids: Option<Part>,
    rows: Option<Rows>,
    /// A^T `[tokens, rank]`, and the rest.
    low: Option<(Rows, Expand)>,
}

/// Rows of floats in their stored type.
struct Rows {
    dtype: DType,
    rows: usize,
    width: usize,
    part: Part,
}

impl Rows {
    pub(crate) fn lay_out(layout: &mut RegionLayout, dtype: DType, rows: usize, width: usize) -> Self {
        Self { dtype, rows, width, part: layout.take::<u8>(rows * width * dtype.bytes()) }
    }

    fn of(layout: &mut RegionLayout, matrix: &Tensor<'_>) -> Self {
        Self::lay_out(layout, matrix.dtype(), matrix.shape()[0], matrix.shape()[1])
    }

    fn read(&self, region: &Region, row: usize, columns: Range<usize>, out: &mut [f32]) {
        read_row(self.dtype, region.part(self.part), self.width, row, columns, out);
    }
}

impl EmbeddingDelta {
    pub(crate) fn lay_out(layout: &mut RegionLayout, source: &SiteDelta<'_>) -> Self {
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

    pub(crate) fn fill(&self, pool: &mut Pool, region: &mut Region, source: &SiteDelta<'_>) -> Result<()> {
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
            expand.fill(pool, region, low)?;
        }
        Ok(())
    }

    /// Computes the DoRA norms of the table's channels, if the adapter has a magnitude.
    pub(crate) fn fill_magnitude(
        &self,
        pool: &mut Pool,
        base: &BaseWeights,
        table: &EmbeddingTable,
        region: &mut Region,
        source: &SiteDelta<'_>,
        between_parts: &mut dyn FnMut() -> Result<()>,
    ) -> Result<(), PrepareError> {
        let (Some((_, expand)), Some(low)) = (&self.low, with_magnitude(source)) else { return Ok(()) };
        let failed = Mutex::new(None);
        let read = |token: usize, channels: Range<usize>, out: &mut [f32]| match self.row(region, token) {
            Some((rows, row, _)) => rows.read(region, row, channels, out),
            None => {
                if let Err(error) = table.read(&base.arena, token, channels, out) {
                    failed.lock().get_or_insert(error);
                }
            }
        };
        let terms = dora_norms::of_embedding(pool, low, read, between_parts)?;
        failed.into_inner().map_or_else(|| table.check_unchanged(), Err)?;
        expand
            .fill_magnitude(region, low, &terms)
            .map_err(|output| PrepareError::ZeroNorm { site: source.site, output })
    }

    /// This adapter's row of a token, and whether it replaces that row alone rather than the whole table.
    fn row(&self, region: &Region, token: usize) -> Option<(&Rows, usize, bool)> {
        let id = self.ids.and_then(|ids| region.part::<u32>(ids).binary_search(&(token as u32)).ok());
        let alone = self.rows.as_ref().zip(id).map(|(rows, row)| (rows, row, true));
        alone.or_else(|| Some((self.weight.as_ref().filter(|weight| token < weight.rows)?, token, false)))
    }

    /// Size of the vocabulary, if the adapter replaces the table.
    pub(crate) fn tokens(&self) -> Option<usize> {
        self.weight.as_ref().map(|weight| weight.rows)
    }

    /// Reads this adapter's row of a token, if it has one; with `only_alone`, only a row that it replaces alone.
    pub(crate) fn read(&self, region: &Region, token: usize, only_alone: bool, out: &mut [f32]) -> bool {
        let Some((rows, row, is_alone)) = self.row(region, token) else { return false };
        if is_alone || !only_alone {
            rows.read(region, row, 0..out.len(), out);
        }
        is_alone || !only_alone
    }

    /// Length of t.
    pub(crate) fn rank(&self) -> usize {
        self.low.as_ref().map_or(0, |(_, expand)| expand.rank)
    }

    /// `t = A x` of a token: a column of A; zeros for a token that A does not have.
    pub(crate) fn shrink(&self, region: &Region, token: usize, t: &mut [f32]) {
        match &self.low {
            Some((a, _)) if token < a.rows => a.read(region, token, 0..a.width, t),
            _ => t.fill(0.0),
        }
    }

    /// Applies the low-rank part to a tile of channels.
    pub(crate) fn apply(
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
