//! The rotation of queries and keys in each layer: `rope_parameters` of config.json, or the older `rope_scaling` and `rope_theta`.

use std::sync::Arc;

use super::family::{Family, RopeParametersRule};
use super::fields::Fields;
use super::rope_frequencies::Rotation;
use super::rope_parameters::RopeParameters;
use super::windows::{FULL, LayerAttention, SLIDING};
use crate::backend::{QueryTemperature, Rope};
use crate::error::{Error, ErrorCode, Result};

/// The rotations of a decoder, and how far they reach.
#[derive(Debug)]
pub(super) struct RotaryEmbeddings {
    /// That of each layer, if it has one.
    pub ropes: Vec<Option<Arc<Rope>>>,
    /// Longest sequence that they are made for, in positions.
    pub max_positions: usize,
    /// Those of long sequences, if they are others.
    pub long_ropes: Option<LongRopes>,
    /// Positions that no sequence may pass, because the frequencies would depend on its length.
    pub position_limit: Option<usize>,
    /// The base of the frequencies; of layers without a window, if they have another.
    pub theta: f64,
    /// What positions are divided by before anything else: the factor of linear scaling, of the same layers.
    pub linear_factor: f64,
    /// The temperature of queries.
    pub query_temperature: Option<QueryTemperature>,
}

/// The rotations of sequences that are longer than the model's original training (longrope): all positions of such a sequence are
/// rotated by them.
#[derive(Clone, Debug)]
pub struct LongRopes {
    /// Most positions of a sequence that is rotated as shorter ones are.
    pub original_positions: usize,
    /// That of each layer, if it has one.
    pub ropes: Vec<Option<Arc<Rope>>>,
}

/// What a user sets of the rotation in place of what config.json says. The default changes nothing. Where layers with a window have
/// a rotation of their own, that of the others is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RopeOverrides {
    /// The base of the frequencies, `rope_theta`.
    pub theta: Option<f64>,
    /// What positions are divided by (linear scaling), in place of the factor of `rope_type` "linear".
    pub scale: Option<f64>,
    /// NTK scaling: the base is multiplied by `alpha^(head_dim / (head_dim - 2))`.
    pub alpha: Option<f64>,
}

impl RopeOverrides {
    /// # Errors
    /// `request_invalid`: a number is not positive.
    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in [("rope theta", self.theta), ("rope scale", self.scale), ("rope alpha", self.alpha)] {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value > 0.0)) {
                return Err(Error::new(ErrorCode::RequestInvalid, format!("{name} is out of range"))
                    .with_expected("a number above 0")
                    .with_found(value));
            }
        }
        Ok(())
    }
}

/// A rotation with what a user replaced.
struct OverriddenRotation {
    rotation: Rotation,
    theta: f64,
    linear_factor: f64,
}

/// Reads the rotations of heads of width `head_dim`.
pub(super) fn rotary_embeddings(
    family: &Family,
    fields: &Fields<'_>,
    attention: &LayerAttention<'_>,
    head_dim: usize,
    positions: usize,
    overrides: &RopeOverrides,
) -> Result<RotaryEmbeddings> {
    let read = |kind| RopeParameters::read(family, fields, &attention.types, kind, head_dim, positions);
    let is_by_type = matches!(family.rotation.parameters, RopeParametersRule::ByLayerType { .. });
    // Of the layers that see farthest.
    let main_type = if is_by_type && !attention.types.contains(&FULL) { SLIDING } else { FULL };
    let mut parameters = read(main_type)?;
    let query_temperature =
        family.rotation.has_query_temperature.then(|| parameters.query_temperature()).transpose()?;
    let main = overridden(&mut parameters, overrides)?;
    let (mut max_positions, mut position_limit) = (main.rotation.length, main.rotation.position_limit);
    let layout = family.rotation.layout;
    let shared = |rope: Rope| Arc::new(Rope { layout, ..rope });
    let of_all_layers = |rope: Rope| vec![Some(shared(rope)); attention.is_rotated.len()];
    let mut ropes = of_all_layers(main.rotation.rope);
    let mut long_ropes = main
        .rotation
        .long
        .map(|(original_positions, rope)| LongRopes { original_positions, ropes: of_all_layers(rope) });
    if is_by_type {
        // As vLLM has it: such a model's length is what it says, whatever stretches one of its rotations.
        max_positions = positions as f64;
        if main_type == FULL && attention.types.contains(&SLIDING) {
            let local = read(SLIDING)?.rotation()?;
            // Only that of layers without a window may be another one in long sequences.
            let local_limit = local.long.map(|(original_positions, _)| original_positions);
            position_limit = position_limit.into_iter().chain(local.position_limit).chain(local_limit).min();
            let local = shared(local.rope);
            for ropes in tables(&mut ropes, &mut long_ropes) {
                let types = ropes.iter_mut().zip(&attention.types);
                types.filter(|(_, kind)| **kind == SLIDING).for_each(|(rope, _)| *rope = Some(Arc::clone(&local)));
            }
        }
    }
    for ropes in tables(&mut ropes, &mut long_ropes) {
        for (rope, is_rotated) in ropes.iter_mut().zip(&attention.is_rotated) {
            rope.take_if(|_| !is_rotated);
        }
    }
    let limit = position_limit.unwrap_or(usize::MAX).min(u32::MAX as usize).max(1);
    Ok(RotaryEmbeddings {
        ropes,
        long_ropes,
        // A float becomes an integer by saturation.
        max_positions: (max_positions as usize).clamp(1, limit),
        position_limit,
        theta: main.theta,
        linear_factor: main.linear_factor,
        query_temperature,
    })
}

