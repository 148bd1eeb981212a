//! A request in the scheduler: its tokens, its pages, and when its text ends.

use std::sync::Arc;

use super::banned_text::{BannedText, TextState};
use super::constraint::Constraint;
use super::draft::Drafts;
use super::guidance::Guidance;
use super::job_state::JobState;
use super::output::{Chunk, Finish, FinishReason, StopMatch, TokenLogprobs, TokenProbs, Usage};
use super::post_sampling::PostSamplingHook;
use super::sampler::{Sampled, SamplerState, TopCounts};
use super::sampling_params::SamplingParams;
use super::sequence_kv::{SequenceKv, SequencePlan};
use super::text::StopScan;
use crate::adapter::batch::SlotId;
use crate::error::{Error, ErrorCode, Result};

/// What a sequence is for.
pub(super) enum Purpose {
    /// Generate tokens until something ends the text.
    Generate(Box<DecodeState>),
    /// Compute the logits of every position of the prompt; collected so far.
    PromptLogits(Vec<f32>),
}

/// How tokens are chosen, turned into text, and when the text ends.
#[derive(Clone)]
pub(super) struct DecodeState {
    /// Its seed is the one drawn, if the request had none.
    pub sampling: SamplingParams,
    /// Largest number of tokens, prompt and output together.
    pub max_tokens: usize,
    /// Before this number of new tokens, nothing but the length and the end of a grammar ends the text.
    pub min_new_tokens: usize,
    /// Sorted.
    pub stop_ids: Vec<u32>,
    /// Special tokens that are stop strings. Their spelling is what ends the text, so that it is the match reported.
    pub stop_string_ids: Vec<u32>,
    /// What limits the tokens: a grammar, filters, token healing.
    pub constraint: Option<Box<Constraint>>,
    /// `None` for a model without a tokenizer.
    pub text: TextState,
    /// If strings are banned.
    pub banned: Option<Box<BannedText>>,
    pub top: TopCounts,
    pub returns_logits: bool,
    /// What the sampler keeps between tokens.
    pub sampler_state: SamplerState,
    pub post_sampling_hooks: Vec<PostSamplingHook>,
}

/// A request in the scheduler.
pub(super) struct Sequence {
    pub job: Arc<JobState>,
    pub purpose: Purpose,
    /// Prompt, then output.
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    /// What is computed of them. Tokens that are verified count once they were chosen.
    pub kv: SequenceKv,
    /// The negative prompt and the same output, if its tokens are chosen from the logits of both.
    pub guidance: Option<Box<Guidance>>,
    pub drafts: Drafts,
    /// Prompt tokens found in the prefix cache when it was first admitted; `None` before.
    pub cached_tokens: Option<usize>,
}

impl Sequence {
    pub(super) fn new(
        job: Arc<JobState>,
        purpose: Purpose,
        tokens: Vec<u32>,
        plan: SequencePlan,
        drafts: Drafts,
    ) -> Self {
        let (prompt_len, kv) = (tokens.len(), SequenceKv::new(plan));
        Self { job, purpose, prompt_len, tokens, kv, guidance: None, drafts, cached_tokens: None }
    }

    /// The slots of its adapters, sorted, each once.
    pub(super) fn adapters(&self) -> &Arc<[SlotId]> {
        &self.kv.plan.adapters
    }

    /// What limits its tokens, if anything does.
    pub(super) fn constraint_mut(&mut self) -> Option<&mut Constraint> {
        match &mut self.purpose {
            Purpose::Generate(decode) => decode.constraint.as_deref_mut(),
            Purpose::PromptLogits(_) => None,
        }
    }

