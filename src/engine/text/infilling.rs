//! Infilling prompts of CodeLlama: a text with `<FILL_ME>` asks for what belongs there.
//!
//! Source: `CodeLlamaTokenizer._encode_plus` and `set_infilling_processor` of transformers 5.23.

use std::collections::BTreeMap;

use super::tokenizer_json::{self, InnerTokenizer};
use crate::error::{Error, ErrorCode, Result};

/// The tokens of infilling prompts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Infilling {
    /// What stands for the gap in a text.
    fill: String,
    bos: Option<u32>,
    /// Before the text before the gap.
    prefix: u32,
    /// Before the text after the gap.
    suffix: u32,
    /// After both: what belongs between them follows.
    middle: u32,
}

impl Infilling {
    /// The tokens of a tokenizer with these named tokens; `None` if it lacks one.
    pub fn find(tokenizer: &InnerTokenizer, named: &BTreeMap<String, String>) -> Option<Self> {
        let id = |name: &str| tokenizer.token_to_id(named.get(name)?);
        Some(Self {
            fill: named.get("fill_token").filter(|fill| !fill.is_empty())?.clone(),
            bos: id("bos_token"),
            prefix: id("prefix_token")?,
            suffix: id("suffix_token")?,
            middle: id("middle_token")?,
        })
    }

    /// Splits a text into ids. Where nothing follows the gap, the text before it is an ordinary one.
    ///
    /// # Errors
    /// `request_invalid`: there are several gaps. `tokenizer_invalid`.
    pub fn encode(&self, tokenizer: &InnerTokenizer, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let (before, after) = text.split_once(&self.fill).unwrap_or((text, ""));
        if after.is_empty() {
            return tokenizer_json::encode(tokenizer, before, add_special);
        }
        let gaps = 1 + after.matches(&self.fill).count();
        if gaps > 1 {
            return Err(Error::new(ErrorCode::RequestInvalid, "a text to be filled in has one gap")
                .with_expected(format!("one '{}'", self.fill))
                .with_found(gaps));
        }
        let mut ids: Vec<u32> = self.bos.filter(|_| add_special).into_iter().collect();
        ids.push(self.prefix);
        ids.extend(tokenizer_json::encode(tokenizer, &format!(" {before}"), false)?);
        ids.push(self.suffix);
        ids.extend(tokenizer_json::encode(tokenizer, after, false)?);
        ids.push(self.middle);
        Ok(ids)
    }
}
