//! The delta of one module: what it replaces, and what it adds.

use crate::adapter::delta::{LowRank, ReplacedRows, SiteDelta, Truncation};
use crate::adapter::keys::Part;
use crate::adapter::plan::checked_tensor::CheckedTensor;
use crate::adapter::plan::checker::Checker;
use crate::adapter::plan::module::Module;
use crate::adapter::unsupported::unsupported;
use crate::error::{Error, ErrorCode, Result, printable};
use crate::tensor::{Tensor, shape_text, zeros};

impl<'a> Checker<'a, '_> {
    /// Everything a module changes, in its own outputs. Problems are reported, and what has problems is left out.
    pub(super) fn read_module(&mut self, module: &mut Module<'_, 'a>) -> SiteDelta<'a> {
        let mut delta = SiteDelta { repeat: module.repeat, ..SiteDelta::at(module.parts[0].site) };
        for part in &module.parts {
            let at = (part.site, module.repeat);
            if module.has(&Part::WEIGHTS) {
                self.replaced.insert(at);
            }
            if module.has(&Part::BIASES) {
                self.biased.insert(at);
            }
        }
        if module.has(&Part::WEIGHTS) {
            delta.weight = self.weight(module);
        }
        if module.has(&Part::BIASES) {
            delta.bias = self.bias(module);
        }
        if module.has(&[Part::Rows]) {
            delta.rows = self.rows(module);
        }
        if module.has(&Part::LOW_RANK) {
            delta.low_rank = self.low_rank(module);
            if let Some(low) = delta.low_rank.as_ref().filter(|_| module.has(&[Part::Diagonal])) {
                self.truncations.insert((delta.site, delta.repeat), truncation(low));
            }
        }
        self.has_effect |= delta.is_replacing();
        delta
    }

    /// The tensor that replaces a weight or a bias. Wrappers may have left copies of it, which must be equal.
    fn replacement(&mut self, module: &Module<'_, 'a>, names: &[Part], dimensions: usize) -> Option<CheckedTensor<'a>> {
        let mut found = names.iter().filter_map(|part| module.tensors.get(*part));
        let first = CheckedTensor::open(self.files.weights(), found.next()?, dimensions);
        let first = self.keep(first)?;
        for name in found {
            let other = CheckedTensor::open(self.files.weights(), name, dimensions);
            let other = self.keep(other)?;
            if other.shape() != first.shape() || other.view.bytes() != first.view.bytes() {
                let what = "two different tensors for the same part";
                let error = Error::new(ErrorCode::AdapterTensorUnexpected, what).with_tensor(name);
                self.problem(error.with_found(format!("'{}' too", first.name)));
                return None;
            }
            tracing::info!(tensor = %printable(name), "a second copy of a tensor is left out");
        }
        Some(first)
    }

    fn weight(&mut self, module: &mut Module<'_, 'a>) -> Option<Tensor<'a>> {
        let dimensions = module.site.weight_shape().len();
        let stored = self.replacement(module, &Part::WEIGHTS, dimensions)?;
        let fits = fits_weight(module, &stored);
        // The module's other tensors have the file's number of rows, valid or not.
        if module.is_embedding {
            module.inputs = stored.shape()[0];
        } else if module.is_head {
            module.outputs = stored.shape()[0];
        }
        self.keep(fits)?;
        self.keep(stored.is_nonzero())?;
        Some(stored.tensor())
    }

    fn bias(&mut self, module: &Module<'_, 'a>) -> Option<Tensor<'a>> {
        let stored = self.replacement(module, &Part::BIASES, 1)?;
        if !module.site.has_bias {
            let what = format!("the base model has no bias in '{}' to be replaced", module.path);
            self.problem(Error::new(ErrorCode::AdapterTensorUnexpected, what).with_tensor(stored.name));
            return None;
        }
        let fits = stored.has_shape(&[module.outputs], "a bias does not fit the base model");
        self.keep(fits)?;
        self.keep(stored.is_nonzero())?;
        Some(stored.tensor())
    }

    /// The rows of `trainable_token_indices`, sorted by token id.
    fn rows(&mut self, module: &Module<'_, 'a>) -> Option<ReplacedRows<'a>> {
        let name = module.tensors.get(Part::Rows)?;
        let stored = CheckedTensor::open(self.files.weights(), name, 2);
        let stored = self.keep(stored)?;
        let rows = if module.is_embedding { module.inputs } else { module.outputs };
        let width = if module.is_embedding { module.outputs } else { module.inputs };
        let problem = |what: String, code| Error::new(code, what).with_tensor(name);
        if !module.is_embedding && !module.is_head {
            let what = format!("rows of '{}' are replaced, which is neither the embedding nor the head", module.path);
            self.problem(unsupported(what).with_tensor(name));
            return None;
        }
        if module.has(&Part::LOW_RANK) {
            let what = format!("'{}' has factors and replaced rows, which PEFT does not define", module.path);
            self.problem(unsupported(what).with_tensor(name));
            return None;
        }
        if self.config().is_saved(module.path) {
            let what =
                format!("'{}' is in modules_to_save and has replaced rows, which PEFT does not define", module.path);
            self.problem(unsupported(what).with_tensor(name));
            return None;
        }
        if self.config().is_broken("trainable_token_indices") {
            return None;
        }
        // A tied head shares the embedding's rows unless the config gives it its own.
        let shared = self.sites.embedding.filter(|_| module.is_head && self.sites.is_head_tied);
        let shared = || shared.and_then(|site| self.token_ids(&self.path_in_file(site), true));
        let Some(ids) = self.token_ids(module.path, module.is_embedding).or_else(shared) else {
            let what = format!("trainable_token_indices in adapter_config.json has no tokens for '{}'", module.path);
            self.problem(problem(what, ErrorCode::AdapterTensorUnexpected));
            return None;
        };
        if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
            let what = format!("trainable_token_indices names a token that '{}' has no row for", module.path);
            let error = Error::new(ErrorCode::AdapterConfigInvalid, what);
            self.problem(error.with_expected(format!("ids below {rows}")).with_found(id));
            return None;
        }
        let fits = stored.has_shape(&[ids.len(), width], "rows do not fit trainable_token_indices and the base model");
        self.keep(fits)?;
        self.keep(stored.is_nonzero())?;
        self.keep(sorted_rows(ids, &stored))
    }
}

