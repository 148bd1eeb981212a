//! What a step holds while it computes.

use crate::backend::Compute;
use crate::model::decoder::Decoder;

/// The part of a model that a step changes: at most one step holds it.
pub(super) struct Core {
    pub compute: Box<dyn Compute>,
    pub decoder: Decoder,
}
