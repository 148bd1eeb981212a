//! How a request names its adapters.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

/// The fields of a request that name its adapters.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct AdapterFields {
    /// An adapter's name; or a name of the base model, `base` among them.
    pub model: Option<String>,
    /// A mixture: an adapter's name, or an object of names and weights, in order.
    pub adapters: Option<Value>,
    /// A mixture as llama.cpp has it: a list of objects with `id` and `scale`.
    pub lora: Option<Value>,
}
