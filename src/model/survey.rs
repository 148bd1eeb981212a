//! A model folder read and checked exactly as loading does it, without keeping its weights: for reports, and for checking
//! adapters against a model that is not loaded.
//!
//! The same loader reads the same tensors, only into a backend that keeps nothing, so a folder that passes here loads.

use std::path::Path;

use super::config::DecoderConfig;
use super::loader::{DecoderLoader, HeadDType};
use super::text_checkpoint;
use crate::backend::{EmbeddingId, GroupId, LinearSource, NormId, NormSource, WeightLoader};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::quant::QuantConfig;
use crate::sites::{SiteId, SiteTable};
use crate::tensor::TensorView;

/// What a model folder holds.
#[derive(Debug)]
pub struct ModelSurvey {
    /// What config.json says.
    pub config: DecoderConfig,
    /// The quantization the folder declares.
    pub quant: Option<QuantConfig>,
    /// The files, mapped.
    pub checkpoint: Checkpoint,
    /// Where adapters can act.
    pub sites: SiteTable,
}

/// Reads and checks a model folder.
///
/// # Errors
/// Anything of `checkpoint_*`, `quant_*`, `model_*`.
pub fn survey(dir: &Path) -> Result<ModelSurvey> {
    let (config, json) = DecoderConfig::read(dir)?;
    let quant = QuantConfig::read(dir, &json)?;
    let (checkpoint, prefix) = text_checkpoint::open(dir)?;
    let quant = quant.map(|quant| quant.with_prefix(prefix));
    let loader = DecoderLoader {
        config: &config,
        quant: quant.as_ref(),
        checkpoint: &checkpoint,
        head: HeadDType::Stored,
        weights: &mut NullBackend,
        sites: SiteTable::default(),
        progress: &mut |_| Ok(()),
        done: 0,
    };
    let (_, sites) = loader.load()?;
    Ok(ModelSurvey { config, quant, checkpoint, sites })
}

/// Takes weights and keeps nothing.
struct NullBackend;

impl WeightLoader for NullBackend {
    fn load_linears(&mut self, _: &[LinearSource<'_>]) -> Result<GroupId> {
        Ok(GroupId(0))
    }

    fn load_embedding(&mut self, _: SiteId, _: TensorView<'_>) -> Result<EmbeddingId> {
        Ok(EmbeddingId(0))
    }

    fn load_norm(&mut self, _: &NormSource<'_>) -> Result<NormId> {
        Ok(NormId(0))
    }
}
