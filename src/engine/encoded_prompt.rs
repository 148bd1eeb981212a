//! From a prompt to what a sequence begins with: token ids, and vectors in place of some of them.

use std::sync::Arc;

use super::Engine;
use super::request::{Prompt, PromptPart};
use super::text::{ChatOptions, RequestTokenizer};
use crate::error::{Error, ErrorCode, Result};
use crate::prompt_embeds::{EMBEDS_TOKEN, SequenceEmbeds};

/// The tokens of a prompt.
pub(super) struct EncodedPrompt {
    /// Ids; [`EMBEDS_TOKEN`] where there is a vector instead.
    pub tokens: Vec<u32>,
    /// Those vectors.
    pub embeds: Arc<SequenceEmbeds>,
}

impl EncodedPrompt {
    /// Joins parts, whose vectors have `hidden_size` values.
    ///
    /// # Errors
    /// `prompt_embeds_invalid`.
    pub(super) fn of_parts(parts: &[PromptPart], hidden_size: usize) -> Result<Self> {
        let (mut tokens, mut embeds) = (Vec::new(), SequenceEmbeds::default());
        for part in parts {
            match part {
                PromptPart::Tokens(ids) => tokens.extend_from_slice(ids),
                PromptPart::Embeds(vectors) => {
                    vectors.check_width(hidden_size)?;
                    embeds.push(tokens.len(), vectors.clone());
                    tokens.resize(embeds.end(), EMBEDS_TOKEN);
                }
            }
        }
        Ok(Self { tokens, embeds: Arc::new(embeds) })
    }

    /// The ids of what is no vector.
    pub(super) fn ids(&self) -> impl Iterator<Item = &u32> {
        let is_id = |(position, id): &(usize, &u32)| **id != EMBEDS_TOKEN || !self.embeds.has(*position);
        self.tokens.iter().enumerate().filter(is_id).map(|(_, id)| id)
    }

    /// The ids behind the last vector, whose text what follows continues.
    pub(super) fn ids_at_end(&self) -> &[u32] {
        &self.tokens[self.embeds.end().min(self.tokens.len())..]
    }
}

impl Engine {
    /// Encodes a prompt.
    pub(super) fn encode(
        &self,
        text: &RequestTokenizer,
        prompt: &Prompt,
        add_special: bool,
        chat: &ChatOptions,
    ) -> Result<EncodedPrompt> {
        if !matches!(prompt, Prompt::Chat(_)) && *chat != ChatOptions::default() {
            let what = "tools and other choices for a chat template need chat messages as the prompt";
            return Err(Error::new(ErrorCode::RequestInvalid, what));
        }
        let tokenizer = || text.tokenizer.as_ref().map_or_else(|| self.tokenizer(), Ok);
        let of_ids = |tokens| EncodedPrompt { tokens, embeds: Arc::default() };
        let encoded = match prompt {
            Prompt::Tokens(tokens) => of_ids(tokens.clone()),
            Prompt::Parts(parts) => EncodedPrompt::of_parts(parts, self.model().config().hidden_size)?,
            Prompt::Text(text) => {
                let tokenizer = tokenizer()?;
                of_ids(tokenizer.encode(text, add_special, tokenizer.parses_special())?)
            }
            Prompt::Chat(messages) => {
                // The template contains the BOS.
                let tokenizer = tokenizer()?;
                let text = tokenizer.apply_chat_template(messages, chat)?;
                of_ids(tokenizer.encode(&text, false, tokenizer.parses_special())?)
            }
        };
        match encoded.tokens.is_empty() {
            false => Ok(encoded),
            true => Err(Error::new(ErrorCode::PromptEmpty, "the prompt has no tokens")),
        }
    }
}
