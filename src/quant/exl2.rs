//! The EXL2 weight format.
//!
//! ```text
//! q_weight    [R, out']    int32    groups stacked by rows; in each, a column is one bit stream along its inputs
//! q_groups    [2 G]        int16    per group: width of its codes, first row of q_weight
//! q_scale     [G, out'/8]  int32    4-bit fields along the outputs, lowest bits first
//! q_scale_max [G]          float16  per group: the unit of its scales
//! q_invperm   [in]         int32    input i of the model is stored input q_invperm[i]
//!
//!                input of the model        0   1   2   3   4   5   6   7
//!                q_invperm                 6   0   3   7   1   4   2   5       input 0 is in row 6, input 1 in row 0, ...
//!                stored rows               1   4   6   2   5   7   0   3       its inverse: QuantLayout::permutation
//!                q_groups                | 5 bits        | 4 bits        |     (5, 0), (4, rows of the first)
//!
//! m = f16(q_scale_max[g] / 256);  s = f16((field[g, n] + 1)^2 * m);  W[n, permutation[k]] = f16((code[k, n] - 2^(bits-1)) * s)
//! ```
//!
//! Every rounding is to the nearest float16, subnormals included (`m` is often subnormal). `out'` is the number of outputs
//! rounded up to 32; the extra columns are padding and are never returned. Widths 8, 6, 5, 4, 3 and 2 may all occur in one
//! tensor, in that order; a group has any multiple of 32 inputs. The tensors are self-describing: no config is needed.
//!
//! exllamav2 reads files that are not valid: it checks neither widths nor their order, and groups of 16 inputs make its
//! kernels write past their scales. Such files are refused here. Biases are float16 tensors padded to `out'`.
//!
//! `s` is a float16, so scales reach a backend exactly. The last rounding, of the product, is part of the format
//! ([`QuantizedWeight::rounds_to_f16`]), but a kernel that scales the sum over a group never has a single weight to round.
//! Leaving it out changes a weight by at most half a float16 ULP. exllamav2's fused kernel leaves it out too: it scales sums
//! of 8 to 32 products. On the real model in `tests/fixtures` this changes logits by up to 6.3e-4 of the largest logit; with
//! the rounding, as the reference backend computes, they match the stored ones to 7e-7.

use std::ops::Range;

use half::f16;

use super::bit_fields::{BitField, BitStreams, WORD_BITS};
use super::module_tensors::ModuleTensors;
use super::weight::{QuantGroup, QuantLayout, QuantizedWeight};
use crate::checkpoint::Checkpoint;
use crate::error::{ErrorCode, Result};
use crate::tensor::{DType, shape_text};

/// Groups and columns come in multiples of this many inputs and outputs.
const ALIGNMENT: usize = 32;
/// exllamav2 keeps permutations in 16 bits.
const MAX_INPUTS: usize = 65_535;
const SCALE_BITS: usize = 4;
/// Widths, in the order in which they must appear.
const WIDTHS: [u8; 6] = [8, 6, 5, 4, 3, 2];

/// An EXL2 weight, borrowed from the checkpoint.
pub struct Exl2Weight<'a> {
    in_features: usize,
    out_features: usize,
    layout: QuantLayout,
    groups: Vec<StoredGroup>,
    q_weight: BitStreams<'a>,
    /// `[G, out'/8]`
    q_scale: &'a [[u8; 4]],
}

/// Where a group of the layout is in the file.
struct StoredGroup {
    first_input: usize,
    first_row: usize,
    /// `m`: the scale of each output is a square times this.
    unit: f16,
}

impl<'a> Exl2Weight<'a> {
    /// Opens and checks the module at `path`.
    ///
    /// # Errors
    /// `checkpoint_tensor_missing`, `checkpoint_dtype_unsupported`, `quant_shape_mismatch`, `quant_value_invalid`.
    pub fn open(checkpoint: &'a Checkpoint, path: &str, in_features: usize, out_features: usize) -> Result<Self> {
        let hint = "the weights belong to a different model than config.json, or are damaged".to_owned();
        let module = ModuleTensors { checkpoint, path, hint };
        let permutation = permutation(&module, in_features)?;
        let (q_weight, rows) = codes(&module, out_features)?;
        let q_groups = group_table(&module)?;
        let groups = code_groups(&module, &q_groups, rows, in_features)?;
        let q_scale = module.words("q_scale", &[groups.len(), q_weight.columns * SCALE_BITS / WORD_BITS])?;
        let units = scale_units(&module, groups.len())?;

        let mut first_input = 0;
        let stored = q_groups.iter().zip(&groups).zip(units).map(|((&(_, first_row), group), unit)| {
            let stored = StoredGroup { first_input, first_row, unit };
            first_input += group.inputs;
            stored
        });
        let groups_in_file = stored.collect();
        let layout = QuantLayout { groups, permutation };
        let weight = Self { in_features, out_features, layout, groups: groups_in_file, q_weight, q_scale };
        weight.check_finite(&module)?;
        Ok(weight)
    }

