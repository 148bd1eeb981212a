//! How the host reads keys and values out of a page's bytes.

use half::f16;

use super::kv_layout::KvLayout;
use crate::backend::KvDType;
use crate::backend::kv_quant::restore;

impl KvLayout {
    /// Reads the key and the value of a head at a position of a page, each `[head_dim]`, from the bytes that the page has in one
    /// layer: codes dequantized and rotated back.
    pub fn unpack(&self, page: &[u8], head: usize, position: usize, key: &mut [f32], value: &mut [f32]) {
        self.unpack_part(page, key, 0, |channel| {
            (self.key_bit(0, head, position, channel), self.key_scale_byte(0, head, position, channel))
        });
        self.unpack_part(page, value, 1, |channel| {
            (self.value_bit(0, head, position, channel), self.value_scale_byte(0, head, position, channel))
        });
    }

    /// Reads keys (0) or values (1); `place` tells the bit of a channel's element and the byte of its scale.
    fn unpack_part(&self, page: &[u8], head: &mut [f32], part: usize, place: impl Fn(usize) -> (usize, usize)) {
        let two = |byte: usize| [page[byte], page[byte + 1]];
        match self.dtype().code_bits() {
            Some(bits) => restore(head, bits[part], self.group(), |channel| {
                let (bit, scale) = place(channel);
                let code = u32::from(page[bit / 8]) >> (bit % 8) & ((1 << bits[part]) - 1);
                (code as u8, f16::from_le_bytes(two(scale)))
            }),
            None => {
                for (channel, value) in head.iter_mut().enumerate() {
                    let byte = place(channel).0 / 8;
                    *value = match self.dtype() {
                        KvDType::F16 => f16::from_le_bytes(two(byte)).to_f32(),
                        _ => {
                            let ([a, b], [c, d]) = (two(byte), two(byte + 2));
                            f32::from_le_bytes([a, b, c, d])
                        }
                    };
                }
            }
        }
    }
}
