//! How much text of requests is parsed and encoded, and at what time.
//!
//! Encoding takes up to 160 times the memory of the text, and seconds for megabytes, and parsing JSON up to 30 times its memory. So
//! large texts are those of one request at a time, and what cannot fit is not encoded at all.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::engine::{ChatMessage, Prompt};
use crate::error::{Error, ErrorCode, Result};

/// Largest text that is parsed or encoded at once, beside any others, in bytes.
const MAX_SMALL_TEXT: usize = 64 << 10;

/// More than any tokenizer's tokens stand for on average, in bytes.
const MAX_TOKEN_BYTES: usize = 256;

/// The limits of a server.
pub struct PromptText {
    large_texts: Arc<Semaphore>,
    max_bytes: usize,
}

impl PromptText {
    /// For prompts of at most `max_tokens`.
    pub fn new(max_tokens: usize) -> Self {
        Self { large_texts: Arc::new(Semaphore::new(1)), max_bytes: max_tokens.saturating_mul(MAX_TOKEN_BYTES) }
    }

    /// Bytes of text that the prompts have together.
    ///
    /// # Errors
    /// `prompt_too_long`: one has more than any prompt that fits.
    pub fn check(&self, prompts: &[Prompt]) -> Result<usize> {
        let sizes = prompts.iter().map(bytes_of);
        match sizes.clone().find(|&bytes| bytes > self.max_bytes) {
            None => Ok(sizes.sum()),
            Some(bytes) => Err(Error::new(ErrorCode::PromptTooLong, "the prompt is longer than any that fits")
                .with_expected(format!("at most {} bytes", self.max_bytes))
                .with_found(bytes)),
        }
    }

    /// Waits until so much text may be parsed or encoded, which it may for as long as the permit is held. `None` for one that is so
    /// small that it needs none.
    pub async fn permit(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        if bytes <= MAX_SMALL_TEXT {
            return None;
        }
        // It is never closed.
        Arc::clone(&self.large_texts).acquire_owned().await.ok()
    }
}

fn bytes_of(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Chat(messages) => chat_bytes(messages),
        Prompt::Tokens(_) | Prompt::Parts(_) => 0,
    }
}

/// Bytes of the text of a chat.
pub fn chat_bytes(messages: &[ChatMessage]) -> usize {
    messages.iter().flat_map(|message| message.fields().values()).map(text_bytes).sum()
}

/// Bytes of the text in a value.
fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(text_bytes).sum(),
        Value::Object(fields) => fields.values().map(text_bytes).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_prompt_that_cannot_fit_is_refused_by_its_size() {
        let text = PromptText::new(4);
        let chat = |content: Value| Prompt::Chat(vec![ChatMessage::new("user", content)]);
        let fits =
            [Prompt::from("x".repeat(1024)), chat(json!([{"text": "x".repeat(1000)}])), Prompt::from(vec![1; 2048])];
        assert_eq!(text.check(&fits), Ok(1024 + 1000 + "user".len()));
        for prompt in [Prompt::from("x".repeat(1025)), chat(json!("x".repeat(1025)))] {
            assert_eq!(text.check(&[prompt]).map_err(|error| error.code()), Err(ErrorCode::PromptTooLong));
        }
    }

    #[test]
    fn large_texts_are_encoded_one_at_a_time_and_small_ones_beside_them() {
        let text = PromptText::new(1 << 20);
        let permit = text.permit(MAX_SMALL_TEXT + 1).now_or_never().expect("the first").expect("a permit");
        assert!(text.permit(MAX_SMALL_TEXT + 1).now_or_never().is_none(), "the second waits");
        assert!(text.permit(MAX_SMALL_TEXT).now_or_never().expect("no wait").is_none());
        drop(permit);
        assert!(text.permit(1 << 30).now_or_never().is_some());
    }
}
