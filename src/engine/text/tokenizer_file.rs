//! The members of a tokenizer.json, before what they describe is checked and built.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokenizers::AddedToken;

/// The members of an object; the last of several with one name counts.
type Members<'a> = HashMap<String, &'a RawValue>;

/// The members of a tokenizer.json and of its model, as text.
pub(super) struct TokenizerFile<'a> {
    bytes: usize,
    file: Members<'a>,
    model: Members<'a>,
}

/// An added token. Flags that are missing have transformers' defaults.
#[derive(Deserialize)]
struct StoredToken {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct StoredPadding {
    pad_token: String,
}

impl<'a> TokenizerFile<'a> {
    /// Finds the members of a tokenizer.json.
    pub fn parse(json: &'a str) -> serde_json::Result<Self> {
        let file: Members<'a> = serde_json::from_str(json)?;
        let model = file.get("model").and_then(|model| serde_json::from_str(model.get()).ok());
        Ok(Self { bytes: json.len(), file, model: model.unwrap_or_default() })
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A member, unless it is null.
    pub fn member(&self, name: &str) -> Option<&'a RawValue> {
        self.file.get(name).copied().filter(|value| value.get() != "null")
    }

    /// A member of the model, unless it is null.
    pub fn model_member(&self, name: &str) -> Option<&'a RawValue> {
        self.model.get(name).copied().filter(|value| value.get() != "null")
    }

    /// Its added tokens with their ids.
    pub fn added_tokens(&self) -> serde_json::Result<Vec<(u32, AddedToken)>> {
        let stored = self.member("added_tokens").map(|tokens| serde_json::from_str(tokens.get())).transpose()?;
        let stored: Vec<StoredToken> = stored.unwrap_or_default();
        let token = |stored: StoredToken| {
            let token = AddedToken::from(stored.content, stored.special)
                .single_word(stored.single_word)
                .lstrip(stored.lstrip)
                .rstrip(stored.rstrip)
                .normalized(stored.normalized.unwrap_or(!stored.special));
            (stored.id, token)
        };
        Ok(stored.into_iter().map(token).collect())
    }

    /// The token that it pads with.
    pub fn padding_token(&self) -> Option<String> {
        let padding: StoredPadding = serde_json::from_str(self.member("padding")?.get()).ok()?;
        Some(padding.pad_token)
    }
}
