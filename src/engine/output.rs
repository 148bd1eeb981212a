//! What a request produces: chunks while it runs, a completion at its end.

use crate::error::{Error, ErrorCode, Result};

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// A stop token, a stop string, or an end-of-sequence id of the model.
    Stop,
    /// `max_new_tokens`, the model's positions, or the end of the cache.
    Length,
    /// The request was cancelled.
    Cancelled,
}

impl FinishReason {
    /// The name in reports: `stop`, `length`, `cancelled`.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        }
    }
}

/// The stop that ended a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopMatch {
    /// A token of `stop`, or an end-of-sequence id of the model.
    Token(u32),
    /// A string of `stop`.
    Text(String),
}

/// Token counts of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens whose keys and values were found in the prefix cache.
    pub cached_tokens: usize,
    /// New tokens, including a stop token.
    pub completion_tokens: usize,
}

/// Log-probabilities of one token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Log-probability of the chosen id.
    pub chosen: f32,
    /// The n most likely ids, best first.
    pub top: Vec<(u32, f32)>,
}

/// A piece of a running request: usually one token and the text it completed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chunk {
    /// New text. The texts of all chunks joined are the text of the completion.
    pub text: String,
    /// New tokens.
    pub token_ids: Vec<u32>,
    /// Their log-probabilities, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// The logits each of them was chosen from, `[token_ids, vocab]`, if asked for.
    pub logits: Vec<f32>,
    /// Set on the last chunk.
    pub finish: Option<Finish>,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// Why it ended.
    pub reason: FinishReason,
    /// The stop token or string, if the reason is a stop.
    pub matched: Option<StopMatch>,
    /// Token counts.
    pub usage: Usage,
}

/// A finished request.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The new text, without the prompt and the stop.
    pub text: String,
    /// The new tokens, including a stop token.
    pub token_ids: Vec<u32>,
    /// How it ended.
    pub finish: Finish,
    /// The mixture as requested: (name, weight). A leased adapter without a name is called by its folder.
    pub adapter: Vec<(String, f32)>,
    /// Log-probabilities of each token, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Logits of each token, `[token_ids, vocab]`, if asked for.
    pub logits: Vec<f32>,
}

/// Logits of some positions, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// `[tokens, vocab]`.
    pub values: Vec<f32>,
    /// Number of rows.
    pub tokens: usize,
    /// Number of logits in a row.
    pub vocab: usize,
}

/// Appends logits to a result that will hold `total` of them at least.
///
/// # Errors
/// `memory_exhausted`.
pub(super) fn append_logits(logits: &mut Vec<f32>, more: &[f32], total: usize) -> Result<()> {
    let total = total.max(logits.len() + more.len());
    logits.try_reserve(total - logits.len()).map_err(|_| {
        let bytes = total.saturating_mul(size_of::<f32>());
        Error::new(ErrorCode::MemoryExhausted, format!("cannot allocate {bytes} bytes for the logits of a request"))
            .with_hint("ask for the logits of fewer positions at a time")
    })?;
    logits.extend_from_slice(more);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_that_no_memory_can_hold_are_an_error() {
        let mut logits = vec![1.0];
        for total in [usize::MAX / 8, usize::MAX] {
            let error = append_logits(&mut logits, &[2.0], total).expect_err("too many");
            assert_eq!(error.code(), ErrorCode::MemoryExhausted);
        }
        append_logits(&mut logits, &[2.0], 0).expect("room");
        assert_eq!(logits, [1.0, 2.0]);
    }
}
