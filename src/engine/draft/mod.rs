//! Speculation: tokens that a sequence may continue with are drafted, and the model verifies several of them in one step.
//!
//! A decoding sequence brings its last token and the drafted ones as rows of one step. Then tokens are chosen one by one, each
//! from its own row with the request's own settings, for as long as the row before was that of the token just chosen. So the
//! tokens are those that would be chosen without drafts, and a draft decides only how many of them a step yields.
//!
//! Drafts come from the sequence itself ([`NgramIndex`]) or from a smaller model.

mod ngram;
mod pace;

use super::sequence_kv::{SequenceKv, SequencePlan};
use crate::prompt_embeds::EMBEDS_TOKEN;
use ngram::NgramIndex;
use pace::DraftPace;

/// Where the drafts of a sequence come from.
pub(super) enum DraftSource {
    /// Nothing is drafted.
    Off,
    /// What followed where the sequence's last tokens appeared before.
    Ngram(NgramIndex),
    /// The draft model, which keeps keys and values of its own.
    Model(Box<SequenceKv>),
}

impl DraftSource {
    /// Drafts of the draft model, under the adapters of `plan`.
    pub(super) fn model(plan: SequencePlan) -> Self {
        Self::Model(Box::new(SequenceKv::new(plan)))
    }

    /// Drafts from n-grams of up to `max_ngram` tokens.
    pub(super) fn ngram(max_ngram: usize) -> Self {
        Self::Ngram(NgramIndex::new(max_ngram))
    }
}

/// The drafts of a sequence.
pub(super) struct Drafts {
    pub source: DraftSource,
    pace: DraftPace,
    /// What is verified in this step.
    pub proposed: Vec<u32>,
    /// Number of those, from the first on, that were chosen so far.
    hits: usize,
    /// Number of tokens that were drafted and verified, and of those that were chosen.
    drafted: usize,
    accepted: usize,
}

/// Drafted tokens that were verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DraftCounts {
    /// Those that were chosen.
    pub accepted: usize,
    /// The others.
    pub rejected: usize,
}

impl Drafts {
    /// Drafts of at most `most` tokens a step.
    pub(super) fn new(source: DraftSource, most: usize) -> Self {
        let source = if most == 0 { DraftSource::Off } else { source };
        Self { source, pace: DraftPace::new(most), proposed: Vec::new(), hits: 0, drafted: 0, accepted: 0 }
    }

    /// No drafts.
    pub(super) fn off() -> Self {
        Self::new(DraftSource::Off, 0)
    }

    /// Whether something may be drafted in this step or a later one.
    pub(super) fn is_on(&self) -> bool {
        !matches!(self.source, DraftSource::Off)
    }

    /// Number of tokens to draft in the next step.
    pub(super) fn wanted(&self) -> usize {
        if self.is_on() { self.pace.wanted() } else { 0 }
    }

    /// Proposes up to `limit` tokens after `tokens`, if the sequence itself is the source; whether it is.
    pub(super) fn propose_from(&mut self, tokens: &[u32], limit: usize) -> bool {
        let DraftSource::Ngram(index) = &mut self.source else { return false };
        if limit > 0 {
            index.propose(tokens, limit, &mut self.proposed);
            // What cannot follow is no draft.
            let known = self.proposed.iter().take_while(|&&id| id != EMBEDS_TOKEN).count();
            self.proposed.truncate(known);
        }
        true
    }

    /// Begins to verify what was proposed.
    pub(super) fn begin_verification(&mut self) {
        self.hits = 0;
        self.drafted += self.proposed.len();
    }

    /// Compares a token that was chosen with the next proposed one.
    pub(super) fn verify(&mut self, chosen: u32) {
        if self.proposed.get(self.hits) == Some(&chosen) {
            self.hits += 1;
            self.accepted += 1;
        }
    }

    /// Number of proposed tokens that were chosen in this step so far.
    pub(super) fn hits(&self) -> usize {
        self.hits
    }

    /// Ends the verification and forgets what was proposed.
    pub(super) fn end_verification(&mut self) -> DraftCounts {
        let counts = DraftCounts { accepted: self.hits, rejected: self.proposed.len() - self.hits };
        self.pace.record(self.proposed.len(), self.hits);
        self.proposed.clear();
        counts
    }

    /// What was drafted so far.
    pub(super) fn counts(&self) -> DraftCounts {
        DraftCounts { accepted: self.accepted, rejected: self.drafted - self.accepted }
    }
}
