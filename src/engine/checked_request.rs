//! From a request to jobs that run: its adapters leased, its prompt encoded, everything about it checked before any of it is
//! computed.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Engine;
use super::banned_text::BannedText;
use super::constraint::Constraint;
use super::draft::{DraftSource, Drafts};
use super::encoded_prompt::EncodedPrompt;
use super::guidance::{Guidance, NegativePrompt};
use super::job::Job;
use super::request::{AdapterRef, Prompt, Request, Stop, lease_all};
use super::sampler::{SamplerState, TopCounts};
use super::seed::{random_seed, sample_seed};
use super::sequence::{DecodeState, Purpose, Sequence};
use super::sequence_kv::SequencePlan;
use super::text::{ChatOptions, Detokenizer, RequestTokenizer, StopStrings};
use super::turns::Waiter;
use crate::adapter::batch::SlotId;
use crate::adapter::mixture::Mixture;
use crate::adapter::pool::AdapterLease;
use crate::error::{Error, ErrorCode, Result};
use crate::kv_cache::{PAGE_TOKENS, pages_for};
use crate::model::Model;

/// A request that can run: checked, its prompt encoded, its adapters leased, its seed drawn. Each sample is started from it.
pub struct CheckedRequest {
    pub(super) request: Request,
    pub(super) prompt: Arc<[u32]>,
    pub(super) mixture: Mixture,
    pub(super) plan: SequencePlan,
    /// What the draft model computes for it, if it uses that.
    draft: Option<(Mixture, SequencePlan)>,
    /// If it makes a difference.
    negative: Option<NegativePrompt>,
    /// That of the first sample, before its first token.
    pub(super) decode: DecodeState,
    seed: u64,
}

impl CheckedRequest {
    /// Number of its samples.
    pub fn samples(&self) -> usize {
        self.request.n
    }

    /// Token ids of the prompt.
    pub fn prompt_tokens(&self) -> &[u32] {
        &self.prompt
    }

    /// Refuses a request for more new tokens than the context or the KV cache leaves after its prompt and its negative prompt,
    /// which would otherwise end there.
    ///
    /// # Errors
    /// `request_invalid`.
    pub fn check_room(&self) -> Result<()> {
        let (prompt, asked) = (self.prompt.len(), self.request.max_new_tokens);
        let room = self.decode.max_tokens - prompt;
        if asked <= room {
            return Ok(());
        }
        let (prompts, shorten) = match &self.negative {
            None => (format!("a prompt of {prompt} tokens leaves"), "the prompt"),
            Some(negative) => {
                let negative = negative.tokens.len();
                (format!("a prompt of {prompt} and a negative prompt of {negative} tokens leave"), "the longer prompt")
            }
        };
        Err(Error::new(ErrorCode::RequestInvalid, format!("max_new_tokens is more than {prompts} room for"))
            .with_setting("max_new_tokens")
            .with_expected(format!("at most {room}"))
            .with_found(asked)
            .with_hint(format!(
                "ask for fewer new tokens, shorten {shorten}, or leave the field out for all that is left"
            )))
    }

    /// Tokens of the prompt, and of the negative prompt if it has one.
    pub(super) fn prefill_tokens(&self) -> usize {
        self.prompt.len() + self.negative.as_ref().map_or(0, |negative| negative.tokens.len())
    }
}

impl Engine {
    /// Checks the numbers of a request, whatever its prompt and adapters are.
    ///
    /// # Errors
    /// `request_invalid`, `sampling_invalid`.
    #[doc(hidden)]
    pub fn check_settings(&self, request: &Request) -> Result<()> {
        request.check(self.model().config().vocab_size)
    }

    /// Checks a request, leases its adapters, encodes its prompt and draws its seed. Never waits for a step.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    #[doc(hidden)]
    pub fn check(&self, request: Request) -> Result<CheckedRequest> {
        let (mixture, tokenizer) = self.lease(&request.adapters)?;
        let of_prompt = |error: Error| error.with_setting("prompt");
        let encoded = self.encode(&tokenizer, &request.prompt, request.add_special_tokens, &request.chat);
        let mut prompt = encoded.map_err(of_prompt)?;
        let healed = if request.token_healing { cut_last_token(&mut prompt.tokens, &tokenizer) } else { None };
        let plan = self.plan(&mixture, &prompt).map_err(of_prompt)?;
        request.check(plan.vocab)?;
        let negative = self.negative_prompt(&request, healed, &mixture, &tokenizer)?;
        let draft = self.draft_plan(&request, &prompt.tokens)?;
        let seed = match request.sampling.seed {
            Some(seed) => seed,
            // It draws nothing, and equal requests have equal results.
            None if request.sampling.is_greedy() => 0,
            None => random_seed()?,
        };
        let mut decode = self.decode_state(&request, &prompt, healed, &tokenizer, &plan)?;
        let prompt: Arc<[u32]> = prompt.tokens.into();
        if let Some(negative) = &negative {
            let most = self.max_new_tokens_of_both(prompt.len(), negative)?;
            decode.max_tokens = decode.max_tokens.min(prompt.len() + most);
        }
        Ok(CheckedRequest { request, prompt, mixture, plan, draft, negative, decode, seed })
    }

