//! The parameters of a rotary embedding, in the one form that transformers brings all spellings of config.json to.

use serde_json::{Map, Value};

use super::family::{Family, RopeParametersRule};
use super::fields::{Fields, invalid, is_truthy, unsupported, wrong};
use super::windows::FULL;
use crate::backend::QueryTemperature;
use crate::error::{Error, ErrorCode, Result};

const ORIGINAL: &str = "original_max_position_embeddings";

/// `rope_parameters` of one type of layer, with every default filled in.
#[derive(Debug)]
pub(super) struct RopeParameters {
    members: Map<String, Value>,
    /// Width of a head.
    pub head_dim: usize,
    /// `max_position_embeddings`.
    pub positions: usize,
    /// Whether the model can rotate a part of a head.
    pub is_partial: bool,
}

impl RopeParameters {
    /// The parameters of layers of type `kind`. `types` are the types of the layers that the config has.
    pub(super) fn read(
        family: &Family,
        fields: &Fields<'_>,
        types: &[&str],
        kind: &str,
        head_dim: usize,
        positions: usize,
    ) -> Result<Self> {
        let rule = family.rotation.parameters;
        let mut members = match rule {
            RopeParametersRule::ByLayerType { local_theta } => of_layer_type(family, fields, kind, local_theta)?,
            RopeParametersRule::SharedOr(default) => shared(family, fields, types, Some(default))?,
            RopeParametersRule::Shared | RopeParametersRule::Longrope { .. } => shared(family, fields, types, None)?,
        };
        let share = match fields.get("partial_rotary_factor") {
            None => Some(Value::from(family.rotation.share)).filter(|_| family.rotation.share != 1.0),
            // Phi takes null as it is.
            Some(Value::Null) if !matches!(rule, RopeParametersRule::Longrope { .. }) => None,
            Some(share) => Some(share.clone()),
        };
        if let Some(share) = share {
            members.entry("partial_rotary_factor").or_insert(share);
        }
        let name = members.get("type").cloned().unwrap_or_else(|| "default".into());
        members.entry("rope_type").or_insert(name);
        let mut parameters = Self { members, head_dim, positions, is_partial: family.rotation.is_partial };
        parameters.add_original_positions(rule, fields)?;
        Ok(parameters)
    }

    /// Fills in the length of the original training, for those kinds that need it. A member beside the parameters precedes the
    /// one in them, unless each type of layer has parameters of its own.
    fn add_original_positions(&mut self, rule: RopeParametersRule, fields: &Fields<'_>) -> Result<()> {
        if let RopeParametersRule::Longrope { original_positions } = rule {
            let original = fields.integer(ORIGINAL, original_positions as i64)?;
            match self.kind()? {
                "default" => return Ok(()),
                "longrope" | "su" | "yarn" => {}
                other => return Err(unsupported(format!("rope_type '{other}' is not supported")).with_found(other)),
            }
            self.set("rope_type", "longrope");
            self.set(ORIGINAL, original);
            return Ok(());
        }
        if !["llama3", "yarn", "longrope"].contains(&self.kind()?) {
            return Ok(());
        }
        match fields.get(ORIGINAL) {
            Some(original) if !matches!(rule, RopeParametersRule::ByLayerType { .. }) => {
                self.set(ORIGINAL, original.clone());
            }
            _ => {
                let positions = self.positions;
                self.members.entry(ORIGINAL).or_insert(positions.into());
            }
        }
        Ok(())
    }

    /// `rope_type`.
    pub(super) fn kind(&self) -> Result<&str> {
        match self.members.get("rope_type") {
            Some(Value::String(kind)) => Ok(kind),
            other => Err(wrong("rope_type", "a name", other.unwrap_or(&Value::Null))),
        }
    }