    fn scale(&self, group: usize, output: usize) -> f16 {
        let words = self.q_weight.columns * SCALE_BITS / WORD_BITS;
        let field = BitField::new(output, SCALE_BITS);
        let word = u32::from_le_bytes(self.q_scale[group * words + field.word]);
        scale(self.groups[group].unit, field.read(word, 0))
    }

    /// The group of a stored input.
    fn group_of(&self, input: usize) -> usize {
        self.groups.partition_point(|group| group.first_input <= input).saturating_sub(1)
    }

    /// Refuses scales that would make a weight infinite.
    fn check_finite(&self, module: &ModuleTensors<'_, '_>) -> Result<()> {
        for (g, (group, stored)) in self.layout.groups.iter().zip(&self.groups).enumerate() {
            let overflows = |scale: f16| !f16::from_f32(scale.to_f32() * zero_code(group.bits) as f32).is_finite();
            // If the largest field does not overflow, as in any real file, no field has to be read.
            if !overflows(scale(stored.unit, (1 << SCALE_BITS) - 1)) {
                continue;
            }
            if let Some(output) = (0..self.out_features).find(|&output| overflows(self.scale(g, output))) {
                return Err(module
                    .error(ErrorCode::QuantValueInvalid, "a scale makes weights that are not finite", "q_scale_max")
                    .with_expected("a finite number of usual magnitude")
                    .with_found(format!("a scale of {} for group {g}, output {output}", self.scale(g, output))));
            }
        }
        Ok(())
    }
}

impl QuantizedWeight for Exl2Weight<'_> {
    fn in_features(&self) -> usize {
        self.in_features
    }

    fn out_features(&self) -> usize {
        self.out_features
    }

    fn layout(&self) -> &QuantLayout {
        &self.layout
    }

    fn rounds_to_f16(&self) -> bool {
        true
    }

    fn read_codes(&self, inputs: Range<usize>, outputs: Range<usize>, codes: &mut [u8]) {
        assert!(inputs.end <= self.in_features && outputs.end <= self.out_features);
        assert_eq!(codes.len(), inputs.len() * outputs.len());
        if outputs.is_empty() {
            return;
        }
        let mut group = self.group_of(inputs.start);
        for (input, codes) in inputs.zip(codes.chunks_exact_mut(outputs.len())) {
            if self.groups.get(group + 1).is_some_and(|next| next.first_input <= input) {
                group += 1;
            }
            let stored = &self.groups[group];
            let field = BitField::new(input - stored.first_input, usize::from(self.layout.groups[group].bits));
            self.q_weight.read(stored.first_row, &field, outputs.clone(), codes);
        }
    }

    fn code_streams(&self) -> BitStreams<'_> {
        self.q_weight
    }

    fn first_bit(&self, input: usize) -> usize {
        assert!(input < self.in_features);
        let group = self.group_of(input);
        let stored = &self.groups[group];
        stored.first_row * WORD_BITS + (input - stored.first_input) * usize::from(self.layout.groups[group].bits)
    }

    fn read_scales(&self, group: usize, outputs: Range<usize>, scales: &mut [f32], zeros: &mut [i32]) {
        assert!(outputs.end <= self.out_features);
        assert_eq!((outputs.len(), outputs.len()), (scales.len(), zeros.len()));
        zeros.fill(zero_code(self.layout.groups[group].bits));
        for (scale, output) in scales.iter_mut().zip(outputs) {
            *scale = self.scale(group, output).to_f32();
        }
    }
}

/// The code that represents zero.
fn zero_code(bits: u8) -> i32 {
    1 << (bits - 1)
}

/// The product is exact in f32, so it is rounded once.
fn scale(unit: f16, field: u32) -> f16 {
    f16::from_f32(((field + 1) * (field + 1)) as f32 * unit.to_f32())
}

/// The model's input of each stored input; `None` for the identity.
fn permutation(module: &ModuleTensors<'_, '_>, in_features: usize) -> Result<Option<Vec<u32>>> {
    if in_features == 0 || in_features > MAX_INPUTS || !in_features.is_multiple_of(ALIGNMENT) {
        return Err(module
            .mismatch("the format does not allow this number of inputs", "q_invperm")
            .with_expected(format!("a multiple of {ALIGNMENT} up to {MAX_INPUTS}"))
            .with_found(in_features));
    }
    let words = module.words("q_invperm", &[in_features])?;
    let mut permutation = vec![u32::MAX; in_features];
    for (input, &word) in words.iter().enumerate() {
        let stored = u32::from_le_bytes(word);
        match permutation.get_mut(stored as usize) {
            Some(slot) if *slot == u32::MAX => *slot = input as u32,
            slot => {
                let what = if slot.is_some() { ", a second time," } else { "" };
                return Err(module
                    .error(ErrorCode::QuantValueInvalid, "the input order is not a permutation", "q_invperm")
                    .with_expected(format!("each of 0..{in_features} once"))
                    .with_found(format!("{}{what} for input {input}", stored as i32)));
            }
        }
    }
    Ok((!permutation.is_sorted()).then_some(permutation))
}

