//! Modules of an adapter's file, found in the model: as a site, as several sites, or as a part of one.

use crate::adapter::keys::Part;
use crate::adapter::layer_map::Location;
use crate::adapter::module_tensors::ModuleTensors;
use crate::adapter::plan::checker::Checker;
use crate::error::{Error, ErrorCode};
use crate::sites::{AliasPart, Site, SiteId, SiteKind, SiteTable};

/// A module of the file and its place in the model.
pub(super) struct Module<'m, 'a> {
    /// Its path in the file, to which the config's patterns apply.
    pub path: &'m str,
    pub tensors: &'m ModuleTensors<'a>,
    /// The site that it is, or a linear as wide as its parts together.
    pub site: Site,
    pub parts: Vec<AliasPart>,
    pub repeat: u32,
    pub is_embedding: bool,
    pub is_head: bool,
    /// Width of the input; of an embedding its number of rows, including rows that the adapter adds.
    pub inputs: usize,
    /// Rows of B: the width of the output, including rows that the adapter adds to the head.
    pub outputs: usize,
}

impl Module<'_, '_> {
    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self.site.kind {
            SiteKind::Linear => "a linear",
            SiteKind::Embedding => "an embedding",
            SiteKind::Norm => "a norm",
        }
    }

    /// The site, if the module is exactly one whole site.
    pub fn only_site(&self) -> Option<SiteId> {
        match &self.parts[..] {
            [part] if part.site_outputs.len() == self.site.out_features => Some(part.site),
            _ => None,
        }
    }

    /// Whether the file has one of these parts of it.
    pub fn has(&self, parts: &[Part]) -> bool {
        self.tensors.first(parts).is_some()
    }
}

impl<'a> Checker<'a, '_> {
    /// Whether the config was refused for a feature whose modules this model does not have.
    pub(super) fn is_missing_reported(&self) -> bool {
        ["target_parameters", "task_type"].iter().any(|field| self.config().is_broken(field))
    }

    /// Whether the model has no such module.
    pub(super) fn is_missing_in_model(&self, path: &str) -> bool {
        match self.layer_map.locate(path) {
            Location::At(base, _) => self.sites.find(&base).is_none() && self.sites.find_alias(&base).is_none(),
            Location::OutsideMap => true,
            Location::Unknown => false,
        }
    }

    /// The place of a module in the model; `None` with the problem reported.
    pub(super) fn find_module<'m>(&mut self, path: &'m str, tensors: &'m ModuleTensors<'a>) -> Option<Module<'m, 'a>> {
        let sites = self.sites;
        let found = match self.layer_map.locate(path) {
            Location::At(base, repeat) => site_and_parts(&base, sites).map(|(site, parts)| (site, parts, repeat)),
            Location::OutsideMap => None,
            Location::Unknown => return None,
        };
        let Some((site, parts, repeat)) = found else {
            if !self.is_missing_reported() {
                let what = format!("the model has no module '{path}'");
                self.problem(Error::new(ErrorCode::AdapterSiteNotFound, what).with_tensor(tensors.example()));
            }
            return None;
        };
        let (inputs, outputs) = (site.in_features, site.out_features);
        let mut module =
            Module { path, tensors, site, parts, repeat, is_embedding: false, is_head: false, inputs, outputs };
        let only = module.only_site();
        module.is_embedding = only.is_some() && only == sites.embedding;
        module.is_head = only.is_some() && only == sites.head;
        Some(module)
    }
}

/// What a path of the base model stands for: a site, or parts of sites.
fn site_and_parts(path: &str, sites: &SiteTable) -> Option<(Site, Vec<AliasPart>)> {
    if let Some(id) = sites.find(path) {
        let site = sites.get(id).clone();
        let outputs = 0..site.out_features;
        let part = AliasPart { alias_outputs: outputs.clone(), site: id, site_outputs: outputs };
        return Some((site, vec![part]));
    }
    let parts = sites.find_alias(path)?;
    fused_linear(path, parts, sites).map(|site| (site, parts.to_vec()))
}

/// A linear as wide as its parts together.
fn fused_linear(path: &str, parts: &[AliasPart], sites: &SiteTable) -> Option<Site> {
    let first = sites.get(parts.first()?.site);
    let outputs = parts.iter().map(|part| part.alias_outputs.end).max()?;
    let has_bias = parts.iter().all(|part| sites.get(part.site).has_bias);
    (first.kind == SiteKind::Linear).then(|| Site::linear(path, first.in_features, outputs).with_bias(has_bias))
}
