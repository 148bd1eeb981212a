//! The components of a tokenizer around its model: the `tokenizers` crate's own, except those that search or that contain
//! others. These are built here, so that they keep the limits of the call.

use std::cell::RefCell;

use serde::Serialize;
use tokenizers::tokenizer::pattern::{Invert, Pattern};
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizedString, NormalizerWrapper, PostProcessorWrapper, PreTokenizedString,
    PreTokenizerWrapper, SplitDelimiterBehavior, TokenizerImpl,
};

use super::bounded_regex::{Needle, Spans};
use super::limits::{check_bytes, check_time, fail, failed};

/// A tokenizer whose components keep limits.
pub(crate) type InnerTokenizer = TokenizerImpl<ModelWrapper, Normalizer, PreTokenizer, PostProcessorWrapper, Decoder>;

/// Changes a text before it is split.
#[derive(Serialize)]
pub(crate) enum Normalizer {
    Library(NormalizerWrapper),
    Replace { needle: Needle, content: String },
    Sequence(Vec<Normalizer>),
}

/// Splits a text into words.
#[derive(Serialize)]
pub(crate) enum PreTokenizer {
    Library(PreTokenizerWrapper),
    Split { needle: Needle, behavior: SplitDelimiterBehavior, invert: bool },
    Sequence(Vec<PreTokenizer>),
}

/// Turns tokens into text.
#[derive(Serialize)]
pub(crate) enum Decoder {
    Library(DecoderWrapper),
    Replace { needle: Needle, content: String },
    Sequence(Vec<Decoder>),
}

impl tokenizers::Normalizer for Normalizer {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        // The caller in the library ignores an error and goes on with whatever the text is.
        if failed() {
            text.clear();
            return Ok(());
        }
        match self {
            Self::Library(normalizer) => {
                if let Err(error) = normalizer.normalize(text) {
                    return Ok(fail(error.to_string())?);
                }
            }
            Self::Replace { needle, content } => {
                let spans = needle.find_matches(text.get())?;
                check_bytes(length_replaced(&spans, content))?;
                if let Err(error) = text.replace(Found(RefCell::new(spans)), content) {
                    return Ok(fail(error.to_string())?);
                }
            }
            Self::Sequence(steps) => steps.iter().try_for_each(|step| step.normalize(text))?,
        }
        check_time()?;
        Ok(check_bytes(text.len())?)
    }
}

impl tokenizers::PreTokenizer for PreTokenizer {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        check_time()?;
        match self {
            Self::Library(pre_tokenizer) => pre_tokenizer.pre_tokenize(text),
            Self::Split { needle, behavior, invert: false } => text.split(|_, part| part.split(needle, *behavior)),
            Self::Split { needle, behavior, invert: true } => {
                text.split(|_, part| part.split(Invert(needle), *behavior))
            }
            Self::Sequence(steps) => steps.iter().try_for_each(|step| step.pre_tokenize(text)),
        }
    }
}

impl tokenizers::Decoder for Decoder {
    fn decode_chain(&self, tokens: Vec<String>) -> tokenizers::Result<Vec<String>> {
        check_time()?;
        let tokens = match self {
            Self::Library(decoder) => decoder.decode_chain(tokens)?,
            Self::Replace { needle, content } => replace_in_each(&tokens, needle, content)?,
            Self::Sequence(steps) => {
                return steps.iter().try_fold(tokens, |tokens, step| step.decode_chain(tokens));
            }
        };
        check_bytes(tokens.iter().map(String::len).sum())?;
        Ok(tokens)
    }
}

/// Matches that were found already.
struct Found(RefCell<Spans>);

impl Pattern for Found {
    fn find_matches(&self, _: &str) -> tokenizers::Result<Spans> {
        Ok(self.0.take())
    }
}

fn length_replaced(spans: &Spans, content: &str) -> usize {
    spans.iter().map(|&((start, end), is_match)| if is_match { content.len() } else { end - start }).sum()
}

fn replace_in_each(tokens: &[String], needle: &Needle, content: &str) -> tokenizers::Result<Vec<String>> {
    let mut bytes = 0;
    let replace = |token: &String| {
        let spans = needle.find_matches(token)?;
        bytes += length_replaced(&spans, content);
        check_bytes(bytes)?;
        Ok(spans.into_iter().map(|((start, end), found)| if found { content } else { &token[start..end] }).collect())
    };
    tokens.iter().map(replace).collect()
}
