//! How a position's key and value are read back from a page, in the places that `kv_layout.rs` draws.

use bytemuck::Pod;
use half::f16;

use super::kv_layout::PageLayout;
use crate::backend::KvDType;
use crate::backend::cpu::kernels::vector::LANES;
use crate::backend::kv_quant::restore;

impl PageLayout {
    /// Reads a position's key and value, each `[head_dim]`, among a head's in its page: what [`PageLayout::store`] stored, codes
    /// dequantized and rotated back.
    pub(crate) fn load(&self, keys: &[u8], values: &[u8], position: usize, key: &mut [f32], value: &mut [f32]) {
        match self.shape.dtype.code_bits() {
            None if self.shape.dtype == KvDType::F16 => {
                let widened = |bits: u16| f16::from_bits(bits).to_f32();
                self.load_floats(keys, values, position, key, value, widened);
            }
            None => self.load_floats(keys, values, position, key, value, |stored: f32| stored),
            Some([key_bits, value_bits]) => {
                self.load_key_codes(keys, position, key, key_bits);
                self.load_value_codes(values, position, value, value_bits);
            }
        }
    }

    fn load_floats<T: Pod>(
        &self,
        keys: &[u8],
        values: &[u8],
        position: usize,
        key: &mut [f32],
        value: &mut [f32],
        widened: impl Fn(T) -> f32,
    ) {
        let (keys, values): (&[T], &[T]) = (bytemuck::cast_slice(keys), bytemuck::cast_slice(values));
        let tile = &keys[position / LANES * LANES * self.shape.head_dim..];
        for (key, &stored) in key.iter_mut().zip(tile[position % LANES..].iter().step_by(LANES)) {
            *key = widened(stored);
        }
        for (value, &stored) in value.iter_mut().zip(&values[position * self.value_stride..]) {
            *value = widened(stored);
        }
    }

    fn load_key_codes(&self, keys: &[u8], position: usize, key: &mut [f32], bits: u32) {
        let (tile, lane, of_word) = (position / LANES, position % LANES, (32 / bits) as usize);
        let (scales, words) = self.scales_and_words(keys, self.key_codes);
        let scales = &scales[tile * self.shape.head_dim / self.group * LANES..];
        let words = &words[tile * self.shape.head_dim / of_word * LANES..];
        restore(key, bits, self.group, |channel| {
            let word = words[channel / of_word * LANES + lane];
            let scale = scales[channel / self.group * LANES + lane];
            (code_in(word, channel % of_word, bits), f16::from_bits(scale))
        });
    }

    fn load_value_codes(&self, values: &[u8], position: usize, value: &mut [f32], bits: u32) {
        let of_word = (32 / bits) as usize;
        let (scales, words) = self.scales_and_words(values, self.value_codes);
        let scales = &scales[position * self.shape.head_dim / self.group..];
        let words = &words[position / of_word * self.value_stride..];
        restore(value, bits, self.group, |channel| {
            let scale = scales[channel / self.group];
            (code_in(words[channel], position % of_word, bits), f16::from_bits(scale))
        });
    }

    /// The scales of a head's keys or values, and the words of their codes, which begin at byte `codes`.
    fn scales_and_words<'a>(&self, head: &'a [u8], codes: usize) -> (&'a [u16], &'a [u32]) {
        let (scales, lines) = head.split_at(codes);
        (bytemuck::cast_slice(scales), bytemuck::cast_slice(lines))
    }
}

/// The code at a place of a word, counted from its lowest bits.
fn code_in(word: u32, place: usize, bits: u32) -> u8 {
    (word >> (place as u32 * bits) & ((1 << bits) - 1)) as u8
}
