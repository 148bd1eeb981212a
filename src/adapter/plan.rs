//! The checked plan: every tensor of an adapter against its config and the model, before anything touches a device.
//!
//! All that is wrong is told at once. PEFT loads many of these files without a word (lone factors, NaN, names that match
//! nothing) and then computes the base model or garbage; here they are errors that name tensor, expected and found.
//!
//! ```text
//! names ── keys ── modules ── stack, aliases ── read_module ── pieces ── join ── tie_ends ── check_promises ── deltas
//! ```

mod ends;
mod expand;
mod factors;
mod implied;
mod module;
mod pieces;
mod promises;
mod stack;
mod stored;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

pub(super) use self::implied::sites as implied_sites;
use self::module::Module;
use self::pieces::Pieces;
use self::stack::{Place, Stack};
use crate::adapter::config::AdapterConfig;
use crate::adapter::constraints::AdapterConstraints;
use crate::adapter::delta::{LowRank, SiteDelta};
use crate::adapter::folder::{CONFIG, WEIGHTS};
use crate::adapter::keys::{self, ModuleTensors};
use crate::adapter::singular::without_smallest;
use crate::adapter::{AdapterFiles, Problems};
use crate::error::{Error, ErrorCode, Result};
use crate::sites::{AliasPart, Site, SiteId, SiteKind, SitePart, SiteTable};
use crate::tensor::TensorView;

/// What is known of an adapter before it is resident.
#[derive(Clone, Debug)]
pub struct AdapterSummary {
    /// Folder it was read from.
    pub path: PathBuf,
    /// SHA-256 over config and weights: what a KV prefix and a replaced adapter are told apart by.
    pub content_hash: String,
    /// `r` of adapter_config.json; the largest rank of a site where it has none.
    pub rank: usize,
    /// `lora_alpha` of adapter_config.json.
    pub alpha: f64,
    /// Whether alpha is divided by the rank's root.
    pub use_rslora: bool,
    /// Module names the config targets, as written.
    pub target_modules: Vec<String>,
    /// Number of sites with a delta.
    pub sites: usize,
    /// Largest rank of a site.
    pub max_rank: usize,
    /// Bytes of its tensors, expanded where the file has less than they are.
    pub bytes: usize,
    /// What a request with it has to heed.
    pub constraints: AdapterConstraints,
}

/// Every delta of an adapter, checked: names, shapes, ranks, finite values, completeness.
#[derive(Debug)]
pub struct AdapterPlan<'a> {
    /// The deltas, ordered by site and repeat.
    pub deltas: Vec<SiteDelta<'a>>,
    /// Summary for reports.
    pub summary: AdapterSummary,
    ends: Ends,
}

/// The ends of the model that was planned for.
#[derive(Clone, Copy, Debug)]
struct Ends {
    embedding: Option<SiteId>,
    head: Option<SiteId>,
}

impl<'a> AdapterPlan<'a> {
    fn new(files: &AdapterFiles, deltas: Vec<SiteDelta<'a>>, ends: Ends, stack: &Stack) -> Self {
        let config = &files.config;
        let constraints = AdapterConstraints { layers: stack.base_layers(), ..AdapterConstraints::default() };
        let summary = AdapterSummary {
            path: files.dir.clone(),
            content_hash: files.content_hash.clone(),
            rank: config.rank.unwrap_or_else(|| max_rank(&deltas)),
            alpha: config.alpha.unwrap_or_default(),
            use_rslora: config.use_rslora,
            target_modules: config.target_modules.clone(),
            sites: 0,
            max_rank: 0,
            bytes: 0,
            constraints: AdapterConstraints { invocation: config.invocation.clone(), ..constraints },
        };
        let mut plan = Self { deltas, summary, ends };
        plan.sum_up();
        plan
    }

