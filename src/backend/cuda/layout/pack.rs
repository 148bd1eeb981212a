//! Packing strips: the CPU twin of `cuda/repack.cu`.

use std::ops::Range;

use half::{bf16, f16};

use super::sections::{PADDING, WeightLayout, unit_words};
use super::{ElementType, Place, STRIP_ROWS, UNIT_INPUTS, planes};
use crate::quant::QuantizedWeight;
use crate::tensor::TensorView;

/// The words of some strips of a quantized weight, `[strips, strip_words]`. Padding has code 0.
///
/// # Panics
/// If the strips are out of bounds.
pub fn pack_codes(layout: &WeightLayout, weight: &dyn QuantizedWeight, strips: Range<usize>) -> Vec<u32> {
    let mut words = vec![0; strips.len() * layout.strip_words];
    let mut codes = [0; STRIP_ROWS];
    for (strip, words) in strips.zip(words.chunks_exact_mut(layout.strip_words)) {
        let outputs = strip * STRIP_ROWS..layout.out_features.min((strip + 1) * STRIP_ROWS);
        for section in &layout.sections {
            let (words, planes) = (&mut words[section.first_word..], planes(section.bits));
            for (unit, words) in words.chunks_exact_mut(unit_words(section.bits)).take(section.units).enumerate() {
                let first = (section.first_unit + unit) * UNIT_INPUTS;
                let inputs = layout.stored_inputs[first..first + UNIT_INPUTS].iter().enumerate();
                for (input, &stored) in inputs.filter(|(_, stored)| **stored != PADDING) {
                    let stored = stored as usize;
                    let codes = &mut codes[..outputs.len()];
                    weight.read_codes(stored..stored + 1, outputs.clone(), codes);
                    for (output, &code) in codes.iter().enumerate() {
                        put(words, planes, Place::of(output, input), u32::from(code));
                    }
                }
            }
        }
    }
    words
}

/// The words of some strips of a dense weight, `[strips, strip_words]`, each value rounded to the element type. Padding is 0.
///
/// # Panics
/// If the strips are out of bounds.
pub fn pack_dense(
    layout: &WeightLayout,
    weight: TensorView<'_>,
    element: ElementType,
    strips: Range<usize>,
) -> Vec<u32> {
    pack_rows(layout, element, strips, |output, row| {
        let first = output * layout.in_features;
        weight.read_f32(first..first + layout.in_features, row);
    })
}

/// As [`pack_dense`], of a weight of which `read_row` reads the row of an output, `[in_features]`.
///
/// # Panics
/// If the strips are out of bounds.
pub fn pack_rows(
    layout: &WeightLayout,
    element: ElementType,
    strips: Range<usize>,
    mut read_row: impl FnMut(usize, &mut [f32]),
) -> Vec<u32> {
    let mut words = vec![0; strips.len() * layout.strip_words];
    let mut row = vec![0.0; layout.in_features];
    for (strip, words) in strips.zip(words.chunks_exact_mut(layout.strip_words)) {
        for output in 0..STRIP_ROWS.min(layout.out_features - strip * STRIP_ROWS) {
            read_row(strip * STRIP_ROWS + output, &mut row);
            for (input, &value) in row.iter().enumerate() {
                let words = &mut words[input / UNIT_INPUTS * unit_words(16)..];
                put(words, [16, 0], Place::of(output, input % UNIT_INPUTS), u32::from(element.bits_of(value)));
            }
        }
    }
    words
}

/// Adds a code to a unit of zeros.
fn put(words: &mut [u32], [low, high]: [usize; 2], place: Place, code: u32) {
    let (word, bit) = place.bit(low, 0);
    words[word] |= (code & ((1 << low) - 1)) << bit;
    if high > 0 {
        let (word, bit) = place.bit(high, unit_words(low));
        words[word] |= (code >> low) << bit;
    }
}

impl ElementType {
    /// The bits of a value rounded to this type.
    pub(super) fn bits_of(self, value: f32) -> u16 {
        match self {
            ElementType::F16 => f16::from_f32(value).to_bits(),
            ElementType::Bf16 => bf16::from_f32(value).to_bits(),
        }
    }

    /// Whether a finite value becomes infinite in it.
    pub fn overflows(self, value: f32) -> bool {
        value.is_finite() && self.value_of(self.bits_of(value)).is_infinite()
    }

    /// The value of these bits.
    pub fn value_of(self, bits: u16) -> f32 {
        match self {
            ElementType::F16 => f16::from_bits(bits).to_f32(),
            ElementType::Bf16 => bf16::from_bits(bits).to_f32(),
        }
    }
}
