//! The body of a request that generates text: the fields of its route, and those that all routes have.

use std::borrow::Cow;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::compat_fields::{self, CompatField, SHARED};
use crate::engine::Request;
use crate::error::{Error, ErrorCode};
use crate::request_settings::RequestSettings;
use crate::server::adapters::AdapterFields;
use crate::server::client_names::ClientNames;
use crate::server::error::{ApiError, ApiResult};
use crate::server::json::JsonFields;
use crate::server::schema::one_object;
use crate::server::state::AppState;

/// The fields of a route alone.
pub trait RouteFields: DeserializeOwned + ToSchema {
    /// What the route makes of fields that it does not have.
    const COMPAT: &'static [CompatField];
    /// The field of the prompt.
    const PROMPT: &'static str = "prompt";
}

/// Whether the answer is a stream.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
pub struct StreamFields {
    /// Whether the text is sent as server-sent events while it is generated.
    stream: Option<bool>,
    /// Options of such a stream, and only of a stream.
    stream_options: Option<StreamOptions>,
}

/// Options of a stream.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// Whether the last event before the end has the token counts. Those of responses always have.
    include_usage: Option<bool>,
    /// Whether events are padded against eavesdroppers; they are not.
    #[expect(dead_code, reason = "accepted, since it changes no answer")]
    include_obfuscation: Option<bool>,
}

/// The schema of a body with the fields `F` of a route.
pub struct GenerationRequest<F>(PhantomData<F>);

impl<F: RouteFields> PartialSchema for GenerationRequest<F> {
    fn schema() -> RefOr<Schema> {
        one_object([
            F::schema(),
            StreamFields::schema(),
            AdapterFields::schema(),
            compat_fields::schema(&[F::COMPAT, SHARED]),
            RequestSettings::schema(),
        ])
    }
}

impl<F: RouteFields> ToSchema for GenerationRequest<F> {
    fn name() -> Cow<'static, str> {
        F::name().replace("Fields", "Request").into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((StreamOptions::name().into_owned(), StreamOptions::schema()));
        F::schemas(schemas);
    }
}

/// A body that was read.
pub struct GenerationBody<F> {
    /// The fields of the route.
    pub own: F,
    /// The settings.
    pub settings: RequestSettings,
    /// Whether the answer is a stream.
    pub streams: bool,
    /// Whether the stream ends with the token counts.
    pub includes_usage: bool,
    adapters: AdapterFields,
    names: ClientNames,
}

/// A request, as far as it is known before its adapters and its tokenizer are.
pub struct ClientRequest {
    /// The request, without a prompt and adapters.
    pub request: Request,
    /// What it says of its adapters.
    pub adapters: AdapterFields,
    /// What the client calls its settings.
    pub names: ClientNames,
    /// Whether the client says how many new tokens there are at most.
    pub limits_new_tokens: bool,
}

impl<F: RouteFields> GenerationBody<F> {
    /// Reads all fields of a body.
    ///
    /// # Errors
    /// `request_invalid`; `setting_unsupported` for what is not supported.
    pub fn read(mut fields: JsonFields) -> ApiResult<Self> {
        // First, since a field of the route's own means what that says.
        let own = fields.read()?;
        compat_fields::translate(&mut fields, &[F::COMPAT, SHARED])?;
        let StreamFields { stream, stream_options } = fields.read()?;
        let settings = fields.read()?;
        let adapters = fields.read()?;
        let mut names = fields.finish()?;
        if F::PROMPT != "prompt" {
            names.add("prompt", F::PROMPT);
        }
        let streams = stream.unwrap_or(false);
        if stream_options.is_some() && !streams {
            let what = "stream_options is given, and the answer is no stream";
            let error = Error::new(ErrorCode::RequestInvalid, what).with_hint("set stream, or leave the options out");
            return Err(ApiError::of_field("stream_options", error));
        }
        let includes_usage = stream_options.and_then(|options| options.include_usage).unwrap_or(false);
        Ok(Self { own, settings, streams, includes_usage, adapters, names })
    }

    /// A request without a prompt: the server's defaults, and what the client's fields change of them. Returns the fields of the
    /// route as well.
    ///
    /// # Errors
    /// `request_invalid`.
    pub fn into_request(self, state: &AppState, default_max_tokens: usize) -> ApiResult<(ClientRequest, F)> {
        let Self { own, settings, adapters, names, .. } = self;
        let mut request = state.engine.request("");
        // The engine's own number is for nobody in particular.
        request.max_new_tokens = state.engine.generation_config().new_tokens().unwrap_or(default_max_tokens);
        state.options.defaults.apply(&mut request)?;
        settings.apply(&mut request).map_err(|error| names.error(error))?;
        // A response has no place for them.
        request.probs = 0;
        let limits_new_tokens = settings.max_new_tokens().is_some();
        Ok((ClientRequest { request, adapters, names, limits_new_tokens }, own))
    }
}