    /// Appends a chosen token, sends its chunk (with `logits`) unless it is held back, and ends the text if that was its last.
    /// If the text then contains a banned string, the sequence goes back: it has fewer tokens than are computed.
    pub(super) fn accept(&mut self, sampled: Sampled, logits: Vec<f32>) -> Result<()> {
        let Purpose::Generate(decode) = &mut self.purpose else { return Ok(()) };
        if let Some(banned) = &mut decode.banned {
            banned.hold(self.tokens.len(), &decode.text);
        }
        self.tokens.push(sampled.id);
        if let Some(guidance) = &mut self.guidance {
            guidance.tokens.push(sampled.id);
        }
        self.drafts.verify(sampled.id);
        let mut chunk = Chunk { token_ids: vec![sampled.id], logits, ..Chunk::default() };
        if decode.top.logprobs > 0 {
            chunk.logprobs.push(TokenLogprobs { chosen: sampled.logprob, top: sampled.top_logprobs });
        }
        if decode.top.probs > 0 {
            chunk.probs.push(TokenProbs { chosen: sampled.prob, top: sampled.top_probs });
        }

        let is_complete = match &mut decode.constraint {
            Some(constraint) => constraint.advance(sampled.id)?,
            None => false,
        };
        let new_tokens = self.tokens.len() - self.prompt_len;
        let may_stop = new_tokens > decode.min_new_tokens;
        let mut ended = None;
        if decode.stop_ids.binary_search(&sampled.id).is_ok() {
            ended = Some((FinishReason::Stop, Some(StopMatch::Token(sampled.id))));
        } else if let Some((detokenizer, stops)) = &mut decode.text {
            let piece = detokenizer.push(sampled.id)?;
            if let Some(banned) = &mut decode.banned {
                banned.read(&piece);
            }
            let mut step = stops.push_hidden(&piece.special, may_stop);
            if step.matched.is_none() {
                let text = stops.push(&piece.text, may_stop);
                step = StopScan { emit: step.emit + &text.emit, matched: text.matched };
            }
            chunk.text = step.emit;
            ended = step.matched.map(|text| (FinishReason::Stop, Some(StopMatch::Text(text))));
        }
        if ended.is_none() && is_complete {
            ended = Some((FinishReason::Stop, None));
        }
        if ended.is_none() && self.tokens.len() >= decode.max_tokens {
            ended = Some((FinishReason::Length, None));
        }
        let Some((mut reason, mut matched)) = ended else { return self.send(chunk) };
        if let (Some((detokenizer, stops)), false) = (&mut decode.text, matches!(matched, Some(StopMatch::Text(_)))) {
            // The rest of the text may complete a stop string.
            let step = stops.push(&detokenizer.finish()?, may_stop);
            chunk.text += &step.emit;
            match step.matched {
                Some(text) => (reason, matched) = (FinishReason::Stop, Some(StopMatch::Text(text))),
                None => chunk.text += &stops.finish(),
            }
        }
        chunk.finish = Some(self.finish(reason, matched));
        self.send(chunk)
    }

    /// Sends the chunk of the last token as soon as it is final, or goes back to where a banned string begins.
    fn send(&mut self, chunk: Chunk) -> Result<()> {
        let Purpose::Generate(decode) = &mut self.purpose else { return Ok(()) };
        let Some(banned) = &mut decode.banned else {
            self.job.send(chunk);
            return Ok(());
        };
        if let Some(position) = banned.complete(chunk) {
            let given_up = self.tokens.split_off(position);
            if let Some(Guidance { tokens, .. }) = self.guidance.as_deref_mut() {
                tokens.truncate(tokens.len() - given_up.len());
            }
            let (suppressed_text, text) = banned.go_back(position, given_up[0])?;
            decode.text = text;
            decode.sampler_state.rewind(position - self.prompt_len);
            if let Some(constraint) = &mut decode.constraint {
                constraint.rewind(given_up.len())?;
            }
            self.job.send(Chunk { suppressed_text, suppressed_token_ids: given_up, ..Chunk::default() });
        }
        banned.take_final().into_iter().for_each(|chunk| self.job.send(chunk));
        Ok(())
    }

    /// Adds the logits of the next prompt position, and sends all of them after the last.
    pub(super) fn accept_prompt_logits(&mut self, row: &[f32]) {
        let Purpose::PromptLogits(collected) = &mut self.purpose else { return };
        collected.extend_from_slice(row);
        if collected.len() == self.tokens.len() * self.kv.plan.vocab {
            let logits = std::mem::take(collected);
            let finish = Some(self.finish(FinishReason::Length, None));
            self.job.send(Chunk { logits, finish, ..Chunk::default() });
        }
    }

    /// Ends it early: cancelled, or out of cache.
    pub(super) fn end(&mut self, reason: FinishReason) {
        let mut chunk = Chunk { finish: Some(self.finish(reason, None)), ..Chunk::default() };
        if let Purpose::Generate(decode) = &mut self.purpose
            && let Some(banned) = &mut decode.banned
        {
            banned.take_all().into_iter().for_each(|chunk| self.job.send(chunk));
        }
        if let Purpose::Generate(decode) = &mut self.purpose
            && let Some((detokenizer, stops)) = &mut decode.text
            && let Ok(tail) = detokenizer.finish()
        {
            chunk.text = stops.push(&tail, false).emit + &stops.finish();
        }
        self.job.send(chunk);
    }

    /// Ends it with an error.
    pub(super) fn fail(&self, error: Error) {
        self.job.fail(error);
    }

    fn finish(&self, reason: FinishReason, matched: Option<StopMatch>) -> Finish {
        let drafts = self.drafts.counts();
        let usage = Usage {
            prompt_tokens: self.prompt_len,
            cached_tokens: self.cached_tokens.unwrap_or(0),
            completion_tokens: self.tokens.len() - self.prompt_len,
            accepted_draft_tokens: drafts.accepted,
            rejected_draft_tokens: drafts.rejected,
        };
        let seed = match &self.purpose {
            Purpose::Generate(decode) => decode.sampling.seed.unwrap_or_default(),
            Purpose::PromptLogits(_) => 0,
        };
        Finish { reason, matched, usage, seed }
    }
}

impl Drop for Sequence {
    /// Nobody waits forever for a sequence that is gone.
    fn drop(&mut self) {
        if !self.job.has_ended() {
            self.job.fail(Error::new(ErrorCode::Internal, "the engine gave up the request"));
        }
    }
}
