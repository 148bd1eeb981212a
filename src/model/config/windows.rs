//! Which layers attend to the last positions only, and which rotate queries and keys.

use super::family::{Family, RotatedLayers, WindowRule};
use super::fields::{Fields, in_range, invalid, unsupported};
use crate::error::{Error, Result};

/// The type of a layer with an attention window.
pub(super) const SLIDING: &str = "sliding_attention";
/// The type of a layer that sees all before it.
pub(super) const FULL: &str = "full_attention";

/// What the config says about the layers' attention.
pub(super) struct LayerAttention<'a> {
    /// The window of each layer, in positions; `None` is full causal attention.
    pub windows: Vec<Option<usize>>,
    /// The type of each layer as transformers sees it, for which `rope_parameters` may have members; none where a family has no
    /// types of layers.
    pub types: Vec<&'a str>,
    /// Which layers rotate queries and keys.
    pub is_rotated: Vec<bool>,
}

/// Reads the attention of each of `layers` layers.
pub(super) fn layer_attention<'a>(family: &Family, fields: &Fields<'a>, layers: usize) -> Result<LayerAttention<'a>> {
    let given = layer_types(fields, layers)?;
    let listed = rotated_layers(family, fields, layers)?;
    let window = match family.window {
        WindowRule::None => None,
        _ => fields.nullable_integer("sliding_window", family.default_window)?,
    };
    let has_type = |kind| given.as_ref().is_some_and(|types| types.contains(&kind));
    let contradiction =
        |kind: &str| Err(unsupported(format!("layer_types of a {} with '{kind}'", family.model_type)).with_found(kind));
    match (family.window, window) {
        (WindowRule::None, _) | (WindowRule::Every, None) if has_type(SLIDING) => return contradiction(SLIDING),
        (WindowRule::Every, Some(_)) if has_type(FULL) => return contradiction(FULL),
        // Whether or not a layer has it.
        (WindowRule::ByLayerType | WindowRule::Pattern { .. }, None) => {
            return Err(invalid("sliding_window").with_expected("a number").with_found("null"));
        }
        _ => {}
    }
    let switched = || Ok::<_, Error>(if fields.flag("use_sliding_window", false)? { window } else { None });
    let (window, types) = match family.window {
        WindowRule::None => (None, Vec::new()),
        WindowRule::Every => (window, Vec::new()),
        WindowRule::ByLayerType => (window, given.unwrap_or_else(|| types_of(layers, |_| true))),
        WindowRule::BySwitch => {
            let (window, first) = (switched()?, fields.integer("max_window_layers", 28)?);
            (window, given.unwrap_or_else(|| types_of(layers, |layer| window.is_some() && layer as i64 >= first)))
        }
        WindowRule::BySwitchUnrotated => {
            let window = switched()?;
            (window, given.unwrap_or_else(|| types_of(layers, |layer| window.is_some() && !listed[layer])))
        }
        WindowRule::Pattern { key, full_every } => {
            let pattern = || {
                let every = key.map_or(Ok(full_every), |key| fields.integer(key, full_every))?;
                match usize::try_from(every) {
                    Ok(every @ 1..) => Ok(types_of(layers, |layer| !(layer + 1).is_multiple_of(every))),
                    _ => {
                        Err(invalid(key.unwrap_or_default()).with_expected("a number of at least 1").with_found(every))
                    }
                }
            };
            (window, given.map_or_else(pattern, Ok)?)
        }
    };
    let is_sliding: Vec<bool> = match family.window {
        WindowRule::None => vec![false; layers],
        WindowRule::Every => vec![window.is_some(); layers],
        _ => types.iter().map(|&kind| kind == SLIDING).collect(),
    };
    let windows = windows(window, &is_sliding)?;
    let is_rotated = if family.rotation.layers == RotatedLayers::Windowed { is_sliding } else { listed };
    Ok(LayerAttention { windows, types, is_rotated })
}

/// The window of each layer.
fn windows(window: Option<i64>, is_sliding: &[bool]) -> Result<Vec<Option<usize>>> {
    match window {
        _ if !is_sliding.contains(&true) => Ok(vec![None; is_sliding.len()]),
        None => {
            let expected = format!("a number, for '{SLIDING}' in layer_types");
            Err(invalid("sliding_window").with_expected(expected).with_found("none in use"))
        }
        Some(window) => {
            let window = in_range("sliding_window", window, i64::MAX as usize)?;
            // A window wider than any sequence is none.
            let window = Some(window).filter(|&window| window < u32::MAX as usize);
            Ok(is_sliding.iter().map(|&is_sliding| window.filter(|_| is_sliding)).collect())
        }
    }
}

/// Types of layers of which some have a window.
fn types_of(layers: usize, is_sliding: impl Fn(usize) -> bool) -> Vec<&'static str> {
    (0..layers).map(|layer| if is_sliding(layer) { SLIDING } else { FULL }).collect()
}

