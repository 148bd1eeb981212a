//! The operations of a step on the device, and what they change.
//!
//! Lower files first: `norm`, `inputs` (what a kernel reads of a buffer), `embed`, `linear`, `attention`, `operations`.

mod attention;
mod embed;
mod inputs;
mod linear;
mod norm;
mod operations;

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
    row_flags: RowFlags,
    /// Frequencies of each rotation that was used so far.
    ropes: Vec<(Arc<Rope>, DeviceMemory)>,
}

/// Memory that operations need for themselves.
#[derive(Default)]
struct StepScratch {
    /// Products that are not kept in a buffer.
    projected: Scratch,
    /// `t = A x` of the last linear.
    shrunk: Scratch,
    queries: Scratch,
    /// Attention's partial sums, and its counters.
    partials: Scratch,
    arrivals: Scratch,
}

/// What kernels report of rows: `[2, capacity]` u32, which are 1 where something happened.
#[derive(Default)]
struct RowFlags {
    flags: Scratch,
    capacity: usize,
    /// Rows whose activations overflowed, read with the others and not yet taken.
    activations: Vec<u32>,
}

impl RowFlags {
    /// Zeros for that many rows.
    fn begin(&mut self, device: &Arc<Device>, rows: usize) -> Result<()> {
        if rows > self.capacity {
            self.capacity = 0;
            self.flags.reserve(device, 2 * rows * size_of::<u32>())?;
            self.capacity = rows;
        }
        self.activations.clear();
        self.flags.zero()
    }

    /// Rows of the largest step so far.
    fn capacity(&self) -> usize {
        self.capacity
    }

    /// Where kernels report keys and values beyond the type of their cache.
    fn kv_overflows(&mut self, device: &Arc<Device>) -> Result<u64> {
        self.flags.reserve(device, 2 * self.capacity * size_of::<u32>())
    }

    /// Where kernels report activations beyond the element type.
    fn activation_overflows(&mut self, device: &Arc<Device>) -> Result<u64> {
        Ok(self.kv_overflows(device)? + (self.capacity * size_of::<u32>()) as u64)
    }

    /// Rows whose keys or values overflowed. Those whose activations did are kept for [`RowFlags::take_activations`], so that
    /// the device is waited for once.
    fn take_kv(&mut self) -> Result<Vec<u32>> {
        let mut flags = vec![0u32; 2 * self.capacity];
        self.flags.download(bytemuck::cast_slice_mut(&mut flags))?;
        if flags.iter().any(|flag| *flag != 0) {
            self.flags.zero()?;
        }
        let (kv, activations) = flags.split_at(self.capacity);
        let set = |flags: &[u32]| -> Vec<u32> {
            (0..).zip(flags).filter(|(_, flag)| **flag != 0).map(|(row, _)| row).collect()
        };
        self.activations = set(activations);
        Ok(set(kv))
    }

    /// Rows whose activations had overflowed when [`RowFlags::take_kv`] was called.
    fn take_activations(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.activations)
    }
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
            row_flags: RowFlags::default(),
            ropes: Vec::new(),
        })
    }
}

fn unknown(what: &str) -> Error {
    Error::new(ErrorCode::Internal, format!("the step names {what} that the backend does not have"))
}
