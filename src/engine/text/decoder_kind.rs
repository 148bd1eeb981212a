//! The two families of tokenizer decoders.

use tokenizers::DecoderWrapper;

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
    pub(super) fn of(decoder: Option<&DecoderWrapper>) -> Self {
        let parts = match decoder {
            None => &[],
            Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders(),
            Some(one) => std::slice::from_ref(one),
        };
        match parts {
            [DecoderWrapper::ByteLevel(_)] | [DecoderWrapper::ByteLevel(_), DecoderWrapper::Fuse(_)] => {
                DecoderKind::Bytes
            }
            parts => {
                let byte_fallback = parts.iter().any(|part| matches!(part, DecoderWrapper::ByteFallback(_)));
                DecoderKind::Window { byte_fallback }
            }
        }
    }
}
