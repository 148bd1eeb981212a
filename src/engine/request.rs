//! A request: a prompt, its adapters, and how to continue it.

use super::constraint::{Filters, Grammar};
use super::post_sampling::PostSamplingHook;
use super::sampling_params::SamplingParams;
use super::text::{ChatMessage, ChatOptions};
use crate::adapter::mixture::Mixture;
use crate::adapter::pool::{AdapterLease, AdapterPool};
use crate::error::{Error, ErrorCode, Result};
use crate::model::Model;
use crate::prompt_embeds::PromptEmbeds;

/// The prompt of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Text, encoded by the model's tokenizer with its special tokens recognized.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
    /// A chat, rendered by the model's template as [`Request::chat`] says.
    Chat(Vec<ChatMessage>),
    /// Token ids and vectors in place of token ids, one after another.
    Parts(Vec<PromptPart>),
}

/// A part of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum PromptPart {
    /// Token ids.
    Tokens(Vec<u32>),
    /// Vectors in place of token ids.
    Embeds(PromptEmbeds),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Prompt::Text(text.to_owned())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Prompt::Text(text)
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(tokens: Vec<u32>) -> Self {
        Prompt::Tokens(tokens)
    }
}

impl From<Vec<PromptPart>> for Prompt {
    fn from(parts: Vec<PromptPart>) -> Self {
        Prompt::Parts(parts)
    }
}

impl From<PromptEmbeds> for Prompt {
    fn from(embeds: PromptEmbeds) -> Self {
        Prompt::Parts(vec![PromptPart::Embeds(embeds)])
    }
}

impl From<Vec<ChatMessage>> for Prompt {
    fn from(messages: Vec<ChatMessage>) -> Self {
        Prompt::Chat(messages)
    }
}

/// An adapter of a request: a name, looked up when the request is submitted, or a lease on an adapter version.
#[derive(Clone, Debug)]
pub enum AdapterRef {
    /// The version that has this name when the request is submitted.
    Name(String),
    /// This version.
    Lease(AdapterLease),
}

impl PartialEq for AdapterRef {
    /// Names are equal as text, leases if they hold the same adapter version.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (AdapterRef::Name(name), AdapterRef::Name(other)) => name == other,
            (AdapterRef::Lease(lease), AdapterRef::Lease(other)) => lease.is_same_version(other),
            _ => false,
        }
    }
}

impl AdapterRef {
    /// The adapter's name; of an anonymous one its folder's name.
    pub fn label(&self) -> String {
        match self {
            AdapterRef::Name(name) => name.clone(),
            AdapterRef::Lease(lease) => lease.label(),
        }
    }

    /// A lease on the adapter version.
    ///
    /// # Errors
    /// `adapter_not_found`, `adapter_model_mismatch`.
    pub fn lease(&self, pool: &AdapterPool) -> Result<AdapterLease> {
        match self {
            AdapterRef::Name(name) => pool.lease(name),
            AdapterRef::Lease(lease) if lease.is_of(pool) => Ok(lease.clone()),
            AdapterRef::Lease(lease) => {
                Err(Error::new(ErrorCode::AdapterModelMismatch, "the adapter was loaded on another model")
                    .with_path(&lease.summary().path))
            }
        }
    }
}

/// Leases the adapters of a request and checks that they can be mixed.
///
/// # Errors
/// `adapter_not_found`, `adapter_model_mismatch`, `adapter_weight_invalid`, `adapter_mixture_invalid`.
pub(crate) fn lease_all(adapters: &[(AdapterRef, f32)], model: &Model) -> Result<Mixture> {
    Mixture::check_length(adapters.len())?;
    let mut leases: Vec<(AdapterLease, f32)> = Vec::with_capacity(adapters.len());
    for (adapter, weight) in adapters {
        // What is named twice is one version, on which the request has one lease.
        let known = adapters[..leases.len()].iter().position(|(other, _)| other == adapter);
        let lease = match known {
            Some(index) => leases[index].0.clone(),
            None => adapter.lease(model.adapters())?,
        };
        leases.push((lease, *weight));
    }
    Mixture::new(leases, model.sites())
}