    /// Queues a sample of a request. Never waits for a step.
    #[doc(hidden)]
    pub fn start_sample(&self, checked: &CheckedRequest, sample: usize) -> Job {
        self.start(checked, sample, &Arc::default())
    }

    /// Queues a sample of a request, whose output `waiter` waits for.
    pub(super) fn start(&self, checked: &CheckedRequest, sample: usize, waiter: &Arc<Waiter>) -> Job {
        let seed = sample_seed(checked.seed, sample);
        let mut decode = checked.decode.clone();
        decode.sampling.seed = Some(seed);
        let mut leases = checked.mixture.clone().into_leases();
        leases.extend(checked.draft.iter().flat_map(|(mixture, _)| mixture.clone().into_leases()));
        let state = self.core.new_job(leases, waiter);
        let (purpose, drafts) = (Purpose::Generate(Box::new(decode)), self.drafts(checked));
        let mut sequence = Sequence::new(state, purpose, checked.prompt.to_vec(), checked.plan.clone(), drafts);
        sequence.guidance = checked.negative.as_ref().map(|negative| Box::new(Guidance::new(negative)));
        self.enqueue(sequence, Arc::clone(&checked.prompt), seed)
    }

    /// The negative prompt of a request whose prompt has lost its last token `healed`. `None` if it makes no difference.
    fn negative_prompt(
        &self,
        request: &Request,
        healed: Option<u32>,
        mixture: &Mixture,
        text: &RequestTokenizer,
    ) -> Result<Option<NegativePrompt>> {
        let (Some(prompt), Some(scale)) = (&request.negative_prompt, request.sampling.cfg_scale) else {
            return Ok(None);
        };
        let of_negative_prompt =
            |error: Error| error.with_setting("negative_prompt").with_subject("the negative prompt");
        // What is said of a chat is said of the prompt, where that is one.
        let chat = if matches!(prompt, Prompt::Chat(_)) { request.chat.clone() } else { ChatOptions::default() };
        let encoded = self.encode(text, prompt, request.add_special_tokens, &chat);
        let mut prompt = encoded.map_err(of_negative_prompt)?;
        // The first new token stands for the last one of both, if they end alike.
        if prompt.tokens.len() > 1 && prompt.tokens.last().copied() == healed {
            prompt.tokens.pop();
        }
        let plan = self.plan(mixture, &prompt).map_err(of_negative_prompt)?;
        Ok((scale != 1.0).then(|| NegativePrompt { scale, tokens: prompt.tokens.into(), plan }))
    }

    /// Most new tokens after a prompt of `prompt` tokens and a negative prompt, whose pages must fit the cache together.
    fn max_new_tokens_of_both(&self, prompt: usize, negative: &NegativePrompt) -> Result<usize> {
        let (negative, pages) = (negative.tokens.len(), self.kv_pages / negative.plan.kv_groups);
        // The last token is never computed, so it needs no position.
        let fits = |new: usize| pages_for(prompt + new - 1) + pages_for(negative + new - 1) <= pages;
        if !fits(1) {
            return Err(Error::new(
                ErrorCode::PromptTooLong,
                "prompt and negative prompt do not fit the KV cache together",
            )
            .with_setting("negative_prompt")
            .with_expected(format!("at most {} tokens", pages * PAGE_TOKENS))
            .with_found(format!("{prompt} and {negative} tokens"))
            .with_hint("shorten the prompts, or enlarge the KV cache (kv_tokens)"));
        }
        let longest = self.max_seq_len.saturating_sub(prompt.max(negative)) + 1;
        let most = longest.min((pages * PAGE_TOKENS - prompt - negative) / 2 + 1);
        Ok((1..=most).rev().find(|&new| fits(new)).unwrap_or(1))
    }

    /// Leases the adapters of a request and finds its tokenizer.
    pub(super) fn lease(&self, adapters: &[(AdapterRef, f32)]) -> Result<(Mixture, RequestTokenizer)> {
        let mixture = lease_all(adapters, self.model())?;
        let text = RequestTokenizer::new(mixture.leases(), self.tokenizer.as_ref())?;
        Ok((mixture, text))
    }

