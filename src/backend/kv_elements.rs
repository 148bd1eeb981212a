//! Single keys and values among the bytes that a page has in one layer: the host reads, writes and copies them wherever a layout
//! puts them. Numbers of several bytes are little-endian.

use half::f16;

use super::kv_quant::{SCALE_BYTES, group_width, quantize, restore, rotate_to_store};
use super::kv_shape::{KvDType, KvShape};

/// What is stored of a head at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KvPart {
    Key,
    Value,
}

/// A head at a position of a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadSlot {
    pub(crate) head: usize,
    pub(crate) slot: usize,
}

/// Where a layout puts what is stored, in the bytes that a page has in one layer.
pub(crate) trait ElementPlaces {
    /// What the cache stores, and how.
    fn shape(&self) -> &KvShape;

    /// Bit at which a channel begins: its float, or its code.
    fn element_bit(&self, part: KvPart, at: HeadSlot, channel: usize) -> usize;

    /// Byte at which the scale of a channel begins, where elements are codes.
    fn scale_byte(&self, part: KvPart, at: HeadSlot, channel: usize) -> usize;

    /// Reads a key or value, `[head_dim]`: codes dequantized and rotated back.
    fn load(&self, page: &[u8], part: KvPart, at: HeadSlot, head: &mut [f32]) {
        let (dtype, width) = (self.shape().dtype, element_bits(self.shape(), part));
        match coded(self.shape()) {
            Some(group) => restore(head, width, group, |channel| {
                let code = bits_at(page, self.element_bit(part, at, channel), width) as u8;
                (code, f16::from_bits(bits_at(page, 8 * self.scale_byte(part, at, channel), 16) as u16))
            }),
            None => {
                for (channel, value) in head.iter_mut().enumerate() {
                    let bits = bits_at(page, self.element_bit(part, at, channel), width);
                    *value = match dtype {
                        KvDType::F16 => f16::from_bits(bits as u16).to_f32(),
                        _ => f32::from_bits(bits),
                    };
                }
            }
        }
    }

    /// Stores a key or value, `[head_dim]`, as [`Compute::attend`](super::Compute::attend) does: what is not finite as stored
    /// becomes NaN. Returns whether all that was finite still is.
    fn store(&self, page: &mut [u8], part: KvPart, at: HeadSlot, head: &[f32]) -> bool {
        let (dtype, width) = (self.shape().dtype, element_bits(self.shape(), part));
        let mut fits = true;
        let Some(group) = coded(self.shape()) else {
            for (channel, &value) in head.iter().enumerate() {
                let half = f16::from_f32(value);
                let (bits, is_finite) = match dtype {
                    KvDType::F16 if half.is_finite() => (half.to_bits().into(), true),
                    KvDType::F16 => (f16::NAN.to_bits().into(), false),
                    _ if value.is_finite() => (value.to_bits(), true),
                    _ => (f32::NAN.to_bits(), false),
                };
                set_bits(page, self.element_bit(part, at, channel), width, bits);
                fits &= is_finite || !value.is_finite();
            }
            return fits;
        };
        let is_finite = head.iter().all(|value| value.is_finite());
        let (mut rotated, mut codes) = (head.to_vec(), vec![0; group]);
        rotate_to_store(&mut rotated, group);
        for (index, values) in rotated.chunks_exact(group).enumerate() {
            let scale = quantize(values, width, &mut codes);
            set_bits(page, 8 * self.scale_byte(part, at, index * group), 16, scale.to_bits().into());
            for (channel, &code) in (index * group..).zip(&codes) {
                set_bits(page, self.element_bit(part, at, channel), width, code.into());
            }
            fits &= scale.is_finite() || !is_finite;
        }
        fits
    }

    /// Copies a key or value as it is stored, bit for bit.
    fn copy(&self, (source, from): (&[u8], HeadSlot), (page, to): (&mut [u8], HeadSlot), part: KvPart) {
        let (head_dim, width) = (self.shape().head_dim, element_bits(self.shape(), part));
        for channel in 0..head_dim {
            let bits = bits_at(source, self.element_bit(part, from, channel), width);
            set_bits(page, self.element_bit(part, to, channel), width, bits);
        }
        for channel in coded(self.shape()).into_iter().flat_map(|group| (0..head_dim).step_by(group)) {
            let [from, to] = [from, to].map(|at| self.scale_byte(part, at, channel));
            page[to..to + SCALE_BYTES].copy_from_slice(&source[from..from + SCALE_BYTES]);
        }
    }
}

/// Channels that share a scale, where elements are codes.
fn coded(shape: &KvShape) -> Option<usize> {
    shape.dtype.code_bits().and_then(|_| group_width(shape.head_dim))
}

fn element_bits(shape: &KvShape, part: KvPart) -> u32 {
    let [key, value] = shape.dtype.element_bits();
    if part == KvPart::Key { key } else { value }
}

/// An element of 4 bits in a byte, or of 8, 16 or 32 bits, which begins with a byte.
fn bits_at(page: &[u8], bit: usize, width: u32) -> u32 {
    let byte = bit / 8;
    match width {
        32 => u32::from_le_bytes([page[byte], page[byte + 1], page[byte + 2], page[byte + 3]]),
        16 => u16::from_le_bytes([page[byte], page[byte + 1]]).into(),
        _ => u32::from(page[byte]) >> (bit % 8) & ((1 << width) - 1),
    }
}

/// Replaces an element that [`bits_at`] reads.
fn set_bits(page: &mut [u8], bit: usize, width: u32, bits: u32) {
    let (byte, shift) = (bit / 8, bit as u32 % u8::BITS);
    match width {
        8.. => page[byte..byte + width as usize / 8].copy_from_slice(&bits.to_le_bytes()[..width as usize / 8]),
        // The other element of the byte keeps its bits.
        _ => page[byte] = page[byte] & !(((1 << width) - 1) << shift) | (bits << shift) as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_every_width_are_read_where_they_were_set_and_leave_the_others() {
        for width in [4, 8, 16, 32] {
            let mut page = vec![0xa5; 24];
            let untouched = page.clone();
            let value = 0x9c3d_7e16 & (u32::MAX >> (32 - width));
            set_bits(&mut page, 64, width, value);
            set_bits(&mut page, 64 + width as usize, width, value ^ 1);
            assert_eq!(bits_at(&page, 64, width), value);
            assert_eq!(bits_at(&page, 64 + width as usize, width), value ^ 1);
            assert_eq!((&page[..8], bits_at(&page, 72 + 2 * width as usize, 4)), (&untouched[..8], 5));
        }
    }
}
