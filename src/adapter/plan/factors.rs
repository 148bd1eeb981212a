//! The low-rank delta of one module: its factors, B's bias and magnitude against config and base.

use crate::adapter::delta::{LowRank, scaling};
use crate::adapter::features::unsupported;
use crate::adapter::keys::Part;
use crate::adapter::plan::Planner;
use crate::adapter::plan::expand;
use crate::adapter::plan::module::Module;
use crate::adapter::plan::stored::Stored;
use crate::error::{Error, ErrorCode, Result};
use crate::sites::SiteKind;
use crate::tensor::shape_text;

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

/// How a module's factors are stored.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// As they are.
    Plain,
    /// A `[rank, in_features / group]` (QA-LoRA).
    Pooled(usize),
    /// A `[rank, in_features / blocks]` (BD-LoRA).
    BlocksOfA(usize),
    /// B `[out_features, rank / blocks]` (BD-LoRA).
    BlocksOfB(usize),
}

impl<'a> Planner<'a, '_> {
    /// The low-rank delta of a module, or `None` with its problems told.
    pub(super) fn low_rank(&mut self, module: &Module<'_, 'a>) -> Option<LowRank<'a>> {
        let before = self.problems.len();
        let excluded = self.check_targeted(module).map_err(|error| error.with_tensor(module.tensors.example()));
        self.keep(excluded);
        let kinds = match module.site.kind {
            SiteKind::Linear => [Part::A, Part::B],
            SiteKind::Embedding => [Part::EmbeddingA, Part::EmbeddingB],
            SiteKind::Norm => {
                let what = format!("'{}' is a norm, which has no factors", module.path);
                self.problem(
                    Error::new(ErrorCode::AdapterTensorUnexpected, what).with_tensor(module.tensors.example()),
                );
                return None;
            }
        };
        for part in [Part::A, Part::B, Part::EmbeddingA, Part::EmbeddingB] {
            if let Some(name) = module.tensors.get(part).filter(|_| !kinds.contains(&part)) {
                let what = format!("'{}' is {}", module.path, module.kind());
                let expected = kinds.map(Part::suffix).join(" and ");
                self.problem(
                    Error::new(ErrorCode::AdapterTensorUnexpected, what).with_tensor(name).with_expected(expected),
                );
            }
        }
        let [a, b] = kinds.map(|part| self.factor(module, part, kinds));
        let form = self.form(module, a.as_ref());
        let form = self.keep(form)?;
        let rank = self.rank(module, a.as_ref())?;
        // Without these fields nobody can say in which form they are.
        let untold = ["use_bdlora", "use_qalora", "qalora_group_size"];
        if !untold.iter().any(|field| self.config().is_broken(field)) {
            if let Some(a) = &a {
                self.check_factor(module, a, rank, [rank.rank, form.columns_of_a(module.inputs)], 0);
            }
            if let Some(b) = &b {
                self.check_factor(module, b, rank, [module.outputs, form.columns_of_b(rank.rank)], 1);
            }
        }
        let b_bias = self.b_bias(module, form);
        let magnitude = self.magnitude(module);
        let diagonal = self.diagonal(module, rank.rank);
        let scale = self.scale(module.path, rank.rank);
        for stored in [a, b_bias, magnitude, diagonal].into_iter().flatten() {
            self.keep(stored.is_nonzero());
        }
        if let Some(b) = b
            && let Some(nonzero) = self.keep(b.is_nonzero())
        {
            self.effect |= nonzero || b_bias.is_some() || magnitude.is_some();
        }
        let scale = self.keep(scale)?;
        if self.problems.len() > before {
            return None;
        }
        let checked = form.check_size(module, rank.rank);
        self.keep(checked)?;
        let (a, b) = (a?.tensor(), b?.tensor());
        let (a, b) = match form {
            Form::Plain => (a, b),
            Form::Pooled(group) => (expand::pooled(&a, group), b),
            Form::BlocksOfA(count) => (expand::block_diagonal(&a, count), b),
            Form::BlocksOfB(count) => (a, expand::block_diagonal(&b, count)),
        };
        let b = diagonal.map_or(b.clone(), |diagonal| expand::scaled_columns(&b, &diagonal.tensor()));
        let tensor = |stored: Option<Stored<'a>>| stored.map(|stored| stored.tensor());
        Some(LowRank { a, b, scale: scale?, b_bias: tensor(b_bias), magnitude: tensor(magnitude) })
    }

    /// The config must not speak against a module that the file has factors for.
    fn check_targeted(&self, module: &Module<'_, 'a>) -> Result<()> {
        let config = self.config();
        // Targets and filters are of the embedding alone then.
        if module.is_head && config.ensure_weight_tying && self.sites.is_head_tied {
            return Ok(());
        }
        let excluded = config.targeting.excluded_by(module.path)?;
        let is_end = module.is_head || module.site.kind == SiteKind::Embedding;
        let excluded = match excluded {
            None if is_end && config.targeting.is_all_linear() => Some("target_modules"),
            excluded => excluded,
        };
        match excluded {
            None => Ok(()),
            Some(field) => Err(Error::new(
                ErrorCode::AdapterSiteExcluded,
                format!(
                    "adapter_config.json excludes the module '{}' by {field}, but the file has factors for it",
                    module.path
                ),
            )),
        }
    }

    /// A factor's tensor.
    fn factor(&mut self, module: &Module<'_, 'a>, part: Part, pair: [Part; 2]) -> Option<Stored<'a>> {
        let Some(name) = module.tensors.get(part) else {
            let other = pair.into_iter().find_map(|other| Some((other, module.tensors.get(other)?)));
            // In the spelling of the one that is there.
            let segment = |part: Part| part.suffix().trim_end_matches(".weight");
            let missing = match other {
                Some((other, name)) => name.replacen(segment(other), segment(part), 1),
                None => part.tensor_name(module.path),
            };
            let what = "a factor of a pair is missing";
            self.problem(Error::new(ErrorCode::AdapterTensorMissing, what).with_tensor(missing));
            return None;
        };
        let stored = Stored::open(&self.files.weights, name, 2);
        self.keep(stored)
    }

    /// How the factors are stored, which BD-LoRA tells by module and QA-LoRA by shape.
    fn form(&self, module: &Module<'_, 'a>, a: Option<&Stored<'a>>) -> Result<Form> {
        let config = self.config();
        if module.site.kind != SiteKind::Linear {
            return Ok(Form::Plain);
        }
        if let Some(blocks) = &config.blocks {
            let matches = |names: &[String]| names.iter().any(|name| module.path.contains(name.as_str()));
            let wrong = |what: &str| {
                let what = format!("'{}' {what} of use_bdlora", module.path);
                Err(Error::new(ErrorCode::AdapterConfigInvalid, what))
            };
            return match (matches(&blocks.a), matches(&blocks.b)) {
                (true, true) => wrong("is in both target_modules_bd_a and target_modules_bd_b"),
                (true, false) => Ok(Form::BlocksOfA(blocks.count)),
                (false, true) => Ok(Form::BlocksOfB(blocks.count)),
                (false, false) if blocks.strict => wrong("is in neither list, against match_strict,"),
                (false, false) => Ok(Form::Plain),
            };
        }
        let is_pooled = |group: &usize| {
            let columns = a.map(|a| a.shape()[1]);
            module.inputs.is_multiple_of(*group) && columns == Some(module.inputs / group)
        };
        Ok(config.pooled_inputs.filter(is_pooled).map_or(Form::Plain, Form::Pooled))
    }

    /// The rank a module must have: of `rank_pattern`, of `r`, else of its A.
    fn rank(&mut self, module: &Module<'_, 'a>, a: Option<&Stored<'a>>) -> Option<ModuleRank> {
        let config = self.config();
        let pattern = config.rank_pattern.get(module.path);
        if let Some(rank) = self.keep(pattern)? {
            return Some(ModuleRank { rank, origin: Origin::Pattern });
        }
        let config = self.config();
        // A pattern that can't be read may have given this module another rank.
        match (config.rank.filter(|_| !config.is_broken("rank_pattern")), a) {
            (Some(rank), _) => Some(ModuleRank { rank, origin: Origin::Config }),
            (None, Some(a)) => Some(ModuleRank { rank: a.shape()[0], origin: Origin::A }),
            (None, None) => None,
        }
    }

    /// A matrix against what it must be; `rank_axis` is the dimension that holds the rank.
    fn check_factor(
        &mut self,
        module: &Module<'_, 'a>,
        stored: &Stored<'a>,
        rank: ModuleRank,
        expected: [usize; 2],
        rank_axis: usize,
    ) {
        let found = stored.shape();
        if found == expected {
            return;
        }
        if found[1 - rank_axis] != expected[1 - rank_axis] {
            // The side of the vocabulary: an embedding's inputs, the head's outputs.
            let is_grown = found[1 - rank_axis] > expected[1 - rank_axis]
                && if rank_axis == 0 { module.is_embedding } else { module.is_head };
            let outcome = stored.has_shape(&expected, "a factor does not fit the base model");
            self.keep(outcome.map_err(|error| match is_grown {
                true => {
                    error.with_hint("if the vocabulary was resized, save its weights too: save_embedding_layers=True")
                }
                false => error,
            }));
            return;
        }
        let hint = match rank.origin {
            Origin::Config => {
                format!("r = {} in adapter_config.json; a rank_pattern would have to name this module", rank.rank)
            }
            Origin::Pattern => format!("rank_pattern in adapter_config.json gives this module {}", rank.rank),
            Origin::A => format!("adapter_config.json has no r, and A has {} rows", rank.rank),
        };
        self.problem(
            Error::new(ErrorCode::AdapterRankMismatch, "the rank of a factor contradicts the config")
                .with_tensor(stored.name)
                .with_expected(shape_text(&expected))
                .with_found(shape_text(found))
                .with_hint(hint),
        );
    }

    /// B's bias: there where `lora_bias` promises it, and only there.
    fn b_bias(&mut self, module: &Module<'_, 'a>, form: Form) -> Option<Stored<'a>> {
        let config = self.config();
        // An embedding has none, and PEFT drops it where B is block-diagonal.
        let promised = config.lora_bias && module.site.kind == SiteKind::Linear && !matches!(form, Form::BlocksOfB(_));
        let told = config.is_broken("lora_bias");
        self.vector(module, Part::BBias, module.outputs, promised, told, "lora_bias")
    }

    /// DoRA's magnitude: there where `use_dora` promises it, and only there.
    fn magnitude(&mut self, module: &Module<'_, 'a>) -> Option<Stored<'a>> {
        let (promised, told) = (self.config().use_dora, self.config().is_broken("use_dora"));
        // An embedding's is of its width, which is what it puts out.
        self.vector(module, Part::Magnitude, module.outputs, promised, told, "use_dora")
    }

    /// KaSA's diagonal between A and B: on every linear where `kasa_config` promises it, and only there. The weight must keep
    /// a singular value.
    fn diagonal(&mut self, module: &Module<'_, 'a>, rank: usize) -> Option<Stored<'a>> {
        let promised = self.config().uses_kasa && module.site.kind == SiteKind::Linear;
        let told = self.config().is_broken("kasa_config");
        let stored = self.vector(module, Part::Diagonal, rank, promised, told, "kasa_config")?;
        let values = module.inputs.min(module.outputs);
        if rank >= values {
            let what = format!("KaSA leaves nothing of the weight of '{}'", module.path);
            let error = Error::new(ErrorCode::AdapterShapeMismatch, what).with_tensor(stored.name);
            self.problem(error.with_expected(format!("a rank below its {values} singular values")).with_found(rank));
            return None;
        }
        if module.only_site().is_none() {
            let what = format!("KaSA on '{}', which is no linear of its own in this model", module.path);
            self.problem(unsupported(what).with_tensor(stored.name));
            return None;
        }
        Some(stored)
    }

    /// A vector of that many values that a field of the config promises.
    fn vector(
        &mut self,
        module: &Module<'_, 'a>,
        part: Part,
        len: usize,
        promised: bool,
        told: bool,
        field: &str,
    ) -> Option<Stored<'a>> {
        let error = match (module.tensors.get(part), promised) {
            (Some(name), promised) if promised || told => {
                let stored = Stored::open(&self.files.weights, name, 1);
                let stored = self.keep(stored)?;
                let fits = stored.has_shape(&[len], "a vector does not fit the base model");
                self.keep(fits)?;
                return Some(stored);
            }
            (None, true) => Error::new(ErrorCode::AdapterTensorMissing, format!("{field} promises a tensor"))
                .with_tensor(part.tensor_name(module.path)),
            (Some(name), _) => {
                let what = format!("a tensor that {field} in adapter_config.json does not announce");
                Error::new(ErrorCode::AdapterTensorUnexpected, what).with_tensor(name)
            }
            (None, false) => return None,
        };
        self.problem(error);
        None
    }

    /// The scale of a module; `None` if alpha is not known, which was told.
    pub(super) fn scale(&self, module: &str, rank: usize) -> Result<Option<f32>> {
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
}

