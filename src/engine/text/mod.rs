//! Text in and out: tokenizer, chat template, incremental detokenization, stop strings.
//!
//! Everything is read from a folder as transformers' AutoTokenizer reads it, so that a prompt is split into the tokens that the
//! model was trained on. tokenizer.json is parsed by the `tokenizers` crate; `tokenizer_class` decides what of it counts,
//! `special_tokens` collects what the other files add. [`Detokenizer`] turns tokens back into text as they arrive, and
//! [`StopStrings`] looks for stop strings in that text, [`BannedStrings`] for those that it must not contain.

mod adapter_tokenizers;
mod automaton;
mod banned_strings;
mod byte_alphabet;
mod chat_template;
mod clean_up;
mod decoder_kind;
mod detokenizer;
mod files;
mod infilling;
mod special_tokens;
mod stop_strings;
mod token_sets;
mod token_trie;
mod token_window;
mod tokenizer;
mod tokenizer_class;
mod tokenizer_file;
mod tokenizer_json;

pub use adapter_tokenizers::{AdapterTokenizer, RequestTokenizer};
pub use banned_strings::{BannedScan, BannedStrings};
pub use chat_template::{ChatMessage, ChatOptions};
pub use detokenizer::{Detokenizer, Piece};
pub use stop_strings::{StopScan, StopStrings};
pub use token_trie::TokenTrie;
pub use tokenizer::Tokenizer;
