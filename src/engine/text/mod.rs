//! Text in and out: tokenizer, chat template, incremental detokenization, stop strings.
//!
//! Everything is read from the model's own folder, so that a prompt is split into the tokens the model was trained on:
//! tokenizer.json by the `tokenizers` crate, the names of special tokens from tokenizer_config.json, the chat template from
//! chat_template.jinja or tokenizer_config.json. [`Detokenizer`] turns tokens back into text as they arrive, and
//! [`StopStrings`] looks for stop strings in that text.

mod chat_template;
mod decoder_kind;
mod detokenizer;
mod files;
mod stop_strings;
mod tokenizer;
mod tokenizer_json;

pub use chat_template::ChatMessage;
pub use detokenizer::Detokenizer;
pub use stop_strings::StopStrings;
pub use tokenizer::Tokenizer;
