//! Dequantizing packed strips on the CPU: exactly the weights that the kernels multiply.

use super::scales::ScaleRows;
use super::sections::{PADDING, Section, WeightLayout, unit_words};
use super::{ElementType, Place, SCALE_INPUTS, STRIP_ROWS, UNIT_INPUTS, planes};

/// Rows `[rows, in_features]` of strips of a quantized weight, inputs in the model's order. `strips` holds the words of strips
/// from `first_strip` on; rows beyond the last output are left out.
///
/// # Panics
/// If `strips` is no whole number of strips.
pub fn unpack_codes(layout: &WeightLayout, scales: &ScaleRows, first_strip: usize, strips: &[u32]) -> Vec<f32> {
    let middle = |section: &Section| (1 << (section.bits - 1)) as f32;
    unpack(layout, first_strip, strips, |section, words, strip, output, padded| {
        let half_unit = (padded - section.first_unit * UNIT_INPUTS) / SCALE_INPUTS;
        let row = section.first_scale_row + (half_unit >> section.scale_shift);
        let (scale, zero) = scales.read_one(strip * layout.scale_rows() + row, output);
        let code = code(words, section.bits, Place::of(output, padded % UNIT_INPUTS));
        scale * (code as f32 - middle(section) - zero)
    })
}

/// The same of a dense weight.
///
/// # Panics
/// If `strips` is no whole number of strips.
pub fn unpack_dense(layout: &WeightLayout, element: ElementType, first_strip: usize, strips: &[u32]) -> Vec<f32> {
    unpack(layout, first_strip, strips, |_, words, _, output, padded| {
        element.value_of(code(words, 16, Place::of(output, padded % UNIT_INPUTS)) as u16)
    })
}

/// Calls `value` with the section, the words of the unit, the strip, the output in it, and the padded input.
fn unpack(
    layout: &WeightLayout,
    first_strip: usize,
    strips: &[u32],
    value: impl Fn(&Section, &[u32], usize, usize, usize) -> f32,
) -> Vec<f32> {
    assert!(strips.len().is_multiple_of(layout.strip_words.max(1)));
    let order = layout.order.as_deref().unwrap_or(&layout.stored_inputs);
    let mut out = Vec::new();
    for (index, words) in strips.chunks_exact(layout.strip_words.max(1)).enumerate() {
        let strip = first_strip + index;
        for output in 0..STRIP_ROWS.min(layout.out_features.saturating_sub(strip * STRIP_ROWS)) {
            let mut row = vec![0.0; layout.in_features];
            for section in &layout.sections {
                let first = section.first_unit * UNIT_INPUTS;
                let inputs = order[first..first + section.units * UNIT_INPUTS].iter().enumerate();
                for (k, &input) in inputs.filter(|(_, input)| **input != PADDING) {
                    let words = &words[section.first_word + k / UNIT_INPUTS * unit_words(section.bits)..];
                    row[input as usize] = value(section, words, strip, output, first + k);
                }
            }
            out.append(&mut row);
        }
    }
    out
}

/// A code of a unit.
pub(super) fn code(words: &[u32], bits: usize, place: Place) -> u32 {
    let [low, high] = planes(bits);
    let field = |plane: usize, first: usize| {
        let (word, bit) = place.bit(plane, first);
        words[word] >> bit & ((1 << plane) - 1)
    };
    field(low, 0) | if high > 0 { field(high, unit_words(low)) << low } else { 0 }
}
