//! The model of tokenizer.json (BPE, WordPiece, WordLevel or Unigram) and its vocabulary.

use std::collections::HashMap;
use std::fmt;

use serde::de::{DeserializeOwned, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokenizers::models::bpe::BPE;
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::{AddedToken, ModelWrapper};

use super::components::InnerTokenizer;
use super::fault::Fault;

/// Ids are indices of logits and of tables; no model has a million.
const MAX_ID: u32 = (1 << 22) - 1;

/// Longest token. Real ones are runs of a few hundred spaces or dashes.
const MAX_TOKEN_BYTES: usize = 8 << 10;

/// The library's trie of a Unigram model has a hash map for each byte, nested as deep as a token is long.
const MAX_UNIGRAM_TOKEN_BYTES: usize = 512;
const MAX_UNIGRAM_BYTES: usize = 16 << 20;

/// The library puts these before or behind every piece of a word.
const MAX_AFFIX_BYTES: usize = 64;

/// WordPiece tries all spans of a word: time grows with the cube of its length. Real models have 100.
const MAX_WORD_CHARS: u64 = 1000;

const MAX_ADDED_BYTES: usize = 16 << 20;

/// Work for the added tokens of a text that look at all that comes before them: their number times its bytes.
const MAX_SCANNED_BYTES: usize = 4 << 30;
const UNSCANNED_TEXT_BYTES: usize = 64 << 10;

pub(super) fn read(json: &str) -> Result<ModelWrapper, Fault> {
    let fields: HashMap<String, &RawValue> = parsed("'model'", json)?;
    let has = |field: &str| fields.contains_key(field);
    let stored_type: Option<String> = optional(&fields, "type")?;
    // Files of early versions have no type.
    let kind = match stored_type.as_deref() {
        Some(kind) => kind,
        None if has("merges") => "BPE",
        None if has("continuing_subword_prefix") => "WordPiece",
        None if has("unk_token") => "WordLevel",
        None => "Unigram",
    };
    match kind {
        "BPE" => {
            let _: Vocabulary = required(&fields, "vocab")?;
            check_bpe(&fields)?;
            Ok(ModelWrapper::BPE(parsed::<BPE>("'model'", json)?))
        }
        "WordPiece" => {
            let _: Vocabulary = required(&fields, "vocab")?;
            affix(&fields, "continuing_subword_prefix")?;
            if optional::<u64>(&fields, "max_input_chars_per_word")?.is_some_and(|chars| chars > MAX_WORD_CHARS) {
                return Err(format!("'max_input_chars_per_word' is larger than {MAX_WORD_CHARS}").into());
            }
            Ok(ModelWrapper::WordPiece(parsed::<WordPiece>("'model'", json)?))
        }
        "WordLevel" => {
            let _: Vocabulary = required(&fields, "vocab")?;
            Ok(ModelWrapper::WordLevel(parsed::<WordLevel>("'model'", json)?))
        }
        "Unigram" => {
            let _: Scores = required(&fields, "vocab")?;
            Ok(ModelWrapper::Unigram(parsed::<Unigram>("'model'", json)?))
        }
        unknown => Err(format!("the model type '{unknown}' is not known").into()),
    }
}

/// Checks what the library computes with without looking: it cuts the prefix's length off the second token of each merge.
fn check_bpe(fields: &HashMap<String, &RawValue>) -> Result<(), Fault> {
    affix(fields, "end_of_word_suffix")?;
    let prefix = affix(fields, "continuing_subword_prefix")?;
    if prefix.is_empty() {
        return Ok(());
    }
    let merges: Vec<Merge> = required(fields, "merges")?;
    let wrong = merges.iter().find(|merge| !merge.second().starts_with(&prefix));
    match wrong {
        None => Ok(()),
        Some(merge) => Err(format!("the merge with '{}' lacks 'continuing_subword_prefix'", merge.second()).into()),
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(IgnoredAny, String),
    Line(String),
}

impl Merge {
    fn second(&self) -> &str {
        match self {
            Self::Pair(_, second) => second,
            Self::Line(line) => line.split_once(' ').map_or("", |(_, second)| second),
        }
    }
}

fn affix(fields: &HashMap<String, &RawValue>, name: &str) -> Result<String, Fault> {
    let affix: String = optional(fields, name)?.unwrap_or_default();
    if affix.len() > MAX_AFFIX_BYTES {
        return Err(format!("'{name}' has {} bytes; {MAX_AFFIX_BYTES} are the most", affix.len()).into());
    }
    Ok(affix)
}

fn parsed<'a, T: Deserialize<'a>>(what: &str, json: &'a str) -> Result<T, Fault> {
    serde_json::from_str(json).map_err(|error| Fault::from(format!("{what}: {error}")))
}

fn required<T: DeserializeOwned>(fields: &HashMap<String, &RawValue>, name: &str) -> Result<T, Fault> {
    optional(fields, name)?.ok_or_else(|| format!("the model has no '{name}'").into())
}

fn optional<T: DeserializeOwned>(fields: &HashMap<String, &RawValue>, name: &str) -> Result<Option<T>, Fault> {
    fields.get(name).map_or(Ok(None), |json| parsed(name, json.get()))
}

/// Checks one token of a vocabulary.
pub(super) fn check_id(token: &str, id: u32) -> Result<(), Fault> {
    if id > MAX_ID {
        return Err(format!("the id {id} of a token is larger than {MAX_ID}").into());
    }
    check_length(token, MAX_TOKEN_BYTES)
}

fn check_length(token: &str, max_bytes: usize) -> Result<(), Fault> {
    if token.len() > max_bytes {
        return Err(format!("a token has {} bytes; {max_bytes} are the most", token.len()).into());
    }
    Ok(())
}

/// Checks tokens before they are added.
pub(super) fn check_added_tokens(tokens: &[AddedToken]) -> Result<(), Fault> {
    tokens.iter().try_for_each(|token| check_length(&token.content, MAX_TOKEN_BYTES))?;
    let bytes: usize = tokens.iter().map(|token| token.content.len()).sum();
    if bytes > MAX_ADDED_BYTES || tokens.len() > MAX_ID as usize {
        return Err(format!("{} added tokens have {bytes} bytes; {MAX_ADDED_BYTES} are the most", tokens.len()).into());
    }
    Ok(())
}

/// Refuses a long text with very many of the added tokens for each of which the library scans the text before it.
pub(super) fn check_scans(tokenizer: &InnerTokenizer, text: &str) -> Result<(), Fault> {
    if text.len() <= UNSCANNED_TEXT_BYTES {
        return Ok(());
    }
    let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder().values();
    let scanning = added.filter(|token| (token.lstrip || token.single_word) && !token.content.is_empty());
    let found: usize = scanning.map(|token| text.matches(token.content.as_str()).count()).sum();
    if found.saturating_mul(text.len()) > MAX_SCANNED_BYTES {
        return Err(format!("it has {found} added tokens that may take the spaces before them").into());
    }
    Ok(())
}

/// A vocabulary that maps tokens to ids, checked and not kept.
struct Vocabulary;

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tokens;
        impl<'de> Visitor<'de> for Tokens {
            type Value = Vocabulary;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tokens and ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
                while let Some((token, id)) = map.next_entry::<String, u32>()? {
                    check_id(&token, id).map_err(A::Error::custom)?;
                }
                Ok(Vocabulary)
            }
        }
        deserializer.deserialize_map(Tokens)
    }
}

/// A vocabulary that lists tokens with their scores, checked and not kept.
struct Scores;

impl<'de> Deserialize<'de> for Scores {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tokens;
        impl<'de> Visitor<'de> for Tokens {
            type Value = Scores;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of tokens and scores")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Scores, A::Error> {
                let (mut id, mut bytes) = (0, 0);
                while let Some((token, _)) = list.next_element::<(String, f64)>()? {
                    check_id(&token, id)
                        .and_then(|()| check_length(&token, MAX_UNIGRAM_TOKEN_BYTES))
                        .map_err(A::Error::custom)?;
                    id += 1;
                    bytes += token.len();
                    if bytes > MAX_UNIGRAM_BYTES {
                        return Err(A::Error::custom(format!("the tokens have more than {MAX_UNIGRAM_BYTES} bytes")));
                    }
                }
                Ok(Scores)
            }
        }
        deserializer.deserialize_seq(Tokens)
    }
}
