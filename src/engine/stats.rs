//! Counters of an engine.

/// Counters and resident bytes of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct EngineStats {
    /// Packed weights.
    pub weights_bytes: usize,
    /// Resident adapters.
    pub adapters_bytes: usize,
    /// Adapter versions in slots, including those kept only by running requests.
    pub adapters_resident: usize,
    /// Leases held by requests.
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
}

/// The part of [`EngineStats`] that the scheduler knows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SchedulerStats {
    pub kv_pages_total: usize,
    pub kv_pages_free: usize,
    pub prefix_pages: usize,
    pub rows_running: usize,
    pub rows_waiting: usize,
    pub tokens_prompt: u64,
    pub tokens_generated: u64,
}
