//! What a config promises and the file must then hold: saved modules, trained biases, token rows.
//!
//! PEFT stops with a KeyError at some of these and computes the base at others.

use crate::adapter::config::TrainedBiases;
use crate::adapter::delta::SiteDelta;
use crate::adapter::keys::{Contents, Part};
use crate::adapter::plan::Planner;
use crate::error::{Error, ErrorCode};
use crate::sites::{Site, SiteId, SiteKind};

impl<'a> Planner<'a, '_> {
    /// Tells what is promised and missing.
    pub(super) fn check_promises(&mut self, contents: &Contents<'a>, deltas: &[SiteDelta<'a>]) {
        self.check_saved();
        self.check_biases(deltas);
        self.check_token_rows(contents);
    }

    fn missing(&mut self, path: &str, part: Part, field: &str) {
        let what = format!("adapter_config.json promises a tensor by {field}");
        self.problem(Error::new(ErrorCode::AdapterTensorMissing, what).with_tensor(part.tensor_name(path)));
    }

    /// Every module under an entry of `modules_to_save`, by its own path or another model's for it.
    fn check_saved(&mut self) {
        const FIELD: &str = "modules_to_save";
        let sites = self.sites;
        let entries = &self.files.config.modules_to_save;
        if entries.is_empty() {
            return;
        }
        let of = |site: SiteId| (site, sites.get(site));
        let mut aliases: Vec<_> = sites.aliases().collect();
        aliases.sort_unstable_by_key(|(path, _)| *path);
        let aliased = aliases.into_iter().flat_map(|(path, parts)| parts.iter().map(move |part| (path, of(part.site))));
        let own = sites.iter().map(|(id, site)| (site.path.as_str(), (id, site)));
        let mut promised: Vec<(String, SiteId, u32, &Site)> = Vec::new();
        for (path, (id, site)) in own.chain(aliased) {
            let saved = self.stack.occurrences(path).into_iter().filter(|(path, _)| is_saved(entries, path));
            promised.extend(saved.map(|(path, repeat)| (path, id, repeat, site)));
        }
        for (path, id, repeat, site) in promised {
            if self.replaced.insert((id, repeat)) {
                self.missing(&path, Part::Weight, FIELD);
            }
            if site.has_bias && self.biased.insert((id, repeat)) {
                self.missing(&path, Part::Bias, FIELD);
            }
        }
    }

    /// Every bias of the base's linears, or those beside factors.
    fn check_biases(&mut self, deltas: &[SiteDelta<'a>]) {
        let sites = self.sites;
        let biased = |site: &Site| site.kind == SiteKind::Linear && site.has_bias;
        let promised: Vec<(String, SiteId, u32)> = match self.config().biases {
            TrainedBiases::None => return,
            TrainedBiases::All => {
                let all = sites.iter().filter(|(_, site)| biased(site));
                let paths = |(id, site): (SiteId, &Site)| {
                    let places = self.stack.occurrences(&site.path);
                    places.into_iter().map(move |(path, repeat)| (path, id, repeat)).collect::<Vec<_>>()
                };
                all.flat_map(paths).collect()
            }
            TrainedBiases::LoraOnly => {
                let with = deltas.iter().filter(|delta| delta.low_rank.is_some() && biased(sites.get(delta.site)));
                let path = |delta: &SiteDelta<'a>| {
                    let mut places = self.stack.occurrences(&sites.get(delta.site).path).into_iter();
                    places.find(|(_, repeat)| *repeat == delta.repeat).map(|(path, repeat)| (path, delta.site, repeat))
                };
                with.filter_map(path).collect()
            }
        };
        for (path, id, repeat) in promised {
            if self.biased.insert((id, repeat)) {
                self.missing(&path, Part::BaseBias, "bias");
            }
        }
    }

    /// Every entry of `trainable_token_indices`; a tied head may share its rows with the embedding.
    fn check_token_rows(&mut self, contents: &Contents<'a>) {
        const FIELD: &str = "trainable_token_indices";
        let path_of = |site: Option<SiteId>| site.map(|site| self.sites.get(site).path.as_str());
        let (embedding, head) = (path_of(self.sites.embedding), path_of(self.sites.head));
        let with_rows = || contents.modules.iter().filter(|(_, tensors)| tensors.get(Part::Rows).is_some());
        let has_rows = |path: &str| contents.modules.get(path).is_some_and(|tensors| tensors.get(Part::Rows).is_some());
        let mut missing = Vec::new();
        for (name, ids) in &self.files.config.token_rows {
            let path = match name {
                None => embedding,
                // Rows of another module are there, and told of.
                Some(name) if with_rows().any(|(path, _)| path.ends_with(name.as_str())) => continue,
                Some(name) => [embedding, head].into_iter().flatten().find(|path| path.ends_with(name.as_str())),
            };
            let Some(path) = path else {
                // A module that the model does not have can't be told from one that has no rows.
                missing.push(name.clone().unwrap_or_default());
                continue;
            };
            let shared = self.sites.is_head_tied
                && Some(path) == head
                && embedding.is_some_and(|path| has_rows(path) && self.token_ids(path, true) == Some(ids));
            if !has_rows(path) && !shared {
                missing.push(path.to_owned());
            }
        }
        for path in missing {
            self.missing(&path, Part::Rows, FIELD);
        }
    }
}

/// Whether a module, or one that it lies in, is an entry's: PEFT takes every path that ends with it.
pub(super) fn is_saved(entries: &[String], path: &str) -> bool {
    let ends = path.match_indices('.').map(|(at, _)| &path[..at]).chain([path]);
    ends.into_iter().any(|end| entries.iter().any(|entry| end.ends_with(entry.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_saves_every_module_whose_path_ends_with_it_and_what_lies_below() {
        let saved = |entry: &str, path| is_saved(&[entry.to_owned()], path);
        assert!(saved("norm", "model.norm") && saved("norm", "model.layers.0.input_layernorm"));
        assert!(saved("mlp", "model.layers.0.mlp.up_proj") && saved("lm_head", "lm_head"));
        assert!(!saved("up", "model.layers.0.mlp.up_proj") && !saved("norm", "model.norms.up_proj"));
    }
}
