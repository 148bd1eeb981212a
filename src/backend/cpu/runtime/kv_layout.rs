//! Where keys and values lie in a page, and how a step's are stored there.
//!
//! A page holds, for each layer and key/value head, keys in tiles of 16 positions, so that lanes are positions and a score needs
//! no sum across lanes, and values so that lanes are channels.
//!
//! ```text
//! page     [layer][ keys of head 0.. | values of head 0.. ]
//! floats   keys    [tile][channel][16 positions]                     values  [position][channel, in whole vectors]
//! codes    keys    scales [tile][group][16 positions] f16, then lines [tile][channels of a word][16 positions] u32
//!          values  scales [position][group] f16, then lines [positions of a word][16 channels at a time][16] u32
//! ```
//!
//! A word of codes has 32 / bits of them, the first in its lowest bits: successive channels of a key, or the same channel of
//! successive positions' values.

use std::ops::Range;

use bytemuck::Pod;
use half::f16;

use crate::backend::cpu::kernels::vector::{LANES, LINE};
use crate::backend::kv_elements::{ElementPlaces, HeadSlot, KvPart};
use crate::backend::kv_quant::{SCALE_BYTES, group_width, quantize, rotate_to_store};
use crate::backend::{KvDType, KvShape};

/// Widest group of channels that share a scale.
const MAX_GROUP: usize = 32;

/// The layout of a page, in bytes.
#[derive(Clone, Copy)]
pub(crate) struct PageLayout {
    pub(crate) shape: KvShape,
    /// Bytes of a head's keys in a page: whole tiles.
    pub(crate) key_head: usize,
    /// Bytes of a head's values in a page.
    pub(crate) value_head: usize,
    /// Values from one position to the next, or of a line's position: whole vectors.
    pub(crate) value_stride: usize,
    /// Channels that share a scale; 0 where elements are floats.
    pub(crate) group: usize,
    /// Where a head's lines begin, behind the scales.
    pub(crate) key_codes: usize,
    /// As `key_codes`, of values.
    pub(crate) value_codes: usize,
}

impl PageLayout {
    /// Of a shape that was checked; `None` on overflow.
    pub(crate) fn new(shape: KvShape) -> Option<Self> {
        let tokens = shape.page_tokens.checked_next_multiple_of(LANES)?;
        let value_stride = shape.head_dim.checked_next_multiple_of(LANES)?;
        let keys = tokens.checked_mul(shape.head_dim)?;
        let Some([key_bits, value_bits]) = shape.dtype.code_bits() else {
            let bytes = if shape.dtype == KvDType::F16 { 2 } else { 4 };
            let key_head = keys.checked_mul(bytes)?;
            let value_head = shape.page_tokens.checked_mul(value_stride)?.checked_mul(bytes)?;
            return Some(Self { shape, key_head, value_head, value_stride, group: 0, key_codes: 0, value_codes: 0 });
        };
        let group = group_width(shape.head_dim)?;
        let scales = (keys / group).checked_mul(SCALE_BYTES)?;
        let head = |bits: u32| keys.checked_mul(bits as usize / 4)?.checked_div(2)?.checked_add(scales);
        let (key_head, value_head) = (head(key_bits)?, head(value_bits)?);
        Some(Self { shape, key_head, value_head, value_stride, group, key_codes: scales, value_codes: scales })
    }

    /// Bytes of a page.
    pub(crate) fn page_bytes(&self) -> usize {
        self.shape.layers * self.shape.kv_heads * (self.key_head + self.value_head)
    }

    /// The bytes of a page.
    pub(crate) fn page(&self, page: u32) -> Range<usize> {
        let start = page as usize * self.page_bytes();
        start..start + self.page_bytes()
    }

    /// The bytes of a page in one layer.
    pub(crate) fn layer_page(&self, layer: usize, page: u32) -> Range<usize> {
        let start = page as usize * self.page_bytes() + self.keys_of(layer, 0);
        start..start + self.shape.kv_heads * (self.key_head + self.value_head)
    }

