//! What an adapter changes at a site, and the one place where its scaling is computed.
//!
//! ```text
//! replaced (by the request's one adapter that does)   W, b, rows of W          a weight other than 1 has no meaning
//! dropped (KaSA)                                      the smallest singular values of W, whatever the weight
//! added (by every adapter, in the request's order)    f s (B (A x) + b_B)      f: the request's weight
//! rescaled (DoRA)                                     y = b + (m / n) (y - b) + (m / n) f s B (A x)
//!                                                     n_i = |W_i + f s (B A)_i|, the row's norm over the inputs
//! ```
//!
//! The norm for any weight f is a quadratic in f, `n_i^2 = |W_i|^2 + 2 f s W_i.(BA)_i + f^2 s^2 |(BA)_i|^2`, so that W is
//! needed once, when the adapter is uploaded.

use crate::sites::SiteId;
use crate::tensor::Tensor;

/// Everything an adapter changes at one site.
#[derive(Clone, Debug)]
pub struct SiteDelta<'a> {
    /// The site.
    pub site: SiteId,
    /// Which repeat of the site's layer it is for: 0, and more where an adapter's layers repeat (`layer_replication`).
    pub repeat: u32,
    /// The weight that stands in the base's place, of the base's shape; an embedding or the head may have more rows.
    pub weight: Option<Tensor<'a>>,
    /// The bias `[out_features]` that stands in the base's place.
    pub bias: Option<Tensor<'a>>,
    /// Rows of the weight that stand in the base's place: of an embedding's, or of the head's that is tied to it.
    pub rows: Option<ReplacedRows<'a>>,
    /// What is added.
    pub low_rank: Option<LowRank<'a>>,
    /// How many of the weight's smallest singular values it does without, whatever the request's weight (KaSA); never
    /// together with a magnitude, and fewer than there are.
    pub truncated: usize,
    /// What takes them out: plain factors to which no request's weight applies.
    pub removed: Option<LowRank<'a>>,
}

impl<'a> SiteDelta<'a> {
    /// Nothing yet, at a site.
    pub fn at(site: SiteId) -> Self {
        Self { site, repeat: 0, weight: None, bias: None, rows: None, low_rank: None, truncated: 0, removed: None }
    }

    /// Whether it replaces anything: then only a weight of 1 has a meaning.
    pub fn is_replacing(&self) -> bool {
        self.weight.is_some() || self.bias.is_some() || self.rows.is_some()
    }

    /// Every tensor it holds.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor<'a>> {
        let low_rank = self.low_rank.iter().flat_map(|low| {
            [Some(&low.a), Some(&low.b), low.b_bias.as_ref(), low.magnitude.as_ref()].into_iter().flatten()
        });
        let rows = self.rows.iter().map(|rows| &rows.values);
        let removed = self.removed.iter().flat_map(|removed| [&removed.a, &removed.b]);
        self.weight.iter().chain(&self.bias).chain(rows).chain(low_rank).chain(removed)
    }
}

/// Rows of a weight that are replaced.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplacedRows<'a> {
    /// Which rows, ascending and distinct.
    pub ids: Vec<u32>,
    /// Their new values `[ids, width]`.
    pub values: Tensor<'a>,
}

/// A low-rank delta.
///
/// At an embedding the input is a token as a one-hot vector: A has a column a token, and `B (A x)` is B times a column of A.
#[derive(Clone, Debug)]
pub struct LowRank<'a> {
    /// `A [rank, in_features]`.
    pub a: Tensor<'a>,
    /// `B [out_features, rank]`.
    pub b: Tensor<'a>,
    /// The adapter's own scaling at this site, see [`scaling`]; a request's weight multiplies it.
    pub scale: f32,
    /// B's bias `[out_features]`, scaled as B is (`lora_bias`); never together with a magnitude.
    pub b_bias: Option<Tensor<'a>>,
    /// DoRA's magnitude m `[out_features]`; neither scale nor weight touches it.
    pub magnitude: Option<Tensor<'a>>,
}

impl<'a> LowRank<'a> {
    /// Plain factors.
    pub fn new(a: impl Into<Tensor<'a>>, b: impl Into<Tensor<'a>>, scale: f32) -> Self {
        Self { a: a.into(), b: b.into(), scale, b_bias: None, magnitude: None }
    }

    /// Number of rows of A.
    pub fn rank(&self) -> usize {
        self.a.shape()[0]
    }
}

/// The scaling PEFT gives a module: `alpha / r`, or `alpha / sqrt(r)` with rank-stabilized LoRA.
///
/// Source: PEFT 0.21.2, `LoraLayer.update_layer`; `r` and `alpha` are the module's own, after both patterns.
pub fn scaling(alpha: f64, rank: usize, use_rslora: bool) -> f64 {
    let rank = rank as f64;
    alpha / if use_rslora { rank.sqrt() } else { rank }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_stabilised_scaling_divides_by_the_root() {
        assert_eq!(scaling(16.0, 8, false), 2.0);
        assert_eq!(scaling(16.0, 16, true), 4.0);
        assert_eq!(scaling(-3.0, 1, false), -3.0);
    }
}
