//! The keys and values of a KV cache as kernels read them; `runtime/kv_layout.rs` draws where they lie.

#![allow(unsafe_code, reason = "vector loads through pointers, inside loops that must not check bounds")]

use std::marker::PhantomData;

use super::vector::{Element, LANES, LINE, Vector};
use crate::backend::kv_quant::SCALE_BYTES;

/// The keys and values of one key/value head, in the pages of one sequence. Sizes are in bytes where nothing else is said.
pub(crate) struct View<'a> {
    /// The whole cache.
    pub(crate) cache: &'a [u8],
    /// Size of a page.
    pub(crate) page_bytes: usize,
    /// Positions of a page.
    pub(crate) page_tokens: usize,
    /// Width of a head.
    pub(crate) head_dim: usize,
    /// The width in whole vectors.
    pub(crate) value_stride: usize,
    /// Where the head's keys begin in page 0.
    pub(crate) keys: usize,
    /// Size of the head's keys in a page.
    pub(crate) key_head: usize,
    /// Where the head's values begin in page 0.
    pub(crate) values: usize,
    /// Size of the head's values in a page.
    pub(crate) value_head: usize,
    /// Binary logarithm of the channels that share a scale.
    pub(crate) group_shift: u32,
    /// Where the codes of the head's keys begin, behind their scales.
    pub(crate) key_codes: usize,
    /// Where the codes of the head's values begin, behind their scales.
    pub(crate) value_codes: usize,
    /// Pages of the sequence.
    pub(crate) block_table: &'a [u32],
    /// Factor on the scores.
    pub(crate) scale: f32,
    /// Bound of the scaled scores.
    pub(crate) score_cap: Option<f32>,
}

impl View<'_> {
    /// The head's keys in a page of the sequence.
    ///
    /// # Safety
    /// The page must lie within the block table, and what that names within the cache.
    #[inline(always)]
    pub(super) unsafe fn keys_of_page(&self, page: usize) -> *const u8 {
        // SAFETY: the caller's promise.
        unsafe {
            let page = *self.block_table.get_unchecked(page) as usize;
            self.cache.as_ptr().add(page * self.page_bytes + self.keys)
        }
    }

    /// The head's values in a page of the sequence.
    ///
    /// # Safety
    /// As [`View::keys_of_page`].
    #[inline(always)]
    pub(super) unsafe fn values_of_page(&self, page: usize) -> *const u8 {
        // SAFETY: the caller's promise.
        unsafe {
            let page = *self.block_table.get_unchecked(page) as usize;
            self.cache.as_ptr().add(page * self.page_bytes + self.values)
        }
    }
}

/// Keys and values as they are stored, read as f32.
pub(crate) trait KvFormat {
    /// Successive channels of keys that are loaded together.
    const KEY_CHANNELS: usize;

    /// Those channels of the 16 positions of a tile.
    type Keys<V: Vector>: Copy;

    /// Loads the keys of a tile from a channel on, a multiple of `KEY_CHANNELS`.
    ///
    /// # Safety
    /// `head` must be the head's keys in a page that has the tile; the instruction set of `V` must be available.
    unsafe fn load_keys<V: Vector>(view: &View<'_>, head: *const u8, tile: usize, channel: usize) -> Self::Keys<V>;

    /// One of the loaded channels, a lane for each position.
    fn channel_of<V: Vector>(keys: Self::Keys<V>, index: usize) -> V;

    /// Loads 16 channels of a position's value, from a multiple of 16 on.
    ///
    /// # Safety
    /// `head` must be the head's values in a page that has the position; the instruction set of `V` must be available.
    unsafe fn load_value<V: Vector>(view: &View<'_>, head: *const u8, position: usize, channel: usize) -> V;
}

/// Floats: keys `[tile][channel][16 positions]`, values `[position][value_stride]`.
pub(crate) struct Floats<E>(PhantomData<E>);

impl<E: Element> KvFormat for Floats<E> {
    const KEY_CHANNELS: usize = 1;

    type Keys<V: Vector> = V;

    #[inline(always)]
    unsafe fn load_keys<V: Vector>(view: &View<'_>, head: *const u8, tile: usize, channel: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { E::load(head.add((tile * view.head_dim + channel) * LANES * E::BYTES)) }
    }

    #[inline(always)]
    fn channel_of<V: Vector>(keys: V, _index: usize) -> V {
        keys
    }

    #[inline(always)]
    unsafe fn load_value<V: Vector>(view: &View<'_>, head: *const u8, position: usize, channel: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { E::load(head.add((position * view.value_stride + channel) * E::BYTES)) }
    }
}

/// Codes of that many bits: a line has a word for each of 16 positions (keys) or channels (values), whose bits are the codes of
/// successive channels (keys) or positions (values).
pub(crate) struct Codes<const KEY_BITS: u32, const VALUE_BITS: u32>;

impl<const KEY_BITS: u32, const VALUE_BITS: u32> KvFormat for Codes<KEY_BITS, VALUE_BITS> {
    const KEY_CHANNELS: usize = (32 / KEY_BITS) as usize;

    /// A line and the scales of its positions.
    type Keys<V: Vector> = (V::Line, V);

    #[inline(always)]
    unsafe fn load_keys<V: Vector>(view: &View<'_>, head: *const u8, tile: usize, channel: usize) -> (V::Line, V) {
        let line = (tile * view.head_dim + channel) / Self::KEY_CHANNELS;
        let scale = (tile * (view.head_dim >> view.group_shift) + (channel >> view.group_shift)) * LANES;
        // SAFETY: the caller's promise.
        unsafe { (V::load_line(head.add(view.key_codes + line * LINE)), V::load_f16(head.cast::<u16>().add(scale))) }
    }

    #[inline(always)]
    fn channel_of<V: Vector>((line, scales): (V::Line, V), index: usize) -> V {
        V::centered_codes::<KEY_BITS>(line, index as u32 * KEY_BITS).mul(scales)
    }

    #[inline(always)]
    unsafe fn load_value<V: Vector>(view: &View<'_>, head: *const u8, position: usize, channel: usize) -> V {
        let of_line = (32 / VALUE_BITS) as usize;
        let line = (position / of_line * view.value_stride + channel) / LANES;
        let scale = position * (view.head_dim >> view.group_shift) + (channel >> view.group_shift);
        // SAFETY: the caller's promise.
        unsafe {
            let codes = V::load_line(head.add(view.value_codes + line * LINE));
            let shift = (position % of_line) as u32 * VALUE_BITS;
            let scale = V::splat_f16(head.add(scale * SCALE_BYTES).cast());
            V::centered_codes::<VALUE_BITS>(codes, shift).mul(scale)
        }
    }
}
