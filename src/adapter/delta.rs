//! Kinds of delta an adapter can hold at a site, and the one place where its scaling is computed.

use crate::sites::SiteId;
use crate::tensor::TensorView;

/// What an adapter adds at one site. Later kinds (DoRA magnitudes, biases, replaced weights) are further variants.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Delta<'a> {
    /// `y += weight * scale * B (A x)`.
    LowRank(LowRank<'a>),
}

/// The factors of a low-rank delta, borrowed from the adapter's file.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// `A [rank, in_features]`.
    pub a: TensorView<'a>,
    /// `B [out_features, rank]`.
    pub b: TensorView<'a>,
    /// The adapter's own scaling at this site, see [`scaling`]; a request's weight multiplies it.
    pub scale: f32,
}

impl LowRank<'_> {
    /// Number of rows of A.
    pub fn rank(&self) -> usize {
        self.a.shape()[0]
    }
}

/// A delta and where it acts.
#[derive(Clone, Copy, Debug)]
pub struct SiteDelta<'a> {
    /// The site.
    pub site: SiteId,
    /// What is added there.
    pub delta: Delta<'a>,
}

/// The scaling PEFT gives a module: `alpha / r`, or `alpha / sqrt(r)` with rank-stabilised LoRA.
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
