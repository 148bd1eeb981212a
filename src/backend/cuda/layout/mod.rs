//! The one layout of weights on the device, "strip64": packing and unpacking it on the CPU.
//!
//! ```text
//! weight   [out_features, in_features], cut into strips of 16 outputs, each contiguous
//! strip    units of 64 inputs, one after another
//! unit     16 x 64 codes as four 16 x 16 tiles, in the order in which a warp's lanes hold the A operand of mma.m16n8k16
//!
//! lane l of a warp, g = l / 4, t = l % 4, holds of tile j the pairs (two inputs of one output, the first in the low half)
//!   register 0: output g,   inputs 2t, 2t+1        register 2: output g,   inputs 2t+8, 2t+9
//!   register 1: output g+8, inputs 2t, 2t+1        register 3: output g+8, inputs 2t+8, 2t+9
//! that is 16 pairs of a unit, pair p = 4 j + register
//!
//! A width is one or two bit planes (3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2, else one). A plane of b bits has b words for each lane;
//! pair p is in word p b / 16, its first code at bit p b % 16, its second one 16 bits above.
//! words    four of a lane adjacent (as many as there are, of narrower planes), lane after lane: loads of up to 16 bytes
//! ```
//!
//! So one mask takes a pair out of a word, where a 16-bit float is made of each code without a conversion instruction. Codes
//! are centered: the kernel's weight is `code - 2^(bits-1)`, zeros are stored less as much, and where they all are 0, as in
//! symmetric GPTQ and in EXL2, they are not stored at all.
//!
//! Inputs are sorted by width, then as stored; each width is a section, padded to whole units. `order` tells which input of
//! the model each padded one is, unless they are the same. A row of scales spans a power of two of inputs, at least 32; groups
//! that are no multiples of 32 are padded to such.

mod pack;
mod scales;
mod sections;
mod unpack;

pub use self::pack::{pack_codes, pack_dense, pack_rows};
pub use self::scales::{ScaleForm, ScaleRows, ScaleType};
pub use self::sections::{PADDING, Section, WeightLayout};
pub use self::unpack::{unpack_codes, unpack_dense};

use bytemuck::{Pod, Zeroable};

/// Outputs of a strip.
pub const STRIP_ROWS: usize = 16;
/// Inputs of a unit.
pub const UNIT_INPUTS: usize = 64;
/// Least inputs that a row of scales spans.
pub const SCALE_INPUTS: usize = 32;
/// Most sections of a weight: one for each width.
pub const MAX_SECTIONS: usize = 6;
/// Lanes of a warp.
const LANES: usize = 32;

/// The type of dense weights and of activations on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// IEEE half precision.
    #[default]
    F16,
    /// bfloat16.
    Bf16,
}

impl ElementType {
    /// The defines with which kernels are compiled for it.
    pub fn defines(self) -> &'static [(&'static str, &'static str)] {
        match self {
            ElementType::F16 => &[],
            ElementType::Bf16 => &[("ELEMENT_BF16", "1")],
        }
    }
}

/// A packed weight as kernels see it: the twin of `Weight` in `cuda/weight.cuh`. Pointers are device addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Weight {
    /// `[strips, strip_words]` u32: codes, or pairs of 16-bit floats.
    pub codes: u64,
    /// `[strips, scale_rows, 8]` pairs of scales, in f16 or f32; 0 for a dense weight.
    pub scales: u64,
    /// `[strips, scale_rows, 8]` pairs of f16: zeros less `2^(bits-1)`; 0 if they are all 0.
    pub zeros: u64,
    /// `[64 units]` u32: the model's input of each padded one, or [`PADDING`]; 0 if they are the same.
    pub order: u64,
    /// Width of the input.
    pub in_features: u32,
    /// Width of the output.
    pub out_features: u32,
    /// Units of a strip.
    pub units: u32,
    /// Words of a strip.
    pub strip_words: u32,
    /// Rows of scales of a strip.
    pub scale_rows: u32,
    /// [`ScaleType`] as a number.
    pub scale_type: u32,
    /// Number of sections.
    pub section_count: u32,
    /// Always 0.
    pub padding: u32,
    /// The sections, in the order of their units.
    pub sections: [WeightSection; MAX_SECTIONS],
}

/// The units of one width: the twin of `WeightSection` in `cuda/weight.cuh`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct WeightSection {
    /// First unit.
    pub first_unit: u32,
    /// Width of a code: 2, 3, 4, 5, 6 or 8; 16 for floats.
    pub bits: u32,
    /// First word in a strip.
    pub first_word: u32,
    /// First row of scales in a strip.
    pub first_scale_row: u32,
    /// A row of scales spans `32 << scale_shift` inputs.
    pub scale_shift: u32,
}

/// The lower and the upper bit plane of a width.
fn planes(bits: usize) -> [usize; 2] {
    match bits {
        3 => [2, 1],
        5 => [4, 1],
        6 => [4, 2],
        _ => [bits, 0],
    }
}

/// Where a code is: its lane, its pair in that lane, and whether it is the second of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    lane: usize,
    pair: usize,
    second: bool,
}

impl Place {
    /// Of the code of an output of a strip (0 to 15) and an input of a unit (0 to 63).
    fn of(output: usize, input: usize) -> Self {
        let (tile, column) = (input / 16, input % 16);
        Self {
            lane: output % 8 * 4 + column % 8 / 2,
            pair: tile * 4 + output / 8 + column / 8 * 2,
            second: column % 2 == 1,
        }
    }

    /// Word of a unit and bit in it, in a plane of that width that begins at word `first`.
    fn bit(self, plane: usize, first: usize) -> (usize, usize) {
        let (word, shift) = (self.pair * plane / 16, self.pair * plane % 16);
        let adjacent = plane.min(4);
        let at = first + word / adjacent * adjacent * LANES + self.lane * adjacent + word % adjacent;
        (at, shift + if self.second { 16 } else { 0 })
    }
}
