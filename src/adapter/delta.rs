//! What an adapter changes at a site, and the one place where its scaling is computed.
//!
//! ```text
//! replaced (by at most one adapter of a request)      W, b, rows of W          only a request weight of 1 is defined
//! removed (KaSA)                                      the smallest singular values of W, at any request weight
//! added (by every adapter, in the request's order)    f s (B (A x) + b_B)      f: the request weight
//! rescaled (DoRA)                                     y = b + (m / n) (y - b) + (m / n) f s B (A x)
//!                                                     n_i = |W_i + f s (B A)_i|, the norm of output i over the inputs
//! ```
//!
//! `n_i^2 = |W_i|^2 + 2 f s W_i.(BA)_i + f^2 s^2 |(BA)_i|^2` is a quadratic in f, so W is needed only once, when the adapter
//! is prepared.

use crate::sites::SiteId;
use crate::tensor::Tensor;

/// Everything an adapter changes at one site.
#[derive(Clone, Debug)]
pub struct SiteDelta<'a> {
    /// The site.
    pub site: SiteId,
    /// Which repeat of the site's layer it is for: above 0 only with a layer map (`layer_replication`).
    pub repeat: u32,
    /// A weight that replaces the base's, of the same shape; an embedding or the head may have more rows.
    pub weight: Option<Tensor<'a>>,
    /// A bias `[out_features]` that replaces the base's.
    pub bias: Option<Tensor<'a>>,
    /// Rows that replace those of an embedding, or of the head.
    pub rows: Option<ReplacedRows<'a>>,
    /// A low-rank delta that is added.
    pub low_rank: Option<LowRank<'a>>,
    /// Plain factors that remove the weight's smallest singular values (KaSA), independent of the request weight. Never
    /// together with a magnitude, and of a rank below the number of values.
    pub removed: Option<LowRank<'a>>,
}

impl<'a> SiteDelta<'a> {
    /// An empty delta at a site.
    pub fn at(site: SiteId) -> Self {
        Self { site, repeat: 0, weight: None, bias: None, rows: None, low_rank: None, removed: None }
    }

    /// Whether it replaces anything: then only a request weight of 1 is defined.
    pub fn is_replacing(&self) -> bool {
        self.weight.is_some() || self.bias.is_some() || self.rows.is_some()
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        !self.is_replacing() && self.low_rank.is_none() && self.removed.is_none()
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

/// What an adapter changes at a site, as far as its files alone determine it.
#[derive(Debug)]
pub struct CheckedDelta<'a> {
    /// What the files hold. A replaced weight or bias may turn out to be a copy of the base's.
    pub delta: SiteDelta<'a>,
    /// What is still to be removed from the weight.
    pub truncation: Option<Truncation>,
}

/// The smallest singular values of a weight `[outputs, inputs]`, to be removed from it (KaSA).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncation {
    /// How many values.
    pub values: usize,
    /// Rows of the weight.
    pub outputs: usize,
    /// Columns of the weight.
    pub inputs: usize,
}

impl Truncation {
    /// Bytes of the factors that remove them.
    pub fn bytes(&self) -> usize {
        self.values * (self.outputs + self.inputs) * size_of::<f32>()
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
/// At an embedding the input is a one-hot vector: A has one column per token, and `B (A x)` is B times a column of A.
#[derive(Clone, Debug)]
pub struct LowRank<'a> {
    /// `A [rank, in_features]`.
    pub a: Tensor<'a>,
    /// `B [out_features, rank]`.
    pub b: Tensor<'a>,
    /// The adapter's own scaling at this site, see [`scaling`]; the request weight multiplies it.
    pub scale: f32,
    /// B's bias `[out_features]`, scaled like B (`lora_bias`); never together with a magnitude.
    pub b_bias: Option<Tensor<'a>>,
    /// DoRA's magnitude m `[out_features]`; neither the scale nor the request weight applies to it.
    pub magnitude: Option<Tensor<'a>>,
}

impl<'a> LowRank<'a> {
    /// Plain factors.
    pub fn new(a: impl Into<Tensor<'a>>, b: impl Into<Tensor<'a>>, scale: f32) -> Self {
        Self { a: a.into(), b: b.into(), scale, b_bias: None, magnitude: None }
    }

    /// The rank: the number of rows of A.
    pub fn rank(&self) -> usize {
        self.a.shape()[0]
    }
}

/// The scaling PEFT gives a module: `alpha / r`, or `alpha / sqrt(r)` with rank-stabilized LoRA.
///
/// `rank` and `alpha` are the module's own, after both patterns. Source: PEFT 0.21.2, `LoraLayer.update_layer`.
pub fn scaling(alpha: f64, rank: usize, use_rslora: bool) -> f64 {
    let rank = rank as f64;
    alpha / if use_rslora { rank.sqrt() } else { rank }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_stabilized_scaling_divides_by_the_root() {
        assert_eq!(scaling(16.0, 8, false), 2.0);
        assert_eq!(scaling(16.0, 16, true), 4.0);
        assert_eq!(scaling(-3.0, 1, false), -3.0);
    }
}
