//! What kernels report of a step's rows: those that overflowed, and their largest logits.

use std::sync::Arc;

use crate::backend::cuda::buffers::Scratch;
use crate::backend::cuda::driver::Device;
use crate::error::Result;

/// Bytes of a row: two flags and a key.
const ROW_BYTES: usize = 2 * size_of::<u32>() + size_of::<u64>();

/// One memory, which a step zeroes once and reads once: `[2, capacity]` u32 flags, 1 where a key or value, or an activation,
/// overflowed; then `[capacity]` u64 keys of the largest logits, see
/// [`LargestKey`](crate::backend::cuda::ops::expand::LargestKey).
#[derive(Default)]
pub(super) struct RowReports {
    memory: Scratch,
    capacity: usize,
    /// Whether a kernel writes keys in this step.
    has_keys: bool,
    /// Whether each row of the last head is greedy, where a kernel writes their keys; else empty.
    is_greedy: Vec<bool>,
    /// What was read with the overflows of keys and values and is not yet taken: rows whose activations overflowed, and keys.
    activations: Vec<u32>,
    keys: Vec<u64>,
}

impl RowReports {
    /// Zeros for that many rows.
    ///
    /// # Errors
    /// `memory_exhausted`; the device failed.
    pub(super) fn begin(&mut self, device: &Arc<Device>, rows: usize) -> Result<()> {
        if rows > self.capacity {
            self.capacity = 0;
            self.memory.reserve(device, rows * ROW_BYTES)?;
            self.capacity = rows;
        }
        self.has_keys = false;
        self.is_greedy.clear();
        self.activations.clear();
        self.keys.clear();
        self.memory.zero()
    }

    /// Rows of the largest step so far.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Where kernels report keys and values beyond the type of their cache.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub(super) fn kv_overflows(&mut self, device: &Arc<Device>) -> Result<u64> {
        self.memory.reserve(device, self.capacity * ROW_BYTES)
    }

    /// Where kernels report activations beyond the element type.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub(super) fn activation_overflows(&mut self, device: &Arc<Device>) -> Result<u64> {
        Ok(self.kv_overflows(device)? + (self.capacity * size_of::<u32>()) as u64)
    }

    /// Where a kernel reports the largest logits of a head's rows, of which some are greedy. 0 if none are, if there is no room, or
    /// a kernel has reported some in this step already: then all logits are downloaded.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub(super) fn largest_logits(&mut self, device: &Arc<Device>, is_greedy: &[bool]) -> Result<u64> {
        self.is_greedy.clear();
        if self.has_keys || is_greedy.len() > self.capacity || !is_greedy.contains(&true) {
            return Ok(0);
        }
        self.has_keys = true;
        self.is_greedy.extend_from_slice(is_greedy);
        Ok(self.kv_overflows(device)? + (2 * self.capacity * size_of::<u32>()) as u64)
    }

    /// Whether a row of the last head has its largest logit reported, so that nobody needs the others.
    pub(super) fn is_greedy(&self, row: usize) -> bool {
        self.is_greedy.get(row).copied().unwrap_or(false)
    }

    /// Rows whose keys or values overflowed. All else that was reported is kept for [`RowReports::take_activations`] and
    /// [`RowReports::take_keys`], so that the device is waited for once.
    ///
    /// # Errors
    /// The device failed.
    pub(super) fn take_kv(&mut self) -> Result<Vec<u32>> {
        // Two flags are as long as a key.
        let mut reports = vec![0u64; self.capacity + self.is_greedy.len()];
        self.memory.download(bytemuck::cast_slice_mut(&mut reports))?;
        self.keys = reports.split_off(self.capacity);
        if reports.iter().any(|flags| *flags != 0) {
            self.memory.zero()?;
        }
        let (kv, activations) = bytemuck::cast_slice(&reports).split_at(self.capacity);
        let set = |flags: &[u32]| -> Vec<u32> {
            (0..).zip(flags).filter(|(_, flag)| **flag != 0).map(|(row, _)| row).collect()
        };
        self.activations = set(activations);
        Ok(set(kv))
    }

    /// Rows whose activations had overflowed when [`RowReports::take_kv`] was called.
    pub(super) fn take_activations(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.activations)
    }

    /// The key of each row of the last head when [`RowReports::take_kv`] was called, `None` of one that is not greedy; empty if none
    /// is.
    pub(super) fn take_keys(&mut self) -> Vec<Option<u64>> {
        let keys = std::mem::take(&mut self.keys).into_iter();
        keys.zip(&self.is_greedy).map(|(key, is_greedy)| is_greedy.then_some(key)).collect()
    }
}
