//! What a request decides about its forward pass besides its tokens, and what identifies the keys and values it computes.
//!
//! Adapters and prompt embeds reach the forward pass only through a [`ForwardPlan`]. A page of the KV cache is identified by its
//! tokens and by all that the plan says about them, a [`PageComputation`]. Both directions are held by the compiler: a plan is taken apart
//! field by field, and the hash of a page is derived from all its fields, so nothing new can be left out.

use std::ops::Range;
use std::sync::Arc;

use crate::adapter::alora::{MixtureSpans, PageSpan};
use crate::prompt_embeds::SequenceEmbeds;

/// What a request decides about its forward pass besides its tokens.
#[derive(Clone, Debug)]
pub struct ForwardPlan {
    /// The base layer that each layer to run is; `None` runs the base's own layers.
    pub layer_map: Option<Arc<[u32]>>,
    /// Whether positions are rotated as those of long sequences; decided by the sequence's length.
    pub has_long_rope: bool,
    /// Which adapters act on which positions.
    pub spans: MixtureSpans,
    /// The positions that have vectors in place of tokens.
    pub embeds: Arc<SequenceEmbeds>,
}

/// What the keys and values of one page are computed from, besides those of the pages before it.
///
/// Pages of one model and one cache hold the same bits if these are equal, and equal for all pages before.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PageComputation<'a> {
    tokens: &'a [u32],
    layer_map: Option<&'a [u32]>,
    has_long_rope: bool,
    /// The adapters, from which of the page's tokens on.
    spans: Vec<PageSpan<'a>>,
    /// The vectors in place of the page's tokens: which token, and the hash of the vector.
    embeds: Vec<(usize, &'a [u8; 32])>,
}

impl ForwardPlan {
    /// What all rows of one forward pass have in common: the layer map, and which rotation.
    pub fn pass(&self) -> (&Option<Arc<[u32]>>, bool) {
        (&self.layer_map, self.has_long_rope)
    }

    /// What `tokens`, those at `first_position` and after, are computed from.
    pub fn page<'a>(&'a self, tokens: &'a [u32], first_position: usize) -> PageComputation<'a> {
        // No `..`: whatever decides the computation identifies the page.
        let Self { layer_map, has_long_rope, spans, embeds } = self;
        let positions: Range<usize> = first_position..first_position + tokens.len();
        PageComputation {
            tokens,
            layer_map: layer_map.as_deref(),
            has_long_rope: *has_long_rope,
            spans: spans.page(positions.clone()).collect(),
            embeds: embeds.hashes(positions).collect(),
        }
    }
}
