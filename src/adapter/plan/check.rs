//! Checks an adapter's files against a model's sites.
//!
//! ```text
//! tensor names -> keys -> modules -> layer map, fused aliases -> module deltas -> one delta per site
//!              -> tied embeddings -> completeness
//! ```

use std::collections::BTreeMap;

use crate::adapter::AdapterFiles;
use crate::adapter::delta::{CheckedDelta, SiteDelta};
use crate::adapter::module_tensors::{self, Contents, ModuleTensors};
use crate::adapter::plan::checker::Checker;
use crate::adapter::plan::fused_modules::ModuleDeltas;
use crate::adapter::plan::states::CheckedAdapter;
use crate::adapter::plan::summary::CheckFacts;
use crate::error::{Error, ErrorCode, Result, printable};
use crate::sites::SiteTable;

impl AdapterFiles {
    /// Checks everything against a model's sites and reports all problems at once.
    ///
    /// # Errors
    /// `adapter_config_invalid`, `adapter_base_changed`, `adapter_tensor_unexpected`, `adapter_tensor_missing`,
    /// `adapter_feature_unsupported`, `adapter_format_unsupported`, `adapter_site_not_found`, `adapter_site_excluded`,
    /// `adapter_shape_mismatch`, `adapter_rank_mismatch`, `adapter_dtype_unsupported`, `adapter_not_finite`,
    /// `adapter_scale_invalid`, `adapter_pattern_invalid`.
    pub fn check(&self, sites: &SiteTable) -> Result<CheckedAdapter<'_>> {
        let (checked, outcome) = self.examine(sites);
        outcome.map(|()| checked)
    }

    /// As [`AdapterFiles::check`], but returns what could be read beside the problems: for reports.
    pub(crate) fn examine(&self, sites: &SiteTable) -> (CheckedAdapter<'_>, Result<()>) {
        let contents = module_tensors::classify(self.weights().names());
        let ignored_tensors = contents.ignored;
        if ignored_tensors > 0 {
            let path = self.path().to_string_lossy();
            tracing::warn!(path = %printable(&path), tensors = ignored_tensors, "tensors of other modalities cannot act on text and are left out");
        }
        let mut checker = Checker::new(self, sites, contents.prefix);
        let deltas = checker.deltas(contents);
        if checker.problems.len() == 0 && !checker.has_effect {
            tracing::warn!(path = %printable(&self.path().to_string_lossy()), "the adapter has no effect: every B is zero");
        }
        let layer_map = checker.layer_map.base_layers();
        let facts = CheckFacts { embedding: sites.embedding, head: sites.head, layer_map, ignored_tensors };
        let truncations = checker.truncations;
        let deltas = deltas.into_iter().map(|delta| {
            let truncation = truncations.get(&(delta.site, delta.repeat)).copied();
            CheckedDelta { delta, truncation }
        });
        (CheckedAdapter::new(self, facts, deltas.collect()), checker.problems.finish())
    }
}

impl<'a> Checker<'a, '_> {
    /// The deltas of everything valid in the file; the rest is reported.
    fn deltas(&mut self, mut contents: Contents<'a>) -> Vec<SiteDelta<'a>> {
        let is_unreadable = !contents.problems.is_empty();
        let reported = &self.config().problems;
        for problem in std::mem::take(&mut contents.problems) {
            if !reported.iter().any(|reported| reported.message() == problem.message()) {
                self.problem(problem);
            }
        }
        let modules = &contents.modules;
        let Some(first) = modules.iter().next() else {
            if !is_unreadable {
                self.problem(Error::new(ErrorCode::AdapterTensorMissing, "the file holds no LoRA factors"));
            }
            return Vec::new();
        };
        if modules.keys().all(|module| self.is_missing_in_model(module)) {
            if !self.is_missing_reported() {
                self.problem(nothing_matches(first, modules, self.sites));
            }
            return Vec::new();
        }
        let mut module_deltas = ModuleDeltas::default();
        for (path, tensors) in modules {
            if let Some(mut module) = self.find_module(path, tensors) {
                let delta = self.read_module(&mut module);
                if !delta.is_empty() {
                    module_deltas.add(path, module.parts, module.repeat, delta);
                }
            }
        }
        let (mut deltas, problems) = module_deltas.join(self.sites);
        for problem in problems {
            self.problem(problem);
        }
        self.tie_embeddings(&mut deltas);
        self.check_completeness(&contents, &deltas);
        deltas
    }
}

fn nothing_matches(
    (module, tensors): (&String, &ModuleTensors<'_>),
    modules: &BTreeMap<String, ModuleTensors<'_>>,
    sites: &SiteTable,
) -> Error {
    let count: usize = modules.values().map(|tensors| tensors.names().len()).sum();
    let site = sites.linears().next().map_or("no sites", |(_, site)| &site.path);
    Error::new(ErrorCode::AdapterSiteNotFound, format!("0 of {count} tensors match the model"))
        .with_tensor(tensors.example())
        .with_expected(format!("modules such as '{site}'"))
        .with_found(format!("modules such as '{module}'"))
}
