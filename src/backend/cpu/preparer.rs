//! Preparing adapters while steps run: on the caller's thread and helpers that live for one call.

use std::sync::Arc;

use super::adapter::resident::Adapter;
use super::runtime::threads::Pool;
use super::weights::BaseWeights;
use crate::adapter::delta::SiteDelta;
use crate::backend::{AdapterPreparer, PrepareError, PreparedAdapter};
use crate::error::Result;
use crate::sites::{SiteId, SitePart};
use crate::tensor::TensorView;

/// Reads the base's weights, which never change, and shares nothing else with the steps.
pub(super) struct CpuPreparer {
    weights: Arc<BaseWeights>,
    threads: usize,
}

impl CpuPreparer {
    /// Over these weights, with half of the backend's threads for a call: steps keep the other half.
    pub(super) fn new(weights: Arc<BaseWeights>, threads: usize) -> Self {
        Self { weights, threads: (threads / 2).max(1) }
    }
}

impl AdapterPreparer for CpuPreparer {
    fn equals_base(&self, site: SiteId, part: SitePart, values: TensorView<'_>) -> bool {
        self.weights.equals(site, part, values)
    }

    fn dense_weight(&self, site: SiteId) -> Result<Vec<f32>> {
        self.weights.dequantize(&mut Pool::new(self.threads)?, site)
    }

    fn prepare(
        &self,
        deltas: &[SiteDelta<'_>],
        between_parts: &mut dyn FnMut() -> Result<()>,
    ) -> Result<PreparedAdapter, PrepareError> {
        let adapter = Adapter::new(&mut Pool::new(self.threads)?, &self.weights, deltas, between_parts)?;
        Ok(PreparedAdapter::new(adapter.bytes(), adapter))
    }
}