/// Largest number of samples of a request.
pub const MAX_SAMPLES: usize = 1 << 16;

/// Largest number of stop strings of a request: each looks at every byte of the text.
pub const MAX_STOP_STRINGS: usize = 256;

/// Largest size of a request's stop strings together, in bytes: a beginning of one may be held back and looked at again.
pub const MAX_STOP_STRING_BYTES: usize = 16 << 10;

/// Number of last tokens that a draft from the text itself looks for by default.
pub const DEFAULT_MAX_NGRAM: usize = 4;

/// Largest number of last tokens that a draft from the text itself may look for: each length takes an index of its own.
pub const MAX_NGRAM: usize = 16;

/// Largest number of tokens drafted for a step.
pub const MAX_DRAFT_TOKENS: usize = 64;

/// What ends a text before its length limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// This token. It is counted and returned in `token_ids`; its text is not part of the text.
    Token(u32),
    /// This string, regardless of token boundaries. The text ends before it.
    Text(String),
}

/// A prompt and how to continue it. Built by chaining; see the example in the crate docs.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The prompt.
    pub prompt: Prompt,
    /// How a chat is rendered. For other prompts it must be the default.
    pub chat: ChatOptions,
    /// Another prompt, which the text is guided away from (classifier-free guidance): each token is chosen from the
    /// log-probabilities after the prompt, times [`SamplingParams::cfg_scale`], plus those after this prompt, times 1 less
    /// that. It has the same adapters, and counts as a request of its own in
    /// [`EngineOptions::max_rows`](crate::EngineOptions::max_rows). The output follows it too, so a longer one than the prompt
    /// leaves less room for it.
    pub negative_prompt: Option<Prompt>,
    /// Ordered mixture of (adapter, weight); empty is the base model.
    pub adapters: Vec<(AdapterRef, f32)>,
    /// Largest number of new tokens. Where the model's positions or the cache end before, so does the text
    /// ([`FinishReason::Length`](crate::FinishReason::Length)).
    pub max_new_tokens: usize,
    /// Up to this number of new tokens, nothing but `max_new_tokens` ends the text: stop tokens and special tokens that are
    /// stop strings are not chosen, other stop strings become part of the text.
    pub min_new_tokens: usize,
    /// Number of independent samples: completions of the same prompt, each with a seed derived from the request's. 1 is the
    /// sample of the request's own seed.
    pub n: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// What ends the text, besides the model's own end-of-sequence ids: any token ids, and at most 256 strings, which may
    /// have 16 KiB together.
    pub stop: Vec<Stop>,
    /// Strings that the text does not contain, in any case: at most 256, which may have 16 KiB together. Where one is complete,
    /// generation goes back to the token where it began and chooses another one.
    pub banned_strings: Vec<String>,
    /// Whether the model's end-of-sequence ids (config.json, generation_config.json) end the text.
    pub stop_at_eos: bool,
    /// Number of top log-probabilities for each token; 0 for no log-probabilities.
    pub logprobs: usize,
    /// Number of top probabilities for each token after penalties and filters, in the distribution that it was drawn from; 0
    /// for no probabilities.
    pub probs: usize,
    /// Called with each chosen token, in this order; each may replace it.
    pub post_sampling_hooks: Vec<PostSamplingHook>,
    /// Whether chunks contain the logits that each token was chosen from.
    pub return_logits: bool,
    /// Whether tokens are drafted from the prompt and the output themselves (prompt lookup): what followed where the last
    /// tokens appeared before. A draft changes no token, only the number of steps.
    pub ngram_draft: bool,
    /// Largest number of last tokens that such a draft looks for.
    pub max_ngram: usize,
    /// Largest number of tokens drafted for a step; 0 for none, by default
    /// [`EngineOptions::num_draft_tokens`](crate::EngineOptions).
    pub num_draft_tokens: Option<usize>,
    /// The mixture of the draft model, of adapters loaded by
    /// [`Engine::load_draft_adapter`](crate::Engine::load_draft_adapter); by default none.
    pub draft_adapters: Vec<(AdapterRef, f32)>,
    /// Whether special tokens are left out of the text.
    pub skip_special_tokens: bool,
    /// Whether the tokenizer adds its own special tokens (a BOS) to a text prompt.
    pub add_special_tokens: bool,
    /// What the text must match, from its beginning to its end. Where nothing may follow, the text ends, whatever
    /// `min_new_tokens` says.
    pub grammar: Option<Grammar>,
    /// The caller's own code that limits the tokens. For one sample.
    pub filters: Filters,
    /// Whether the last token of the prompt is taken back, and the first new token is one whose text begins with its text. The
    /// completion's text begins after it. Not of a prompt of one token, or one that ends with a special token.
    pub token_healing: bool,
}

