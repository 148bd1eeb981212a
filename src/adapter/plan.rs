//! The checked plan: every tensor of an adapter against its config and the model, before anything touches a device.
//!
//! All that is wrong is told at once. PEFT loads many of these files without a word (lone factors, NaN, names that match
//! nothing) and then computes the base model or garbage; here they are errors that name tensor, expected and found.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::adapter::delta::{LowRank, SiteDelta, scaling};
use crate::adapter::demands::AdapterDemands;
use crate::adapter::folder::{CONFIG, WEIGHTS};
use crate::adapter::keys::{self, Factor, FactorNames};
use crate::adapter::{AdapterFiles, Problems};
use crate::error::{Error, ErrorCode, Result};
use crate::sites::{Site, SiteId, SiteKind, SitePart, SiteTable};
use crate::tensor::{TensorView, shape_text};

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
    /// Bytes of its tensors as stored.
    pub bytes: usize,
    /// What a request with it has to heed.
    pub demands: AdapterDemands,
}

/// Every delta of an adapter, checked: names, shapes, ranks, finite values, completeness.
#[derive(Debug)]
pub struct AdapterPlan<'a> {
    /// The deltas, ordered by site.
    pub deltas: Vec<SiteDelta<'a>>,
    /// Summary for reports.
    pub summary: AdapterSummary,
}

impl AdapterPlan<'_> {
    /// Lets go of replaced weights and biases that are the base's own: they replace nothing. `holds` says whether the base
    /// has exactly these values.
    pub fn drop_copies(&mut self, sites: &SiteTable, holds: impl Fn(SiteId, SitePart, TensorView<'_>) -> bool) {
        for delta in &mut self.deltas {
            let site = delta.site;
            delta.weight.take_if(|weight| holds(site, SitePart::Weight, weight.view()));
            delta.bias.take_if(|bias| holds(site, SitePart::Bias, bias.view()));
        }
        let (invocation, layers) = (self.summary.demands.invocation.clone(), self.summary.demands.layers.clone());
        self.deltas.retain(|delta| delta.tensors().next().is_some());
        self.summary.demands = AdapterDemands::of(&self.deltas, sites, &invocation, layers);
    }
}

/// Plans an adapter; see [`AdapterFiles::plan`].
pub(super) fn plan<'a>(files: &'a AdapterFiles, sites: &SiteTable) -> Result<AdapterPlan<'a>> {
    let mut planner =
        Planner { files, sites, problems: Problems::new(&files.subject()), effect: false, pattern_told: false };
    let contents = keys::sort(files.weights.names());
    for problem in contents.problems {
        planner.problem(problem);
    }
    let deltas = planner.deltas(&contents.modules);
    let effect = planner.effect;
    planner.problems.finish()?;
    if !effect {
        tracing::warn!(path = %files.dir.display(), "the adapter has no effect: every B is zero");
    }
    Ok(AdapterPlan { summary: summary(files, &deltas, sites), deltas })
}