/// Stored columns of a weight with `out_features` outputs, padding included; 0 on overflow.
pub(super) fn padded_outputs(out_features: usize) -> usize {
    out_features.checked_next_multiple_of(ALIGNMENT).unwrap_or(0)
}

/// The codes, and their number of rows, which depends on the groups.
fn codes<'a>(module: &ModuleTensors<'a, '_>, out_features: usize) -> Result<(BitStreams<'a>, usize)> {
    let view = module.checkpoint.tensor(&module.name("q_weight"))?;
    let columns = padded_outputs(out_features);
    match *view.shape() {
        [rows, found] if found == columns && columns > 0 => {
            let words = module.check_dtype(view, "q_weight", DType::I32)?.bytes().as_chunks().0;
            Ok((BitStreams { words, columns }, rows))
        }
        _ => Err(module
            .mismatch("a quantized tensor has the wrong shape", "q_weight")
            .with_expected(format!("[rows, {columns}]"))
            .with_found(shape_text(view.shape()))),
    }
}

/// Width and first row of each group as stored; widths are not checked yet.
fn group_table(module: &ModuleTensors<'_, '_>) -> Result<Vec<(i16, usize)>> {
    let view = module.check_dtype(module.checkpoint.tensor(&module.name("q_groups"))?, "q_groups", DType::I16)?;
    if view.shape().len() != 1 || view.is_empty() || !view.len().is_multiple_of(2) {
        return Err(module
            .mismatch("a quantized tensor has the wrong shape", "q_groups")
            .with_expected("two numbers for each group")
            .with_found(shape_text(view.shape())));
    }
    let pairs = view.bytes().as_chunks::<4>().0.iter().enumerate();
    let group = |(g, &[b0, b1, r0, r1]): (usize, &[u8; 4])| match usize::try_from(i16::from_le_bytes([r0, r1])) {
        Ok(row) => Ok((i16::from_le_bytes([b0, b1]), row)),
        Err(_) => Err(module
            .error(ErrorCode::QuantValueInvalid, "a group begins at an impossible row", "q_groups")
            .with_expected("a row of q_weight")
            .with_found(format!("{} for group {g}", i16::from_le_bytes([r0, r1])))),
    };
    pairs.map(group).collect()
}

/// The groups, with widths, rows and the sum of their inputs validated.
fn code_groups(
    module: &ModuleTensors<'_, '_>,
    table: &[(i16, usize)],
    rows: usize,
    in_features: usize,
) -> Result<Vec<QuantGroup>> {
    let invalid = |what: &str| module.error(ErrorCode::QuantValueInvalid, what, "q_groups");
    let ends = table.iter().skip(1).map(|&(_, row)| row).chain([rows]);
    let mut groups: Vec<QuantGroup> = Vec::with_capacity(table.len());
    for (g, (&(width, first), end)) in table.iter().zip(ends).enumerate() {
        let Some(&bits) = WIDTHS.iter().find(|&&bits| i16::from(bits) == width) else {
            let error = invalid("the format does not have this width").with_expected("8, 6, 5, 4, 3 or 2 bits");
            return Err(error.with_found(format!("{width} bits for group {g}")));
        };
        if let Some(before) = groups.last().filter(|before| before.bits < bits) {
            return Err(invalid("widths are not in descending order")
                .with_expected(format!("at most {} bits", before.bits))
                .with_found(format!("{bits} bits for group {g}")));
        }
        if (g == 0 && first != 0) || end <= first || end > rows {
            return Err(invalid("the groups do not partition the rows of q_weight")
                .with_expected(format!("0 = first row < next row < ... < {rows}"))
                .with_found(format!("rows {first}..{end} for group {g}")));
        }
        let words = end - first;
        if !words.is_multiple_of(usize::from(bits)) {
            return Err(invalid("a group's number of inputs is not a multiple of 32")
                .with_expected(format!("a multiple of {bits} rows of q_weight"))
                .with_found(format!("{words} rows, {} inputs, for group {g}", words * WORD_BITS / usize::from(bits))));
        }
        groups.push(QuantGroup { bits, inputs: words / usize::from(bits) * WORD_BITS });
    }
    let found: usize = groups.iter().map(|group| group.inputs).sum();
    if found != in_features {
        return Err(module
            .mismatch("the groups do not sum to the module's inputs", "q_groups")
            .with_expected(in_features)
            .with_found(found));
    }
    Ok(groups)
}

/// `m` of each group.
fn scale_units(module: &ModuleTensors<'_, '_>, groups: usize) -> Result<Vec<f16>> {
    let view = module.check_dtype(module.tensor("q_scale_max", &[groups])?, "q_scale_max", DType::F16)?;
    let values = view.to_f32();
    if let Some(group) = values.iter().position(|value| !value.is_finite()) {
        return Err(module
            .error(ErrorCode::QuantValueInvalid, "a scale is not finite", "q_scale_max")
            .with_expected("a finite number")
            .with_found(format!("{} for group {group}", values[group])));
    }
    Ok(values.into_iter().map(|value| f16::from_f32(value / 256.0)).collect())
}
