//! Embedding and head: their rows, and what a tie between them means for an adapter.
//!
//! A tied head keeps the base's weight whatever an adapter does to the embedding, with three exceptions: replaced rows of
//! single tokens, a replacement of the shared weight itself (`base_layer.weight`: a resized vocabulary, a trained embedding),
//! and everything if `ensure_weight_tying` is on (the file then usually holds the head's tensors too, which take precedence).

use crate::adapter::delta::{LowRank, ReplacedRows, SiteDelta};
use crate::adapter::keys::Part;
use crate::adapter::plan::checker::Checker;
use crate::adapter::plan::structured_factors::transposed;
use crate::adapter::unsupported::unsupported;
use crate::error::{Error, ErrorCode};
use crate::sites::SiteId;

impl<'a> Checker<'a, '_> {
    /// Extends what acts on the embedding to a tied head, and checks the rows of both.
    pub(super) fn tie_embeddings(&mut self, deltas: &mut Vec<SiteDelta<'a>>) {
        if let (true, Some(embedding), Some(head)) = (self.sites.is_head_tied, self.sites.embedding, self.sites.head) {
            self.share_weight(deltas, embedding, head);
            self.tie_head(deltas, embedding, head);
        }
        self.check_rows(deltas);
        self.check_invocation(deltas);
        self.check_embedding_variant(deltas);
    }

    /// A replaced weight replaces the shared one, unless embedding or head keeps its own (`modules_to_save`). The file may have
    /// it under either name.
    fn share_weight(&mut self, deltas: &mut Vec<SiteDelta<'a>>, embedding: SiteId, head: SiteId) {
        let sites = [embedding, head];
        let paths = sites.map(|site| self.path_in_file(site));
        if paths.iter().any(|path| self.config().is_saved(path)) {
            return;
        }
        let weight = |site| deltas.iter().find(|delta| delta.site == site).and_then(|delta| delta.weight.clone());
        let (other, weight) = match sites.map(weight) {
            [Some(weight), None] => (head, weight),
            [None, Some(weight)] => (embedding, weight),
            [Some(first), Some(second)] if first != second => {
                let what = format!("'{}' and '{}' share a weight, but the file has two", paths[0], paths[1]);
                self.problem(
                    Error::new(ErrorCode::AdapterTensorUnexpected, what)
                        .with_tensor(Part::BaseWeight.tensor_name(&paths[1]))
                        .with_expected("the same values for both")
                        .with_found("different values")
                        .with_hint("the adapter was made for a base whose head is not tied"),
                );
                return;
            }
            _ => return,
        };
        // A weight of its own was read and refused.
        if !self.replaced.insert((other, 0)) {
            return;
        }
        match deltas.iter_mut().find(|delta| delta.site == other) {
            Some(delta) => delta.weight = Some(weight),
            None => insert(deltas, SiteDelta { weight: Some(weight), ..SiteDelta::at(other) }),
        }
    }

    /// Gives the head those changes of the embedding that reach it.
    fn tie_head(&mut self, deltas: &mut Vec<SiteDelta<'a>>, embedding: SiteId, head: SiteId) {
        let Some(from) = deltas.iter().find(|delta| delta.site == embedding).cloned() else { return };
        let position = deltas.iter().position(|delta| delta.site == head);
        let mut to = position.map_or_else(|| SiteDelta::at(head), |at| deltas.remove(at));
        let path = &*self.path_in_file(head);
        let is_head_saved = self.config().is_saved(path);
        // With a resized vocabulary the shared rows are saved under the head's name too.
        if let (Some(rows), Some(copy), None) = (&from.rows, &to.rows, self.token_ids(path, false))
            && rows != copy
        {
            let what = format!("'{path}' shares the embedding's rows, but the file has two sets");
            let error = Error::new(ErrorCode::AdapterTensorUnexpected, what).with_tensor(Part::Rows.tensor_name(path));
            self.problem(error.with_expected("the same values for both").with_found("different values"));
        }
        if let Some(rows) = from.rows.filter(|_| to.rows.is_none() && !is_head_saved) {
            if to.low_rank.is_some() {
                let what = format!("'{path}' has factors, and is tied to the embedding's replaced rows");
                self.problem(unsupported(format!("{what}, which PEFT does not define")));
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

    /// The head's factors if the file only has the embedding's: B and A swapped and transposed.
    fn tied_factors(&mut self, path: &str, embedding: &LowRank<'a>) -> Option<LowRank<'a>> {
        if embedding.magnitude.is_some() {
            let what =
                format!("use_dora requires a magnitude of '{path}', which ensure_weight_tying ties to the embedding");
            self.problem(Error::new(ErrorCode::AdapterTensorMissing, what));
            return None;
        }
        let scale = self.scale(path, embedding.rank());
        let scale = self.keep(scale)??;
        let (a, b) = (self.keep(transposed(&embedding.b))?, self.keep(transposed(&embedding.a))?);
        Some(LowRank::new(a, b, scale))
    }

    /// Every token that the head can produce must have an embedding, and a replaced row must exist.
    fn check_rows(&mut self, deltas: &[SiteDelta<'a>]) {
        let (Some(embedding), Some(head)) = (self.sites.embedding, self.sites.head) else { return };
        let (Some(tokens), Some(choices)) = (self.rows_of(embedding, deltas), self.rows_of(head, deltas)) else {
            return;
        };
        if choices > tokens {
            let [embedding, head] = [embedding, head].map(|site| self.path_in_file(site));
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
            let what = "trainable_token_indices names a token that has no row in the tied head";
            let error = Error::new(ErrorCode::AdapterConfigInvalid, what);
            self.problem(error.with_expected(format!("ids below {choices}")).with_found(id));
        }
    }

    /// Rows of the embedding or head with the adapter; `None` if the adapter's own weight was refused.
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
        let invocation = &self.config().invocation;
        let Some(tokens) = self.rows_of(embedding, deltas) else { return };
        if let Some(id) = invocation.iter().find(|id| **id as usize >= tokens) {
            let what = "alora_invocation_tokens names a token outside the vocabulary";
            let error = Error::new(ErrorCode::AdapterConfigInvalid, what);
            self.problem(error.with_expected(format!("ids below {tokens}")).with_found(id));
        }
    }
}

impl Checker<'_, '_> {
    /// PEFT has factors on an embedding plain or with DoRA, in no other variant, and without a bias of B.
    fn check_embedding_variant(&mut self, deltas: &[SiteDelta<'_>]) {
        let at_embedding = |delta: &&SiteDelta<'_>| Some(delta.site) == self.sites.embedding;
        let has_factors = deltas.iter().find(at_embedding).is_some_and(|delta| delta.low_rank.is_some());
        let other = |variant: &&str| *variant != "use_dora" && !variant.contains("mica");
        let bias = self.config().lora_bias.then_some("lora_bias");
        for field in self.config().variant.filter(other).into_iter().chain(bias).filter(|_| has_factors) {
            self.problem(unsupported(format!("factors on an embedding cannot be combined with {field}, as in PEFT")));
        }
    }
}

/// Inserts a delta in the order of site and repeat.
fn insert<'a>(deltas: &mut Vec<SiteDelta<'a>>, delta: SiteDelta<'a>) {
    let at = deltas.partition_point(|other| (other.site, other.repeat) < (delta.site, delta.repeat));
    deltas.insert(at, delta);
}
