//! A model folder read and checked as loading does it, its weights then dropped: what reports and checks of adapters need.
//!
//! The same loader walks the same tensors, only into a backend that keeps nothing, so a folder that passes here loads.

use std::path::Path;

use super::config::DecoderConfig;
use super::decoder::DecoderLoader;
use crate::adapter::batch::{AdapterBatch, SlotId};
use crate::adapter::delta::SiteDelta;
use crate::backend::{
    Activation, AttentionSpec, Backend, BackendMemory, BufferId, EmbeddingId, GroupId, KvId, KvShape, LinearSource,
    NormId, StepRows, UploadError, Write,
};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorCode, Result};
use crate::quant::QuantConfig;
use crate::sites::{SiteId, SitePart, SiteTable};
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
    let checkpoint = Checkpoint::open(dir)?;
    let loader = DecoderLoader {
        config: &config,
        quant: quant.as_ref(),
        checkpoint: &checkpoint,
        backend: &mut NullBackend,
        sites: SiteTable::default(),
        progress: &mut |_| Ok(()),
        done: 0,
    };
    let (_, sites) = loader.load()?;
    Ok(ModelSurvey { config, quant, checkpoint, sites })
}

/// Takes weights and keeps nothing; it cannot compute.
struct NullBackend;

fn cannot_compute() -> Error {
    Error::new(ErrorCode::Internal, "a surveyed model was asked to compute")
}

impl Backend for NullBackend {
    fn describe(&self) -> String {
        "nowhere".to_owned()
    }

    fn memory(&self) -> BackendMemory {
        BackendMemory::default()
    }

    fn load_linears(&mut self, _: &[LinearSource<'_>]) -> Result<GroupId> {
        Ok(GroupId(0))
    }

    fn load_embedding(&mut self, _: SiteId, _: TensorView<'_>) -> Result<EmbeddingId> {
        Ok(EmbeddingId(0))
    }

    fn load_norm(&mut self, _: SiteId, _: TensorView<'_>) -> Result<NormId> {
        Ok(NormId(0))
    }

    fn create_buffer(&mut self, _: usize) -> BufferId {
        BufferId(0)
    }

    fn reserve_rows(&mut self, _: usize) -> Result<()> {
        Err(cannot_compute())
    }

    fn create_kv(&mut self, _: KvShape) -> Result<KvId> {
        Err(cannot_compute())
    }

    fn drop_kv(&mut self, _: KvId) {}

    fn equals_base(&self, _: SiteId, _: SitePart, _: TensorView<'_>) -> bool {
        false
    }

    fn dense_weight(&mut self, _: SiteId) -> Result<Vec<f32>> {
        Err(cannot_compute())
    }

    fn upload_adapter(&mut self, _: SlotId, _: &[SiteDelta<'_>]) -> Result<usize, UploadError> {
        Err(cannot_compute().into())
    }

    fn drop_adapter(&mut self, _: SlotId) {}

    fn embed(&mut self, _: EmbeddingId, _: &[u32], _: f32, _: &AdapterBatch, _: BufferId) -> Result<()> {
        Err(cannot_compute())
    }

    fn norm(&mut self, _: NormId, _: f32, _: BufferId, _: usize, _: &AdapterBatch, _: BufferId) -> Result<()> {
        Err(cannot_compute())
    }

    fn linear(&mut self, _: GroupId, _: BufferId, _: usize, _: &AdapterBatch, _: BufferId, _: Write) -> Result<()> {
        Err(cannot_compute())
    }

    fn attend(
        &mut self,
        _: &AttentionSpec,
        _: KvId,
        _: &StepRows,
        _: &AdapterBatch,
        _: BufferId,
        _: BufferId,
    ) -> Result<()> {
        Err(cannot_compute())
    }

    fn activate(&mut self, _: Activation, _: BufferId, _: usize, _: BufferId) -> Result<()> {
        Err(cannot_compute())
    }

    fn head(&mut self, _: GroupId, _: BufferId, _: &[u32], _: &AdapterBatch, _: &mut [f32], _: usize) -> Result<()> {
        Err(cannot_compute())
    }
}
