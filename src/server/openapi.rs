//! The OpenAPI document at `/openapi.json`.

use axum::routing::get;
use axum::{Json, Router};
use serde_json::Value;
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};

use super::schema::as_json;
use super::{adapters, health, openai, scrape};

/// `/openapi.json`.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let document = document();
    Router::new().route("/openapi.json", get(move || async move { Json(document) }))
}

/// The document of all routes.
fn document() -> Value {
    let mut document = Server::openapi();
    document.merge(health::Document::openapi());
    document.merge(openai::Document::openapi());
    document.merge(adapters::Document::openapi());
    document.merge(adapters::CompatDocument::openapi());
    document.merge(scrape::Document::openapi());
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    document.components.get_or_insert_default().add_security_scheme("key", bearer);
    as_json(&document)
}

#[derive(OpenApi)]
#[openapi(info(
    title = "exlora",
    description = "Multi-LoRA inference: every adapter is a model, and so is a mixture."
))]
struct Server;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_its_own_fields_and_those_of_all_routes() {
        let document = document();
        let chat = &document["components"]["schemas"]["ChatRequest"];
        assert_eq!(chat["required"], serde_json::json!(["messages"]));
        for field in ["messages", "stream", "temperature", "adapters", "json_schema", "max_completion_tokens"] {
            assert!(chat["properties"][field].is_object(), "{field} in {chat}");
        }
        // Fields that are called otherwise here, or understood with some values alone.
        for schema in ["ChatRequest", "CompletionRequest", "ResponseRequest"] {
            let properties = &document["components"]["schemas"][schema]["properties"];
            assert_eq!(properties["guided_json"]["description"], "The same as `json_schema`.", "{schema}");
            assert_eq!(properties["use_beam_search"]["enum"], serde_json::json!([false, null]), "{schema}");
            assert!(properties["structured_outputs"]["properties"]["choice"].is_object(), "{schema}");
            assert!(properties["stream"].is_object() && properties["user"].is_object(), "{schema}");
        }
        // A chat's log-probabilities are asked for by a boolean.
        assert!(chat["properties"]["logprobs"]["type"].to_string().contains("boolean"), "{chat}");
    }
}
