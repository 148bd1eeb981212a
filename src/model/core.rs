//! What a step holds while it computes.

use crate::backend::{Compute, KvId};
use crate::model::decoder::Decoder;

/// The part of a model that a step changes: at most one step holds it.
pub(super) struct Core {
    pub compute: Box<dyn Compute>,
    pub decoder: Decoder,
    /// The caches of the running step; kept, so that a step allocates nothing for them.
    pub kv_ids: Vec<KvId>,
}