    /// Bytes of all pages; `None` on overflow.
    pub(crate) fn bytes(&self) -> Option<usize> {
        [self.shape.kv_heads, self.shape.layers, self.shape.pages]
            .into_iter()
            .try_fold(self.key_head.checked_add(self.value_head)?, usize::checked_mul)
    }

    /// First byte of a head's keys in page 0.
    pub(crate) fn keys_of(&self, layer: usize, head: usize) -> usize {
        layer * self.shape.kv_heads * (self.key_head + self.value_head) + head * self.key_head
    }

    /// First byte of a head's values in page 0.
    pub(crate) fn values_of(&self, layer: usize, head: usize) -> usize {
        self.keys_of(layer, self.shape.kv_heads) + head * self.value_head
    }

    /// Stores a position's key and value, which may be changed, among a head's in its page. What is not finite as stored
    /// becomes NaN; returns whether all that was finite before still is.
    pub(crate) fn store(
        &self,
        keys: &mut [u8],
        values: &mut [u8],
        position: usize,
        key: &mut [f32],
        value: &mut [f32],
    ) -> bool {
        match self.shape.dtype.code_bits() {
            None if self.shape.dtype == KvDType::F16 => self.store_floats::<u16>(keys, values, position, key, value),
            None => self.store_floats::<f32>(keys, values, position, key, value),
            Some([key_bits, value_bits]) => {
                let is_key_stored = self.store_key_codes(keys, position, key, key_bits);
                self.store_value_codes(values, position, value, value_bits) && is_key_stored
            }
        }
    }

    fn store_floats<T: Float>(
        &self,
        keys: &mut [u8],
        values: &mut [u8],
        position: usize,
        key: &[f32],
        value: &[f32],
    ) -> bool {
        let dim = self.shape.head_dim;
        let (keys, values): (&mut [T], &mut [T]) = (bytemuck::cast_slice_mut(keys), bytemuck::cast_slice_mut(values));
        let tile = &mut keys[position / LANES * LANES * dim..][..LANES * dim];
        let mut fits = true;
        for (place, &key) in tile[position % LANES..].iter_mut().step_by(LANES).zip(key) {
            *place = stored_or_nan(key, &mut fits);
        }
        for (place, &value) in values[position * self.value_stride..].iter_mut().zip(value) {
            *place = stored_or_nan(value, &mut fits);
        }
        fits
    }

    fn store_key_codes(&self, keys: &mut [u8], position: usize, key: &mut [f32], bits: u32) -> bool {
        let is_finite = key.iter().all(|value| value.is_finite());
        let (tile, lane, of_word) = (position / LANES, position % LANES, (32 / bits) as usize);
        let (scales, lines) = keys.split_at_mut(self.key_codes);
        let (scales, words): (&mut [u16], &mut [u32]) =
            (bytemuck::cast_slice_mut(scales), bytemuck::cast_slice_mut(lines));
        let groups = self.shape.head_dim / self.group;
        let words = &mut words[tile * self.shape.head_dim / of_word * LANES..];
        let mut codes = [0; MAX_GROUP];
        rotate_to_store(key, self.group);
        let mut fits = true;
        for (group, key) in key.chunks_exact(self.group).enumerate() {
            let scale = quantize(key, bits, &mut codes);
            scales[(tile * groups + group) * LANES + lane] = scale.to_bits();
            for (i, codes) in codes[..self.group].chunks_exact(of_word).enumerate() {
                let word = codes.iter().rev().fold(0, |word, &code| word << bits | u32::from(code));
                words[(group * self.group / of_word + i) * LANES + lane] = word;
            }
            fits &= scale.is_finite() || !is_finite;
        }
        fits
    }

