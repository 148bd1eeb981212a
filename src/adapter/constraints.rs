//! What an adapter constraints of the requests that name it: read off its deltas when it is planned, heeded by
//! [`mixture`](super::mixture).

use std::sync::Arc;

use crate::adapter::delta::SiteDelta;
use crate::sites::{SiteId, SitePart};

/// What a request with an adapter has to heed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterConstraints {
    /// Parts that are replaced whole, ascending.
    pub replaced: Vec<(SiteId, SitePart)>,
    /// Rows of weights that are replaced one by one, by site; each list ascends.
    pub replaced_rows: Vec<(SiteId, Vec<u32>)>,
    /// Sites with a DoRA magnitude, ascending.
    pub rescaled: Vec<SiteId>,
    /// Sites whose weight it truncates, ascending.
    pub truncated: Vec<SiteId>,
    /// Rows of the embedding it brings, if it replaces it.
    pub embedding_rows: Option<usize>,
    /// Rows of the head it brings, if it replaces it.
    pub head_rows: Option<usize>,
    /// It acts from the last place on where these tokens stand in the prompt (aLoRA); everywhere if there are none.
    pub invocation: Vec<u32>,
    /// The base's layer that each layer of its stack is (`layer_replication`); `None` is the base's own stack.
    pub layers: Option<Arc<[u32]>>,
}

impl AdapterConstraints {
    /// Reads off the deltas what they demand, in a model with that embedding and head; invocation and layers are the
    /// config's.
    pub fn of(
        deltas: &[SiteDelta<'_>],
        embedding: Option<SiteId>,
        head: Option<SiteId>,
        invocation: &[u32],
        layers: Option<Arc<[u32]>>,
    ) -> Self {
        let mut constraints = Self { invocation: invocation.to_vec(), layers, ..Self::default() };
        for delta in deltas {
            if let Some(weight) = &delta.weight {
                constraints.replaced.push((delta.site, SitePart::Weight));
                let rows = Some(weight.shape()[0]);
                if embedding == Some(delta.site) {
                    constraints.embedding_rows = rows;
                } else if head == Some(delta.site) {
                    constraints.head_rows = rows;
                }
            }
            if delta.bias.is_some() {
                constraints.replaced.push((delta.site, SitePart::Bias));
            }
            if let Some(rows) = &delta.rows {
                constraints.replaced_rows.push((delta.site, rows.ids.clone()));
            }
            if delta.low_rank.as_ref().is_some_and(|low| low.magnitude.is_some()) {
                constraints.rescaled.push(delta.site);
            }
            if delta.truncated > 0 {
                constraints.truncated.push(delta.site);
            }
        }
        constraints.replaced.sort_unstable();
        constraints.replaced.dedup();
        constraints.rescaled.sort_unstable();
        constraints.rescaled.dedup();
        constraints.truncated.sort_unstable();
        constraints.truncated.dedup();
        constraints
    }

    /// Whether it replaces anything, so that only a weight of 1 has a meaning.
    pub fn is_replacing(&self) -> bool {
        !self.replaced.is_empty() || !self.replaced_rows.is_empty()
    }

    fn replaces(&self, site: SiteId, part: SitePart) -> bool {
        self.replaced.binary_search(&(site, part)).is_ok()
    }

    /// Whether what it does at a site was taken of the weight there: its norms, or its smallest singular values.
    fn depends_on(&self, site: SiteId) -> bool {
        self.rescaled.binary_search(&site).is_ok() || self.truncated.binary_search(&site).is_ok()
    }

    /// A site at which both can't act on one row: one changes what the other replaces, or took its norms of.
    pub fn conflict(&self, other: &Self) -> Option<SiteId> {
        // A weight that is changed before the other took of it what it needs.
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
