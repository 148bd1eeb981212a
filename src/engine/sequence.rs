//! One request while it lives in the scheduler: its tokens, its pages, and when its text ends.

use std::sync::Arc;

use super::job::JobShared;
use super::request::{Chunk, Finish, FinishReason, StopMatch, TokenLogprobs, Usage};
use super::sampler::{Sampled, SamplingParams};
use super::text::{StopStrings, TextStream};
use crate::adapter::mixture::MixtureSpans;
use crate::error::{Error, ErrorCode, Result};
use crate::kv::{PAGE_TOKENS, PrefixKey, pages_for};

/// What a sequence is for.
pub(super) enum Purpose {
    /// Choose tokens until something ends it.
    Generate(Box<Generation>),
    /// Logits of every position of the prompt.
    PromptLogits(Vec<f32>),
}

/// How a text goes on and when it ends.
pub(super) struct Generation {
    pub sampling: SamplingParams,
    /// Tokens of prompt and output together, at most.
    pub max_tokens: usize,
    pub min_new_tokens: usize,
    pub stop_ids: Vec<u32>,
    /// `None` for a model without tokenizer.
    pub text: Option<(TextStream, StopStrings)>,
    pub logprobs: usize,
    pub returns_logits: bool,
}

/// What a request's adapters make of its way through the model.
pub(super) struct Walk {
    /// Which adapters act where along its tokens.
    pub spans: MixtureSpans,
    /// The base's layer that each layer of its stack is; `None` is the base's own stack.
    pub layers: Option<Arc<[u32]>>,
    /// How often the cache of a token has the base's number of layers: more than once where they repeat.
    pub kv_groups: usize,
    /// Width of its logits.
    pub vocab: usize,
}

/// A request in the scheduler.
pub(super) struct Sequence {
    pub shared: Arc<JobShared>,
    pub purpose: Purpose,
    /// Prompt, then output.
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    pub walk: Walk,
    /// Tokens whose keys and values are in `pages`.
    pub computed: usize,
    pub pages: Vec<u32>,
    /// Leading pages that were published or found, and the key they end in.
    pub published: usize,
    pub key: PrefixKey,
    /// Prompt tokens found in the cache when it first ran; `None` before.
    pub cached_tokens: Option<usize>,
}

impl Sequence {
    pub(super) fn new(shared: Arc<JobShared>, purpose: Purpose, tokens: Vec<u32>, walk: Walk) -> Self {
        Self {
            shared,
            purpose,
            prompt_len: tokens.len(),
            tokens,
            walk,
            computed: 0,
            pages: Vec::new(),
            published: 0,
            key: PrefixKey::EMPTY,
            cached_tokens: None,
        }
    }

    /// Pages that hold so many of its tokens.
    pub(super) fn pages_for(&self, tokens: usize) -> usize {
        pages_for(tokens) * self.walk.kv_groups
    }

    /// Whether its pages are found and kept under prefix keys; those of repeated layers are not.
    pub(super) fn shares_prefixes(&self) -> bool {
        self.walk.kv_groups == 1
    }

    /// The key of a page of its tokens, after that of the page before.
    pub(super) fn extend_key(&self, key: &PrefixKey, page: usize) -> PrefixKey {
        let positions = page * PAGE_TOKENS..(page + 1) * PAGE_TOKENS;
        key.extend(&self.tokens[positions.clone()], self.walk.spans.identity(positions))
    }

    /// Tokens that a step has to take in before the next one can be chosen.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Tells the job how much of its prompt is in the cache.
    pub(super) fn report_progress(&self) {
        self.shared.set_prefilled(self.computed.min(self.prompt_len));
    }

    /// Takes a chosen token in, with the logits to return for it, sends the chunk, and says whether the text ended.
    pub(super) fn accept(&mut self, sampled: Sampled, logits: Vec<f32>) -> Result<bool> {
        let Purpose::Generate(generation) = &mut self.purpose else { return Ok(true) };
        self.tokens.push(sampled.id);
        let mut chunk = Chunk { token_ids: vec![sampled.id], logits, ..Chunk::default() };
        if generation.logprobs > 0 {
            chunk.logprobs.push(TokenLogprobs { chosen: sampled.logprob, top: sampled.top_logprobs });
        }

        let mut ended = None;
        if generation.stop_ids.contains(&sampled.id) {
            ended = Some((FinishReason::Stop, Some(StopMatch::Token(sampled.id))));
        } else if let Some((stream, stops)) = &mut generation.text {
            let piece = match stream.push(sampled.id) {
                // Vocabularies are padded: such a row can be chosen, and has no text.
                Err(error) if error.code() == ErrorCode::TokenOutOfRange => String::new(),
                piece => piece?,
            };
            let step = stops.push(&piece);
            chunk.text = step.emit;
            ended = step.matched.map(|text| (FinishReason::Stop, Some(StopMatch::Text(text))));
        }
        if ended.is_none() && self.tokens.len() >= generation.max_tokens {
            ended = Some((FinishReason::Length, None));
        }
        let Some((mut reason, mut matched)) = ended else {
            self.shared.send(chunk);
            return Ok(false);
        };
        if let (Some((stream, stops)), false) = (&mut generation.text, matches!(matched, Some(StopMatch::Text(_)))) {
            // The held back tail may complete a stop string only now.
            let step = stops.push(&stream.finish()?);
            chunk.text += &step.emit;
            match step.matched {
                Some(text) => (reason, matched) = (FinishReason::Stop, Some(StopMatch::Text(text))),
                None => chunk.text += &stops.finish(),
            }
        }
        chunk.finish = Some(self.finish(reason, matched));
        self.shared.send(chunk);
        Ok(true)
    }

    /// Adds the logits of the next prompt position; sends all when the last position is there.
    pub(super) fn accept_prompt_logits(&mut self, row: &[f32]) -> bool {
        let Purpose::PromptLogits(collected) = &mut self.purpose else { return true };
        collected.extend_from_slice(row);
        if collected.len() < self.tokens.len() * self.walk.vocab {
            return false;
        }
        let logits = std::mem::take(collected);
        let finish = Some(self.finish(FinishReason::Length, None));
        self.shared.send(Chunk { logits, finish, ..Chunk::default() });
        true
    }

    /// Ends it before its time: cancelled, or out of cache.
    pub(super) fn end(&mut self, reason: FinishReason) {
        let mut chunk = Chunk { finish: Some(self.finish(reason, None)), ..Chunk::default() };
        if let Purpose::Generate(generation) = &mut self.purpose
            && let Some((stream, stops)) = &mut generation.text
            && let Ok(tail) = stream.finish()
        {
            chunk.text = stops.push(&tail).emit + &stops.finish();
        }
        self.shared.send(chunk);
    }

    /// Ends it with an error.
    pub(super) fn fail(&self, error: Error) {
        self.shared.fail(error);
    }

    fn finish(&self, reason: FinishReason, matched: Option<StopMatch>) -> Finish {
        let usage = Usage {
            prompt_tokens: self.prompt_len,
            cached_tokens: self.cached_tokens.unwrap_or(0),
            completion_tokens: self.tokens.len() - self.prompt_len,
        };
        Finish { reason, matched, usage }
    }
}
