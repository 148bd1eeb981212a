//! How a KV cache stores keys and values, and how large it is.

use std::str::FromStr;

use super::kv_quant::{SCALE_BYTES, group_width};
use crate::error::{Error, ErrorCode, Result};

/// How cached keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvDType {
    /// Half precision: the default.
    #[default]
    F16,
    /// Single precision.
    F32,
    /// Rotated codes of 8 bits, with an f16 scale for each group of a head.
    Q8,
    /// As [`KvDType::Q8`], with values of 4 bits.
    Q6,
    /// As [`KvDType::Q8`], with keys and values of 4 bits.
    Q4,
}

impl KvDType {
    /// All of them.
    pub const ALL: [KvDType; 5] = [KvDType::F16, KvDType::F32, KvDType::Q8, KvDType::Q6, KvDType::Q4];

    /// Its name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            KvDType::F16 => "f16",
            KvDType::F32 => "f32",
            KvDType::Q8 => "q8",
            KvDType::Q6 => "q6",
            KvDType::Q4 => "q4",
        }
    }

    /// Bits of the codes of keys and of values; `None` where they are floats.
    pub fn code_bits(self) -> Option<[u32; 2]> {
        match self {
            KvDType::F16 | KvDType::F32 => None,
            KvDType::Q8 | KvDType::Q6 | KvDType::Q4 => Some(self.element_bits()),
        }
    }

    /// Bits of an element of keys and of values: a float, or a code.
    pub fn element_bits(self) -> [u32; 2] {
        match self {
            KvDType::F16 => [16; 2],
            KvDType::F32 => [32; 2],
            KvDType::Q8 => [8, 8],
            KvDType::Q6 => [8, 4],
            KvDType::Q4 => [4, 4],
        }
    }

    /// Bytes of a head's key and value at one position, scales included.
    pub fn head_bytes(self, head_dim: usize) -> usize {
        match self.code_bits() {
            None => 2 * head_dim * if self == KvDType::F16 { 2 } else { 4 },
            Some(bits) => {
                let scales = head_dim.div_ceil(group_width(head_dim).unwrap_or(1)) * SCALE_BYTES;
                bits.into_iter().map(|bits| (head_dim * bits as usize).div_ceil(8) + scales).sum()
            }
        }
    }
}

impl FromStr for KvDType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == text).ok_or_else(|| {
            Error::new(ErrorCode::RequestInvalid, "the cache has no such element type")
                .with_expected(Self::ALL.map(Self::name).join(", "))
                .with_found(text)
        })
    }
}

/// Size of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Decoder layers.
    pub layers: usize,
    /// Pages; each holds `page_tokens` positions of every layer.
    pub pages: usize,
    /// Positions of a page.
    pub page_tokens: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// How keys and values are stored.
    pub dtype: KvDType,
}

impl KvShape {
    /// Bytes of keys and values together, or `None` on overflow.
    pub fn bytes(&self) -> Option<usize> {
        [self.layers, self.pages, self.page_tokens, self.kv_heads]
            .into_iter()
            .try_fold(self.dtype.head_bytes(self.head_dim), usize::checked_mul)
    }

    /// Checks that keys and values can be stored so.
    ///
    /// # Errors
    /// `internal` for pages without positions; `model_feature_unsupported` for quantized heads that have no whole groups.
    pub fn check(&self) -> Result<()> {
        if self.page_tokens == 0 {
            return Err(Error::new(ErrorCode::Internal, "a page of the KV cache must hold a position"));
        }
        if self.dtype.code_bits().is_some() && group_width(self.head_dim).is_none() {
            let what = format!("kv_dtype \"{}\" cannot store heads of the model's width", self.dtype.name());
            return Err(Error::new(ErrorCode::ModelFeatureUnsupported, what)
                .with_expected("a multiple of 16 channels, or kv_dtype \"f16\" or \"f32\"")
                .with_found(self.head_dim));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantized_caches_take_the_stated_part_of_f16() {
        for (dtype, part) in [(KvDType::Q8, 0.53125), (KvDType::Q6, 0.40625), (KvDType::Q4, 0.28125)] {
            for head_dim in [32, 64, 96, 128, 256] {
                let bytes = |dtype: KvDType| dtype.head_bytes(head_dim) as f64;
                assert_eq!(bytes(dtype) / bytes(KvDType::F16), part, "{} of {head_dim}", dtype.name());
            }
        }
        assert_eq!(KvDType::Q4.head_bytes(80) as f64 / KvDType::F16.head_bytes(80) as f64, 0.3125);
    }

    #[test]
    fn heads_without_whole_groups_are_refused_by_name() {
        let shape = |head_dim, dtype| KvShape { layers: 1, pages: 1, page_tokens: 16, kv_heads: 1, head_dim, dtype };
        for head_dim in [8, 20, 72] {
            let error = shape(head_dim, KvDType::Q6).check().unwrap_err();
            assert_eq!(error.code(), ErrorCode::ModelFeatureUnsupported);
            assert!(error.to_string().contains("q6"), "{error}");
            assert!(shape(head_dim, KvDType::F16).check().is_ok());
        }
        assert!(shape(80, KvDType::Q4).check().is_ok());
    }

    #[test]
    fn every_type_has_the_name_that_it_is_found_by() {
        for dtype in KvDType::ALL {
            assert_eq!(dtype.name().parse::<KvDType>().unwrap(), dtype);
        }
        assert_eq!("q5".parse::<KvDType>().unwrap_err().code(), ErrorCode::RequestInvalid);
    }
}
