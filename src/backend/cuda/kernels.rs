//! The kernels that a model needs, compiled when it is loaded or first needs them.

use std::collections::HashMap;
use std::sync::Arc;

use super::driver::Device;
use super::layout::ElementType;
use super::ops::attention::AttentionKernel;
use super::ops::embed::EmbedKernel;
use super::ops::expand::ExpandKernels;
use super::ops::linear::LinearKernels;
use super::ops::norm_elements::NormElementsKernel;
use super::ops::norms::NormKernels;
use super::ops::rows::RowKernels;
use crate::backend::KvDType;
use crate::error::Result;

/// What the attention kernel is compiled for: width of a head, query heads for each key/value head, type of the cache.
type AttentionKind = (usize, usize, KvDType);

/// Compiled kernels for one device and element type.
pub(super) struct Kernels {
    device: Arc<Device>,
    element: ElementType,
    pub(super) embed: EmbedKernel,
    pub(super) linear: LinearKernels,
    pub(super) norm_elements: NormElementsKernel,
    pub(super) rows: RowKernels,
    norms: Option<NormKernels>,
    expand: HashMap<KvDType, ExpandKernels>,
    attention: HashMap<AttentionKind, AttentionKernel>,
}

impl Kernels {
    /// Those that every model needs.
    ///
    /// # Errors
    /// As [`Device::module`].
    pub(super) fn load(device: &Arc<Device>, element: ElementType) -> Result<Self> {
        Ok(Self {
            device: Arc::clone(device),
            element,
            embed: EmbedKernel::load(device)?,
            linear: LinearKernels::load(device, element)?,
            norm_elements: NormElementsKernel::load(device, element)?,
            rows: RowKernels::load(device)?,
            norms: None,
            expand: HashMap::new(),
            attention: HashMap::new(),
        })
    }

    /// Those of norms that are computed alone.
    ///
    /// # Errors
    /// As [`Device::module`].
    pub(super) fn norms(&mut self) -> Result<&NormKernels> {
        let kernels = match self.norms.take() {
            Some(kernels) => kernels,
            None => NormKernels::load(&self.device)?,
        };
        Ok(self.norms.insert(kernels))
    }

    /// Those that expand, for a cache of that type.
    ///
    /// # Errors
    /// As [`Device::module`].
    pub(super) fn expand(&mut self, kv: KvDType) -> Result<&ExpandKernels> {
        if !self.expand.contains_key(&kv) {
            self.expand.insert(kv, ExpandKernels::load(&self.device, self.element, kv)?);
        }
        Ok(&self.expand[&kv])
    }

    /// Attention of such heads over a cache of that type.
    ///
    /// # Errors
    /// As [`Device::module`].
    pub(super) fn attention(&mut self, head_dim: usize, group_heads: usize, kv: KvDType) -> Result<&AttentionKernel> {
        let kind = (head_dim, group_heads, kv);
        if !self.attention.contains_key(&kind) {
            self.attention.insert(kind, AttentionKernel::load(&self.device, head_dim, group_heads, kv)?);
        }
        Ok(&self.attention[&kind])
    }
}