impl Form {
    /// Columns of A as stored; what does not divide is told by [`Form::check_size`].
    fn columns_of_a(self, inputs: usize) -> usize {
        match self {
            Form::Pooled(parts) | Form::BlocksOfA(parts) => inputs / parts,
            Form::Plain | Form::BlocksOfB(_) => inputs,
        }
    }

    /// Columns of B as stored.
    fn columns_of_b(self, rank: usize) -> usize {
        match self {
            Form::BlocksOfB(count) => rank / count,
            _ => rank,
        }
    }

    /// That blocks come out even, and that what is expanded is no larger than the base's weight.
    fn check_size(self, module: &Module<'_, '_>, rank: usize) -> Result<()> {
        let (count, rows, columns) = match self {
            Form::Plain => return Ok(()),
            Form::Pooled(_) => (1, rank, module.inputs),
            Form::BlocksOfA(count) => (count, rank, module.inputs),
            Form::BlocksOfB(count) => (count, module.outputs, rank),
        };
        if !rows.is_multiple_of(count) || !columns.is_multiple_of(count) {
            let what = format!("the factor of '{}' does not divide into blocks", module.path);
            return Err(Error::new(ErrorCode::AdapterShapeMismatch, what)
                .with_tensor(module.tensors.example())
                .with_expected(format!("rows and columns that are multiples of {count}"))
                .with_found(format!("{rows} and {columns}")));
        }
        let limit = module.inputs * module.outputs;
        match rows.checked_mul(columns).is_some_and(|size| size <= limit) {
            true => Ok(()),
            false => Err(unsupported(format!("the factor of '{}' is larger than the base's weight", module.path))
                .with_tensor(module.tensors.example())
                .with_expected(format!("at most {limit} values"))
                .with_found(format!("{rows} x {columns}"))),
        }
    }
}
