//! The two families of tokenizer decoders.

use tokenizers::DecoderWrapper;

use super::tokenizer_json::Decoder;

/// How a tokenizer's decoder turns tokens into text, as far as incremental detokenization depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DecoderKind {
    /// Tokens spell bytes.
    Bytes,
    /// Tokens spell text that depends on neighboring tokens.
    Window {
        /// Whether runs of byte tokens (`<0xE2>`) are decoded together.
        byte_fallback: bool,
        /// Whether tokens may spell parts of characters in another way.
        splits_characters: bool,
    },
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
            parts => DecoderKind::Window {
                byte_fallback: any(parts, |part| matches!(part, DecoderWrapper::ByteFallback(_))),
                splits_characters: any(parts, |part| matches!(part, DecoderWrapper::ByteLevel(_))),
            },
        }
    }
}

/// Whether there is such a decoder, also in a sequence inside a sequence.
fn any(parts: &[Decoder], is_one: fn(&DecoderWrapper) -> bool) -> bool {
    parts.iter().any(|part| match part {
        Decoder::Library(part) => is_one(part),
        Decoder::Replace { .. } => false,
        Decoder::Sequence(parts) => any(parts, is_one),
    })
}
