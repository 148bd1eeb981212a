//! Attention windows: which layers attend to the last positions only.

use super::family::{Family, WindowRule};
use super::fields::{Fields, in_range, invalid, unsupported};
use crate::error::Result;

const SLIDING: &str = "sliding_attention";
const FULL: &str = "full_attention";

/// What the config says about the layers' attention.
pub(super) struct LayerAttention<'a> {
    /// The window of each layer, in positions; `None` is full causal attention.
    pub windows: Vec<Option<usize>>,
    /// The types that `rope_parameters` may have members for, as transformers sees them.
    pub types: Vec<&'a str>,
}

/// Reads the attention of each of `layers` layers.
pub(super) fn layer_attention<'a>(family: &Family, fields: &Fields<'a>, layers: usize) -> Result<LayerAttention<'a>> {
    let given = layer_types(fields, layers)?;
    if family.window == WindowRule::None {
        return match given.is_some_and(|types| types.contains(&SLIDING)) {
            true => Err(unsupported(format!("layer_types of a {} with '{SLIDING}'", family.model_type))),
            false => Ok(LayerAttention { windows: vec![None; layers], types: Vec::new() }),
        };
    }
    let window = fields.nullable_integer("sliding_window", Some(4096))?;
    let (window, first_sliding) = match family.window {
        WindowRule::BySwitch => {
            let is_on = fields.flag("use_sliding_window", false)?;
            (window.filter(|_| is_on), fields.integer("max_window_layers", 28)?)
        }
        _ => (window, 0),
    };
    let by_default = |layer: usize| match window {
        Some(_) if layer as i64 >= first_sliding => SLIDING,
        _ => FULL,
    };
    let types = given.unwrap_or_else(|| (0..layers).map(by_default).collect());
    let windows = match window {
        _ if !types.contains(&SLIDING) => vec![None; layers],
        None => {
            let expected = format!("a number, for '{SLIDING}' in layer_types");
            return Err(invalid("sliding_window").with_expected(expected).with_found("none in use"));
        }
        Some(window) => {
            let window = in_range("sliding_window", window, i64::MAX as usize)?;
            // A window wider than any sequence is none.
            let window = Some(window).filter(|&window| window < u32::MAX as usize);
            types.iter().map(|&kind| window.filter(|_| kind == SLIDING)).collect()
        }
    };
    Ok(LayerAttention { windows, types: if family.window == WindowRule::Every { Vec::new() } else { types } })
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
