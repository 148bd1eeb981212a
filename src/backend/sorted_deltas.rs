//! An adapter's deltas, sorted by the weights on which they act and checked against them, for any backend.

use std::collections::BTreeMap;

use crate::adapter::delta::{LowRank, ReplacedRows, SiteDelta};
use crate::error::{Error, ErrorCode, Result};
use crate::sites::SiteId;
use crate::tensor::shape_text;

/// Which of a backend's weights a site is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SitePlace {
    /// A linear: its group, and its place among the group's members.
    Linear { group: usize, member: usize },
    /// An embedding table.
    Embedding(usize),
    /// A norm.
    Norm(usize),
}

/// A site as a delta finds it.
#[derive(Clone, Debug)]
pub(crate) struct PlacedSite {
    /// Where it is.
    pub(crate) place: SitePlace,
    /// Of the base, as stored: `[out_features, in_features]`, `[vocab, hidden]`, `[width]`, `[heads, head_dim]`.
    pub(crate) shape: Vec<usize>,
    /// Whether the weight may be replaced by one of more rows.
    pub(crate) may_grow: bool,
    /// Whether it has a bias, or may be given one.
    pub(crate) takes_bias: bool,
}

/// Deltas by the index of their group, embedding or norm, and by repeat.
#[derive(Default)]
pub(crate) struct Sorted<'a> {
    /// By member, ascending.
    pub(crate) groups: BTreeMap<(usize, u32), Vec<(usize, &'a SiteDelta<'a>)>>,
    pub(crate) tables: BTreeMap<(usize, u32), &'a SiteDelta<'a>>,
    pub(crate) norms: BTreeMap<(usize, u32), &'a SiteDelta<'a>>,
}

impl<'a> Sorted<'a> {
    /// Sorts and checks; `find` tells where a site is.
    ///
    /// # Errors
    /// `internal` if a delta does not fit its site, or a site appears twice in one repeat of its layer.
    pub(crate) fn new(find: impl Fn(SiteId) -> Option<PlacedSite>, deltas: &'a [SiteDelta<'a>]) -> Result<Self> {
        let mut sorted = Self::default();
        for delta in deltas {
            let site = find(delta.site).ok_or_else(|| misfit("an adapter's site was never packed", delta))?;
            site.check(delta)?;
            let is_fresh = match site.place {
                SitePlace::Linear { group, member } => {
                    let members = sorted.groups.entry((group, delta.repeat)).or_default();
                    let is_fresh = members.iter().all(|(other, _)| *other != member);
                    members.push((member, delta));
                    is_fresh
                }
                SitePlace::Embedding(table) => sorted.tables.insert((table, delta.repeat), delta).is_none(),
                SitePlace::Norm(norm) => sorted.norms.insert((norm, delta.repeat), delta).is_none(),
            };
            if !is_fresh {
                return Err(misfit("an adapter has two deltas for one site and repeat", delta));
            }
        }
        sorted.groups.values_mut().for_each(|members| members.sort_by_key(|(member, _)| *member));
        Ok(sorted)
    }
}

impl PlacedSite {
    fn check(&self, delta: &SiteDelta<'_>) -> Result<()> {
        if delta.tensors().next().is_none() || !delta.tensors().all(|tensor| tensor.dtype().is_float()) {
            return Err(misfit("a delta changes nothing, or not by floats", delta));
        }
        let mut rows = self.shape[0];
        if let Some(weight) = &delta.weight {
            let grown = self.may_grow && weight.shape().first().is_some_and(|&found| found >= rows);
            let same_width = weight.shape().get(1..) == self.shape.get(1..);
            if !same_width || (weight.shape()[0] != rows && !grown) {
                return Err(misfit("a replaced weight does not fit its site", delta)
                    .with_expected(shape_text(&self.shape))
                    .with_found(shape_text(weight.shape())));
            }
            rows = weight.shape()[0];
        }
        if delta.bias.is_some() && !self.takes_bias {
            return Err(misfit("an embedding or a norm has no bias", delta));
        }
        let others = delta.rows.is_some() || delta.low_rank.is_some() || delta.removed.is_some();
        let (inputs, outputs) = match self.place {
            SitePlace::Linear { .. } => (self.shape[1], rows),
            SitePlace::Embedding(_) if delta.removed.is_some() => {
                return Err(misfit("an embedding is not truncated", delta));
            }
            SitePlace::Embedding(_) => (rows, self.shape[1]),
            SitePlace::Norm(_) if others => return Err(misfit("a norm has a weight and a bias alone", delta)),
            SitePlace::Norm(_) => match delta.bias.as_ref().filter(|bias| bias.shape() != self.shape) {
                Some(_) => return Err(misfit("a norm's bias does not fit its site", delta)),
                None => return Ok(()),
            },
        };
        let bias_fits = delta.bias.as_ref().is_none_or(|bias| bias.shape() == [outputs]);
        let rows_fit = delta.rows.as_ref().is_none_or(|replaced| fits_rows(replaced, rows, self.shape[1]));
        let low_fits = delta.low_rank.iter().chain(&delta.removed).all(|low| fits_low_rank(low, inputs, outputs));
        // DoRA's norms are those of the whole weight.
        let is_rescaled = delta.low_rank.as_ref().is_some_and(|low| low.magnitude.is_some());
        match bias_fits && rows_fit && low_fits && !(is_rescaled && delta.removed.is_some()) {
            true => Ok(()),
            false => Err(misfit("a delta does not fit its site", delta)
                .with_expected(shape_text(&[outputs, inputs]))
                .with_found(delta.tensors().map(|tensor| shape_text(tensor.shape())).collect::<Vec<_>>().join(", "))),
        }
    }
}

fn fits_rows(replaced: &ReplacedRows<'_>, rows: usize, width: usize) -> bool {
    replaced.ids.is_sorted_by(|a, b| a < b)
        && replaced.ids.last().is_none_or(|&last| (last as usize) < rows)
        && replaced.values.shape() == [replaced.ids.len(), width]
}

fn fits_low_rank(low: &LowRank<'_>, inputs: usize, outputs: usize) -> bool {
    let norms = [&low.b_bias, &low.magnitude];
    let (&[rank, of_a], &[of_b, columns]) = (low.a.shape(), low.b.shape()) else { return false };
    rank > 0
        && rank == columns
        && of_a == inputs
        && of_b == outputs
        && norms.into_iter().flatten().all(|norm| norm.shape() == [outputs])
}

fn misfit(what: &str, delta: &SiteDelta<'_>) -> Error {
    Error::new(ErrorCode::Internal, format!("{what} (site {}, repeat {})", delta.site.0, delta.repeat))
}
