//! What transformers' tokenizer classes make of a tokenizer.json.
//!
//! Most folders are read as they are. But some classes take only the vocabulary, the merges and the post-processor from the
//! file, and bring the rest (normalizer, pre-tokenizer, decoder, default special tokens) along. Which class it is follows from
//! `tokenizer_class` in tokenizer_config.json and `model_type` in config.json.
//!
//! Source: `AutoTokenizer.from_pretrained`, `TokenizersBackend.convert_to_native_format` and the classes themselves in
//! transformers 5.23.

use std::collections::HashMap;

use serde::Serialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::tokenizer_file::TokenizerFile;

/// A class that transformers reads a tokenizer.json with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenizerClass {
    /// Everything as in the file.
    AsInFile,
    CodeLlama,
    Gemma,
    Gpt2,
    GptNeoX,
    Llama,
    Qwen2,
}

/// How Qwen2Tokenizer splits a text.
const QWEN2_PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl TokenizerClass {
    /// The class that AutoTokenizer chooses. `declared` is `tokenizer_class`.
    pub fn of(model_type: &str, declared: Option<&str>, config: &Map<String, Value>, tokenizer_json: &str) -> Self {
        let declared = declared.map(|name| name.strip_suffix("Fast").unwrap_or(name));
        let is_own_code = config.contains_key("auto_map");
        let is_qwen = matches!(model_type, "qwen2" | "qwen3");
        let Some(name) = declared else {
            return if is_qwen { TokenizerClass::Qwen2 } else { TokenizerClass::AsInFile };
        };
        let class = Self::named(name);
        if is_own_code {
            return class;
        }
        // Llama 3's files are byte-level and often name the class of Llama 2.
        if class == TokenizerClass::Llama && model_type != "qwen2" && tokenizer_json.contains("\"ByteLevel\"") {
            return TokenizerClass::AsInFile;
        }
        match model_type {
            // transformers distrusts what Qwen2 folders declare, and Mistral's.
            "qwen2" => TokenizerClass::Qwen2,
            "mistral" => TokenizerClass::AsInFile,
            _ => class,
        }
    }

    fn named(name: &str) -> Self {
        match name {
            "CodeLlamaTokenizer" => TokenizerClass::CodeLlama,
            "GemmaTokenizer" => TokenizerClass::Gemma,
            "GPT2Tokenizer" => TokenizerClass::Gpt2,
            "GPTNeoXTokenizer" => TokenizerClass::GptNeoX,
            "LlamaTokenizer" => TokenizerClass::Llama,
            "Qwen2Tokenizer" => TokenizerClass::Qwen2,
            _ => TokenizerClass::AsInFile,
        }
    }

    /// Special tokens that it has where tokenizer_config.json does not mention them.
    pub fn default_tokens(self) -> &'static [(&'static str, &'static str)] {
        const END_OF_TEXT: &str = "<|endoftext|>";
        match self {
            TokenizerClass::AsInFile => &[],
            TokenizerClass::CodeLlama => &[
                ("unk_token", "<unk>"),
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("prefix_token", "▁<PRE>"),
                ("middle_token", "▁<MID>"),
                ("suffix_token", "▁<SUF>"),
                ("eot_token", "▁<EOT>"),
                ("fill_token", "<FILL_ME>"),
            ],
            TokenizerClass::Gemma => &[
                ("unk_token", "<unk>"),
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
            TokenizerClass::Gpt2 => {
                &[("unk_token", END_OF_TEXT), ("bos_token", END_OF_TEXT), ("eos_token", END_OF_TEXT)]
            }
            TokenizerClass::GptNeoX => &[
                ("unk_token", END_OF_TEXT),
                ("bos_token", END_OF_TEXT),
                ("eos_token", END_OF_TEXT),
                ("pad_token", "<|padding|>"),
            ],
            TokenizerClass::Llama => &[("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")],
            TokenizerClass::Qwen2 => {
                &[("unk_token", END_OF_TEXT), ("eos_token", END_OF_TEXT), ("pad_token", END_OF_TEXT)]
            }
        }
    }

    /// Whether the padding of tokenizer.json names the padding token where tokenizer_config.json does not.
    pub fn pads_as_in_file(self) -> bool {
        self != TokenizerClass::Gpt2
    }

    /// Whether encoded texts begin with its BOS, whatever the post-processor of tokenizer.json does.
    pub fn adds_bos(self) -> bool {
        self == TokenizerClass::CodeLlama
    }

    /// Whether it knows texts with a gap that is to be filled in.
    pub fn fills_in(self) -> bool {
        self == TokenizerClass::CodeLlama
    }

    /// Whether it gives its special tokens the flags of an ordinary special token, whatever the files say.
    pub fn resets_special_tokens(self) -> bool {
        self == TokenizerClass::Qwen2
    }

    /// The tokenizer.json that says what the class makes of a file: its vocabulary, without added tokens. `None` if that is the
    /// file itself.
    pub fn rebuild(self, file: &TokenizerFile<'_>, config: &Map<String, Value>) -> Option<String> {
        if self == TokenizerClass::AsInFile {
            return None;
        }
        let parts = self.parts(config);
        let rebuilt = Rebuilt {
            version: "1.0",
            normalizer: parts.normalizer,
            pre_tokenizer: parts.pre_tokenizer,
            // These make it from `add_bos_token` and `add_eos_token`, which do not count beside a tokenizer.json. The defaults
            // are false with GPTNeoXTokenizer; for CodeLlamaTokenizer see `adds_bos`.
            post_processor: match self {
                TokenizerClass::GptNeoX | TokenizerClass::CodeLlama => None,
                _ => file.member("post_processor"),
            },
            decoder: parts.decoder,
            model: RebuiltModel {
                r#type: "BPE",
                unk_token: parts.unk_token,
                continuing_subword_prefix: parts.affix.clone(),
                end_of_word_suffix: parts.affix,
                fuse_unk: parts.is_sentencepiece,
                byte_fallback: parts.is_sentencepiece,
                vocab: file.model_member("vocab").map(Vocabulary::new),
                merges: file.model_member("merges").map_or(Merges::None([]), Merges::InFile),
            },
        };
        serde_json::to_string(&rebuilt).ok()
    }

    fn parts(self, config: &Map<String, Value>) -> Parts {
        let prefix_space = config.get("add_prefix_space").and_then(Value::as_bool);
        let unk_token = || match config.get("unk_token") {
            None => json!("<unk>"),
            Some(token) => token.get("content").unwrap_or(token).clone(),
        };
        let byte_level = |use_regex: bool| {
            json!({"type": "ByteLevel", "add_prefix_space": prefix_space.unwrap_or(false), "trim_offsets": true,
                   "use_regex": use_regex})
        };
        let decodes_bytes =
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        match self {
            TokenizerClass::AsInFile => Parts::default(),
            TokenizerClass::Llama | TokenizerClass::CodeLlama => {
                let prefix_space = prefix_space.unwrap_or(true);
                let is_legacy = config.get("legacy").and_then(Value::as_bool) == Some(true);
                let scheme = match (self, prefix_space) {
                    (_, false) => "never",
                    (TokenizerClass::Llama, true) if is_legacy => "always",
                    _ => "first",
                };
                let strips = prefix_space || self == TokenizerClass::CodeLlama;
                Parts {
                    unk_token: if self == TokenizerClass::CodeLlama { unk_token() } else { Value::Null },
                    pre_tokenizer: json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false}),
                    decoder: sentencepiece_decoder(strips),
                    is_sentencepiece: true,
                    ..Parts::default()
                }
            }
            TokenizerClass::Gemma => Parts {
                unk_token: unk_token(),
                normalizer: json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
                pre_tokenizer: json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                                      "invert": false}),
                decoder: sentencepiece_decoder(false),
                is_sentencepiece: true,
                ..Parts::default()
            },
            TokenizerClass::Gpt2 => {
                Parts { pre_tokenizer: byte_level(true), decoder: decodes_bytes, affix: json!(""), ..Parts::default() }
            }
            TokenizerClass::GptNeoX => Parts {
                normalizer: json!({"type": "NFC"}),
                pre_tokenizer: byte_level(true),
                decoder: decodes_bytes,
                affix: json!(""),
                ..Parts::default()
            },
            TokenizerClass::Qwen2 => Parts {
                normalizer: json!({"type": "NFC"}),
                pre_tokenizer: json!({"type": "Sequence", "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated", "invert": false},
                    byte_level(false)]}),
                decoder: decodes_bytes,
                affix: json!(""),
                ..Parts::default()
            },
        }
    }
}

