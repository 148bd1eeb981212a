//! tokenizer.json: its components are checked, built, and run within limits.
//!
//! The file is not trusted, and the `tokenizers` crate trusts it: it panics, recurses and expands as the file says. So every
//! component is looked at first ([`build`], [`model`], [`charsmap`]); those that search or contain others are exlora's own
//! ([`components`], [`bounded_regex`]); and every call has limits of time and size ([`limits`]) and turns a panic into an error.
//! Where nothing is refused, the ids and the text are those of the `tokenizers` crate.

mod bounded_regex;
mod build;
mod charsmap;
mod checkpoints;
mod components;
mod fault;
mod limits;
mod match_limits;
mod model;

use tokenizers::{AddedToken, Decoder as _};

pub(super) use self::components::{Decoder, InnerTokenizer};
use self::limits::with_limits;
use super::tokenizer_file::TokenizerFile;
use crate::error::{Error, ErrorCode, Result};
use crate::guard;

/// Bytes that components may make of a text: sixfold growth is common (a space becomes `▁`, a letter its parts).
fn justified(bytes: usize) -> usize {
    (64 << 10) + bytes.saturating_mul(24)
}

/// The longest text for the tokens of a decoder, per token. Real tokens are shorter.
const MAX_BYTES_PER_TOKEN: usize = 256;

/// Builds the tokenizer that a tokenizer.json describes.
///
/// # Errors
/// `tokenizer_invalid`.
pub(super) fn from_file(file: &TokenizerFile<'_>) -> Result<InnerTokenizer> {
    let failed = |fault: &str| invalid(format!("tokenizer.json cannot be understood: {fault}"));
    guard::guarded(failed, || {
        with_limits(file.bytes(), justified(file.bytes()), || build::tokenizer(file))
            .map_err(|fault| failed(&fault.to_string()))
    })
}

/// Adds tokens to the vocabulary. Those that it has get the new flags; others get the next ids.
///
/// # Errors
/// `tokenizer_invalid`: they are too long, or cannot be told apart.
pub(super) fn add_tokens(tokenizer: &mut InnerTokenizer, tokens: Vec<AddedToken>) -> Result<()> {
    let failed = |fault: &str| invalid(format!("the tokens of the folder do not fit tokenizer.json: {fault}"));
    let bytes = tokens.iter().map(|token| token.content.len()).sum();
    guard::guarded(failed, || {
        let add = || {
            model::check_added_tokens(&tokens)?;
            tokenizer.add_tokens(tokens)?;
            Ok(())
        };
        with_limits(bytes, justified(bytes), add).map_err(|fault| failed(&fault.to_string()))
    })
}

/// Makes encoded texts begin with a token of the vocabulary, instead of what the file's post-processor does.
///
/// # Errors
/// `tokenizer_invalid`.
pub(super) fn begin_texts_with(tokenizer: &mut InnerTokenizer, token: &str) -> Result<()> {
    let post_processor = build::begin_texts_with(token, tokenizer.token_to_id(token))
        .map_err(|fault| invalid(format!("texts cannot begin with '{token}': {fault}")))?;
    tokenizer.with_post_processor(Some(post_processor));
    Ok(())
}

/// Splits a text into ids.
///
/// # Errors
/// `tokenizer_invalid`: the tokenizer fails on this text, or takes or makes too much.
pub(super) fn encode(tokenizer: &InnerTokenizer, text: &str, add_special: bool) -> Result<Vec<u32>> {
    let failed = |fault: &str| invalid(format!("the tokenizer fails on a text: {fault}"));
    guard::catch_panic(failed, || {
        let encode = || {
            model::check_scans(tokenizer, text)?;
            let encoding = tokenizer.encode_fast(text, add_special)?;
            let ids = encoding.get_ids();
            if ids.len() > justified(text.len()) {
                return Err(format!("it makes {} ids of {} bytes", ids.len(), text.len()).into());
            }
            Ok(ids.to_vec())
        };
        with_limits(text.len(), justified(text.len()), encode).map_err(|fault| failed(&fault.to_string()))
    })
}

/// Joins tokens to a text.
///
/// # Errors
/// `tokenizer_invalid`: the decoder fails on these tokens, or takes or makes too much.
pub(super) fn decode(tokenizer: &InnerTokenizer, tokens: Vec<String>) -> Result<String> {
    let failed = |fault: &str| invalid(format!("the tokenizer fails on token ids: {fault}"));
    let max_bytes = (64 << 10) + tokens.len().saturating_mul(MAX_BYTES_PER_TOKEN);
    guard::catch_panic(failed, || {
        let decode = || {
            limits::check_bytes(tokens.iter().map(String::len).sum())?;
            match tokenizer.get_decoder() {
                Some(decoder) => Ok(decoder.decode(tokens)?),
                None => Ok(tokens.join(" ")),
            }
        };
        with_limits(max_bytes, max_bytes, decode).map_err(|fault| failed(&fault.to_string()))
    })
}

fn invalid(message: String) -> Error {
    Error::new(ErrorCode::TokenizerInvalid, message)
}
