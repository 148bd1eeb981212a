//! The two ends of the model: embedding and head, their rows, and what a tie between them means.
//!
//! A head tied to the embedding keeps the base's weight whatever an adapter does to the embedding. Three things reach it:
//! rows of single tokens, a weight in the place of the one that both share (`base_layer.weight`: a vocabulary that was
//! resized, an embedding that was trained), and everything if `ensure_weight_tying` says so (the file then usually holds the
//! head's tensors, which count as they are).

use crate::adapter::delta::{LowRank, ReplacedRows, SiteDelta};
use crate::adapter::features::unsupported;
use crate::adapter::keys::Part;
use crate::adapter::plan::Planner;
use crate::adapter::plan::expand::transposed;
use crate::adapter::plan::promises::is_saved;
use crate::error::{Error, ErrorCode};
use crate::sites::SiteId;

impl<'a> Planner<'a, '_> {
    /// Lets what acts on the embedding reach a tied head, and checks the rows of both.
    pub(super) fn tie_ends(&mut self, deltas: &mut Vec<SiteDelta<'a>>) {
        if let (true, Some(embedding), Some(head)) = (self.sites.is_head_tied, self.sites.embedding, self.sites.head) {
            self.share_weight(deltas, embedding, head);
            self.tie(deltas, embedding, head);
        }
        self.check_rows(deltas);
        self.check_invocation(deltas);
    }

    /// A weight that no end keeps for itself (`modules_to_save`) is written over the one that both share, by whose name the
    /// file may have it.
    fn share_weight(&mut self, deltas: &mut Vec<SiteDelta<'a>>, embedding: SiteId, head: SiteId) {
        let ends = [embedding, head];
        let paths = ends.map(|site| self.sites.get(site).path.as_str());
        if paths.iter().any(|path| is_saved(&self.files.config.modules_to_save, path)) {
            return;
        }
        let weight = |site| deltas.iter().find(|delta| delta.site == site).and_then(|delta| delta.weight.clone());
        let (other, weight) = match ends.map(weight) {
            [Some(weight), None] => (head, weight),
            [None, Some(weight)] => (embedding, weight),
            [Some(first), Some(second)] if first != second => {
                let what = format!("'{}' and '{}' share a weight, of which the file has two", paths[0], paths[1]);
                self.problem(
                    Error::new(ErrorCode::AdapterTensorUnexpected, what)
                        .with_tensor(Part::BaseWeight.tensor_name(paths[1]))
                        .with_expected("the same values for both")
                        .with_found("others")
                        .with_hint("the adapter was made for a base whose head is not tied"),
                );
                return;
            }
            _ => return,
        };
        // What was read and found wrong stays so.
        if !self.replaced.insert((other, 0)) {
            return;
        }
        match deltas.iter_mut().find(|delta| delta.site == other) {
            Some(delta) => delta.weight = Some(weight),
            None => insert(deltas, SiteDelta { weight: Some(weight), ..SiteDelta::at(other) }),
        }
    }

    fn tie(&mut self, deltas: &mut Vec<SiteDelta<'a>>, embedding: SiteId, head: SiteId) {
        let Some(from) = deltas.iter().find(|delta| delta.site == embedding).cloned() else { return };
        let position = deltas.iter().position(|delta| delta.site == head);
        let mut to = position.map_or_else(|| SiteDelta::at(head), |at| deltas.remove(at));
        let path = &self.sites.get(head).path;
        let is_head_saved = is_saved(&self.files.config.modules_to_save, path);
        // A resized vocabulary is saved with the shared rows under the head's name too.
        if let (Some(rows), Some(copy), None) = (&from.rows, &to.rows, self.token_ids(path, false))
            && rows != copy
        {
            let what = format!("'{path}' shares the embedding's rows, of which the file has two");
            let error = Error::new(ErrorCode::AdapterTensorUnexpected, what).with_tensor(Part::Rows.tensor_name(path));
            self.problem(error.with_expected("the same values for both").with_found("others"));
        }
        if let Some(rows) = from.rows.filter(|_| to.rows.is_none() && !is_head_saved) {
            if to.low_rank.is_some() {
                let what = format!("'{path}' has factors, and the embedding's replaced rows by the tie");
                self.problem(unsupported(format!("{what}, which PEFT has no meaning for")));
            }
            to.rows = Some(rows);
        }
        if self.config().ensure_weight_tying {
            to.weight = to.weight.or(from.weight);
            if let (None, Some(low)) = (&to.low_rank, &from.low_rank) {
                to.low_rank = self.tied_factors(path, low);
            }
        }
        if to.is_replacing() || to.low_rank.is_some() {
            insert(deltas, to);
        }
    }

    /// The head's factors where the file has the embedding's alone: each the other's transpose.
    fn tied_factors(&mut self, path: &str, embedding: &LowRank<'a>) -> Option<LowRank<'a>> {
        if embedding.magnitude.is_some() {
            let what = format!("use_dora promises a magnitude of '{path}', which ensure_weight_tying ties");
            self.problem(Error::new(ErrorCode::AdapterTensorMissing, what));
            return None;
        }
        let scale = self.scale(path, embedding.rank());
        let scale = self.keep(scale)??;
        Some(LowRank::new(transposed(&embedding.b), transposed(&embedding.a), scale))
    }

    /// A token that the head can choose must have an embedding, and a row that is replaced must be there.
    fn check_rows(&mut self, deltas: &[SiteDelta<'a>]) {
        let (Some(embedding), Some(head)) = (self.sites.embedding, self.sites.head) else { return };
        let (Some(tokens), Some(choices)) = (self.rows_of(embedding, deltas), self.rows_of(head, deltas)) else {
            return;
        };
        if choices > tokens {
            let (embedding, head) = (&self.sites.get(embedding).path, &self.sites.get(head).path);
            let what = format!("'{head}' has {choices} rows and '{embedding}' {tokens}: some tokens have no embedding");
            self.problem(
                Error::new(ErrorCode::AdapterShapeMismatch, what)
                    .with_expected(format!("at most {tokens} rows of '{head}'"))
                    .with_found(choices)
                    .with_hint("save both with the adapter: save_embedding_layers=True"),
            );
        }
        let too_high = |rows: &ReplacedRows<'_>| rows.ids.last().copied().filter(|id| *id as usize >= choices);
        let tied = deltas.iter().find(|delta| delta.site == head).and_then(|delta| delta.rows.as_ref());
        if let Some(id) = tied.and_then(too_high) {
            let what = "trainable_token_indices names a token that the tied head has no row for";
            let error = Error::new(ErrorCode::AdapterConfigInvalid, what);
            self.problem(error.with_expected(format!("ids below {choices}")).with_found(id));
        }
    }

    /// Rows of an end's weight under the adapter; `None` if the file has one that was told to be wrong.
    fn rows_of(&self, site: SiteId, deltas: &[SiteDelta<'a>]) -> Option<usize> {
        let weight = deltas.iter().find(|delta| delta.site == site).and_then(|delta| delta.weight.as_ref());
        match weight {
            Some(weight) => Some(weight.shape()[0]),
            None if self.replaced.contains(&(site, 0)) => None,
            None => Some(self.sites.get(site).weight_shape()[0]),
        }
    }

    fn check_invocation(&mut self, deltas: &[SiteDelta<'a>]) {
        let Some(embedding) = self.sites.embedding else { return };
        let invocation = &self.files.config.invocation;
        let delta = deltas.iter().find(|delta| delta.site == embedding);
        let Some(tokens) = self.rows_of(embedding, deltas) else { return };
        if let Some(id) = invocation.iter().find(|id| **id as usize >= tokens) {
            let what = "alora_invocation_tokens names a token outside the vocabulary";
            let error = Error::new(ErrorCode::AdapterConfigInvalid, what);
            self.problem(error.with_expected(format!("ids below {tokens}")).with_found(id));
        }
        if !invocation.is_empty() && delta.is_some_and(|delta| delta.low_rank.is_some()) {
            let what = "factors on an embedding can't wait for an invocation (alora_invocation_tokens)";
            self.problem(unsupported(what));
        }
    }
}

/// Adds a delta, whose site and repeat have none yet, at its place.
fn insert<'a>(deltas: &mut Vec<SiteDelta<'a>>, delta: SiteDelta<'a>) {
    let at = deltas.partition_point(|other| (other.site, other.repeat) < (delta.site, delta.repeat));
    deltas.insert(at, delta);
}