impl Request {
    /// Checks the numbers of a request and its sampling, for a model with `vocab` logits.
    ///
    /// # Errors
    /// `request_invalid`, `sampling_invalid`.
    pub(super) fn check(&self, vocab: usize) -> Result<()> {
        let wrong = |setting: &str, what: &str| {
            Error::new(ErrorCode::RequestInvalid, format!("{setting} {what}")).with_setting(setting)
        };
        let invalid = |setting: &str, what: &str, expected: String, found: usize| {
            Err(wrong(setting, what).with_expected(expected).with_found(found))
        };
        if self.max_new_tokens == 0 {
            return invalid("max_new_tokens", "is 0", "at least 1".to_owned(), 0);
        }
        if !(1..=MAX_SAMPLES).contains(&self.n) {
            return invalid("n", "is out of range", format!("1 to {MAX_SAMPLES} samples"), self.n);
        }
        for (name, tokens) in [("logprobs", self.logprobs), ("probs", self.probs)] {
            if tokens > vocab {
                return invalid(name, "asks for more tokens than the model has", format!("at most {vocab}"), tokens);
            }
        }
        if self.n > 1 && !self.filters.filters.is_empty() {
            return invalid("n", "is above 1, and filters know one text", "n = 1".to_owned(), self.n);
        }
        if self.token_healing && self.grammar.is_some() {
            let what = "and a grammar exclude each other: a grammar begins where the prompt ends";
            return Err(wrong("token_healing", what));
        }
        let scale = self.sampling.cfg_scale;
        if self.negative_prompt.is_some() && scale.is_none() {
            return Err(wrong("negative_prompt", "is given and no cfg_scale")
                .with_hint("cfg_scale says how much it counts; above 1 the text is guided away from it"));
        }
        if self.negative_prompt.is_none() && scale.is_some_and(|scale| scale != 1.0) {
            return Err(wrong("cfg_scale", "is given and no negative_prompt")
                .with_hint("give a negative prompt, or leave cfg_scale out"));
        }
        if !(1..=MAX_NGRAM).contains(&self.max_ngram) {
            return invalid("max_ngram", "is out of range", format!("1 to {MAX_NGRAM} tokens"), self.max_ngram);
        }
        if let Some(tokens) = self.num_draft_tokens.filter(|&tokens| tokens > MAX_DRAFT_TOKENS) {
            return invalid("num_draft_tokens", "is out of range", format!("at most {MAX_DRAFT_TOKENS}"), tokens);
        }
        let of = |setting: &'static str| move |error: Error| error.with_setting(setting);
        check_strings("stop string", self.stop_strings()).map_err(of("stop"))?;
        check_strings("banned string", self.banned_strings.iter().map(String::as_str)).map_err(of("banned_strings"))?;
        self.sampling.check(vocab)
    }

