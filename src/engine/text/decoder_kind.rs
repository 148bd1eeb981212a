//! The two families of tokenizer decoders.

use tokenizers::DecoderWrapper;

use super::tokenizer_json::Decoder;

/// How a tokenizer's decoder turns tokens into text, as far as incremental detokenization depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DecoderKind {
    /// Tokens spell bytes.
    Bytes,
    /// Tokens spell text that depends on neighboring tokens; runs of byte tokens are decoded together if there is a
    /// byte fallback.
    Window { byte_fallback: bool },
}

impl DecoderKind {
    pub(super) fn of(decoder: Option<&Decoder>) -> Self {
        let parts = match decoder {
            None => &[],
            Some(Decoder::Sequence(parts)) => parts.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        match parts {
            [Decoder::Library(DecoderWrapper::ByteLevel(_))]
            | [Decoder::Library(DecoderWrapper::ByteLevel(_)), Decoder::Library(DecoderWrapper::Fuse(_))] => {
                DecoderKind::Bytes
            }
            parts => {
                let is_fallback = |part: &Decoder| matches!(part, Decoder::Library(DecoderWrapper::ByteFallback(_)));
                DecoderKind::Window { byte_fallback: parts.iter().any(is_fallback) }
            }
        }
    }
}
