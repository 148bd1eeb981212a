//! Completeness: tensors that the config requires and the file must hold, of saved modules, trained biases and token rows.
//!
//! PEFT fails with a KeyError for some of them and silently computes the base for others.

use crate::adapter::config::TrainedBiases;
use crate::adapter::delta::SiteDelta;
use crate::adapter::keys::Part;
use crate::adapter::module_tensors::Contents;
use crate::adapter::plan::checker::Checker;
use crate::error::{Error, ErrorCode};
use crate::sites::{Site, SiteId, SiteKind};

impl<'a> Checker<'a, '_> {
    /// Reports every tensor that is required and missing.
    pub(super) fn check_completeness(&mut self, contents: &Contents<'a>, deltas: &[SiteDelta<'a>]) {
        self.check_saved_modules();
        self.check_biases(deltas);
        self.check_token_rows(contents);
    }

    fn missing(&mut self, path: &str, part: Part, field: &str) {
        let what = format!("adapter_config.json requires a tensor by {field}");
        self.problem(Error::new(ErrorCode::AdapterTensorMissing, what).with_tensor(part.tensor_name(path)));
    }

    /// Every module covered by `modules_to_save`, by its own path or by an alias.
    fn check_saved_modules(&mut self) {
        const FIELD: &str = "modules_to_save";
        let sites = self.sites;
        let config = self.config();
        if config.modules_to_save.is_empty() {
            return;
        }
        let of = |site: SiteId| (site, sites.get(site));
        let mut aliases: Vec<_> = sites.aliases().collect();
        aliases.sort_unstable_by_key(|(path, _)| *path);
        let aliased = aliases.into_iter().flat_map(|(path, parts)| parts.iter().map(move |part| (path, of(part.site))));
        let own = sites.iter().map(|(id, site)| (site.path.as_str(), (id, site)));
        let mut required: Vec<(String, SiteId, u32, &Site)> = Vec::new();
        for (path, (id, site)) in own.chain(aliased) {
            let saved = self.layer_map.occurrences(path).into_iter().filter(|(path, _)| config.is_saved(path));
            required.extend(saved.map(|(path, repeat)| (path, id, repeat, site)));
        }
        for (path, id, repeat, site) in required {
            if self.replaced.insert((id, repeat)) {
                self.missing(&path, Part::Weight, FIELD);
            }
            if site.has_bias && self.biased.insert((id, repeat)) {
                self.missing(&path, Part::Bias, FIELD);
            }
        }
    }

    /// Every bias of the base (`all`), or those of linears with factors (`lora_only`).
    fn check_biases(&mut self, deltas: &[SiteDelta<'a>]) {
        let sites = self.sites;
        let biased = |site: &Site| site.kind == SiteKind::Linear && site.has_bias;
        let required: Vec<(String, SiteId, u32)> = match self.config().biases {
            TrainedBiases::None => return,
            TrainedBiases::All => {
                let all = sites.iter().filter(|(_, site)| site.has_bias);
                let paths = |(id, site): (SiteId, &Site)| {
                    let occurrences = self.layer_map.occurrences(&site.path);
                    occurrences.into_iter().map(move |(path, repeat)| (path, id, repeat)).collect::<Vec<_>>()
                };
                all.flat_map(paths).collect()
            }
            TrainedBiases::LoraOnly => {
                let with = deltas.iter().filter(|delta| delta.low_rank.is_some() && biased(sites.get(delta.site)));
                let path = |delta: &SiteDelta<'a>| {
                    let mut occurrences = self.layer_map.occurrences(&sites.get(delta.site).path).into_iter();
                    occurrences
                        .find(|(_, repeat)| *repeat == delta.repeat)
                        .map(|(path, repeat)| (path, delta.site, repeat))
                };
                with.filter_map(path).collect()
            }
        };
        for (path, id, repeat) in required {
            if self.biased.insert((id, repeat)) {
                let part = if sites.get(id).kind == SiteKind::Linear { Part::BaseBias } else { Part::Bias };
                self.missing(&path, part, "bias");
            }
        }
    }

    /// Every entry of `trainable_token_indices`; a tied head may share its rows with the embedding.
    fn check_token_rows(&mut self, contents: &Contents<'a>) {
        const FIELD: &str = "trainable_token_indices";
        let [embedding, head] =
            [self.sites.embedding, self.sites.head].map(|site| site.map(|site| self.path_in_file(site)));
        let (embedding, head) = (embedding.as_deref(), head.as_deref());
        let with_rows = || contents.modules.iter().filter(|(_, tensors)| tensors.get(Part::Rows).is_some());
        let has_rows = |path: &str| contents.modules.get(path).is_some_and(|tensors| tensors.get(Part::Rows).is_some());
        let mut missing = Vec::new();
        for (name, ids) in &self.config().token_rows {
            let path = match name {
                None => embedding,
                // The file has rows for another module, which was reported.
                Some(name) if with_rows().any(|(path, _)| path.ends_with(name.as_str())) => continue,
                Some(name) => [embedding, head].into_iter().flatten().find(|path| path.ends_with(name.as_str())),
            };
            let Some(path) = path else {
                // No such module in the model, or one without rows: both lack the tensor.
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