    /// Checks a prompt, and derives the plan of its request.
    pub(super) fn plan(&self, mixture: &Mixture, prompt: &EncodedPrompt) -> Result<SequencePlan> {
        let model = self.model();
        mixture.check_tokens(prompt.ids(), model.config().vocab_size)?;
        let mut plan = sequence_plan(model, mixture, &prompt.tokens);
        plan.forward.embeds = Arc::clone(&prompt.embeds);
        self.check_length(prompt.tokens.len(), &plan)?;
        Ok(plan)
    }

    /// Positions that a sequence can reach: each KV group needs pages of its own.
    fn max_tokens_of(&self, plan: &SequencePlan) -> usize {
        self.max_seq_len.min(self.kv_pages / plan.kv_groups * PAGE_TOKENS)
    }

    /// Refuses a prompt that does not fit, by the limit that it exceeds.
    fn check_length(&self, prompt_tokens: usize, plan: &SequencePlan) -> Result<()> {
        let max_tokens = self.max_tokens_of(plan);
        if prompt_tokens <= max_tokens {
            return Ok(());
        }
        let config = self.model().config();
        let (what, hint) = match (self.max_seq_len > max_tokens, config.position_limit) {
            (true, _) => {
                ("the prompt does not fit the KV cache", "shorten the prompt, or enlarge the KV cache (kv_tokens)")
            }
            (false, Some(limit)) if limit == max_tokens => (
                "the prompt is longer than the model's positions, which dynamic scaling does not extend here",
                "shorten the prompt",
            ),
            (false, _) => (
                "the prompt is longer than max_seq_len, by default the model's positions",
                "shorten the prompt, or set max_seq_len if the model can use longer ones",
            ),
        };
        Err(Error::new(ErrorCode::PromptTooLong, what)
            .with_expected(format!("at most {max_tokens} tokens"))
            .with_found(format!("{prompt_tokens} tokens"))
            .with_hint(hint))
    }

    /// How a request is decoded, from the end of its prompt on.
    fn decode_state(
        &self,
        request: &Request,
        prompt: &EncodedPrompt,
        healed: Option<u32>,
        text: &RequestTokenizer,
        plan: &SequencePlan,
    ) -> Result<DecodeState> {
        let mut stop_ids = Vec::new();
        if request.stop_at_eos {
            stop_ids.extend(&self.model().config().eos_token_ids);
            stop_ids.extend(&self.generation_config.eos_token_ids);
            stop_ids.extend(&text.eos_ids);
        }
        let constraint = self.constraint(request, healed, text, &stop_ids, plan)?;
        let mut stop_texts = Vec::new();
        for stop in &request.stop {
            match stop {
                Stop::Token(id) => stop_ids.push(*id),
                Stop::Text(text) => stop_texts.push(text.clone()),
            }
        }
        // However many a request lists, it has no more than the vocabulary.
        stop_ids.sort_unstable();
        stop_ids.dedup();
        stop_ids.retain(|&id| (id as usize) < plan.vocab);
        let mut stop_string_ids = Vec::new();
        let sampler_state = SamplerState::new(&request.sampling, plan.vocab, text.tokenizer.as_deref());
        let text = match &text.tokenizer {
            Some(tokenizer) => {
                stop_string_ids.extend(stop_texts.iter().filter_map(|stop| tokenizer.special_id_of(stop)));
                let (tokenizer, before) = (Arc::clone(tokenizer), prompt.ids_at_end());
                let mut detokenizer = Detokenizer::new(tokenizer, request.skip_special_tokens, before);
                if let Some(healed) = healed {
                    detokenizer = detokenizer.healing(healed)?;
                }
                Some((detokenizer, StopStrings::new(stop_texts)))
            }
            None if stop_texts.is_empty() && request.banned_strings.is_empty() => None,
            None => {
                let what =
                    "stop strings and banned strings need a tokenizer, and the model folder has no tokenizer.json";
                let setting = if stop_texts.is_empty() { "banned_strings" } else { "stop" };
                let error = Error::new(ErrorCode::TokenizerNotFound, what).with_setting(setting);
                return Err(error.with_path(self.model().path()));
            }
        };
        let banned = (!request.banned_strings.is_empty()).then(|| Box::new(BannedText::new(&request.banned_strings)));
        Ok(DecodeState {
            sampling: request.sampling.clone(),
            // The last token is never computed, so it needs no position.
            max_tokens: prompt.tokens.len().saturating_add(request.max_new_tokens).min(self.max_tokens_of(plan) + 1),
            min_new_tokens: request.min_new_tokens,
            stop_ids,
            stop_string_ids,
            constraint,
            text,
            banned,
            top: TopCounts { logprobs: request.logprobs, probs: request.probs },
            returns_logits: request.return_logits,
            sampler_state,
            post_sampling_hooks: request.post_sampling_hooks.clone(),
        })
    }

