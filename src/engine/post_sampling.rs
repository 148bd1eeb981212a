//! Hooks: code of the caller that sees each chosen token and may replace it.

use std::fmt;
use std::sync::Arc;

use crate::error::Result;

/// A token that was chosen, before it becomes part of the text.
pub struct PostSampling<'a> {
    /// The token. A hook may replace it by any other of the vocabulary, also by one that the filters had cut off.
    pub token: u32,
    /// Its probability after penalties and filters.
    pub prob: f32,
    /// The most likely ids of that distribution, best first: as many as the request asks for, at least one.
    pub top_probs: &'a [(u32, f32)],
    /// The logits `[vocab]` that it was chosen from, before penalties.
    pub logits: &'a [f32],
}

type Hook = dyn Fn(&mut PostSampling<'_>) -> Result<()> + Send + Sync;

/// Called with each token of a request on the thread that computes the step, under the engine's lock: the engine cannot be
/// asked to compute from here. An error ends the request, and no other.
#[derive(Clone)]
pub struct PostSamplingHook(Arc<Hook>);

impl PostSamplingHook {
    /// A hook that calls `hook`.
    pub fn new(hook: impl Fn(&mut PostSampling<'_>) -> Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(hook))
    }

    pub(super) fn call(&self, chosen: &mut PostSampling<'_>) -> Result<()> {
        (self.0)(chosen)
    }
}

impl PartialEq for PostSamplingHook {
    /// Hooks are equal if they are the same object.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for PostSamplingHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PostSamplingHook")
    }
}
