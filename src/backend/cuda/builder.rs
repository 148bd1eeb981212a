//! The CUDA backend while a model loads.

use std::sync::Arc;

use super::compute::CudaCompute;
use super::driver::Device;
use super::kernels::Kernels;
use super::layout::ElementType;
use super::ops::repack::Repacker;
use super::preparer::CudaPreparer;
use super::weights::BaseWeights;
use crate::backend::{Backend, BackendBuilder, EmbeddingId, GroupId, LinearSource, MemoryUse, NormId, WeightLoader};
use crate::error::Result;
use crate::quant::StoredWeight;
use crate::sites::SiteId;
use crate::tensor::{DType, TensorView};

/// Bytes of a checkpoint that go to the device at once.
const STAGING_BYTES: usize = 64 << 20;

/// Options of the CUDA backend.
#[derive(Clone, Debug, Default)]
pub struct CudaOptions {
    /// Number of the card.
    pub ordinal: usize,
    /// The type of dense weights and of activations; by default bfloat16 where the first weight is, else half precision.
    pub element: Option<ElementType>,
}

/// A card as a backend.
///
/// # Errors
/// `cuda_unavailable`: no driver, card or run-time compiler.
pub fn open(options: &CudaOptions) -> Result<Box<dyn BackendBuilder>> {
    let device = Device::open(options.ordinal)?;
    tracing::debug!(card = device.properties().name, "cuda backend opened");
    Ok(Box::new(CudaBuilder { device, element: options.element, loading: None }))
}

/// The backend before all weights are there.
struct CudaBuilder {
    device: Arc<Device>,
    element: Option<ElementType>,
    /// From the first weight on, which decides the element type.
    loading: Option<Loading>,
}

/// The weights so far, and what packs them.
struct Loading {
    weights: BaseWeights,
    repacker: Repacker,
}

impl CudaBuilder {
    /// The weights, of which the next one has that type.
    fn loading(&mut self, dtype: DType) -> Result<&mut Loading> {
        let loading = match self.loading.take() {
            Some(loading) => loading,
            None => {
                let stored = if dtype == DType::BF16 { ElementType::Bf16 } else { ElementType::F16 };
                let element = self.element.unwrap_or(stored);
                Loading {
                    weights: BaseWeights::new(Arc::clone(&self.device), element),
                    repacker: Repacker::new(&self.device, element, STAGING_BYTES)?,
                }
            }
        };
        Ok(self.loading.insert(loading))
    }
}

impl WeightLoader for CudaBuilder {
    fn load_linears(&mut self, members: &[LinearSource<'_>]) -> Result<GroupId> {
        let dtype = match members.first().map(|member| &member.weight) {
            Some(StoredWeight::Dense(view)) => view.dtype(),
            _ => DType::F16,
        };
        let Loading { weights, repacker } = self.loading(dtype)?;
        weights.load_linears(repacker, members)
    }

    fn load_embedding(&mut self, site: SiteId, table: TensorView<'_>) -> Result<EmbeddingId> {
        self.loading(table.dtype())?.weights.load_embedding(site, table)
    }

    fn load_norm(&mut self, site: SiteId, weight: TensorView<'_>) -> Result<NormId> {
        self.loading(weight.dtype())?.weights.load_norm(site, weight)
    }
}

impl BackendBuilder for CudaBuilder {
    fn finish(self: Box<Self>) -> Result<Backend> {
        let Self { device, loading, element } = *self;
        let weights = match loading {
            // The buffer through which checkpoints went is freed here.
            Some(Loading { weights, .. }) => weights,
            None => BaseWeights::new(Arc::clone(&device), element.unwrap_or_default()),
        };
        let weights = Arc::new(weights);
        let kernels = Kernels::load(&device, weights.element)?;
        let memory = Arc::new(MemoryUse::new(weights.bytes()));
        Ok(Backend {
            description: format!("cuda:{} ({})", device.properties().ordinal, device.properties().name),
            adapters: Arc::new(CudaPreparer::new(Arc::clone(&weights))),
            compute: Box::new(CudaCompute::new(weights, kernels, Arc::clone(&memory))?),
            memory,
        })
    }
}
