//! Where an adapter can act: the linears of a loaded model, as plain data.
//!
//! The model fills a [`SiteTable`] while it loads and hands it to `adapter`, which never learns what a decoder is.

use std::collections::HashMap;

/// Index of a site in its [`SiteTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(pub u32);

impl SiteId {
    /// As an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One linear of the model: `y [rows, out_features] = x [rows, in_features] W^T + bias`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearSite {
    /// The module's path in the Hugging Face model: `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Width of the input.
    pub in_features: usize,
    /// Width of the output.
    pub out_features: usize,
    /// Whether the base has a bias here.
    pub has_bias: bool,
}

/// Every site of a model, by id and by path.
#[derive(Clone, Debug, Default)]
pub struct SiteTable {
    sites: Vec<LinearSite>,
    by_path: HashMap<String, SiteId>,
}

impl SiteTable {
    /// Adds a site and returns its id.
    ///
    /// # Panics
    /// If the path stands already: a model lists each module once.
    pub fn push(&mut self, site: LinearSite) -> SiteId {
        let id = SiteId(self.sites.len() as u32);
        let before = self.by_path.insert(site.path.clone(), id);
        assert!(before.is_none(), "site {} stands twice", site.path);
        self.sites.push(site);
        id
    }

    /// The site with that id.
    ///
    /// # Panics
    /// If the id is of another table.
    pub fn get(&self, id: SiteId) -> &LinearSite {
        &self.sites[id.index()]
    }

    /// The site at a module path.
    pub fn find(&self, path: &str) -> Option<SiteId> {
        self.by_path.get(path).copied()
    }

    /// All sites with their ids, in the model's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (SiteId, &LinearSite)> {
        self.sites.iter().enumerate().map(|(i, site)| (SiteId(i as u32), site))
    }

    /// Number of sites.
    pub fn len(&self) -> usize {
        self.sites.len()
    }

    /// Whether there are no sites.
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }
}
