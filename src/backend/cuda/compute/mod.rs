//! The operations of a step on the device, and what they change.
//!
//! Lower files first: `norm`, `inputs` (what a kernel reads of a buffer), `embed`, `linear`, `head`, `attention`, `operations`.

mod attention;
mod embed;
mod head;
mod inputs;
mod linear;
mod norm;
mod operations;
mod row_reports;

use std::sync::Arc;

use super::adapter::Adapter;
use super::buffers::{Buffer, Scratch};
use super::driver::{Device, DeviceMemory};
use super::kernels::Kernels;
use super::kv_cache::KvCache;
use super::step::Step;
use super::weights::BaseWeights;
use crate::backend::slots::Slots;
use crate::backend::{MemoryUse, Rope};
use crate::error::{Error, ErrorCode, Result};
use row_reports::RowReports;

/// Everything that a step changes, beside the weights it reads.
pub(super) struct CudaCompute {
    device: Arc<Device>,
    weights: Arc<BaseWeights>,
    kernels: Kernels,
    memory: Arc<MemoryUse>,
    buffers: Vec<Buffer>,
    /// The one buffer that may hold products to be expanded with `t = A x` of the scratch.
    pending: Option<usize>,
    kvs: Vec<Option<KvCache>>,
    adapters: Slots<Adapter>,
    step: Step,
    scratch: StepScratch,
    row_reports: RowReports,
    /// Logits that the last head left of each row in the scratch.
    head_columns: usize,
    /// Frequencies of each rotation that was used so far.
    ropes: Vec<(Arc<Rope>, DeviceMemory)>,
}

/// Memory that operations need for themselves.
#[derive(Default)]
struct StepScratch {
    /// Products that are not kept in a buffer, and logits.
    projected: Scratch,
    /// `t = A x` of the last linear.
    shrunk: Scratch,
    queries: Scratch,
    /// Attention's partial sums, and its counters.
    partials: Scratch,
    arrivals: Scratch,
}

impl CudaCompute {
    /// Over these weights.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub(super) fn new(weights: Arc<BaseWeights>, kernels: Kernels, memory: Arc<MemoryUse>) -> Result<Self> {
        let device = Arc::clone(&weights.device);
        Ok(Self {
            step: Step::new(&device)?,
            device,
            weights,
            kernels,
            adapters: Slots::new(Arc::clone(&memory)),
            memory,
            buffers: Vec::new(),
            pending: None,
            kvs: Vec::new(),
            scratch: StepScratch::default(),
            row_reports: RowReports::default(),
            head_columns: 0,
            ropes: Vec::new(),
        })
    }
}

fn unknown(what: &str) -> Error {
    Error::new(ErrorCode::Internal, format!("the step names {what} that the backend does not have"))
}
