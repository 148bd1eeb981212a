//! Preparing adapters while steps run: on the caller's thread and helpers that live for one call.

use std::sync::Arc;
use std::thread::available_parallelism;

use parking_lot::Mutex;

use super::adapter::prepare;
use super::driver::{StagingBuffers, Stream};
use super::weights::BaseWeights;
use crate::adapter::delta::SiteDelta;
use crate::backend::{AdapterPreparer, PrepareError, PreparedAdapter};
use crate::error::Result;
use crate::sites::{SiteId, SitePart};
use crate::tensor::TensorView;

/// Pinned buffers through which adapters go, and the bytes of each.
const PINNED_BUFFERS: usize = 2;
const PINNED_BYTES: usize = 4 << 20;

/// Reads the base's weights, which never change, and copies adapters by a stream that no step waits for.
pub(super) struct CudaPreparer {
    weights: Arc<BaseWeights>,
    uploads: Mutex<StagingBuffers>,
    threads: usize,
}

impl CudaPreparer {
    /// Over these weights, with half of the machine's cores for a call.
    ///
    /// # Errors
    /// As [`StagingBuffers::new`].
    pub(super) fn new(weights: Arc<BaseWeights>) -> Result<Self> {
        let uploads = StagingBuffers::new(&weights.device, Stream::Copy, PINNED_BUFFERS, PINNED_BYTES)?;
        let threads = available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1));
        Ok(Self { weights, uploads: Mutex::new(uploads), threads })
    }
}

impl AdapterPreparer for CudaPreparer {
    fn equals_base(&self, site: SiteId, part: SitePart, values: TensorView<'_>) -> bool {
        self.weights.equals(site, part, values).unwrap_or_else(|error| {
            tracing::warn!(%error, "an adapter's copy of the base is not compared");
            false
        })
    }

    fn dense_weight(&self, site: SiteId) -> Result<Vec<f32>> {
        self.weights.dense_weight(site)
    }

    fn prepare(
        &self,
        deltas: &[SiteDelta<'_>],
        between_parts: &mut dyn FnMut() -> Result<()>,
    ) -> Result<PreparedAdapter, PrepareError> {
        let adapter = prepare(&self.weights, &self.uploads, deltas, self.threads, between_parts)?;
        Ok(PreparedAdapter::new(adapter.bytes(), adapter))
    }
}