/// What a class does not take from the file.
#[derive(Default)]
struct Parts {
    unk_token: Value,
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    /// Prefix of tokens inside a word and suffix of those at its end.
    affix: Value,
    is_sentencepiece: bool,
}

fn sentencepiece_decoder(strips: bool) -> Value {
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if strips {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": decoders})
}

/// A tokenizer.json. Its large parts are taken over as they are written.
#[derive(Serialize)]
struct Rebuilt<'a> {
    version: &'static str,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Option<&'a RawValue>,
    decoder: Value,
    model: RebuiltModel<'a>,
}

#[derive(Serialize)]
struct RebuiltModel<'a> {
    r#type: &'static str,
    unk_token: Value,
    continuing_subword_prefix: Value,
    end_of_word_suffix: Value,
    fuse_unk: bool,
    byte_fallback: bool,
    vocab: Option<Vocabulary<'a>>,
    merges: Merges<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Merges<'a> {
    InFile(&'a RawValue),
    None([(); 0]),
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vocabulary<'a> {
    InFile(&'a RawValue),
    ById(HashMap<String, usize>),
}

impl<'a> Vocabulary<'a> {
    /// Ids by token; Unigram files list tokens with their scores.
    fn new(stored: &'a RawValue) -> Self {
        match serde_json::from_str::<Vec<(String, IgnoredAny)>>(stored.get()) {
            Ok(list) => Vocabulary::ById(list.into_iter().enumerate().map(|(id, (token, _))| (token, id)).collect()),
            Err(_) => Vocabulary::InFile(stored),
        }
    }
}