    fn stop_strings(&self) -> impl Iterator<Item = &str> {
        self.stop.iter().filter_map(|stop| match stop {
            Stop::Text(text) => Some(text.as_str()),
            Stop::Token(_) => None,
        })
    }

    /// A greedy request for at most 128 new tokens from the base model.
    pub fn new(prompt: impl Into<Prompt>) -> Self {
        Self {
            prompt: prompt.into(),
            chat: ChatOptions::default(),
            negative_prompt: None,
            adapters: Vec::new(),
            max_new_tokens: 128,
            min_new_tokens: 0,
            n: 1,
            sampling: SamplingParams::default(),
            stop: Vec::new(),
            banned_strings: Vec::new(),
            stop_at_eos: true,
            logprobs: 0,
            probs: 0,
            post_sampling_hooks: Vec::new(),
            return_logits: false,
            ngram_draft: false,
            max_ngram: DEFAULT_MAX_NGRAM,
            num_draft_tokens: None,
            draft_adapters: Vec::new(),
            skip_special_tokens: true,
            add_special_tokens: true,
            grammar: None,
            filters: Filters::default(),
            token_healing: false,
        }
    }

    /// Appends an adapter to the mixture, by name or by the [`AdapterInfo`](crate::AdapterInfo) that loading it returned.
    pub fn adapter(mut self, name: impl AsRef<str>, weight: f32) -> Self {
        self.adapters.push((AdapterRef::Name(name.as_ref().to_owned()), weight));
        self
    }

    /// Appends a leased adapter to the mixture.
    pub fn leased_adapter(mut self, lease: AdapterLease, weight: f32) -> Self {
        self.adapters.push((AdapterRef::Lease(lease), weight));
        self
    }

    /// Sets how a chat is rendered.
    pub fn chat(mut self, options: ChatOptions) -> Self {
        self.chat = options;
        self
    }

    /// Sets the largest number of new tokens.
    pub fn max_new_tokens(mut self, tokens: usize) -> Self {
        self.max_new_tokens = tokens;
        self
    }

    /// Asks for `n` independent samples.
    pub fn n(mut self, n: usize) -> Self {
        self.n = n;
        self
    }

    /// Sets how tokens are chosen.
    pub fn sampling(mut self, sampling: SamplingParams) -> Self {
        self.sampling = sampling;
        self
    }

    /// Guides the text away from another prompt; `scale` is [`SamplingParams::cfg_scale`].
    ///
    /// ```
    /// use exlora::{Engine, EngineOptions, Request};
    ///
    /// let engine = Engine::load("tests/fixtures/quill-4m", EngineOptions::default())?;
    /// let guided = Request::new("She was happy and").negative_prompt("She was sad and", 2.0).max_new_tokens(4);
    /// let plain = Request::new("She was happy and").negative_prompt("She was sad and", 1.0).max_new_tokens(4);
    /// let found = engine.generate(&[guided, plain, Request::new("She was happy and").max_new_tokens(4)])?;
    /// assert_eq!(found[1], found[2]);
    /// # Ok::<(), exlora::Error>(())
    /// ```
    pub fn negative_prompt(mut self, prompt: impl Into<Prompt>, scale: f32) -> Self {
        self.negative_prompt = Some(prompt.into());
        self.sampling.cfg_scale = Some(scale);
        self
    }

    /// Adds a stop.
    pub fn stop(mut self, stop: Stop) -> Self {
        self.stop.push(stop);
        self
    }

    /// Adds a hook that is called with each chosen token.
    pub fn post_sampling_hook(mut self, hook: PostSamplingHook) -> Self {
        self.post_sampling_hooks.push(hook);
        self
    }

