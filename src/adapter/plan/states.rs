//! The states of an adapter after its files were checked, and what leads from one to the next.

use crate::adapter::AdapterFiles;
use crate::adapter::delta::{CheckedDelta, SiteDelta};
#[cfg(not(feature = "kasa"))]
use crate::adapter::delta::{LowRank, Truncation};
use crate::adapter::plan::summary::{AdapterSummary, CheckFacts};
#[cfg(feature = "kasa")]
use crate::adapter::svd::remove_smallest_singular_values;
use crate::error::Result;
#[cfg(not(feature = "kasa"))]
use crate::error::{Error, ErrorCode};
use crate::sites::{SiteId, SitePart};
use crate::tensor::{Tensor, TensorView};

/// An adapter whose files fit a model: names, shapes, ranks, data types, finite values, completeness.
#[derive(Debug)]
pub struct CheckedAdapter<'a> {
    files: &'a AdapterFiles,
    facts: CheckFacts,
    deltas: Vec<CheckedDelta<'a>>,
}

impl<'a> CheckedAdapter<'a> {
    pub(super) fn new(files: &'a AdapterFiles, facts: CheckFacts, deltas: Vec<CheckedDelta<'a>>) -> Self {
        Self { files, facts, deltas }
    }

    /// The deltas, ordered by site and repeat.
    pub fn deltas(&self) -> &[CheckedDelta<'a>] {
        &self.deltas
    }

    /// Leaves out weights and biases that equal the base's: copies of them are in the file where a vocabulary was saved.
    /// `equals_base` says whether the base has exactly this tensor at a site; where that is unknown, it says no.
    pub fn without_copies(self, equals_base: impl Fn(SiteId, SitePart, TensorView<'_>) -> bool) -> ReducedAdapter<'a> {
        let Self { files, facts, mut deltas } = self;
        for CheckedDelta { delta, .. } in &mut deltas {
            let site = delta.site;
            let is_copy = |part, tensor: &Tensor<'_>| equals_base(site, part, tensor.view());
            delta.weight.take_if(|weight| is_copy(SitePart::Weight, weight));
            delta.bias.take_if(|bias| is_copy(SitePart::Bias, bias));
        }
        deltas.retain(|CheckedDelta { delta, .. }| !delta.is_empty());
        let summary = AdapterSummary::of(files, &facts, &deltas);
        ReducedAdapter { deltas, summary }
    }
}

/// An adapter reduced to what differs from the base. Its summary, and with it its size, is final.
#[derive(Debug)]
pub struct ReducedAdapter<'a> {
    deltas: Vec<CheckedDelta<'a>>,
    summary: AdapterSummary,
}

impl<'a> ReducedAdapter<'a> {
    /// The deltas, ordered by site and repeat.
    pub fn deltas(&self) -> impl ExactSizeIterator<Item = &SiteDelta<'a>> {
        self.deltas.iter().map(|checked| &checked.delta)
    }

    /// What is reported of it.
    pub fn summary(&self) -> &AdapterSummary {
        &self.summary
    }

    /// Decomposes the weights that are truncated (KaSA): each the adapter's own or the base's, which `dense_weight` returns
    /// as `[out_features, in_features]`. A decomposition may take a minute; `between_parts` is called several times a
    /// second.
    ///
    /// # Errors
    /// Those of `dense_weight` and `between_parts`; `internal` if a decomposition does not converge; `forked_while_in_use`.
    pub fn resolve(
        self,
        dense_weight: impl Fn(SiteId) -> Result<Vec<f32>>,
        between_parts: &mut dyn FnMut() -> Result<()>,
    ) -> Result<ResolvedAdapter<'a>> {
        let resolve = |CheckedDelta { mut delta, truncation }: CheckedDelta<'a>| {
            if let Some(truncation) = truncation {
                between_parts()?;
                let weight = match &delta.weight {
                    Some(weight) => weight.view().try_to_f32()?,
                    None => dense_weight(delta.site)?,
                };
                delta.removed = Some(remove_smallest_singular_values(weight, truncation, between_parts)?);
            }
            Ok(delta)
        };
        let deltas = self.deltas.into_iter().map(resolve).collect::<Result<_>>()?;
        Ok(ResolvedAdapter { deltas, summary: self.summary })
    }
}

/// Without the feature `kasa` there is no decomposition; configs that need it are refused before.
#[cfg(not(feature = "kasa"))]
fn remove_smallest_singular_values(
    _: Vec<f32>,
    _: Truncation,
    _: &mut dyn FnMut() -> Result<()>,
) -> Result<LowRank<'static>> {
    Err(Error::new(ErrorCode::AdapterFeatureUnsupported, "KaSA is left out of this build"))
}

/// An adapter with its final deltas, ready to be prepared by a backend.
#[derive(Debug)]
pub struct ResolvedAdapter<'a> {
    /// The deltas, ordered by site and repeat.
    pub deltas: Vec<SiteDelta<'a>>,
    /// What is reported of it.
    pub summary: AdapterSummary,
}
