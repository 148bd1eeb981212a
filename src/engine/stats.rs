//! Counters of an engine.

use crate::backend::BackendMemory;

/// Counters and resident bytes of an engine, those of a draft model included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct EngineStats {
    /// Packed weights.
    pub weights_bytes: usize,
    /// Resident adapters.
    pub adapters_bytes: usize,
    /// Adapter versions in slots, including those kept only by running requests.
    pub adapters_resident: usize,
    /// Leases: for each request, the number of adapters that it uses.
    pub leases: usize,
    /// KV caches.
    pub kv_bytes: usize,
    /// Pages of this engine's cache.
    pub kv_pages_total: usize,
    /// Pages that no request uses, including those that hold a reusable prefix.
    pub kv_pages_free: usize,
    /// Pages that hold a reusable prefix.
    pub prefix_pages: usize,
    /// Requests running.
    pub rows_running: usize,
    /// Requests waiting.
    pub rows_waiting: usize,
    /// Prompt tokens of all requests that were started.
    pub tokens_prompt: u64,
    /// Tokens generated.
    pub tokens_generated: u64,
    /// Forward passes of the model.
    pub steps: u64,
    /// Drafted tokens that were chosen: of the generated tokens, those that took no step of their own.
    pub accepted_draft_tokens: u64,
    /// Drafted tokens that were computed and not chosen.
    pub rejected_draft_tokens: u64,
    /// Of a device with memory of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceStats>,
}

/// The memory of the device that an engine runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DeviceStats {
    /// What the model has allocated beside weights, adapters and KV caches: activations, logits, tables.
    pub buffers_bytes: usize,
    /// What nobody uses, other processes included.
    pub free_bytes: usize,
    /// All it has.
    pub total_bytes: usize,
}

impl DeviceStats {
    /// From the counts of a backend.
    pub(super) fn of(memory: &BackendMemory) -> Option<Self> {
        let device = memory.device?;
        let counted = memory.weights_bytes + memory.adapters_bytes + memory.kv_bytes;
        Some(Self {
            // Adapters that are just being copied are not counted as adapters yet.
            buffers_bytes: device.allocated_bytes.saturating_sub(counted),
            free_bytes: device.free_bytes,
            total_bytes: device.total_bytes,
        })
    }
}

/// The part of [`EngineStats`] that the scheduler knows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SchedulerStats {
    pub kv_pages_total: usize,
    pub kv_pages_free: usize,
    pub prefix_pages: usize,
    pub rows_running: usize,
    pub rows_waiting: usize,
    pub steps: StepStats,
}

/// What the steps of a scheduler did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StepStats {
    pub tokens_prompt: u64,
    pub tokens_generated: u64,
    pub steps: u64,
    pub accepted_draft_tokens: u64,
    pub rejected_draft_tokens: u64,
}

impl StepStats {
    /// Adds what was counted elsewhere.
    pub(super) fn add(&mut self, other: Self) {
        self.tokens_prompt += other.tokens_prompt;
        self.tokens_generated += other.tokens_generated;
        self.steps += other.steps;
        self.accepted_draft_tokens += other.accepted_draft_tokens;
        self.rejected_draft_tokens += other.rejected_draft_tokens;
    }
}
