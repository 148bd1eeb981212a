//! The parts of a decoder's description, read from config.json as its family prescribes.

use super::description::{AttentionScores, Biases, Mlp, Multipliers, Norms};
use super::family::{BiasRule, EmbedRule, Family, LogitRule, QkNormRule, ScaleRule};
use super::fields::{Fields, in_range, invalid, unsupported};
use crate::backend::{Activation, QueryTemperature};
use crate::error::Result;

/// The norms of a decoder.
pub(super) fn norms(family: &Family, fields: &Fields<'_>) -> Result<Norms> {
    let rule = family.norms;
    let (name, default) = rule.eps;
    let given = fields.float(name, default)?;
    let eps = given as f32;
    // Without one, the norm of a row of zeros is not a number.
    if !(eps.is_finite() && eps > 0.0) {
        return Err(invalid(name).with_expected("a number above 0 that float32 has").with_found(given));
    }
    let qk = match rule.qk {
        QkNormRule::Never => None,
        QkNormRule::Always(scope) => Some(scope),
        QkNormRule::BySwitch(scope) => fields.nullable_flag("use_qk_norm")?.then_some(scope),
    };
    Ok(Norms { kind: rule.kind, eps, offset: rule.offset, has_bias: rule.has_bias, qk })
}

/// The MLP of a decoder.
pub(super) fn mlp(family: &Family, fields: &Fields<'_>) -> Result<Mlp> {
    let key = family.activation.key;
    let activation = match fields.get(key).map(|_| fields.text(key, "")).transpose()? {
        None => family.mlp.activation,
        Some("silu" | "swish") => Activation::Silu,
        Some("gelu") if family.activation.gelu_is_tanh => Activation::GeluTanh,
        Some("gelu") => Activation::Gelu,
        Some("gelu_pytorch_tanh" | "gelu_new") => Activation::GeluTanh,
        Some(other) => return Err(unsupported(format!("unsupported {key} '{other}'")).with_found(other)),
    };
    Ok(Mlp { activation, ..family.mlp })
}

/// What attention does with scores.
pub(super) fn scores(
    family: &Family,
    fields: &Fields<'_>,
    head_dim: usize,
    query_temperature: Option<QueryTemperature>,
) -> Result<AttentionScores> {
    let of_width = AttentionScores { query_temperature, ..AttentionScores::of_width(head_dim) };
    let scale = match family.scale {
        ScaleRule::HeadDim => of_width.scale,
        ScaleRule::QueryScalar(default) => {
            let name = "query_pre_attn_scalar";
            (in_range(name, fields.integer(name, default)?, 1 << 31)? as f64).powf(-0.5) as f32
        }
        ScaleRule::Multiplier => factor(fields, "attention_multiplier", 1.0)?,
    };
    let cap = match family.score_cap {
        None => None,
        Some(default) => cap(fields, "attn_logit_softcapping", Some(default))?,
    };
    Ok(AttentionScores { scale, cap, ..of_width })
}

/// The constant factors along the residual stream of that width. `is_wrapped` says whether a multimodal model is around the text
/// model.
pub(super) fn multipliers(
    family: &Family,
    fields: &Fields<'_>,
    hidden_size: usize,
    is_wrapped: bool,
) -> Result<Multipliers> {
    let mut multipliers = Multipliers::default();
    match family.embed {
        EmbedRule::One => {}
        EmbedRule::RootOfWidth => {
            multipliers.embed = (hidden_size as f64).sqrt() as f32;
            multipliers.is_embed_of_table = true;
        }
        EmbedRule::Multiplier => multipliers.embed = factor(fields, "embedding_multiplier", 1.0)?,
    }
    if family.has_residual_multiplier {
        multipliers.residual = factor(fields, "residual_multiplier", 1.0)?;
    }
    match family.logits {
        LogitRule::Nothing => {}
        LogitRule::Scaled(default) => multipliers.logit = fields.float("logit_scale", default)? as f32,
        LogitRule::Divided => {
            let name = "logits_scaling";
            multipliers.logit = (1.0 / fields.number(name, 1.0)?) as f32;
            if !multipliers.logit.is_finite() {
                return Err(invalid(name).with_expected("a number other than 0").with_found(0));
            }
        }
        LogitRule::Capped(default) => {
            // transformers' multimodal Gemma 3 reads no cap of its text model.
            multipliers.logit_cap = cap(fields, "final_logit_softcapping", default)?.filter(|_| !is_wrapped);
        }
    }
    Ok(multipliers)
}

/// Which linears have biases.
pub(super) fn biases(family: &Family, fields: &Fields<'_>) -> Result<Biases> {
    let has = |rule| match rule {
        BiasRule::Never => Ok(false),
        BiasRule::Always => Ok(true),
        BiasRule::Read(name, default) => fields.flag(name, default),
    };
    let rules = family.biases;
    Ok(Biases { qkv: has(rules.qkv)?, output: has(rules.output)?, mlp: has(rules.mlp)? })
}

/// A factor that f32 holds.
fn factor(fields: &Fields<'_>, name: &str, default: f64) -> Result<f32> {
    match fields.number(name, default)? as f32 {
        factor if factor.is_finite() => Ok(factor),
        factor => Err(invalid(name).with_expected("a number that float32 holds").with_found(factor)),
    }
}

/// The bound of a soft cap.
fn cap(fields: &Fields<'_>, name: &str, default: Option<f64>) -> Result<Option<f32>> {
    match fields.nullable_float(name, default)?.map(|cap| cap as f32) {
        Some(cap) if !(cap.is_finite() && cap > 0.0) => {
            Err(invalid(name).with_expected("a number above 0").with_found(cap))
        }
        cap => Ok(cap),
    }
}
