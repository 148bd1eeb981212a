//! What is known while an adapter is checked, shared by all parts of the check.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::adapter::AdapterFiles;
use crate::adapter::config::AdapterConfig;
use crate::adapter::delta::{Truncation, scaling};
use crate::adapter::folder::{CONFIG, WEIGHTS};
use crate::adapter::layer_map::LayerMap;
use crate::adapter::problems::Problems;
use crate::error::{Error, ErrorCode, Result};
use crate::sites::{SiteId, SiteTable};
use crate::text_prefix::TextPrefix;

/// The state of a check.
pub(super) struct Checker<'a, 's> {
    pub files: &'a AdapterFiles,
    pub sites: &'s SiteTable,
    pub layer_map: LayerMap,
    pub problems: Problems,
    /// Where the file has a weight, valid or not.
    pub replaced: BTreeSet<(SiteId, u32)>,
    /// Where it has a bias, valid or not.
    pub biased: BTreeSet<(SiteId, u32)>,
    /// Weights to be truncated.
    pub truncations: BTreeMap<(SiteId, u32), Truncation>,
    /// Whether anything differs from the base: a B that is not zero, or a replaced part.
    pub has_effect: bool,
    /// Patterns that were reported as unmatchable, which each module would report again.
    reported_patterns: BTreeSet<String>,
}

impl<'a, 's> Checker<'a, 's> {
    /// A check of these files, with that prefix before the paths of the text model, against these sites. It begins with the
    /// problems of the config.
    pub fn new(files: &'a AdapterFiles, sites: &'s SiteTable, prefix: TextPrefix) -> Self {
        let (layer_map, problem) = LayerMap::of(files.config(), sites, prefix);
        let mut checker = Self {
            files,
            sites,
            layer_map,
            problems: Problems::new(&files.subject()),
            replaced: BTreeSet::new(),
            biased: BTreeSet::new(),
            truncations: BTreeMap::new(),
            has_effect: false,
            reported_patterns: BTreeSet::new(),
        };
        for error in files.config().problems.iter().cloned() {
            checker.problems.push(error);
        }
        if let Some(problem) = problem {
            checker.problem(problem);
        }
        checker
    }

    pub fn config(&self) -> &'a AdapterConfig {
        self.files.config()
    }

    /// The path of a site in the file, to which the config's patterns apply. For sites in no layer.
    pub fn path_in_file(&self, site: SiteId) -> Cow<'s, str> {
        self.layer_map.in_file(&self.sites.get(site).path)
    }

    /// Reports a problem, with the file that has it.
    pub fn problem(&mut self, error: Error) {
        let file = match error.code() {
            ErrorCode::AdapterPatternInvalid => {
                if !self.reported_patterns.insert(error.found().unwrap_or_default().to_owned()) {
                    return;
                }
                CONFIG
            }
            ErrorCode::AdapterConfigInvalid => CONFIG,
            _ => WEIGHTS,
        };
        self.problems.push(error.with_path(self.files.path().join(file)));
    }

    /// The value, or `None` with the error reported.
    pub fn keep<T>(&mut self, outcome: Result<T>) -> Option<T> {
        outcome.map_err(|error| self.problem(error)).ok()
    }

    /// The scale of a module; `None` if alpha is unknown, which was reported.
    pub fn scale(&self, module: &str, rank: usize) -> Result<Option<f32>> {
        let config = self.config();
        let Some(alpha) = config.alpha_pattern.get(module)?.or(config.alpha) else { return Ok(None) };
        let scale = scaling(alpha, rank, config.use_rslora) as f32;
        match scale.is_finite() {
            true => Ok(Some(scale)),
            false => Err(Error::new(ErrorCode::AdapterScaleInvalid, format!("the scale of '{module}' is not finite"))
                .with_expected("a number that float32 holds")
                .with_found(format!("alpha {alpha:e} over rank {rank}"))),
        }
    }

    /// The token ids of `trainable_token_indices` for a module.
    pub fn token_ids(&self, path: &str, is_embedding: bool) -> Option<&'a [u32]> {
        let matches = |name: &Option<String>| match name {
            None => is_embedding,
            Some(name) => path.ends_with(name.as_str()),
        };
        let entries = &self.config().token_rows;
        entries.iter().find(|(name, _)| matches(name)).map(|(_, ids)| ids.as_slice())
    }
}
