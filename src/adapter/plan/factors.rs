//! The low-rank delta of one module: its factors, B's bias, magnitude and diagonal, checked against config and base.

use crate::adapter::delta::LowRank;
use crate::adapter::keys::Part;
use crate::adapter::plan::checked_tensor::CheckedTensor;
use crate::adapter::plan::checker::Checker;
use crate::adapter::plan::module::Module;
use crate::adapter::plan::structured_factors;
use crate::adapter::unsupported::unsupported;
use crate::error::{Error, ErrorCode, Result};
use crate::sites::SiteKind;
use crate::tensor::{Tensor, shape_text};

/// A module's rank, and where it comes from.
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

impl<'a> Checker<'a, '_> {
    /// The low-rank delta of a module, or `None` with its problems reported.
    pub(super) fn low_rank(&mut self, module: &Module<'_, 'a>) -> Option<LowRank<'a>> {
        let before = self.problems.len();
        let excluded = self.check_targeted(module).map_err(|error| error.with_tensor(module.tensors.example()));
        self.keep(excluded);
        let kinds = match module.site.kind {
            SiteKind::Linear => [Part::A, Part::B],
            SiteKind::Embedding => [Part::EmbeddingA, Part::EmbeddingB],
            SiteKind::Norm => {
                let what = format!("'{}' is a norm, which cannot have factors", module.path);
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
        // Without these fields the form of the factors is unknown.
        let form_fields = ["use_bdlora", "use_qalora", "qalora_group_size"];
        let is_form_known = !form_fields.iter().any(|field| self.config().is_broken(field));
        if is_form_known {
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
            self.has_effect |= nonzero || b_bias.is_some() || magnitude.is_some();
        }
        let scale = self.keep(scale)?;
        if self.problems.len() > before || !is_form_known {
            return None;
        }
        let checked = form.check_size(module, rank.rank);
        self.keep(checked)?;
        let (a, b) = (a?.tensor(), b?.tensor());
        let expanded = form.expand(a, b, diagonal.map(|diagonal| diagonal.tensor()));
        let (a, b) = self.keep(expanded)?;
        let tensor = |stored: Option<CheckedTensor<'a>>| stored.map(|stored| stored.tensor());
        // PEFT adds no bias of B to what it computes from pooled inputs.
        let b_bias = b_bias.filter(|_| !matches!(form, Form::Pooled(_)));
        Some(LowRank { a, b, scale: scale?, b_bias: tensor(b_bias), magnitude: tensor(magnitude) })
    }

    /// That the config does not exclude a module that the file has factors for.
    fn check_targeted(&self, module: &Module<'_, 'a>) -> Result<()> {
        let config = self.config();
        // Targets and filters then apply to the embedding only.
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
    fn factor(&mut self, module: &Module<'_, 'a>, part: Part, pair: [Part; 2]) -> Option<CheckedTensor<'a>> {
        let Some(name) = module.tensors.get(part) else {
            let other = pair.into_iter().find_map(|other| Some((other, module.tensors.get(other)?)));
            // In the spelling of the other factor.
            let segment = |part: Part| part.suffix().trim_end_matches(".weight");
            let missing = match other {
                Some((other, name)) => name.replacen(segment(other), segment(part), 1),
                None => part.tensor_name(module.path),
            };
            let what = "a factor of a pair is missing";
            self.problem(Error::new(ErrorCode::AdapterTensorMissing, what).with_tensor(missing));
            return None;
        };
        let stored = CheckedTensor::open(self.files.weights(), name, 2);
        self.keep(stored)
    }

    /// How the factors are stored: for BD-LoRA it depends on the module, for QA-LoRA on the shape.
    fn form(&self, module: &Module<'_, 'a>, a: Option<&CheckedTensor<'a>>) -> Result<Form> {
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
                (false, false) if blocks.strict => wrong("is in neither list, despite match_strict,"),
                (false, false) => Ok(Form::Plain),
            };
        }
        let is_pooled = |group: &usize| {
            let columns = a.map(|a| a.shape()[1]);
            module.inputs.is_multiple_of(*group) && columns == Some(module.inputs / group)
        };
        // PEFT ignores use_qalora where A is not pooled. It computes pooled factors in no variant.
        match (config.pooled_inputs.filter(is_pooled), config.variant.filter(|variant| *variant != "monteclora_config"))
        {
            (None, _) => Ok(Form::Plain),
            (Some(group), None) => Ok(Form::Pooled(group)),
            (Some(_), Some(variant)) => {
                let what = format!(
                    "the pooled A of '{}' (use_qalora) and {variant} exclude each other, as in PEFT",
                    module.path
                );
                Err(Error::new(ErrorCode::AdapterConfigInvalid, what))
            }
        }
    }

    /// The rank a module must have: from `rank_pattern`, from `r`, else from its A.
    fn rank(&mut self, module: &Module<'_, 'a>, a: Option<&CheckedTensor<'a>>) -> Option<ModuleRank> {
        let config = self.config();
        let pattern = config.rank_pattern.get(module.path);
        if let Some(rank) = self.keep(pattern)? {
            return Some(ModuleRank { rank, origin: Origin::Pattern });
        }
        let config = self.config();
        // A pattern that was refused may have given this module another rank.
        match (config.rank.filter(|_| !config.is_broken("rank_pattern")), a) {
            (Some(rank), _) => Some(ModuleRank { rank, origin: Origin::Config }),
            (None, Some(a)) => Some(ModuleRank { rank: a.shape()[0], origin: Origin::A }),
            (None, None) => None,
        }
    }

    /// Checks the shape of a factor; `rank_axis` is the dimension of the rank.
    fn check_factor(
        &mut self,
        module: &Module<'_, 'a>,
        stored: &CheckedTensor<'a>,
        rank: ModuleRank,
        expected: [usize; 2],
        rank_axis: usize,
    ) {
        let found = stored.shape();
        if found == expected {
            return;
        }
        if found[1 - rank_axis] != expected[1 - rank_axis] {
            // The dimension of the vocabulary: an embedding's inputs, the head's outputs.
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

    /// B's bias: present exactly where `lora_bias` requires it.
    fn b_bias(&mut self, module: &Module<'_, 'a>, form: Form) -> Option<CheckedTensor<'a>> {
        let config = self.config();
        // An embedding has none, and PEFT drops it where B is block-diagonal.
        let required = config.lora_bias && module.site.kind == SiteKind::Linear && !matches!(form, Form::BlocksOfB(_));
        let is_refused = config.is_broken("lora_bias");
        self.vector(module, Part::BBias, module.outputs, required, is_refused, "lora_bias")
    }

    /// DoRA's magnitude: present exactly where `use_dora` requires it.
    fn magnitude(&mut self, module: &Module<'_, 'a>) -> Option<CheckedTensor<'a>> {
        let (required, is_refused) = (self.config().use_dora, self.config().is_broken("use_dora"));
        // An embedding's magnitude is as wide as its output.
        self.vector(module, Part::Magnitude, module.outputs, required, is_refused, "use_dora")
    }

    /// KaSA's diagonal between A and B: present on exactly the linears where `kasa_config` requires it. The weight must keep
    /// at least one singular value.
    fn diagonal(&mut self, module: &Module<'_, 'a>, rank: usize) -> Option<CheckedTensor<'a>> {
        let required = self.config().uses_kasa && module.site.kind == SiteKind::Linear;
        let is_refused = self.config().is_broken("kasa_config");
        let stored = self.vector(module, Part::Diagonal, rank, required, is_refused, "kasa_config")?;
        let values = module.inputs.min(module.outputs);
        if rank >= values {
            let what = format!("KaSA leaves nothing of the weight of '{}'", module.path);
            let error = Error::new(ErrorCode::AdapterShapeMismatch, what).with_tensor(stored.name);
            self.problem(error.with_expected(format!("a rank below its {values} singular values")).with_found(rank));
            return None;
        }
        if module.only_site().is_none() {
            let what = format!("KaSA on '{}', which is fused or split in this model", module.path);
            self.problem(unsupported(what).with_tensor(stored.name));
            return None;
        }
        Some(stored)
    }

    /// A vector of `len` values, present if a field of the config requires it. If that field's value was refused, the vector
    /// may be there or not.
    fn vector(
        &mut self,
        module: &Module<'_, 'a>,
        part: Part,
        len: usize,
        required: bool,
        is_refused: bool,
        field: &str,
    ) -> Option<CheckedTensor<'a>> {
        let error = match (module.tensors.get(part), required) {
            (Some(name), required) if required || is_refused => {
                let stored = CheckedTensor::open(self.files.weights(), name, 1);
                let stored = self.keep(stored)?;
                let fits = stored.has_shape(&[len], "a vector does not fit the base model");
                self.keep(fits)?;
                return Some(stored);
            }
            (None, true) => Error::new(ErrorCode::AdapterTensorMissing, format!("{field} requires a tensor"))
                .with_tensor(part.tensor_name(module.path)),
            (Some(name), _) => {
                let what = format!("a tensor that {field} in adapter_config.json does not call for");
                Error::new(ErrorCode::AdapterTensorUnexpected, what).with_tensor(name)
            }
            (None, false) => return None,
        };
        self.problem(error);
        None
    }
}

impl Form {
    /// Columns of A as stored. [`Form::check_size`] reports what does not divide evenly.
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

    /// Stored factors as plain ones, B's columns scaled by a diagonal if there is one.
    ///
    /// # Errors
    /// `memory_exhausted`.
    fn expand<'a>(
        self,
        a: Tensor<'a>,
        b: Tensor<'a>,
        diagonal: Option<Tensor<'a>>,
    ) -> Result<(Tensor<'a>, Tensor<'a>)> {
        let (a, b) = match self {
            Form::Plain => (a, b),
            Form::Pooled(group) => (structured_factors::pooled(&a, group)?, b),
            Form::BlocksOfA(count) => (structured_factors::block_diagonal(&a, count)?, b),
            Form::BlocksOfB(count) => (a, structured_factors::block_diagonal(&b, count)?),
        };
        match diagonal {
            Some(diagonal) => Ok((a, structured_factors::scaled_columns(&b, &diagonal)?)),
            None => Ok((a, b)),
        }
    }

    /// That blocks divide evenly, and that the expanded factor is no larger than the base's weight.
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
