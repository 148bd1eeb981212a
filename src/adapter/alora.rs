//! Where along a sequence each adapter of a mixture acts: activated LoRA (aLoRA).
//!
//! An aLoRA adapter adds its delta from its invocation in the prompt on; the tokens before it are computed, and cached, as
//! without the adapter:
//!
//! ```text
//! prompt          t0 t1 t2 [invocation] t5 t6 …       mixture {a: 1, activated: 0.5}
//! spans           a         a, activated * 0.5        MixtureSpans::at(2), at(3)
//! ```

use std::ops::Range;

use crate::adapter::batch::SlotId;
use crate::adapter::pool::AdapterLease;

/// A mixture along the positions of one sequence.
#[derive(Clone, Debug)]
pub struct MixtureSpans {
    /// Ascending by first position, beginning at 0.
    spans: Vec<Span>,
}

/// The adapters that act from a position on, up to the next span.
#[derive(Clone, Debug)]
struct Span {
    first: usize,
    entries: Vec<(SlotId, f32)>,
    /// What identifies each entry, in whatever slot the adapter is.
    acting: Vec<ActingAdapter>,
}

/// The adapters that act on the tokens of a page from `first` on, counted from the page's first token.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PageSpan<'a> {
    first: usize,
    acting: &'a [ActingAdapter],
}

/// An adapter and its weight, by what decides the numbers it adds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ActingAdapter {
    content_hash: String,
    /// The bits of the request's weight.
    weight: u32,
}

impl MixtureSpans {
    /// The spans of the weighted adapters `parts` along a sequence that begins with `prompt`.
    pub(super) fn new(parts: &[(AdapterLease, f32)], prompt: &[u32]) -> Self {
        let starts: Vec<Option<usize>> =
            parts.iter().map(|(lease, _)| start_of(&lease.summary().constraints.invocation, prompt)).collect();
        let mut borders: Vec<usize> = starts.iter().copied().flatten().chain([0]).collect();
        borders.sort_unstable();
        borders.dedup();
        let span = |first: usize| {
            let acting = parts.iter().zip(&starts).filter_map(|((lease, weight), start)| {
                let is_invoked = start.is_some_and(|start| start <= first);
                // Replacements apply everywhere; only the added delta waits for the invocation.
                let weight = match is_invoked {
                    true => *weight,
                    false if lease.summary().constraints.is_replacing() => 0.0,
                    false => return None,
                };
                Some((lease, weight))
            });
            let (entries, acting) = acting
                .map(|(lease, weight)| {
                    let content_hash = lease.content_hash().to_owned();
                    ((lease.slot(), weight), ActingAdapter { content_hash, weight: weight.to_bits() })
                })
                .unzip();
            Span { first, entries, acting }
        };
        Self { spans: borders.into_iter().map(span).collect() }
    }

    /// The adapters that act on the row at a position, with their weights, in the order of the request.
    pub fn at(&self, position: usize) -> &[(SlotId, f32)] {
        let after = self.spans.partition_point(|span| span.first <= position);
        self.spans[..after].last().map_or(&[], |span| &span.entries)
    }

    /// The same for consecutive positions.
    pub fn over(&self, positions: Range<usize>) -> impl Iterator<Item = &[(SlotId, f32)]> {
        positions.map(|position| self.at(position))
    }

    /// What the spans decide about the computation of a page at these positions.
    pub(super) fn page(&self, positions: Range<usize>) -> impl Iterator<Item = PageSpan<'_>> {
        let first = self.spans.partition_point(|span| span.first <= positions.start).saturating_sub(1);
        let last = self.spans.partition_point(|span| span.first < positions.end);
        self.spans[first..last.max(first)].iter().map(move |Span { first, entries: _, acting }| PageSpan {
            first: first.saturating_sub(positions.start),
            acting,
        })
    }
}

/// Where an adapter begins to act: at the last occurrence of its invocation in the prompt, or at 0 without an invocation.
///
/// Source: PEFT 0.21.2, `calculate_alora_offsets`: the last occurrence counts; without one the base is computed.
fn start_of(invocation: &[u32], prompt: &[u32]) -> Option<usize> {
    match invocation.len() {
        0 => Some(0),
        length => prompt.windows(length).rposition(|window| window == invocation),
    }
}