/// The rotations by layer: of shorter sequences and, if they are others, of long ones.
fn tables<'a>(
    ropes: &'a mut Vec<Option<Arc<Rope>>>,
    long: &'a mut Option<LongRopes>,
) -> impl Iterator<Item = &'a mut Vec<Option<Arc<Rope>>>> {
    std::iter::once(ropes).chain(long.as_mut().map(|long| &mut long.ropes))
}

/// The rotation of parameters, some of which a user replaces.
fn overridden(parameters: &mut RopeParameters, overrides: &RopeOverrides) -> Result<OverriddenRotation> {
    let RopeOverrides { theta, scale, alpha } = *overrides;
    if theta.is_some() || alpha.is_some() {
        let width = parameters.head_dim as f64;
        let stretch = alpha.map_or(1.0, |alpha| alpha.powf(width / (width - 2.0)));
        let theta = theta.map_or_else(|| parameters.number("rope_theta"), Ok)? * stretch;
        parameters.set("rope_theta", theta);
    }
    let is_linear = parameters.kind()? == "linear";
    if let Some(scale) = scale.filter(|_| is_linear) {
        parameters.set("factor", scale);
    }
    let (theta, linear_factor) =
        (parameters.number("rope_theta")?, if is_linear { parameters.number("factor")? } else { 1.0 });
    let mut rotation = parameters.rotation()?;
    if let Some(scale) = scale.filter(|_| !is_linear) {
        let ropes = std::iter::once(&mut rotation.rope).chain(rotation.long.as_mut().map(|(_, rope)| rope));
        ropes.flat_map(|rope| &mut rope.inv_freq).for_each(|frequency| *frequency /= scale as f32);
        rotation.length *= scale;
    }
    Ok(OverriddenRotation { rotation, theta, linear_factor })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::family_table::FAMILIES;
    use super::*;

    /// The rotations of 16 channels and 64 positions that the members of config.json describe for two layers of a family.
    fn read_as(model_type: &str, types: &[&str], config: &Value) -> Result<RotaryEmbeddings> {
        let family = FAMILIES.iter().find(|family| family.model_type == model_type).expect("a family");
        let (windows, is_rotated) = (vec![None; 2], vec![true; 2]);
        let attention = LayerAttention { windows, types: types.to_vec(), is_rotated };
        rotary_embeddings(family, &Fields::of(config)?, &attention, 16, 64, &RopeOverrides::default())
    }

    fn read(config: Value) -> Result<RotaryEmbeddings> {
        read_as("llama", &[], &config)
    }

    fn first(rotary: RotaryEmbeddings) -> Rope {
        rotary.ropes[0].as_deref().expect("rotated").clone()
    }

    fn rope(parameters: Value) -> Rope {
        first(read(json!({"rope_parameters": parameters})).expect("readable"))
    }

    #[test]
    fn default_frequencies_fall_by_powers_of_theta() {
        let rope = rope(json!({}));
        assert_eq!(rope.inv_freq.len(), 8);
        assert_eq!(rope.inv_freq[0], 1.0);
        assert!((rope.inv_freq[4] - 0.01).abs() < 1e-6);
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let (plain, linear) = (rope(json!({})), rope(json!({"type": "linear", "factor": 4})));
        for (a, b) in plain.inv_freq.iter().zip(&linear.inv_freq) {
            assert_eq!(a / 4.0, *b);
        }
    }

    #[test]
    fn llama3_keeps_fast_channels_and_divides_slow_ones() {
        let parameters = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                                "original_max_position_embeddings": 64});
        let (plain, scaled) = (rope(json!({})), rope(parameters));
        assert_eq!(plain.inv_freq[0], scaled.inv_freq[0]);
        assert_eq!(plain.inv_freq[7] / 8.0, scaled.inv_freq[7]);
    }

    #[test]
    fn yarn_has_an_attention_factor() {
        let rope = rope(json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}));
        assert!((f64::from(rope.factor) - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-6);
    }

    #[test]
    fn a_scaled_context_is_as_long_as_vllm_derives_it() {
        let length = |parameters: Value| read(json!({"rope_parameters": parameters})).expect("readable").max_positions;
        assert_eq!(length(json!({"factor": 4})), 64);
        assert_eq!(length(json!({"rope_type": "linear", "factor": 2.5})), 160);
        assert_eq!(length(json!({"rope_type": "yarn", "factor": 4})), 256);
        assert_eq!(length(json!({"rope_type": "yarn", "factor": 8, "original_max_position_embeddings": 16})), 128);
        let llama3 = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                            "original_max_position_embeddings": 16});
        assert_eq!(length(llama3), 64);
        assert_eq!(length(json!({"rope_type": "linear", "factor": 1e30})), u32::MAX as usize);
        let dynamic = read(json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}})).expect("readable");
        assert_eq!((dynamic.max_positions, dynamic.position_limit), (64, Some(64)));
    }

    #[test]
    fn a_factor_that_stretches_nothing_is_refused_by_name() {
        let eight = vec![1.0; 8];
        for kind in ["linear", "dynamic", "proportional", "yarn", "llama3", "longrope"] {
            for factor in [json!(0), json!(0.0), json!(-4.0), json!(false)] {
                let parameters = json!({"rope_type": kind, "factor": factor, "low_freq_factor": 1, "high_freq_factor": 4,
                    "original_max_position_embeddings": 16, "short_factor": eight, "long_factor": eight});
                let error = read(json!({"rope_parameters": parameters})).expect_err(kind);
                assert_eq!(error.code(), ErrorCode::ModelConfigInvalid, "{kind}");
                assert!(error.to_string().contains("'factor'"), "{kind}: {error}");
                assert_eq!(error.expected(), Some("a number above 0"), "{kind}");
            }
        }
    }

    #[test]
    fn the_old_spelling_precedes_the_new_one_and_inner_members_precede_outer_ones() {
        let scaling = |config: Value| first(read(config).expect("readable")).inv_freq;
        let linear = |factor: f64, theta: f64| {
            scaling(json!({"rope_parameters": {"rope_type": "linear", "factor": factor, "rope_theta": theta}}))
        };
        let both = json!({
            "rope_scaling": {"type": "yarn", "rope_type": "linear", "factor": 2.0}, "rope_theta": 500.0,
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 300.0}
        });
        assert_eq!(scaling(both.clone()), linear(2.0, 500.0));
        for empty in [json!({}), Value::Null, json!(false)] {
            let mut other = both.clone();
            other["rope_scaling"] = empty;
            assert_eq!(scaling(other), linear(4.0, 300.0));
        }
        let outer = json!({
            "original_max_position_embeddings": 16, "rope_scaling": {"rope_type": "yarn", "factor": 4.0,
            "original_max_position_embeddings": 32}
        });
        assert_eq!(read(outer).expect("readable").max_positions, 64);
    }

    #[test]
    fn an_unknown_rope_type_is_refused_by_name() {
        let error = read(json!({"rope_scaling": {"rope_type": "spiral", "factor": 4.0}})).expect_err("refused");
        assert_eq!(error.code(), ErrorCode::ModelFeatureUnsupported);
        assert!(error.to_string().contains("spiral"));
    }

    #[test]
    fn longrope_has_other_divisors_in_longer_sequences() {
        let divisors = |first: f64| (0..8).map(|i| first + f64::from(i)).collect::<Vec<_>>();
        let config = |short: f64, long: f64| {
            json!({"original_max_position_embeddings": 16,
                   "rope_scaling": {"type": "longrope", "short_factor": divisors(short), "long_factor": divisors(long)}})
        };
        let rotary = read_as("phi3", &[], &config(1.0, 2.0)).expect("readable");
        assert_eq!((rotary.max_positions, rotary.position_limit), (64, None));
        let long = rotary.long_ropes.clone().expect("other divisors");
        assert_eq!((long.original_positions, long.ropes.len()), (16, 2));
        let (short, plain) = (first(rotary), rope(json!({})));
        let long = long.ropes[0].as_deref().expect("rotated").clone();
        for (divisor, rope) in [(1, short), (2, long)] {
            assert!((f64::from(rope.factor) - (1.0 + 4f64.ln() / 16f64.ln()).sqrt()).abs() < 1e-6);
            for (pair, (scaled, plain)) in rope.inv_freq.iter().zip(&plain.inv_freq).enumerate() {
                assert!((scaled * (divisor + pair) as f32 / plain - 1.0).abs() < 1e-6);
            }
        }
        let same = read_as("phi3", &[], &config(2.0, 2.0)).expect("readable");
        assert!(same.max_positions == 64 && same.long_ropes.is_none());
        for older in ["su", "yarn"] {
            let mut config = config(1.0, 2.0);
            config["rope_scaling"]["type"] = older.into();
            assert!(read_as("phi3", &[], &config).expect("readable").long_ropes.is_some(), "{older}");
        }
        let mut short = config(1.0, 2.0);
        short["rope_scaling"]["long_factor"] = json!([1.0, 2.0]);
        assert_eq!(read_as("phi3", &[], &short).expect_err("refused").code(), ErrorCode::ModelConfigInvalid);
        let linear = json!({"rope_scaling": {"type": "linear", "factor": 2.0}});
        assert_eq!(read_as("phi3", &[], &linear).expect_err("refused").code(), ErrorCode::ModelFeatureUnsupported);
    }

    #[test]
    fn a_part_of_a_head_is_rotated_where_the_model_can() {
        let pairs = |model_type, config: Value| {
            read_as(model_type, &[], &config).map(|rotary| first(rotary).inv_freq.len()).ok()
        };
        assert_eq!(pairs("glm", json!({})), Some(4));
        assert_eq!(pairs("glm4", json!({"partial_rotary_factor": null})), Some(8));
        assert_eq!(pairs("phi3", json!({"partial_rotary_factor": 0.75})), Some(6));
        assert_eq!(pairs("phi3", json!({"partial_rotary_factor": null})), None);
        let inside = json!({"partial_rotary_factor": 0.75, "rope_parameters": {"partial_rotary_factor": 0.25}});
        assert_eq!(pairs("glm", inside), Some(2));
        assert_eq!(pairs("glm", json!({"partial_rotary_factor": 1.5})), None);
        // Without scaling, other models ignore the member.
        assert_eq!(pairs("llama", json!({"partial_rotary_factor": 0.5})), Some(8));
    }

    #[test]
    fn each_type_of_layer_may_have_parameters_of_its_own() {
        let types = [SLIDING, FULL];
        let second = |model_type, config: &Value| {
            let rotary = read_as(model_type, &types, config).expect("readable");
            let frequency = |layer: usize| rotary.ropes[layer].as_ref().expect("rotated").inv_freq[4];
            (frequency(0), frequency(1), rotary.theta)
        };
        let root = |theta: f64| (1.0 / theta.sqrt()) as f32;
        let near = |(a, b, theta): (f32, f32, f64), (x, y, base): (f32, f32, f64)| {
            assert!((a / x - 1.0).abs() < 1e-5 && (b / y - 1.0).abs() < 1e-5 && theta == base, "{a} {b} {theta}");
        };
        near(second("gemma3_text", &json!({})), (root(1e4), root(1e6), 1e6));
        let old = json!({"rope_theta": 1e5, "rope_local_base_freq": 1e3,
                         "rope_scaling": {"rope_type": "linear", "factor": 8.0}});
        near(second("gemma3_text", &old), (root(1e3), root(1e5) / 8.0, 1e5));
        let new = json!({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4, "rope_theta": 1e5},
                                             "sliding_attention": {"rope_type": "default", "rope_theta": 1e2}}});
        near(second("gemma3_text", &new), (root(1e2), root(1e5) / 4.0, 1e5));
        near(second("olmo3", &json!({"rope_theta": 1e4})), (root(5e5), root(1e4), 1e4));
        let stretched = read_as("gemma3_text", &types, &old).expect("readable");
        assert_eq!((stretched.max_positions, stretched.linear_factor), (64, 8.0));
        let flat = json!({"rope_parameters": {"rope_type": "linear"}, "rope_scaling": {"factor": 2.0}});
        assert!(read_as("gemma3_text", &types, &flat).is_err());
        // A type of its own is nothing that other models know.
        assert!(read_as("qwen2", &types, &new).is_err());
    }

    #[test]
    fn the_temperature_of_queries_is_part_of_the_rope_parameters() {
        let temperature = |config: Value| read_as("ministral3", &[], &config).map(|rotary| rotary.query_temperature);
        let released = temperature(json!({})).expect("readable").expect("has one");
        assert_eq!((released.beta, released.positions), (0.1, 16384.0));
        let own = json!({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "llama_4_scaling_beta": 0.25,
                                             "original_max_position_embeddings": 8}});
        let own = temperature(own).expect("readable").expect("has one");
        assert_eq!((own.beta, own.positions), (0.25, 8.0));
        assert!(temperature(json!({"rope_parameters": {"rope_type": "default"}})).is_err());
        assert!(read(json!({})).expect("readable").query_temperature.is_none());
    }
}