    /// Sets what the text must match.
    ///
    /// ```
    /// use exlora::{Engine, EngineOptions, Grammar, Request};
    ///
    /// let engine = Engine::load("tests/fixtures/quill-4m", EngineOptions::default())?;
    /// let request = Request::new("Once upon a").grammar(Grammar::Regex("[a-z]{3} [0-9]+".to_owned())).max_new_tokens(6);
    /// let text = &engine.generate(&[request])?[0].text;
    /// assert!(text.as_bytes()[..3].iter().all(u8::is_ascii_lowercase));
    /// # Ok::<(), exlora::Error>(())
    /// ```
    pub fn grammar(mut self, grammar: Grammar) -> Self {
        self.grammar = Some(grammar);
        self
    }

    /// Asks for the `n` best probabilities of each token after penalties and filters.
    pub fn probs(mut self, n: usize) -> Self {
        self.probs = n;
        self
    }

    /// Drafts tokens from the prompt and the output themselves.
    pub fn ngram_draft(mut self) -> Self {
        self.ngram_draft = true;
        self
    }

    /// Appends an adapter to the mixture of the draft model.
    pub fn draft_adapter(mut self, name: impl AsRef<str>, weight: f32) -> Self {
        self.draft_adapters.push((AdapterRef::Name(name.as_ref().to_owned()), weight));
        self
    }

    /// Sets the largest number of tokens drafted for a step.
    pub fn num_draft_tokens(mut self, tokens: usize) -> Self {
        self.num_draft_tokens = Some(tokens);
        self
    }

    /// Adds a string that the text does not contain.
    pub fn banned_string(mut self, string: impl Into<String>) -> Self {
        self.banned_strings.push(string.into());
        self
    }

    /// Asks for the `n` best log-probabilities of each token.
    pub fn logprobs(mut self, n: usize) -> Self {
        self.logprobs = n;
        self
    }
}

/// Checks the strings that a request looks for in its text: each looks at every byte.
fn check_strings<'a>(what: &str, strings: impl Iterator<Item = &'a str>) -> Result<()> {
    let (mut number, mut bytes) = (0, 0_usize);
    for string in strings {
        if string.is_empty() {
            return Err(Error::new(ErrorCode::RequestInvalid, format!("a {what} is empty")));
        }
        (number, bytes) = (number + 1, bytes.saturating_add(string.len()));
    }
    let too_much = |what: String, most: usize, found: usize| {
        Err(Error::new(ErrorCode::RequestInvalid, what).with_expected(format!("at most {most}")).with_found(found))
    };
    if number > MAX_STOP_STRINGS {
        return too_much(format!("the request has too many {what}s"), MAX_STOP_STRINGS, number);
    }
    if bytes > MAX_STOP_STRING_BYTES {
        return too_much(format!("the {what}s have too many bytes together"), MAX_STOP_STRING_BYTES, bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_stops(stops: impl IntoIterator<Item = Stop>) -> Request {
        Request { stop: stops.into_iter().collect(), ..Request::new("") }
    }

    #[test]
    fn stop_strings_are_bounded_in_number_and_size() {
        let texts = |number: usize, length: usize| (0..number).map(move |_| Stop::Text("x".repeat(length)));
        let (most, most_bytes) = (MAX_STOP_STRINGS, MAX_STOP_STRING_BYTES);
        for allowed in [texts(most, 1), texts(1, most_bytes), texts(most, most_bytes / most)] {
            // Ids do not count: the model has no more than its vocabulary.
            let stops = allowed.chain((0..1000).map(Stop::Token));
            assert!(with_stops(stops).check(10).is_ok());
        }
        for (refused, found) in [
            (texts(most + 1, 1), most + 1),
            (texts(1, most_bytes + 1), most_bytes + 1),
            (texts(2, most_bytes / 2 + 1), most_bytes + 2),
        ] {
            let error = with_stops(refused).check(10).expect_err("too much");
            assert_eq!(error.code(), ErrorCode::RequestInvalid);
            assert!(error.to_string().contains(&format!("found {found}")), "{error}");
        }
        let error = with_stops(texts(1, 0)).check(10).expect_err("empty");
        assert!(error.to_string().contains("empty"), "{error}");
    }
}