fn summary(files: &AdapterFiles, deltas: &[SiteDelta<'_>], sites: &SiteTable) -> AdapterSummary {
    let factors = || deltas.iter().filter_map(|delta| delta.low_rank.as_ref());
    let max_rank = factors().map(LowRank::rank).max().unwrap_or(0);
    AdapterSummary {
        path: files.dir.clone(),
        content_hash: files.content_hash.clone(),
        rank: files.config.rank.unwrap_or(max_rank),
        alpha: files.config.alpha,
        use_rslora: files.config.use_rslora,
        target_modules: files.config.target_modules.clone(),
        sites: deltas.len(),
        max_rank,
        bytes: deltas.iter().flat_map(SiteDelta::tensors).map(|tensor| tensor.bytes().len()).sum(),
        demands: AdapterDemands::of(deltas, sites, &[], None),
    }
}

struct Planner<'a, 's> {
    files: &'a AdapterFiles,
    sites: &'s SiteTable,
    problems: Problems,
    /// Whether any B has a value other than zero.
    effect: bool,
    /// Whether a pattern that can't be matched was told: it would be again for each module.
    pattern_told: bool,
}

impl<'a> Planner<'a, '_> {
    fn problem(&mut self, error: Error) {
        let file = match error.code() {
            ErrorCode::AdapterPatternInvalid if self.pattern_told => return,
            ErrorCode::AdapterPatternInvalid => {
                self.pattern_told = true;
                CONFIG
            }
            _ => WEIGHTS,
        };
        self.problems.push(error.path(self.files.dir.join(file)));
    }

    fn keep<T>(&mut self, outcome: Result<T>) -> Option<T> {
        outcome.map_err(|error| self.problem(error)).ok()
    }

    fn deltas(&mut self, modules: &BTreeMap<String, FactorNames<'a>>) -> Vec<SiteDelta<'a>> {
        let Some(first) = modules.iter().next() else {
            if self.problems.len() == 0 {
                self.problem(Error::new(ErrorCode::AdapterTensorMissing, "the file holds no LoRA factors"));
            }
            return Vec::new();
        };
        if modules.keys().all(|module| self.sites.find(module).is_none()) {
            self.problem(nothing_matches(first, modules, self.sites));
            return Vec::new();
        }
        let mut deltas = Vec::with_capacity(modules.len());
        for (module, names) in modules {
            let any = names.a.or(names.b).unwrap_or_default();
            let Some(site) = self.sites.find(module).filter(|&site| self.sites.get(site).kind == SiteKind::Linear)
            else {
                self.problem(
                    Error::new(ErrorCode::AdapterSiteNotFound, format!("the model has no module '{module}'"))
                        .tensor(any),
                );
                continue;
            };
            let excluded = self.check_targeted(module).map_err(|error| error.tensor(any));
            self.keep(excluded);
            if let Some(delta) = self.low_rank(module, *names, self.sites.get(site)) {
                deltas.push(SiteDelta::at(site).with_low_rank(delta));
            }
        }
        deltas.sort_by_key(|delta| delta.site);
        deltas
    }

    /// The config must not speak against a module that the file has factors for.
    fn check_targeted(&self, module: &str) -> Result<()> {
        match self.files.config.targeting.excluded_by(module)? {
            None => Ok(()),
            Some(field) => Err(Error::new(
                ErrorCode::AdapterSiteExcluded,
                format!(
                    "adapter_config.json excludes the module '{module}' by {field}, but the file has factors for it"
                ),
            )),
        }
    }

    /// The delta of one module, or `None` with its problems told.
    fn low_rank(&mut self, module: &str, names: FactorNames<'a>, site: &Site) -> Option<LowRank<'a>> {
        let before = self.problems.len();
        let a = self.factor(module, Factor::A, names);
        let b = self.factor(module, Factor::B, names);
        let rank = self.rank(module, a.as_ref())?;
        if let Some((name, view)) = &a {
            self.check_shape(name, view, rank, [rank.rank, site.in_features], 0);
        }
        if let Some((name, view)) = &b {
            self.check_shape(name, view, rank, [site.out_features, rank.rank], 1);
        }
        let scale = self.scale(module, rank.rank);
        let scale = self.keep(scale);
        for (factor, stored) in [(Factor::A, &a), (Factor::B, &b)] {
            let Some((name, view)) = stored else { continue };
            match finite(view) {
                Ok(nonzero) => self.effect |= factor == Factor::B && nonzero,
                Err(error) => self.problem(error.tensor(*name)),
            }
        }
        if self.problems.len() > before {
            return None;
        }
        Some(LowRank::new(a?.1, b?.1, scale?))
    }

    /// A factor's tensor: there, of a float type, and a matrix.
    fn factor(&mut self, module: &str, factor: Factor, names: FactorNames<'a>) -> Option<(&'a str, TensorView<'a>)> {
        let (name, other) = match factor {
            Factor::A => (names.a, names.b),
            Factor::B => (names.b, names.a),
        };
        let Some(name) = name else {
            let missing = match other {
                Some(other) => other.replacen(factor.other().segment(), factor.segment(), 1),
                None => keys::factor_name(module, factor),
            };
            let pair = Error::new(ErrorCode::AdapterTensorMissing, "a factor of a pair is missing").tensor(missing);
            self.problem(pair);
            return None;
        };
        let view = self.files.weights.tensor(name).and_then(|view| match view.dtype().is_float() {
            true => Ok(view),
            false => Err(Error::new(ErrorCode::CheckpointDtypeUnsupported, "").found(view.dtype())),
        });
        let view = view.map_err(|error| match error.code() {
            ErrorCode::CheckpointDtypeUnsupported => {
                Error::new(ErrorCode::AdapterDtypeUnsupported, "a factor has a data type that is not read here")
                    .tensor(name)
                    .expected("float16, bfloat16 or float32")
                    .found(error.found_value().unwrap_or("another type"))
            }
            _ => error,
        });
        let view = self.keep(view)?;
        if view.shape().len() != 2 || view.is_empty() {
            let error = Error::new(ErrorCode::AdapterShapeMismatch, "a factor is no matrix")
                .tensor(name)
                .expected("two dimensions")
                .found(shape_text(view.shape()));
            self.problem(match view.shape().len() > 2 {
                true => error,
                false => error.hint(
                    "saved from a sharded run (DeepSpeed ZeRO-3, FSDP) without gathering: gather the weights, save again",
                ),
            });
            return None;
        }
        Some((name, view))
    }

    /// The rank a module must have: of `rank_pattern`, of `r`, else of its A.
    fn rank(&mut self, module: &str, a: Option<&(&'a str, TensorView<'a>)>) -> Option<ModuleRank> {
        let config = &self.files.config;
        let pattern = config.rank_pattern.get(module);
        match self.keep(pattern)? {
            Some(rank) => Some(ModuleRank { rank, origin: Origin::Pattern }),
            None => match (config.rank, a) {
                (Some(rank), _) => Some(ModuleRank { rank, origin: Origin::Config }),
                (None, Some((_, view))) => Some(ModuleRank { rank: view.shape()[0], origin: Origin::A }),
                (None, None) => None,
            },
        }
    }

    /// A matrix against what it must be; `rank_axis` is the dimension that holds the rank.
    fn check_shape(
        &mut self,
        name: &str,
        view: &TensorView<'_>,
        rank: ModuleRank,
        expected: [usize; 2],
        rank_axis: usize,
    ) {
        let found = view.shape();
        if found == expected {
            return;
        }
        let mismatch = |code, message: &str| {
            Error::new(code, message).tensor(name).expected(shape_text(&expected)).found(shape_text(found))
        };
        let error = if found[1 - rank_axis] != expected[1 - rank_axis] {
            mismatch(ErrorCode::AdapterShapeMismatch, "a factor does not fit the base model's linear")
        } else {
            mismatch(ErrorCode::AdapterRankMismatch, "the rank of a factor contradicts the config").hint(
                match rank.origin {
                    Origin::Config => format!(
                        "r = {} in adapter_config.json; a rank_pattern would have to name this module",
                        rank.rank
                    ),
                    Origin::Pattern => format!("rank_pattern in adapter_config.json gives this module {}", rank.rank),
                    Origin::A => format!("adapter_config.json has no r, and A has {} rows", rank.rank),
                },
            )
        };
        self.problem(error);
    }

    fn scale(&self, module: &str, rank: usize) -> Result<f32> {
        let config = &self.files.config;
        let alpha = config.alpha_pattern.get(module)?.unwrap_or(config.alpha);
        let scale = scaling(alpha, rank, config.use_rslora) as f32;
        match scale.is_finite() {
            true => Ok(scale),
            false => Err(Error::new(ErrorCode::AdapterScaleInvalid, format!("the scale of '{module}' is not finite"))
                .expected("a number that float32 holds")
                .found(format!("alpha {alpha:e} over rank {rank}"))),
        }
    }
}

/// A module's rank, and where it is written.
#[derive(Clone, Copy)]
struct ModuleRank {
    rank: usize,
    origin: Origin,
}

#[derive(Clone, Copy)]
enum Origin {
    Config,
    Pattern,
    A,
}

fn nothing_matches(
    (module, names): (&String, &FactorNames<'_>),
    modules: &BTreeMap<String, FactorNames<'_>>,
    sites: &SiteTable,
) -> Error {
    let tensors: usize = modules.values().map(|n| usize::from(n.a.is_some()) + usize::from(n.b.is_some())).sum();
    let site = sites.iter().next().map_or("no sites", |(_, site)| &site.path);
    Error::new(ErrorCode::AdapterSiteNotFound, format!("0 of {tensors} tensors match the model"))
        .tensor(names.a.or(names.b).unwrap_or_default())
        .expected(format!("modules such as '{site}'"))
        .found(format!("modules such as '{module}'"))
}

/// Whether the values are finite, and if so whether any of them is not zero.
fn finite(view: &TensorView<'_>) -> Result<bool> {
    const CHUNK: usize = 4096;
    let mut buffer = [0.0; CHUNK];
    let (mut nan, mut infinite, mut first, mut nonzero) = (0, 0, None, false);
    for start in (0..view.len()).step_by(CHUNK) {
        let values = &mut buffer[..CHUNK.min(view.len() - start)];
        view.read_f32(start..start + values.len(), values);
        nonzero |= values.iter().any(|v| *v != 0.0);
        if values.iter().all(|v| v.is_finite()) {
            continue;
        }
        nan += values.iter().filter(|v| v.is_nan()).count();
        infinite += values.iter().filter(|v| v.is_infinite()).count();
        first = first.or_else(|| values.iter().position(|v| !v.is_finite()).map(|i| start + i));
    }
    match first {
        None => Ok(nonzero),
        Some(first) => Err(Error::new(ErrorCode::AdapterNotFinite, "a factor holds values that are not finite")
            .expected("finite values")
            .found(format!("{nan} NaN and {infinite} infinite of {}, the first at index {first}", view.len()))),
    }
}
