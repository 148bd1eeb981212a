//! `POST /tokenize` and `POST /detokenize`, as vLLM has them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::messages::chat_messages;
use crate::engine::{ChatOptions, Tokenizer};
use crate::error::{Error, ErrorCode, Result};
use crate::server::adapters::AdapterFields;
use crate::server::error::{ApiError, ApiResult, ErrorBody};
use crate::server::json::JsonFields;
use crate::server::prompt_text::chat_bytes;
use crate::server::state::{AppState, blocking};

/// A text or a chat to encode.
#[derive(Clone, Debug, Deserialize, ToSchema)]
struct TokenizeFields {
    /// A text.
    prompt: Option<String>,
    /// Or a chat.
    messages: Option<Vec<Map<String, Value>>>,
    /// Whether the tokenizer adds its own special tokens: to a text by default, to a chat not.
    add_special_tokens: Option<bool>,
    /// Whether the tokens' spellings are returned too.
    return_token_strs: Option<bool>,
    /// Of a chat: whether it ends with the start of an assistant's message.
    add_generation_prompt: Option<bool>,
    /// Of a chat: whether the last message is continued.
    continue_final_message: Option<bool>,
    /// Of a chat: the name or text of a template.
    chat_template: Option<String>,
    /// Of a chat: other variables of the template.
    chat_template_kwargs: Option<Map<String, Value>>,
    /// Of a chat: descriptions of functions.
    tools: Option<Vec<Value>>,
}

/// Token ids.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenizeObject {
    /// Number of tokens.
    count: usize,
    /// Longest prompt and output together, in tokens.
    max_model_len: usize,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

/// Token ids to decode.
#[derive(Clone, Debug, Deserialize, ToSchema)]
struct DetokenizeFields {
    tokens: Vec<u32>,
}

/// Their text.
#[derive(Debug, Serialize, ToSchema)]
pub struct DetokenizeObject {
    prompt: String,
}

/// Encodes a text or a chat.
#[utoipa::path(post, path = "/tokenize", tag = "tokens", request_body = TokenizeFields, responses(
    (status = 200, description = "the token ids", body = TokenizeObject),
    (status = 400, description = "the request is wrong", body = ErrorBody)
))]
pub async fn tokenize(State(state): State<Arc<AppState>>, mut fields: JsonFields) -> ApiResult<Json<TokenizeObject>> {
    let own: TokenizeFields = fields.read()?;
    let tokenizer = tokenizer(&state, fields).await?;
    let messages = own.messages.map(chat_messages).transpose()?;
    if messages.is_some() == own.prompt.is_some() {
        let error = Error::new(ErrorCode::RequestInvalid, "a request has either prompt or messages");
        return Err(ApiError::of_field("prompt", error.with_hint("send one of them")));
    }
    let chat = ChatOptions {
        add_generation_prompt: own.add_generation_prompt,
        continue_final_message: own.continue_final_message.unwrap_or(false).then(|| "content".to_owned()),
        tools: own.tools,
        chat_template: own.chat_template,
        chat_template_kwargs: own.chat_template_kwargs.unwrap_or_default(),
        ..ChatOptions::default()
    };
    let (with_spellings, max_model_len) = (own.return_token_strs.unwrap_or(false), state.engine.max_tokens());
    let bytes = own.prompt.as_ref().map_or(0, String::len) + messages.as_deref().map_or(0, chat_bytes);
    let permit = state.prompt_text.permit(bytes).await;
    let encode = move || {
        let _permit = permit;
        let (text, adds_special) = match (messages, own.prompt) {
            (Some(messages), _) => (tokenizer.apply_chat_template(&messages, &chat)?, false),
            (None, text) => (text.unwrap_or_default(), true),
        };
        let adds_special = own.add_special_tokens.unwrap_or(adds_special);
        let tokens = tokenizer.encode(&text, adds_special, tokenizer.parses_special())?;
        let spelling = |&id: &u32| tokenizer.token_of(id).unwrap_or_default();
        let token_strs = with_spellings.then(|| tokens.iter().map(spelling).collect());
        Ok(TokenizeObject { count: tokens.len(), max_model_len, tokens, token_strs })
    };
    Ok(Json(blocking(encode).await.map_err(|error| state.client_paths.error(error))?))
}

/// Decodes token ids.
#[utoipa::path(post, path = "/detokenize", tag = "tokens", request_body = DetokenizeFields, responses(
    (status = 200, description = "their text", body = DetokenizeObject),
    (status = 400, description = "the request is wrong", body = ErrorBody)
))]
pub async fn detokenize(
    State(state): State<Arc<AppState>>,
    mut fields: JsonFields,
) -> ApiResult<Json<DetokenizeObject>> {
    let own: DetokenizeFields = fields.read()?;
    let tokenizer = tokenizer(&state, fields).await?;
    let decode = move || -> Result<_> { Ok(DetokenizeObject { prompt: tokenizer.decode(&own.tokens, false)? }) };
    Ok(Json(blocking(decode).await?))
}

/// The tokenizer of the adapters that the rest of the fields name.
async fn tokenizer(state: &Arc<AppState>, mut fields: JsonFields) -> ApiResult<Arc<Tokenizer>> {
    let adapters: AdapterFields = fields.read()?;
    fields.finish()?;
    let selection = state.adapters.select(&adapters).await.map_err(|error| adapters.error(error))?;
    Ok(state.engine.tokenizer_for(&selection.adapters).map_err(|error| state.client_paths.error(error))?)
}
