//! The model that drafts tokens: where it comes from, and whether it fits.

use std::path::PathBuf;
use std::sync::Arc;

use super::text::Tokenizer;
use crate::error::{Error, ErrorCode, Result};
use crate::model::{Model, ModelOptions, Progress};

/// The model that drafts tokens.
#[derive(Clone, Debug)]
pub enum DraftModelSource {
    /// A model folder.
    Path(PathBuf),
    /// A model that is loaded already.
    Loaded(Arc<Model>),
}

impl From<PathBuf> for DraftModelSource {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl DraftModelSource {
    /// The model, loaded if it is not yet. Its ids must mean what those of `target` mean, whose tokenizer is `tokenizer`.
    ///
    /// # Errors
    /// `draft_model_mismatch`; any `checkpoint_*`, `quant_*` or `model_*` code, `tokenizer_invalid`, `memory_exhausted`; what
    /// `progress` returned.
    pub(super) fn open(
        &self,
        target: &Model,
        tokenizer: Option<&Tokenizer>,
        options: &ModelOptions,
        progress: &mut dyn FnMut(Progress) -> Result<()>,
    ) -> Result<Arc<Model>> {
        let path = match self {
            Self::Path(path) => path,
            Self::Loaded(model) => model.path(),
        };
        let mismatch = |error: Error| error.with_path(path).with_subject("the draft model");
        // Before anything takes long.
        let own = Tokenizer::open(path)?;
        if let (Some(own), Some(tokenizer)) = (&own, tokenizer) {
            check_vocabulary(own, tokenizer).map_err(mismatch)?;
        }
        let model = match self {
            Self::Path(path) => Model::load(path, options, progress)?,
            Self::Loaded(model) => Arc::clone(model),
        };
        let (found, expected) = (model.config().vocab_size, target.config().vocab_size);
        if (own.is_none() || tokenizer.is_none()) && found != expected {
            return Err(mismatch(
                Error::new(ErrorCode::DraftModelMismatch, "the models have different vocabularies")
                    .with_expected(format!("{expected} tokens"))
                    .with_found(format!("{found} tokens")),
            ));
        }
        Ok(model)
    }
}

/// That a draft's ids mean the same tokens as the target's. The rows of their embeddings may differ: they are padded.
fn check_vocabulary(draft: &Tokenizer, target: &Tokenizer) -> Result<()> {
    let Some(id) = target.first_difference(draft) else { return Ok(()) };
    let token = |tokenizer: &Tokenizer| match tokenizer.token_of(id) {
        Some(token) => format!("token {id} = {token:?}"),
        None => format!("no token {id}"),
    };
    Err(Error::new(ErrorCode::DraftModelMismatch, "its tokenizer has another vocabulary than the model's")
        .with_expected(token(target))
        .with_found(token(draft)))
}
