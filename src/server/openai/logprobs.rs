//! Log-probabilities in OpenAI's two forms.

use indexmap::IndexMap;
use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::{TokenLogprobs, Tokenizer};

/// Log-probabilities of a completion: parallel lists.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    /// Where each token begins in the text, in characters.
    pub text_offset: Vec<usize>,
    /// The log-probability of each token.
    pub token_logprobs: Vec<f32>,
    /// The text of each token.
    pub tokens: Vec<String>,
    /// The most likely tokens in each place, with their log-probabilities.
    #[schema(value_type = Vec<std::collections::BTreeMap<String, f32>>)]
    pub top_logprobs: Vec<IndexMap<String, f32>>,
}

impl CompletionLogprobs {
    /// Of tokens, of which the first begins at `offset` characters; `top` of the most likely ones each.
    pub fn of(ids: &[u32], logprobs: &[TokenLogprobs], offset: &mut usize, top: usize, tokenizer: &Tokenizer) -> Self {
        let mut all = Self::default();
        for (&id, logprobs) in ids.iter().zip(logprobs) {
            let token = text_of(tokenizer, id);
            all.text_offset.push(*offset);
            *offset += token.chars().count();
            all.tokens.push(token);
            all.token_logprobs.push(finite(logprobs.chosen));
            let best = logprobs.top.iter().take(top);
            all.top_logprobs.push(best.map(|&(id, value)| (text_of(tokenizer, id), finite(value))).collect());
        }
        all
    }
}

/// Log-probabilities of a chat message.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// Each token.
    pub content: Vec<ChatTokenLogprobs>,
}

/// A token of a chat message.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatTokenLogprobs {
    #[serde(flatten)]
    token: TokenLogprob,
    /// The most likely tokens in this place.
    top_logprobs: Vec<TokenLogprob>,
}

/// A token and its log-probability.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TokenLogprob {
    /// Its text.
    token: String,
    /// Its log-probability.
    logprob: f32,
    /// Its text in UTF-8, of which a token may have a part.
    bytes: Vec<u8>,
}

impl TokenLogprob {
    fn new(tokenizer: &Tokenizer, id: u32, logprob: f32) -> Self {
        let token = text_of(tokenizer, id);
        let bytes = tokenizer.piece_bytes(id).ok().flatten().unwrap_or_else(|| token.clone().into_bytes());
        Self { token, logprob: finite(logprob), bytes }
    }
}

impl ChatLogprobs {
    /// Of tokens, with `top` of the most likely ones each.
    pub fn of(ids: &[u32], logprobs: &[TokenLogprobs], top: usize, tokenizer: &Tokenizer) -> Self {
        let token = |(&id, logprobs): (&u32, &TokenLogprobs)| ChatTokenLogprobs {
            token: TokenLogprob::new(tokenizer, id, logprobs.chosen),
            top_logprobs: logprobs
                .top
                .iter()
                .take(top)
                .map(|&(id, value)| TokenLogprob::new(tokenizer, id, value))
                .collect(),
        };
        Self { content: ids.iter().zip(logprobs).map(token).collect() }
    }
}

fn text_of(tokenizer: &Tokenizer, id: u32) -> String {
    tokenizer.piece(id).unwrap_or_default()
}

/// JSON has no infinities. OpenAI has this number for what is next to impossible.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}
