//! What a request produces: chunks while it runs, a completion at its end.

use serde::ser::{Serialize, SerializeMap, SerializeStruct, Serializer};

use crate::error::{Error, ErrorCode, Result};

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// A stop token, a stop string, an end-of-sequence id of the model, or the end of a grammar or filter, which is no match.
    Stop,
    /// `max_new_tokens`, or before them the model's positions or the end of the cache, which a negative prompt fills too.
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
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum StopMatch {
    /// A token of `stop`, or an end-of-sequence id of the model.
    Token(u32),
    /// A string of `stop`.
    Text(String),
}

/// Token counts of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens whose keys and values were found in the prefix cache.
    pub cached_tokens: usize,
    /// New tokens, including a stop token.
    pub completion_tokens: usize,
    /// Drafted tokens that were chosen: of the new tokens, those that took no step of their own.
    pub accepted_draft_tokens: usize,
    /// Drafted tokens that were computed and not chosen.
    pub rejected_draft_tokens: usize,
}

/// Log-probabilities of one token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Log-probability of the chosen id.
    pub chosen: f32,
    /// The n most likely ids, best first.
    pub top: Vec<(u32, f32)>,
}

/// Probabilities of one token after penalties and filters, in the distribution that it was drawn from.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenProbs {
    /// Probability of the chosen id.
    pub chosen: f32,
    /// The n most likely ids, best first; where filters left fewer, the best of the others with a probability of 0.
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
    /// Their probabilities after penalties and filters, if asked for.
    pub probs: Vec<TokenProbs>,
    /// The logits each of them was chosen from, `[token_ids, vocab]`, if asked for.
    pub logits: Vec<f32>,
    /// Text that was given up because it contained a banned string. It is not part of `text`, and its tokens are not part of
    /// `token_ids`.
    pub suppressed_text: String,
    /// The tokens of that text.
    pub suppressed_token_ids: Vec<u32>,
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
    /// Seed of its random numbers: the one it was given, or the one drawn for it; 0 if it was greedy and given none. The same
    /// seed gives the same text.
    pub seed: u64,
}

/// A finished request, or one of its samples. Serializes to an object with all fields by name, `null` where one was not asked
/// for; a mixture is `null` for the base, a name for one adapter of weight 1, else an object of names and weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The new text, without the prompt and the stop.
    pub text: String,
    /// The new tokens, including a stop token.
    pub token_ids: Vec<u32>,
    /// Text that was given up because it contained a banned string, joined; no part of `text`.
    pub suppressed_text: String,
    /// The tokens of that text; no part of `token_ids`.
    pub suppressed_token_ids: Vec<u32>,
    /// How it ended.
    pub finish: Finish,
    /// Which of the request's `n` samples it is, from 0.
    pub sample: usize,
    /// The mixture as requested: (name, weight). A leased adapter without a name is called by its folder.
    pub adapter: Vec<(String, f32)>,
    /// Log-probabilities of each token, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Probabilities of each token after penalties and filters, if asked for.
    pub probs: Vec<TokenProbs>,
    /// Logits of each token, `[token_ids, vocab]`, if asked for.
    pub logits: Vec<f32>,
}

impl Completion {
    /// A completion without any chunk yet.
    pub(crate) fn unfinished(adapter: Vec<(String, f32)>, sample: usize) -> Self {
        Self {
            text: String::new(),
            token_ids: Vec::new(),
            suppressed_text: String::new(),
            suppressed_token_ids: Vec::new(),
            finish: Finish { reason: FinishReason::Cancelled, matched: None, usage: Usage::default(), seed: 0 },
            sample,
            adapter,
            logprobs: Vec::new(),
            probs: Vec::new(),
            logits: Vec::new(),
        }
    }

    /// Appends the request's next chunk.
    ///
    /// # Errors
    /// `memory_exhausted`: its logits don't fit.
    pub(crate) fn append(&mut self, chunk: Chunk) -> Result<()> {
        self.text += &chunk.text;
        self.token_ids.extend(chunk.token_ids);
        self.suppressed_text += &chunk.suppressed_text;
        self.suppressed_token_ids.extend(chunk.suppressed_token_ids);
        self.logprobs.extend(chunk.logprobs);
        self.probs.extend(chunk.probs);
        self.logits.try_reserve(chunk.logits.len()).map_err(|_| no_memory_for_logits())?;
        self.logits.extend(chunk.logits);
        if let Some(finish) = chunk.finish {
            self.finish = finish;
        }
        Ok(())
    }
}