/// That a replaced weight has the base's shape; embedding and head may have more rows.
fn fits_weight(module: &Module<'_, '_>, stored: &CheckedTensor<'_>) -> Result<()> {
    let expected = module.site.weight_shape();
    let grows = module.is_embedding || module.is_head;
    let (found, base) = (stored.shape()[0], expected[0]);
    if !grows || stored.shape()[1..] != expected[1..] {
        return stored.has_shape(&expected, "a replaced weight does not fit the base model");
    }
    match found < base {
        false => Ok(()),
        true => {
            let what = format!("'{}' has {found} rows, fewer than the base's {base}", module.path);
            Err(Error::new(ErrorCode::AdapterShapeMismatch, what)
                .with_tensor(stored.name)
                .with_expected(format!("{base} rows or more"))
                .with_found(shape_text(stored.shape()))
                .with_hint(
                    "the base's vocabulary is padded or was resized: resize the one trained on to the same size",
                ))
        }
    }
}

/// The singular values that KaSA removes: as many as the rank.
fn truncation(low: &LowRank<'_>) -> Truncation {
    Truncation { values: low.rank(), outputs: low.b.shape()[0], inputs: low.a.shape()[1] }
}

/// Rows in ascending order of their token ids.
///
/// # Errors
/// `memory_exhausted`.
fn sorted_rows<'a>(ids: &[u32], stored: &CheckedTensor<'a>) -> Result<ReplacedRows<'a>> {
    if ids.is_sorted() {
        return Ok(ReplacedRows { ids: ids.to_vec(), values: stored.tensor() });
    }
    let width = stored.shape()[1];
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|&at| ids[at]);
    let mut sorted = zeros(stored.view.len())?;
    for (row, &at) in sorted.chunks_exact_mut(width).zip(&order) {
        stored.view.read_f32(at * width..(at + 1) * width, row);
    }
    let values = Tensor::try_from_f32(stored.shape(), &sorted)?;
    Ok(ReplacedRows { ids: order.iter().map(|&at| ids[at]).collect(), values })
}