/// Which layers are rotated, as far as a list says so.
fn rotated_layers(family: &Family, fields: &Fields<'_>, layers: usize) -> Result<Vec<bool>> {
    let RotatedLayers::Listed { unrotated_every } = family.rotation.layers else { return Ok(vec![true; layers]) };
    let every = fields.integer("no_rope_layer_interval", unrotated_every)?;
    let Some(listed) = fields.nullable_integers("no_rope_layers")? else {
        return match usize::try_from(every) {
            Ok(every @ 1..) => Ok((1..=layers).map(|number| !number.is_multiple_of(every)).collect()),
            _ => Err(invalid("no_rope_layer_interval").with_expected("a number of at least 1").with_found(every)),
        };
    };
    match listed.get(..layers) {
        // Despite its name, the list has a 0 for layers that are not rotated.
        Some(listed) => Ok(listed.iter().map(|&is_rotated| is_rotated != 0).collect()),
        None => {
            let expected = format!("at least {layers} numbers");
            Err(invalid("no_rope_layers").with_expected(expected).with_found(listed.len()))
        }
    }
}

/// `layer_types`, with an older name of full attention replaced; `None` if it is absent or null.
fn layer_types<'a>(fields: &Fields<'a>, layers: usize) -> Result<Option<Vec<&'a str>>> {
    let Some(mut types) = fields.nullable_texts("layer_types")? else { return Ok(None) };
    if types.len() != layers {
        return Err(invalid("layer_types").with_expected(format!("{layers} layers")).with_found(types.len()));
    }
    for kind in &mut types {
        match *kind {
            "attention" => *kind = FULL,
            SLIDING | FULL => {}
            other => return Err(unsupported(format!("unsupported layer type '{other}'")).with_found(other)),
        }
    }
    Ok(Some(types))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::family_table::FAMILIES;
    use super::*;
    use crate::error::ErrorCode;

    fn read(model_type: &str, config: &Value, layers: usize) -> Result<(Vec<Option<usize>>, Vec<bool>)> {
        let family = FAMILIES.iter().find(|family| family.model_type == model_type).expect("a family");
        let attention = layer_attention(family, &Fields::of(config)?, layers)?;
        Ok((attention.windows, attention.is_rotated))
    }

    #[test]
    fn a_pattern_leaves_every_nth_layer_without_a_window() {
        let windows = |model_type, config: Value, layers| read(model_type, &config, layers).expect("readable").0;
        let window = json!({"sliding_window": 6});
        assert_eq!(windows("gemma2", window.clone(), 4), [Some(6), None, Some(6), None]);
        assert_eq!(windows("gemma3_text", window.clone(), 6), [Some(6), Some(6), Some(6), Some(6), Some(6), None]);
        let every_second = json!({"sliding_window": 6, "sliding_window_pattern": 2});
        assert_eq!(windows("gemma3_text", every_second.clone(), 2), [Some(6), None]);
        // Gemma 2 has no such member.
        assert_eq!(windows("gemma2", json!({"sliding_window": 6, "sliding_window_pattern": 3}), 2), [Some(6), None]);
        let given = json!({"sliding_window": 6, "layer_types": [FULL, SLIDING]});
        assert_eq!(windows("olmo3", given, 2), [None, Some(6)]);
        assert_eq!(windows("olmo3", json!({}), 4), [Some(4096), Some(4096), Some(4096), None]);
        for pattern in [json!(0), json!(-2), json!(null), json!(2.0)] {
            let config = json!({"sliding_window_pattern": pattern});
            let error = read("cohere2", &config, 2).expect_err("refused");
            assert_eq!(error.code(), ErrorCode::ModelConfigInvalid, "{pattern}");
        }
    }

    #[test]
    fn some_layers_are_not_rotated() {
        let rotated = |model_type, config: Value, layers| read(model_type, &config, layers).expect("readable").1;
        assert_eq!(rotated("smollm3", json!({}), 5), [true, true, true, false, true]);
        assert_eq!(rotated("smollm3", json!({"no_rope_layer_interval": 2}), 3), [true, false, true]);
        assert_eq!(rotated("smollm3", json!({"no_rope_layers": [0, 1, 5, 0]}), 3), [false, true, true]);
        assert!(read("smollm3", &json!({"no_rope_layers": [0, 1]}), 3).is_err());
        assert!(read("smollm3", &json!({"no_rope_layer_interval": 0}), 3).is_err());
        let windowed = json!({"sliding_window": 4, "sliding_window_pattern": 2});
        assert_eq!(rotated("cohere2", windowed, 3), [true, false, true]);
        assert_eq!(rotated("llama", json!({}), 2), [true, true]);
        let sliding = json!({"use_sliding_window": true, "sliding_window": 4, "no_rope_layer_interval": 2});
        assert_eq!(read("smollm3", &sliding, 3).expect("readable").0, [None, Some(4), None]);
    }

    #[test]
    fn layer_types_may_not_contradict_a_family_without_them() {
        let mixed = json!({"sliding_window": 4, "layer_types": [SLIDING, FULL]});
        for family in ["phi3", "starcoder2", "ministral3", "granite", "glm4", "gemma", "olmo2", "cohere"] {
            let error = read(family, &mixed, 2).expect_err(family);
            assert_eq!(error.code(), ErrorCode::ModelFeatureUnsupported, "{family}");
        }
        let recurrent = json!({"layer_types": ["linear_attention", FULL]});
        let error = read("qwen3", &recurrent, 2).expect_err("refused");
        assert!(error.to_string().contains("linear_attention"), "{error}");
    }
}
