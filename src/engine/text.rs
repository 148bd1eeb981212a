//! Text in and out: tokenizer, chat template, incremental detokenising. SKELETON

use std::path::Path;
use std::sync::Arc;

use crate::error::Result;

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// Its text.
    pub content: String,
    /// Whatever else the template may read (tool calls, names).
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// tokenizer.json and the chat template of a model folder.
pub struct Tokenizer {}

impl Tokenizer {
    /// Reads a model folder; `None` where there is no tokenizer.json.
    pub fn open(_dir: &Path) -> Result<Option<Self>> {
        todo!()
    }

    /// Token ids of a text. Special tokens written in the text are recognised if `parse_special`;
    /// the tokenizer's own post-processing (a BOS) is applied if `add_special`.
    pub fn encode(&self, _text: &str, _add_special: bool, _parse_special: bool) -> Result<Vec<u32>> {
        todo!()
    }

    /// Text of token ids.
    pub fn decode(&self, _ids: &[u32], _skip_special: bool) -> Result<String> {
        todo!()
    }

    /// The prompt of a chat, by the model's own template.
    pub fn apply_chat_template(&self, _messages: &[ChatMessage], _add_generation_prompt: bool) -> Result<String> {
        todo!()
    }

    /// Number of ids the tokenizer knows.
    pub fn vocab_size(&self) -> usize {
        todo!()
    }

    /// Id of a token's exact text.
    pub fn id_of(&self, _token: &str) -> Option<u32> {
        todo!()
    }

    /// Raw text of an id as the vocabulary spells it.
    pub fn token_of(&self, _id: u32) -> Option<String> {
        todo!()
    }

    /// Beginning-of-sequence id, if the config names one.
    pub fn bos_id(&self) -> Option<u32> {
        todo!()
    }

    /// End-of-sequence id, if the config names one.
    pub fn eos_id(&self) -> Option<u32> {
        todo!()
    }

    /// Padding id, if the config names one.
    pub fn pad_id(&self) -> Option<u32> {
        todo!()
    }

    /// Unknown-token id, if the config names one.
    pub fn unk_id(&self) -> Option<u32> {
        todo!()
    }

    /// Starts turning ids into text, piece by piece.
    pub fn stream(self: &Arc<Self>, _skip_special: bool) -> TextStream {
        todo!()
    }
}

/// Turns a stream of ids into text that never holds half a character.
pub struct TextStream {}

impl TextStream {
    /// The text that became certain with this id; empty while a character is incomplete.
    pub fn push(&mut self, _id: u32) -> Result<String> {
        todo!()
    }

    /// What is left at the end, incomplete bytes as U+FFFD.
    pub fn finish(&mut self) -> Result<String> {
        todo!()
    }
}
