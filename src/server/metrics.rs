//! What is counted.

use std::time::Duration;

use crate::engine::Usage;

/// Counters of a server.
#[derive(Debug, Default)]
pub struct Metrics;

impl Metrics {
    /// A request was refused because of the queue.
    pub fn rejected(&self) {}

    /// A request was accepted; `label` names its adapters.
    pub fn accepted(&self, _label: &str) {}

    /// A sample of a request has its first token.
    pub fn first_token(&self, _label: &str, _since_accepted: Duration) {}

    /// A sample of a request ended with these token counts; `generating` is the time since its first token.
    pub fn finished(&self, _label: &str, _usage: &Usage, _generating: Duration) {}

    /// A request failed, or its client went away.
    pub fn failed(&self, _label: &str) {}
}
