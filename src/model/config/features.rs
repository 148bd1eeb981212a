//! What a decoder needs of a backend beyond what a Llama needs.

use super::DecoderConfig;
use crate::backend::{Activation, Feature, HeadNormScope, MlpShape, NormKind};

impl DecoderConfig {
    /// The features that its operations need; a backend without one of them cannot compute it.
    pub fn features(&self) -> impl Iterator<Item = Feature> {
        let Self { norms, mlp, scores, .. } = self;
        let needed = [
            (Feature::LayerNorm, norms.kind == NormKind::Layer),
            (Feature::NormBias, norms.has_bias),
            (Feature::WideHeadNorm, norms.qk.is_some_and(|scope| scope != HeadNormScope::Head)),
            (Feature::QueryTemperature, scores.query_temperature.is_some()),
            (Feature::PlainMlp, mlp.shape == MlpShape::Plain),
            (Feature::GeluTanh, mlp.activation == Activation::GeluTanh),
            (Feature::Gelu, mlp.activation == Activation::Gelu),
        ];
        needed.into_iter().filter(|(_, is_needed)| *is_needed).map(|(feature, _)| feature)
    }
}
