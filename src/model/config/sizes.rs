//! The sizes of a decoder. Each is compared with a cap before anything is sized by it.

use super::family::{Family, HeadDimRule};
use super::fields::{Fields, in_range, invalid};
use crate::error::Result;

/// Caps on the sizes of a model, far above those of real ones.
const MAX_WIDTH: usize = 1 << 31;
const MAX_LAYERS: usize = 1 << 13;
const MAX_HEADS: usize = 1 << 16;
const MAX_HEAD_DIM: usize = 1 << 16;

/// The sizes that config.json gives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    /// `max_position_embeddings`.
    pub positions: usize,
}

impl Sizes {
    /// Reads all sizes.
    pub(super) fn read(family: &Family, fields: &Fields<'_>) -> Result<Self> {
        let default = family.sizes;
        let hidden = fields.count("hidden_size", default.hidden, MAX_WIDTH)?;
        let vocab = fields.count("vocab_size", default.vocab, MAX_WIDTH)?;
        let layers = fields.count("num_hidden_layers", default.layers, MAX_LAYERS)?;
        let heads = fields.count("num_attention_heads", default.heads, MAX_HEADS)?;
        Ok(Self {
            hidden,
            intermediate: fields.count("intermediate_size", default.intermediate, MAX_WIDTH)?,
            layers,
            heads,
            kv_heads: kv_heads(family, fields, heads)?,
            head_dim: head_dim(family, fields, hidden, heads)?,
            vocab,
            positions: fields.count("max_position_embeddings", default.positions, i64::MAX as usize)?,
        })
    }
}

fn kv_heads(family: &Family, fields: &Fields<'_>, heads: usize) -> Result<usize> {
    let name = "num_key_value_heads";
    let kv_heads = match family.kv_heads.is_nullable {
        true => fields.nullable_integer(name, family.kv_heads.default)?,
        false => Some(fields.integer(name, family.kv_heads.default.unwrap_or(heads as i64))?),
    };
    let kv_heads = in_range(name, kv_heads.unwrap_or(heads as i64), MAX_HEADS)?;
    if heads.is_multiple_of(kv_heads) {
        return Ok(kv_heads);
    }
    Err(invalid(name).with_expected(format!("a divisor of {heads}")).with_found(kv_heads))
}

fn head_dim(family: &Family, fields: &Fields<'_>, hidden: usize, heads: usize) -> Result<usize> {
    let name = "head_dim";
    if family.heads_divide_hidden && !hidden.is_multiple_of(heads) {
        return Err(invalid("num_attention_heads").with_expected(format!("a divisor of {hidden}")).with_found(heads));
    }
    let derived = (hidden / heads) as i64;
    let head_dim = match family.head_dim {
        HeadDimRule::Nullable => fields.nullable_integer(name, None)?.unwrap_or(derived),
        HeadDimRule::NullableOrZero => {
            fields.nullable_integer(name, None)?.filter(|&width| width != 0).unwrap_or(derived)
        }
        HeadDimRule::Fixed(width) => fields.integer(name, width)?,
        HeadDimRule::Undeclared => fields.integer(name, derived)?,
        HeadDimRule::Required => fields.integer(name, 0)?,
    };
    match in_range(name, head_dim, MAX_HEAD_DIM)? {
        width if width.is_multiple_of(2) => Ok(width),
        width => Err(invalid(name).with_expected("an even number").with_found(width)),
    }
}