    /// Replaces a member.
    pub(super) fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.members.insert(name.to_owned(), value.into());
    }

    /// A member as it is.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.members.get(name)
    }

    /// The temperature of queries: by `llama_4_scaling_beta`, over the length of the original training.
    pub(super) fn query_temperature(&self) -> Result<QueryTemperature> {
        let (beta, positions) = (self.number("llama_4_scaling_beta")? as f32, self.number(ORIGINAL)? as f32);
        match beta.is_finite() && positions > 0.0 {
            true => Ok(QueryTemperature { beta, positions }),
            false => Err(invalid(ORIGINAL).with_expected("a number above 0").with_found(positions)),
        }
    }

    /// A number; `true` and `false` are numbers in Python.
    pub(super) fn number(&self, name: &str) -> Result<f64> {
        self.optional_number(name)?.ok_or_else(|| invalid(name).with_expected("a number").with_found("nothing"))
    }

    /// A number, or `None` if it is absent or null.
    pub(super) fn optional_number(&self, name: &str) -> Result<Option<f64>> {
        match self.members.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(f64::from(u8::from(*flag)))),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| wrong(name, "a number", value)),
        }
    }

    /// `factor`, by which a context is stretched; `None` if it is absent or null.
    pub(super) fn stretch(&self) -> Result<Option<f64>> {
        match self.optional_number("factor")? {
            Some(factor) if factor <= 0.0 => {
                Err(invalid("factor").with_expected("a number above 0").with_found(factor))
            }
            factor => Ok(factor),
        }
    }

    /// A number by which something is divided.
    pub(super) fn divisor(&self, name: &str) -> Result<f64> {
        match self.number(name)? {
            0.0 => Err(invalid(name).with_expected("a number other than 0").with_found(0)),
            number => Ok(number),
        }
    }

    /// One number for each of that many pairs of channels.
    pub(super) fn numbers(&self, name: &str, pairs: usize) -> Result<Vec<f64>> {
        let expected = format!("a list of {pairs} numbers");
        let Some(value) = self.members.get(name) else {
            return Err(invalid(name).with_expected(expected).with_found("nothing"));
        };
        let numbers: Option<Vec<f64>> = value.as_array().and_then(|items| items.iter().map(Value::as_f64).collect());
        numbers.filter(|numbers| numbers.len() == pairs).ok_or_else(|| wrong(name, &expected, value))
    }
}

/// The members for all layers: `rope_scaling`, unless it is empty, replaces `rope_parameters`; in either, `rope_theta` precedes the
/// one at the top level.
fn shared(family: &Family, fields: &Fields<'_>, types: &[&str], default: Option<&str>) -> Result<Map<String, Value>> {
    let new = object("rope_parameters", fields.get("rope_parameters"))?;
    let mut members = match (fields.get("rope_scaling").filter(|value| is_truthy(value)), new, default) {
        (Some(old), ..) => object("rope_scaling", Some(old))?.unwrap_or_default(),
        (None, Some(new), _) => new,
        (None, None, Some(default)) => serde_json::from_str(default)
            .map_err(|error| Error::new(ErrorCode::Internal, format!("default rope parameters: {error}")))?,
        (None, None, None) => Map::new(),
    };
    if let Some(kind) = types.iter().find(|kind| members.contains_key(**kind)) {
        return Err(unsupported(format!("rope_parameters of their own for layers of type '{kind}'")));
    }
    let theta = fields.get("rope_theta").cloned().unwrap_or_else(|| family.rotation.theta.into());
    members.entry("rope_theta").or_insert(theta);
    Ok(members)
}

/// The members for layers of one type. `rope_scaling` is part of those of layers without a window, and so is `rope_theta`.
fn of_layer_type(
    family: &Family,
    fields: &Fields<'_>,
    kind: &str,
    (local_name, local_theta): (Option<&str>, f64),
) -> Result<Map<String, Value>> {
    let of_types = object("rope_parameters", fields.get("rope_parameters"))?;
    let of = |kind: &str| object(kind, of_types.as_ref().and_then(|of_types| of_types.get(kind)));
    let (given, is_full) = (of(kind)?, kind == FULL);
    let mut members = given.unwrap_or_else(|| Map::from_iter([("rope_type".to_owned(), "default".into())]));
    if let Some(scaling) = object("rope_scaling", fields.get("rope_scaling"))? {
        if of_types.is_some() && of(FULL)?.is_none() {
            let expected = format!("'{FULL}' in rope_parameters, to which it belongs");
            return Err(invalid("rope_scaling").with_expected(expected).with_found("nothing"));
        }
        if is_full {
            members.extend(scaling);
        }
    }
    let (name, theta) = if is_full { (Some("rope_theta"), family.rotation.theta) } else { (local_name, local_theta) };
    let theta = name.and_then(|name| fields.get(name)).cloned().unwrap_or_else(|| theta.into());
    members.entry("rope_theta").or_insert(theta);
    // transformers looks for this one beside the types.
    members.remove("truncate");
    if let Some(truncate) = of_types.as_ref().and_then(|of_types| of_types.get("truncate")) {
        members.insert("truncate".to_owned(), truncate.clone());
    }
    Ok(members)
}

/// An object, or `None` if it is absent or null.
fn object(name: &str, value: Option<&Value>) -> Result<Option<Map<String, Value>>> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(members)) => Ok(Some(members.clone())),
        Some(other) => Err(wrong(name, "an object or null", other)),
    }
}