impl Serialize for Completion {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        fn asked_for<T, U>(tokens: &[T], value: impl Fn(&T) -> U) -> Option<Vec<U>> {
            (!tokens.is_empty()).then(|| tokens.iter().map(value).collect())
        }
        let vocab = (self.logits.len() / self.token_ids.len().max(1)).max(1);
        let logits: Option<Vec<&[f32]>> = (!self.logits.is_empty()).then(|| self.logits.chunks(vocab).collect());
        let mut fields = serializer.serialize_struct("Completion", 15)?;
        fields.serialize_field("text", &self.text)?;
        fields.serialize_field("token_ids", &self.token_ids)?;
        fields.serialize_field("finish_reason", self.finish.reason.as_str())?;
        fields.serialize_field("stop_match", &self.finish.matched)?;
        fields.serialize_field("suppressed_text", &self.suppressed_text)?;
        fields.serialize_field("suppressed_token_ids", &self.suppressed_token_ids)?;
        fields.serialize_field("usage", &self.finish.usage)?;
        fields.serialize_field("seed", &self.finish.seed)?;
        fields.serialize_field("sample", &self.sample)?;
        fields.serialize_field("adapter", &SerializedMixture(&self.adapter))?;
        fields.serialize_field("logprobs", &asked_for(&self.logprobs, |token| token.chosen))?;
        fields.serialize_field("top_logprobs", &asked_for(&self.logprobs, |token| token.top.clone()))?;
        fields.serialize_field("probs", &asked_for(&self.probs, |token| token.chosen))?;
        fields.serialize_field("top_probs", &asked_for(&self.probs, |token| token.top.clone()))?;
        fields.serialize_field("logits", &logits)?;
        fields.end()
    }
}

/// A mixture as its request may have written it.
struct SerializedMixture<'a>(&'a [(String, f32)]);

impl Serialize for SerializedMixture<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self.0 {
            [] => serializer.serialize_none(),
            [(name, 1.0)] => serializer.serialize_str(name),
            mixture => {
                let is_repeated =
                    |(i, (name, _)): (usize, &(String, f32))| mixture[..i].iter().any(|(other, _)| other == name);
                if mixture.iter().enumerate().any(is_repeated) {
                    return mixture.serialize(serializer);
                }
                let mut weights = serializer.serialize_map(Some(mixture.len()))?;
                for (name, weight) in mixture {
                    weights.serialize_entry(name, weight)?;
                }
                weights.end()
            }
        }
    }
}

/// The error of logits that cannot be kept.
pub(super) fn no_memory_for_logits() -> Error {
    Error::new(ErrorCode::MemoryExhausted, "there is no memory for the logits")
        .with_hint("ask for fewer tokens' logits")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_serializes_to_one_object_with_every_field() {
        let mut done = Completion::unfinished(vec![("sql".into(), 0.3), ("wit".into(), 1.0)], 2);
        done.token_ids = vec![5, 6];
        done.finish.seed = 9;
        assert_eq!(
            serde_json::to_string(&done).expect("serializes"),
            r#"{"text":"","token_ids":[5,6],"finish_reason":"cancelled","stop_match":null,"suppressed_text":"","suppressed_token_ids":[],"usage":{"prompt_tokens":0,"cached_tokens":0,"completion_tokens":0,"accepted_draft_tokens":0,"rejected_draft_tokens":0},"seed":9,"sample":2,"adapter":{"sql":0.3,"wit":1.0},"logprobs":null,"top_logprobs":null,"probs":null,"top_probs":null,"logits":null}"#
        );
        done.logits = vec![0.5, 1.0, 1.5, 2.0];
        done.logprobs = vec![TokenLogprobs { chosen: -0.5, top: vec![(5, -0.5)] }];
        done.probs = vec![TokenProbs { chosen: 0.75, top: vec![(5, 0.75), (6, 0.25)] }];
        done.adapter = vec![("sql".into(), 1.0)];
        done.finish.matched = Some(StopMatch::Token(6));
        let text = serde_json::to_string(&done).expect("serializes");
        let end = r#""adapter":"sql","logprobs":[-0.5],"top_logprobs":[[[5,-0.5]]],"probs":[0.75],"top_probs":[[[5,0.75],[6,0.25]]],"logits":[[0.5,1.0],[1.5,2.0]]}"#;
        assert!(text.contains(r#""stop_match":6,"#) && text.ends_with(end), "{text}");
    }

    #[test]
    fn a_name_twice_in_a_mixture_is_serialized_as_pairs() {
        let twice = [("sql".to_owned(), 0.5), ("sql".to_owned(), 0.25)];
        let text = serde_json::to_string(&SerializedMixture(&twice)).expect("serializes");
        assert_eq!(text, r#"[["sql",0.5],["sql",0.25]]"#);
        assert_eq!(serde_json::to_string(&SerializedMixture(&[])).expect("serializes"), "null");
    }
}
