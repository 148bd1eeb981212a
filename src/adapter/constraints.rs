//! What an adapter demands of the requests that name it. Derived from its deltas, enforced by [`mixture`](super::mixture).

use std::sync::Arc;

use crate::adapter::delta::SiteDelta;
use crate::sites::{SiteId, SitePart};

/// What a request must respect if it names the adapter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterConstraints {
    /// Parts that are replaced as a whole, ascending.
    pub replaced: Vec<(SiteId, SitePart)>,
    /// Replaced rows of weights by site; each list ascends.
    pub replaced_rows: Vec<(SiteId, Vec<u32>)>,
    /// Sites with a DoRA magnitude, ascending.
    pub rescaled: Vec<SiteId>,
    /// Sites whose weight it truncates (KaSA), ascending.
    pub truncated: Vec<SiteId>,
    /// Rows of the adapter's own embedding, if it replaces the base's.
    pub embedding_rows: Option<usize>,
    /// Rows of the adapter's own head, if it replaces the base's.
    pub head_rows: Option<usize>,
    /// The adapter acts from the last occurrence of these tokens in the prompt on (aLoRA); everywhere if empty.
    pub invocation: Vec<u32>,
    /// Its layer map: the base layer of each of its layers (`layer_replication`); `None` means the base's own layers.
    pub layers: Option<Arc<[u32]>>,
}

impl AdapterConstraints {
    /// Adds what the delta at a site demands, in a model with that embedding and head.
    pub(super) fn add(&mut self, delta: &SiteDelta<'_>, embedding: Option<SiteId>, head: Option<SiteId>) {
        if let Some(weight) = &delta.weight {
            self.replaced.push((delta.site, SitePart::Weight));
            let rows = Some(weight.shape()[0]);
            if embedding == Some(delta.site) {
                self.embedding_rows = rows;
            } else if head == Some(delta.site) {
                self.head_rows = rows;
            }
        }
        if delta.bias.is_some() {
            self.replaced.push((delta.site, SitePart::Bias));
        }
        if let Some(rows) = &delta.rows {
            self.replaced_rows.push((delta.site, rows.ids.clone()));
        }
        if delta.low_rank.as_ref().is_some_and(|low| low.magnitude.is_some()) {
            self.rescaled.push(delta.site);
        }
    }

    /// Sorts what was added. A site of a repeated layer was added once for each repeat.
    pub(super) fn sort(&mut self) {
        self.replaced.sort_unstable();
        self.replaced.dedup();
        for sites in [&mut self.rescaled, &mut self.truncated] {
            sites.sort_unstable();
            sites.dedup();
        }
    }

    /// Whether it replaces anything: then only a request weight of 1 is defined.
    pub fn is_replacing(&self) -> bool {
        !self.replaced.is_empty() || !self.replaced_rows.is_empty()
    }

    fn replaces(&self, site: SiteId, part: SitePart) -> bool {
        self.replaced.binary_search(&(site, part)).is_ok()
    }

    /// Whether its delta at a site was derived from the weight there: from its norms, or its smallest singular values.
    fn depends_on(&self, site: SiteId) -> bool {
        self.rescaled.binary_search(&site).is_ok() || self.truncated.binary_search(&site).is_ok()
    }

    /// A site at which both cannot act on one row: this one changes a part that the other replaces too, or that the other's
    /// delta was derived from.
    pub fn conflict(&self, other: &Self) -> Option<SiteId> {
        // A weight that is no longer the one that the other's delta was derived from.
        let changed = self.replaced_rows.iter().map(|(site, _)| site).chain(&self.truncated);
        if let Some(site) = changed.copied().find(|&site| other.depends_on(site)) {
            return Some(site);
        }
        let replaced = |&&(site, part): &&(SiteId, SitePart)| {
            other.replaces(site, part)
                || (part == SitePart::Weight
                    && (other.depends_on(site) || other.replaced_rows.iter().any(|(rows_of, _)| *rows_of == site)))
        };
        let shared_rows = || {
            let shared = |(site, ids): &&(SiteId, Vec<u32>)| {
                other.replaced_rows.iter().any(|(other_site, other_ids)| {
                    site == other_site && ids.iter().any(|id| other_ids.binary_search(id).is_ok())
                })
            };
            self.replaced_rows.iter().find(shared).map(|(site, _)| *site)
        };
        self.replaced.iter().find(replaced).map(|(site, _)| *site).or_else(shared_rows)
    }
}
