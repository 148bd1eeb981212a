//! The CUDA backend while a model loads.

use std::sync::Arc;

use super::compiler::compiler;
use super::compute::CudaCompute;
use super::driver::{Arena, Device};
use super::kernels::Kernels;
use super::layout::ElementType;
use super::ops::repack::Repacker;
use super::preparer::CudaPreparer;
use super::weights::{BaseWeights, Placer, WeightSizes};
use crate::backend::{
    Backend, BackendBuilder, DeviceMemoryProbe, DeviceMemoryUse, EmbeddingId, GroupId, LinearSource, MemoryUse, NormId,
    NormSource, WeightLoader,
};
use crate::error::{Error, Result};
use crate::quant::StoredWeight;
use crate::sites::SiteId;
use crate::tensor::{DType, TensorView};

/// Bytes of a checkpoint that are packed at once.
const PART_BYTES: usize = 64 << 20;

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
    compiler(device.properties().driver_version.major)?;
    tracing::debug!(card = device.properties().name, "cuda backend opened");
    Ok(Box::new(CudaBuilder { device, element: options.element, sizes: WeightSizes::default(), loading: None }))
}

/// Tells the memory of a device.
fn memory_probe(device: &Arc<Device>) -> DeviceMemoryProbe {
    let device = Arc::clone(device);
    Box::new(move || {
        let free_bytes = device.free_bytes().ok()?;
        let total_bytes = device.properties().total_bytes;
        Some(DeviceMemoryUse { allocated_bytes: device.allocated_bytes(), free_bytes, total_bytes })
    })
}

/// The backend before all weights are there.
struct CudaBuilder {
    device: Arc<Device>,
    element: Option<ElementType>,
    /// Of the weights that will be loaded, if they were measured.
    sizes: WeightSizes,
    /// From the first weight on, which decides the element type.
    loading: Option<Loading>,
}

/// The weights so far, and what places them.
struct Loading {
    weights: BaseWeights,
    placer: Placer,
}

impl CudaBuilder {
    /// The weights, of which the next one has that type.
    fn loading(&mut self, dtype: DType) -> Result<&mut Loading> {
        let loading = match self.loading.take() {
            Some(loading) => loading,
            None => {
                let stored = if dtype == DType::BF16 { ElementType::Bf16 } else { ElementType::F16 };
                let element = self.element.unwrap_or(stored);
                let explained = |error: Error| {
                    error
                        .with_subject("the model's weights")
                        .with_hint("use a model with fewer bits for each weight, or a card with more free memory")
                };
                let arena = Arena::new(&self.device, self.sizes.size()).map_err(explained)?;
                let repacker = Repacker::new(&self.device, element, PART_BYTES)?;
                Loading {
                    weights: BaseWeights::new(Arc::clone(&self.device), element),
                    placer: Placer::new(arena, repacker),
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
        let Loading { weights, placer } = self.loading(dtype)?;
        weights.load_linears(placer, members)
    }

    fn load_embedding(&mut self, site: SiteId, table: TensorView<'_>) -> Result<EmbeddingId> {
        let Loading { weights, placer } = self.loading(table.dtype())?;
        weights.load_embedding(placer, site, table)
    }

    fn load_norm(&mut self, source: &NormSource<'_>) -> Result<NormId> {
        let Loading { weights, placer } = self.loading(source.weight.dtype())?;
        weights.load_norm(placer, source)
    }
}

impl BackendBuilder for CudaBuilder {
    fn measurer(&mut self) -> Option<&mut dyn WeightLoader> {
        Some(&mut self.sizes)
    }

    fn finish(self: Box<Self>) -> Result<Backend> {
        let Self { device, loading, element, sizes } = *self;
        // Whoever reads the weights beside the steps does not wait for what was copied before the first of them.
        device.synchronize()?;
        let weights = match loading {
            // The buffers through which checkpoints went are freed here.
            Some(Loading { weights, .. }) => weights,
            None => BaseWeights::new(Arc::clone(&device), element.unwrap_or_default()),
        };
        let weights = Arc::new(weights);
        let kernels = Kernels::load(&device, weights.element)?;
        // The one allocation of all weights, or those of each.
        let weights_bytes = weights.bytes().max(sizes.size().bytes());
        let memory = Arc::new(MemoryUse::on_device(weights_bytes, memory_probe(&device)));
        Ok(Backend {
            description: format!("cuda:{} ({})", device.properties().ordinal, device.properties().name),
            adapters: Arc::new(CudaPreparer::new(Arc::clone(&weights))?),
            compute: Box::new(CudaCompute::new(weights, kernels, Arc::clone(&memory))?),
            memory,
        })
    }
}
