//! How a choice ended.

use serde::Serialize;
use utoipa::ToSchema;

use super::tool_calls::TextEnd;
use crate::engine::{Finish, FinishReason, StopMatch, Usage};

/// OpenAI's name of the reason: `stop` or `length`.
pub fn finish_reason(finish: &Finish) -> &'static str {
    match finish.reason {
        FinishReason::Length => "length",
        _ => "stop",
    }
}

/// The same for a message that may have calls of tools, which a text that ended by itself is for: `tool_calls`.
pub fn chat_finish_reason(finish: &Finish, has_calls: bool) -> &'static str {
    match finish_reason(finish) {
        "stop" if has_calls => "tool_calls",
        reason => reason,
    }
}

/// Whether the text of a choice is whole.
pub fn text_end(finish: &Finish) -> TextEnd {
    match finish.reason {
        FinishReason::Stop => TextEnd::Whole,
        _ => TextEnd::Cut,
    }
}

/// The stop that was found, as vLLM reports it: a string, a token id, or null.
pub fn stop_reason(finish: &Finish) -> Option<StopMatch> {
    finish.matched.clone()
}

/// Token counts of a response.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct UsageObject {
    /// Tokens of the prompts.
    pub prompt_tokens: usize,
    /// New tokens of all choices.
    pub completion_tokens: usize,
    /// Both together.
    pub total_tokens: usize,
    /// What of the prompts was computed before.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// Details of the prompts' tokens.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Prompt tokens whose keys and values were found in the prefix cache.
    pub cached_tokens: usize,
}

impl UsageObject {
    /// Adds a choice that ended; `is_first` for the first one of a prompt, which all its choices share.
    pub fn add(&mut self, usage: &Usage, is_first: bool) {
        if is_first {
            self.prompt_tokens += usage.prompt_tokens;
            self.prompt_tokens_details.cached_tokens += usage.cached_tokens;
        }
        self.completion_tokens += usage.completion_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}