    fn store_value_codes(&self, values: &mut [u8], position: usize, value: &mut [f32], bits: u32) -> bool {
        let is_finite = value.iter().all(|value| value.is_finite());
        let of_word = (32 / bits) as usize;
        let (scales, lines) = values.split_at_mut(self.value_codes);
        let (scales, words): (&mut [u16], &mut [u32]) =
            (bytemuck::cast_slice_mut(scales), bytemuck::cast_slice_mut(lines));
        let groups = self.shape.head_dim / self.group;
        let words = &mut words[position / of_word * self.value_stride..];
        let shift = (position % of_word) as u32 * bits;
        // The other positions of a word keep theirs.
        let mask = ((1 << bits) - 1) << shift;
        let mut codes = [0; MAX_GROUP];
        rotate_to_store(value, self.group);
        let mut fits = true;
        for (group, value) in value.chunks_exact(self.group).enumerate() {
            let scale = quantize(value, bits, &mut codes);
            scales[position * groups + group] = scale.to_bits();
            for (word, &code) in words[group * self.group..].iter_mut().zip(&codes[..self.group]) {
                *word = *word & !mask | u32::from(code) << shift;
            }
            fits &= scale.is_finite() || !is_finite;
        }
        fits
    }
}

impl ElementPlaces for PageLayout {
    fn shape(&self) -> &KvShape {
        &self.shape
    }

    fn element_bit(&self, part: KvPart, HeadSlot { head, slot }: HeadSlot, channel: usize) -> usize {
        let (dim, [key_bits, value_bits]) =
            (self.shape.head_dim, self.shape.dtype.element_bits().map(|bits| bits as usize));
        let has_codes = self.shape.dtype.code_bits().is_some();
        match part {
            KvPart::Key => {
                // Successive channels in a word, of which each position of a tile has one.
                let of_word = if has_codes { 32 / key_bits } else { 1 };
                let word = (slot / LANES * dim / of_word + channel / of_word) * LANES + slot % LANES;
                8 * (self.keys_of(0, head) + self.key_codes) + (word * of_word + channel % of_word) * key_bits
            }
            KvPart::Value => {
                // Successive positions in a word, of which each channel has one.
                let of_word = if has_codes { 32 / value_bits } else { 1 };
                let word = slot / of_word * self.value_stride + channel;
                8 * (self.values_of(0, head) + self.value_codes) + (word * of_word + slot % of_word) * value_bits
            }
        }
    }

    fn scale_byte(&self, part: KvPart, HeadSlot { head, slot }: HeadSlot, channel: usize) -> usize {
        let group = self.group.max(1);
        let (groups, index) = (self.shape.head_dim / group, channel / group);
        match part {
            KvPart::Key => {
                let scale = (slot / LANES * groups + index) * LANES + slot % LANES;
                self.keys_of(0, head) + scale * SCALE_BYTES
            }
            KvPart::Value => self.values_of(0, head) + (slot * groups + index) * SCALE_BYTES,
        }
    }
}

/// The value as stored, NaN if that is not finite; `fits` becomes false if only the element type is too narrow.
#[inline]
fn stored_or_nan<T: Float>(value: f32, fits: &mut bool) -> T {
    T::of(value).unwrap_or_else(|| {
        *fits &= !value.is_finite();
        T::NAN
    })
}

/// A float as the cache stores it.
trait Float: Pod {
    const NAN: Self;

    /// The one nearest to a value; `None` if that is not finite.
    fn of(value: f32) -> Option<Self>;
}

impl Float for u16 {
    const NAN: Self = f16::NAN.to_bits();

    #[inline]
    fn of(value: f32) -> Option<Self> {
        let half = f16::from_f32(value);
        half.is_finite().then_some(half.to_bits())
    }
}

impl Float for f32 {
    const NAN: Self = f32::NAN;

    #[inline]
    fn of(value: f32) -> Option<Self> {
        value.is_finite().then_some(value)
    }
}

const _: () = assert!(LINE == LANES * size_of::<u32>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_whole_tiles_have_the_bytes_of_their_shape() {
        for dtype in KvDType::ALL {
            for head_dim in [64, 80, 96, 128, 256] {
                let shape = KvShape { layers: 3, pages: 5, page_tokens: 32, kv_heads: 2, head_dim, dtype };
                let layout = PageLayout::new(shape).unwrap();
                assert_eq!(layout.bytes(), shape.bytes(), "{} of {head_dim}", dtype.name());
                assert_eq!(layout.page_bytes() * 5, shape.bytes().unwrap());
            }
        }
    }
}
