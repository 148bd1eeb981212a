//! The weighted adapters of a request, and which of them act at which of its tokens.
//!
//! Any number of deltas can be added up. Replacements cannot: two adapters of a mixture must not replace the same part, an
//! adapter that replaces something only takes a weight of 1, and a DoRA norm is valid only for the weight it was computed
//! from. An activated LoRA (aLoRA) adds its delta from its invocation on (`alora.rs`).

use std::sync::Arc;

use crate::adapter::alora::MixtureSpans;
use crate::adapter::batch::SlotId;
use crate::adapter::constraints::AdapterConstraints;
use crate::adapter::forward_plan::ForwardPlan;
use crate::adapter::pool::AdapterLease;
use crate::error::{Error, ErrorCode, Result};
use crate::sites::SiteTable;

/// Most adapters of a mixture, repetitions included.
pub const MAX_ADAPTERS: usize = 64;

/// The rank that an adapter of a mixture counts as at least: applying it costs something apart from its rank.
const MIN_RANK: usize = 16;

/// An ordered list of (adapter, weight) for one request; empty means the base model.
#[derive(Clone, Debug, Default)]
pub struct Mixture {
    parts: Vec<(AdapterLease, f32)>,
}

impl Mixture {
    /// Checks that the adapters can act together, at these weights.
    ///
    /// # Errors
    /// `adapter_weight_invalid`: a weight is not finite, or not 1 where the adapter replaces something.
    /// `adapter_mixture_invalid`: there are too many, two adapters replace the same part, one replaces a weight that another's
    /// DoRA norms were computed from, or their layer maps differ.
    pub fn new(parts: Vec<(AdapterLease, f32)>, sites: &SiteTable) -> Result<Self> {
        Self::check_length(parts.len())?;
        for (lease, weight) in &parts {
            check_weight(lease, *weight)?;
        }
        for (i, (one, _)) in parts.iter().enumerate() {
            for (other, _) in &parts[i + 1..] {
                check_pair(one, other, sites)?;
            }
        }
        Ok(Self { parts })
    }

    /// Checks the number of adapters of a mixture, before they are leased.
    ///
    /// # Errors
    /// `adapter_mixture_invalid`.
    pub fn check_length(adapters: usize) -> Result<()> {
        if adapters <= MAX_ADAPTERS {
            return Ok(());
        }
        Err(Error::new(ErrorCode::AdapterMixtureInvalid, "the mixture has too many adapters")
            .with_expected(format!("at most {MAX_ADAPTERS}"))
            .with_found(adapters)
            .with_hint("merge them into one adapter, for example with PEFT's add_weighted_adapter"))
    }

    fn constraints(&self) -> impl Iterator<Item = &AdapterConstraints> {
        self.parts.iter().map(|(lease, _)| &lease.summary().constraints)
    }

    /// Number of tokens that have an embedding; `base` is the model's.
    pub fn embedding_rows(&self, base: usize) -> usize {
        self.constraints().find_map(|constraints| constraints.embedding_rows).unwrap_or(base)
    }

    /// Number of tokens that have a logit; `base` is the model's.
    pub fn head_rows(&self, base: usize) -> usize {
        self.constraints().find_map(|constraints| constraints.head_rows).unwrap_or(base)
    }

    /// Checks that every token has an embedding; `base` is the model's number of embeddings.
    ///
    /// # Errors
    /// `token_out_of_range`.
    pub fn check_tokens<'a>(&self, tokens: impl IntoIterator<Item = &'a u32>, base: usize) -> Result<()> {
        let rows = self.embedding_rows(base);
        match tokens.into_iter().find(|&&id| id as usize >= rows) {
            None => Ok(()),
            Some(id) => Err(Error::new(ErrorCode::TokenOutOfRange, "a token id is outside the vocabulary")
                .with_expected(format!("0..{rows}"))
                .with_found(id)),
        }
    }

    /// The layer map: the base layer of each layer; `None` means the base's own layers.
    pub fn layers(&self) -> Option<&Arc<[u32]>> {
        self.constraints().find_map(|constraints| constraints.layers.as_ref())
    }

    /// The ranks of its adapters added up, a measure of what a row costs.
    pub fn rank_sum(&self) -> usize {
        self.parts.iter().map(|(lease, _)| lease.summary().max_rank.max(MIN_RANK)).fold(0, usize::saturating_add)
    }

    /// All adapters with their weights, as they act once every invocation has occurred.
    pub fn entries(&self) -> Vec<(SlotId, f32)> {
        self.parts.iter().map(|(lease, weight)| (lease.slot(), *weight)).collect()
    }

    /// Which adapters act at which positions of a sequence that begins with `prompt`.
    pub fn along(&self, prompt: &[u32]) -> MixtureSpans {
        MixtureSpans::new(&self.parts, prompt)
    }

    /// The adapters, in order.
    pub fn leases(&self) -> impl Iterator<Item = &AdapterLease> {
        self.parts.iter().map(|(lease, _)| lease)
    }

    /// What the adapters decide about the forward pass of a sequence that begins with `prompt`, all of which are tokens.
    pub fn forward_plan(&self, prompt: &[u32]) -> ForwardPlan {
        let (layer_map, spans) = (self.layers().cloned(), self.along(prompt));
        ForwardPlan { layer_map, has_long_rope: false, spans, embeds: Arc::default() }
    }

    /// The leases alone.
    pub fn into_leases(self) -> Vec<AdapterLease> {
        self.parts.into_iter().map(|(lease, _)| lease).collect()
    }
}

