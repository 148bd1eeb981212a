//! The adapters of requests, leased from those that are resident.

use super::fields::AdapterFields;
use crate::engine::{AdapterRef, Engine};
use crate::error::{Error, ErrorCode, Result};
use crate::server::options::ServeOptions;

/// The adapters that requests may name.
pub struct Adapters {
    engine: Engine,
    base_names: Vec<String>,
}

/// The adapters of a request.
pub struct Selection {
    /// The mixture, leased; empty for the base.
    pub adapters: Vec<(AdapterRef, f32)>,
    /// What the response calls the model.
    pub model: String,
}

impl Adapters {
    /// The adapters of an engine.
    ///
    /// # Errors
    /// None yet.
    pub fn new(engine: &Engine, options: &ServeOptions) -> Result<Self> {
        Ok(Self { engine: engine.clone(), base_names: options.served_model_names.clone() })
    }

    /// The adapters that a request names, leased.
    ///
    /// # Errors
    /// `adapter_not_found`; `request_invalid` for fields that contradict each other.
    pub async fn select(&self, fields: &AdapterFields) -> Result<Selection> {
        let base = self.base_names.first().map_or("base", String::as_str);
        let is_base = |name: &str| name == "base" || self.base_names.iter().any(|base| base == name);
        let named = match (&fields.adapters, &fields.lora) {
            (None, None) => fields.model.iter().filter(|name| !is_base(name)).map(|name| (name.clone(), 1.0)).collect(),
            (Some(adapters), None) => mixture(adapters)?,
            (_, Some(_)) => return Err(Error::new(ErrorCode::RequestInvalid, "the field lora is not understood")),
        };
        let pool = self.engine.model().adapters();
        let lease = |(name, weight): &(String, f32)| Ok((AdapterRef::Lease(pool.lease(name)?), *weight));
        let adapters = named.iter().map(lease).collect::<Result<_>>()?;
        Ok(Selection { adapters, model: fields.model.clone().unwrap_or_else(|| base.to_owned()) })
    }
}

fn mixture(adapters: &serde_json::Value) -> Result<Vec<(String, f32)>> {
    use serde_json::Value;
    let parts: Option<Vec<(String, f32)>> = match adapters {
        Value::String(name) => Some(vec![(name.clone(), 1.0)]),
        Value::Object(parts) => {
            parts.iter().map(|(name, weight)| Some((name.clone(), weight.as_f64()? as f32))).collect()
        }
        _ => None,
    };
    parts.ok_or_else(|| {
        Error::new(ErrorCode::RequestInvalid, "adapters must be a name, or an object of names and weights")
    })
}