    /// What the draft model computes for a request. `None` if it drafts nothing, or otherwise.
    fn draft_plan(&self, request: &Request, tokens: &[u32]) -> Result<Option<(Mixture, SequencePlan)>> {
        let Some(model) = &self.draft_model else {
            if request.draft_adapters.is_empty() {
                return Ok(None);
            }
            let what = "draft_adapters are those of a draft model, and the engine has none";
            return Err(Error::new(ErrorCode::RequestInvalid, what).with_hint("open the engine with draft_model"));
        };
        let mixture = lease_all(&request.draft_adapters, model)?;
        // Tokens that an adapter has added may be unknown to it, and vectors are those of another model.
        let is_off = request.ngram_draft || request.num_draft_tokens == Some(0);
        if is_off || mixture.check_tokens(tokens, model.config().vocab_size).is_err() {
            return Ok(None);
        }
        let plan = sequence_plan(model, &mixture, tokens);
        Ok(Some((mixture, plan)))
    }

    /// What a sample of a request drafts.
    fn drafts(&self, checked: &CheckedRequest) -> Drafts {
        let request = &checked.request;
        let source = match &checked.draft {
            _ if request.ngram_draft => DraftSource::ngram(request.max_ngram),
            Some((_, plan)) => DraftSource::model(plan.clone()),
            None => DraftSource::Off,
        };
        Drafts::new(source, request.num_draft_tokens.unwrap_or(self.num_draft_tokens))
    }

    /// What limits the tokens of a request whose text ends with `eos_ids`.
    fn constraint(
        &self,
        request: &Request,
        healed: Option<u32>,
        text: &RequestTokenizer,
        eos_ids: &[u32],
        plan: &SequencePlan,
    ) -> Result<Option<Box<Constraint>>> {
        let tokenizer = || text.tokenizer.as_ref().map_or_else(|| self.tokenizer(), Ok);
        // A special token that the request names as a stop is an end of the text like the model's own, and no part of it.
        let special_id = |stop: &Stop| {
            let tokenizer = text.tokenizer.as_ref()?;
            match stop {
                Stop::Token(id) => tokenizer.is_special(*id).then_some(*id),
                Stop::Text(text) => tokenizer.special_id_of(text),
            }
        };
        let stops = request.stop.iter().filter_map(special_id);
        let ends: Vec<u32> = eos_ids.iter().copied().chain(stops).collect();
        let (grammar, trie) = (request.grammar.as_ref(), || tokenizer()?.trie());
        Constraint::new(grammar, &request.filters, healed, trie, &ends, plan.vocab)
    }

    pub(super) fn enqueue(&self, sequence: Sequence, prompt: Arc<[u32]>, seed: u64) -> Job {
        let (state, prefill_tokens) = (Arc::clone(&sequence.job), sequence.prompt_tokens());
        self.core.submit(sequence);
        Job::new(Arc::clone(&self.core), state, prompt, prefill_tokens, seed)
    }
}

/// What the adapters of a request decide about the sequence that begins with `tokens`.
fn sequence_plan(model: &Model, mixture: &Mixture, tokens: &[u32]) -> SequencePlan {
    let adapters: BTreeSet<SlotId> = mixture.leases().map(AdapterLease::slot).collect();
    SequencePlan {
        adapters: adapters.into_iter().collect(),
        forward: mixture.forward_plan(tokens),
        original_positions: model.config().long_ropes.as_ref().map(|long| long.original_positions),
        kv_groups: model.kv_groups_of(mixture.layers()),
        row_cost: model.row_cost(mixture),
        vocab: mixture.head_rows(model.config().vocab_size),
    }
}

/// Cuts the last token off a prompt, for the first new token to continue it. Not one that is no text, nor the only one.
fn cut_last_token(tokens: &mut Vec<u32>, text: &RequestTokenizer) -> Option<u32> {
    let tokenizer = text.tokenizer.as_ref()?;
    let has_text = |id: u32| !tokenizer.is_special(id) && tokenizer.piece(id).is_ok_and(|text| !text.is_empty());
    if tokens.len() < 2 {
        return None;
    }
    tokens.pop_if(|id| has_text(*id))
}