fn check_weight(lease: &AdapterLease, weight: f32) -> Result<()> {
    if !weight.is_finite() {
        let what = format!("the weight of '{}' is not finite", lease.label());
        return Err(Error::new(ErrorCode::AdapterWeightInvalid, what).with_found(weight));
    }
    if weight != 1.0 && lease.summary().constraints.is_replacing() {
        let what = format!("'{}' replaces weights, biases or embedding rows, which cannot be scaled", lease.label());
        return Err(Error::new(ErrorCode::AdapterWeightInvalid, what)
            .with_expected("a weight of 1")
            .with_found(weight));
    }
    Ok(())
}

fn check_pair(one: &AdapterLease, other: &AdapterLease, sites: &SiteTable) -> Result<()> {
    let (mine, theirs) = (&one.summary().constraints, &other.summary().constraints);
    let invalid = |what| Err(Error::new(ErrorCode::AdapterMixtureInvalid, what));
    if mine.layers != theirs.layers {
        return invalid(format!(
            "'{}' and '{}' have different layer maps (layer_replication)",
            one.label(),
            other.label()
        ));
    }
    match mine.conflict(theirs).or_else(|| theirs.conflict(mine)) {
        None => Ok(()),
        Some(site) => invalid(format!(
            "'{}' and '{}' cannot both act on '{}': at least one of them replaces the base there",
            one.label(),
            other.label(),
            sites.get(site).path
        )),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::adapter::plan::AdapterSummary;
    use crate::adapter::pool::{AdapterLimits, AdapterPool};
    use crate::sites::{Site, SiteId, SitePart};

    pub(crate) fn lease(pool: &AdapterPool, hash: &str, constraints: AdapterConstraints) -> AdapterLease {
        let summary = AdapterSummary {
            path: hash.into(),
            content_hash: hash.to_owned(),
            rank: 1,
            alpha: 1.0,
            use_rslora: false,
            target_modules: Vec::new(),
            sites: 1,
            max_rank: 1,
            bytes: 1,
            ignored_tensors: 0,
            constraints,
        };
        pool.insert_anonymous(pool.reserve(1).expect("room"), summary)
    }

    pub(crate) fn pool() -> AdapterPool {
        AdapterPool::new(AdapterLimits::default())
    }

    pub(crate) fn sites() -> SiteTable {
        let mut sites = SiteTable::default();
        sites.push(Site::linear("lm_head", 2, 3));
        sites
    }

    pub(crate) fn invoked_by(tokens: &[u32]) -> AdapterConstraints {
        AdapterConstraints { invocation: tokens.to_vec(), ..AdapterConstraints::default() }
    }

    pub(crate) fn replacing(part: SitePart) -> AdapterConstraints {
        AdapterConstraints { replaced: vec![(SiteId(0), part)], ..AdapterConstraints::default() }
    }

    #[test]
    fn an_activated_adapter_acts_from_the_last_invocation_on() {
        let pool = pool();
        let (plain, activated) =
            (lease(&pool, "p", AdapterConstraints::default()), lease(&pool, "i", invoked_by(&[7, 8])));
        let (p, i) = (plain.slot(), activated.slot());
        let mixture = Mixture::new(vec![(plain, 1.0), (activated, 0.5)], &sites()).expect("valid");
        let spans = mixture.along(&[7, 8, 1, 7, 8, 2]);
        assert_eq!(spans.at(2), [(p, 1.0)]);
        assert_eq!(spans.at(3), [(p, 1.0), (i, 0.5)]);
        assert_eq!(spans.at(1000), [(p, 1.0), (i, 0.5)]);
        for prompt in [&[7, 1, 8][..], &[7], &[]] {
            assert_eq!(mixture.along(prompt).at(5), [(p, 1.0)], "{prompt:?}");
        }
        assert_eq!(mixture.along(&[7, 8]).at(0).len(), 2);
    }

    #[test]
    fn replacements_of_an_activated_adapter_apply_everywhere() {
        let pool = pool();
        let one = lease(&pool, "i", AdapterConstraints { invocation: vec![7], ..replacing(SitePart::Bias) });
        let slot = one.slot();
        let spans = Mixture::new(vec![(one, 1.0)], &sites()).expect("valid").along(&[1, 7]);
        assert_eq!((spans.at(0), spans.at(1)), (&[(slot, 0.0)][..], &[(slot, 1.0)][..]));
    }

    #[test]
    fn positions_before_an_invocation_are_computed_as_by_the_base() {
        let pool = pool();
        let mixture = Mixture::new(vec![(lease(&pool, "i", invoked_by(&[7])), 0.5)], &sites()).expect("valid");
        let prompt = [0, 1, 2, 3, 4, 7, 6, 8, 9, 10, 11, 12];
        let (invoked, base) = (mixture.forward_plan(&prompt), Mixture::default().forward_plan(&prompt));
        let later = mixture.forward_plan(&[0, 1, 2, 3, 4, 5, 7]);
        assert_eq!(invoked.page(&prompt[..4], 0), base.page(&prompt[..4], 0));
        assert_eq!(invoked.page(&prompt[..5], 0), base.page(&prompt[..5], 0));
        assert_ne!(invoked.page(&prompt[4..8], 4), base.page(&prompt[4..8], 4));
        assert_ne!(invoked.page(&prompt[4..8], 4), later.page(&prompt[4..8], 4));
        assert_eq!(invoked.page(&prompt[8..], 8), later.page(&prompt[8..], 8));
    }

    #[test]
    fn an_adapter_with_a_layer_map_is_never_computed_as_by_the_base() {
        let pool = pool();
        let plan = |layers: &[u32]| {
            let constraints = AdapterConstraints { layers: Some(layers.into()), ..invoked_by(&[7]) };
            Mixture::new(vec![(lease(&pool, "i", constraints), 0.5)], &sites()).expect("valid").forward_plan(&[1, 2])
        };
        let (base, some, swapped) = (Mixture::default().forward_plan(&[1, 2]), plan(&[0]), plan(&[1, 0]));
        assert_ne!(some.page(&[1, 2], 0), base.page(&[1, 2], 0));
        assert_ne!(some.page(&[1, 2], 0), swapped.page(&[1, 2], 0));
        assert_eq!(some.page(&[1, 2], 0), plan(&[0]).page(&[1, 2], 0));
    }

    fn refused(parts: Vec<(AdapterConstraints, f32)>) -> Option<ErrorCode> {
        let pool = pool();
        let parts = parts.into_iter().map(|(constraints, weight)| (lease(&pool, "x", constraints), weight)).collect();
        Mixture::new(parts, &sites()).err().map(|error| error.code())
    }

    #[test]
    fn a_mixture_has_a_bounded_number_of_adapters() {
        let of = |adapters: usize| refused(vec![(AdapterConstraints::default(), 0.5); adapters]);
        assert_eq!((of(MAX_ADAPTERS), of(MAX_ADAPTERS + 1)), (None, Some(ErrorCode::AdapterMixtureInvalid)));
    }

    #[test]
    fn only_added_deltas_take_a_weight() {
        let plain = AdapterConstraints::default;
        assert_eq!(refused(vec![(plain(), -0.5), (replacing(SitePart::Bias), 1.0)]), None);
        for (constraints, weight) in [
            (plain(), f32::NAN),
            (plain(), f32::INFINITY),
            (replacing(SitePart::Weight), 0.5),
            (replacing(SitePart::Bias), 0.0),
        ] {
            assert_eq!(refused(vec![(constraints, weight)]), Some(ErrorCode::AdapterWeightInvalid));
        }
    }

    #[test]
    fn adapters_that_replace_the_same_part_do_not_mix() {
        let rows =
            |ids: &[u32]| AdapterConstraints { replaced_rows: vec![(SiteId(0), ids.to_vec())], ..Default::default() };
        let rescaling = || AdapterConstraints { rescaled: vec![SiteId(0)], ..Default::default() };
        let truncating = || AdapterConstraints { truncated: vec![SiteId(0)], ..Default::default() };
        let stacked = || AdapterConstraints { layers: Some([0, 0].into()), ..Default::default() };
        let (weight, bias) = (|| replacing(SitePart::Weight), || replacing(SitePart::Bias));
        let pair = |one: AdapterConstraints, other: AdapterConstraints| {
            let found = refused(vec![(one.clone(), 1.0), (other.clone(), 1.0)]);
            assert_eq!(found, refused(vec![(other, 1.0), (one, 1.0)]));
            found.is_none()
        };
        assert!(pair(weight(), bias()) && pair(rows(&[1, 3]), rows(&[2, 4])) && pair(stacked(), stacked()));
        assert!(pair(rescaling(), rescaling()) && pair(rescaling(), bias()));
        assert!(!pair(weight(), weight()) && !pair(bias(), bias()) && !pair(rows(&[1, 3]), rows(&[3])));
        assert!(!pair(weight(), rows(&[1])) && !pair(weight(), rescaling()) && !pair(rows(&[1]), rescaling()));
        assert!(pair(truncating(), bias()) && pair(truncating(), AdapterConstraints::default()));
        assert!(!pair(truncating(), truncating()) && !pair(truncating(), weight()));
        assert!(!pair(truncating(), rescaling()) && !pair(truncating(), rows(&[1])));
        assert!(!pair(stacked(), AdapterConstraints::default()));
    }
}