    /// Leaves out weights and biases that are the base's own (copies ride along where a vocabulary was saved); `equals_base` tells
    /// whether the base has exactly this tensor there.
    pub fn drop_copies(&mut self, equals_base: impl Fn(SiteId, SitePart, TensorView<'_>) -> bool) {
        for delta in &mut self.deltas {
            let site = delta.site;
            delta.weight.take_if(|weight| equals_base(site, SitePart::Weight, weight.view()));
            delta.bias.take_if(|bias| equals_base(site, SitePart::Bias, bias.view()));
        }
        self.deltas.retain(|delta| delta.is_replacing() || delta.low_rank.is_some());
        self.sum_up();
    }

    /// Finds what takes the smallest singular values out of the weights that are truncated (KaSA), each its own or the
    /// base's, which `dense_weight` gives as `[out_features, in_features]`. A decomposition may take a minute.
    ///
    /// # Errors
    /// Those of `dense_weight`; `internal` if a decomposition does not converge.
    pub fn truncate(&mut self, mut dense_weight: impl FnMut(SiteId) -> Result<Vec<f32>>) -> Result<()> {
        for delta in self.deltas.iter_mut().filter(|delta| delta.truncated > 0) {
            let Some(low) = &delta.low_rank else { continue };
            let weight = match &delta.weight {
                Some(weight) => weight.view().to_f32(),
                None => dense_weight(delta.site)?,
            };
            let (outputs, inputs) = (low.b.shape()[0], low.a.shape()[1]);
            delta.removed = Some(without_smallest(&weight, outputs, inputs, delta.truncated)?);
        }
        self.sum_up();
        Ok(())
    }

    /// Everything in the summary that follows from the deltas.
    fn sum_up(&mut self) {
        let Self { deltas, summary, ends } = self;
        summary.sites = deltas.len();
        summary.max_rank = max_rank(deltas);
        summary.bytes = deltas.iter().flat_map(SiteDelta::tensors).map(|tensor| tensor.bytes().len()).sum();
        let AdapterConstraints { invocation, layers, .. } = std::mem::take(&mut summary.constraints);
        summary.constraints = AdapterConstraints::of(deltas, ends.embedding, ends.head, &invocation, layers);
    }
}

fn max_rank(deltas: &[SiteDelta<'_>]) -> usize {
    deltas.iter().filter_map(|delta| delta.low_rank.as_ref()).map(LowRank::rank).max().unwrap_or(0)
}

/// Plans an adapter and tells its problems; see [`AdapterFiles::examine`].
pub(super) fn examine<'a>(files: &'a AdapterFiles, sites: &SiteTable) -> (AdapterPlan<'a>, Result<()>) {
    let (stack, problem) = Stack::of(&files.config, sites);
    let mut planner = Planner {
        files,
        sites,
        stack,
        problems: Problems::new(&files.subject()),
        replaced: BTreeSet::new(),
        biased: BTreeSet::new(),
        effect: false,
        patterns_told: BTreeSet::new(),
    };
    for error in files.config.problems.iter().cloned() {
        planner.problems.push(error);
    }
    if let Some(problem) = problem {
        planner.problem(problem);
    }
    let deltas = planner.deltas();
    if planner.problems.len() == 0 && !planner.effect {
        tracing::warn!(path = %files.dir.display(), "the adapter has no effect: every B is zero");
    }
    let ends = Ends { embedding: sites.embedding, head: sites.head };
    (AdapterPlan::new(files, deltas, ends, &planner.stack), planner.problems.finish())
}

/// What is needed while an adapter is read.
struct Planner<'a, 's> {
    pub files: &'a AdapterFiles,
    pub sites: &'s SiteTable,
    pub stack: Stack,
    pub problems: Problems,
    /// Where the file has a weight, right or wrong.
    pub replaced: BTreeSet<(SiteId, u32)>,
    /// Where it has a bias.
    pub biased: BTreeSet<(SiteId, u32)>,
    /// Whether anything differs from the base: a B that is not zero, or a part that is replaced.
    pub effect: bool,
    /// Patterns that can't be matched, which was told: it would be again for each module.
    patterns_told: BTreeSet<String>,
}

impl<'a> Planner<'a, '_> {
    pub fn config(&self) -> &'a AdapterConfig {
        &self.files.config
    }

    pub fn problem(&mut self, error: Error) {
        let file = match error.code() {
            ErrorCode::AdapterPatternInvalid => {
                if !self.patterns_told.insert(error.found().unwrap_or_default().to_owned()) {
                    return;
                }
                CONFIG
            }
            ErrorCode::AdapterConfigInvalid => CONFIG,
            _ => WEIGHTS,
        };
        self.problems.push(error.with_path(self.files.dir.join(file)));
    }

    /// The value, or the error told.
    pub fn keep<T>(&mut self, outcome: Result<T>) -> Option<T> {
        outcome.map_err(|error| self.problem(error)).ok()
    }

    fn deltas(&mut self) -> Vec<SiteDelta<'a>> {
        let mut contents = keys::classify(self.files.weights.names());
        let unreadable = !contents.problems.is_empty();
        let told = &self.files.config.problems;
        for problem in std::mem::take(&mut contents.problems) {
            if !told.iter().any(|told| told.message() == problem.message()) {
                self.problem(problem);
            }
        }
        let modules = &contents.modules;
        let Some(first) = modules.iter().next() else {
            if !unreadable {
                self.problem(Error::new(ErrorCode::AdapterTensorMissing, "the file holds no LoRA factors"));
            }
            return Vec::new();
        };
        if modules.keys().all(|module| self.is_elsewhere(module)) {
            if !self.is_elsewhere_told() {
                self.problem(nothing_matches(first, modules, self.sites));
            }
            return Vec::new();
        }
        let mut pieces = Pieces::default();
        for (path, tensors) in modules {
            if let Some(mut module) = self.find(path, tensors) {
                let delta = self.read_module(&mut module);
                if delta.is_replacing() || delta.low_rank.is_some() {
                    pieces.add(path, module.parts, module.repeat, delta);
                }
            }
        }
        let (mut deltas, problems) = pieces.join(self.sites);
        for problem in problems {
            self.problem(problem);
        }
        self.tie_ends(&mut deltas);
        self.check_promises(&contents, &deltas);
        deltas
    }

    /// Whether the config was refused for a feature whose modules this model does not have.
    fn is_elsewhere_told(&self) -> bool {
        ["target_parameters", "task_type"].iter().any(|field| self.config().is_broken(field))
    }

    /// Whether the model has no such module.
    fn is_elsewhere(&self, path: &str) -> bool {
        match self.stack.locate(path) {
            Place::At(base, _) => self.sites.find(&base).is_none() && self.sites.find_alias(&base).is_none(),
            Place::Nowhere => true,
            Place::Untold => false,
        }
    }

    /// What a module of the file is in the base; `None` with the problem told.
    fn find<'m>(&mut self, path: &'m str, tensors: &'m ModuleTensors<'a>) -> Option<Module<'m, 'a>> {
        let sites = self.sites;
        let (base, repeat) = match self.stack.locate(path) {
            Place::At(base, repeat) => (base, repeat),
            Place::Untold => return None,
            Place::Nowhere => (path.into(), 0),
        };
        let found = match (sites.find(&base), sites.find_alias(&base)) {
            _ if self.stack.locate(path) == Place::Nowhere => None,
            (Some(id), _) => {
                let site = sites.get(id).clone();
                let outputs = 0..site.out_features;
                let part = AliasPart { alias_outputs: outputs.clone(), site: id, site_outputs: outputs };
                Some((site, vec![part]))
            }
            (None, Some(parts)) => fused(&base, parts, sites).map(|site| (site, parts.to_vec())),
            (None, None) => None,
        };
        let Some((site, parts)) = found else {
            if self.is_elsewhere_told() {
                return None;
            }
            let what = format!("the model has no module '{path}'");
            self.problem(Error::new(ErrorCode::AdapterSiteNotFound, what).with_tensor(tensors.example()));
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

/// A linear as wide as the parts that it is.
fn fused(path: &str, parts: &[AliasPart], sites: &SiteTable) -> Option<Site> {
    let first = sites.get(parts.first()?.site);
    let outputs = parts.iter().map(|part| part.alias_outputs.end).max()?;
    let has_bias = parts.iter().all(|part| sites.get(part.site).has_bias);
    (first.kind == SiteKind::Linear).then(|| Site::linear(path, first.in_features, outputs).with_bias(has_bias))
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
