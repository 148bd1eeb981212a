//! The GPTQ weight format.
//!
//! ```text
//! qweight [in * bits / 32, out] int32    each column is one bit stream along the inputs, lowest bits first
//! qzeros  [G, out * bits / 32]  int32    each row is one bit stream along the outputs, lowest bits first
//! scales  [G, out]              float    G = ceil(in / group_size)
//! g_idx   [in]                  int32    group of each input; if absent or all zero, i / group_size
//!
//!           word 0                       word 1                       word 2
//! 4 bits    |7|6|5|4|3|2|1|0|            |15|..|8|                    ...            index of each code, high bits left
//! 3 bits    |10:2 low|9|..|1|0|          |21:1 low|..|11|10:1 high|   |31|..|21:2 high|
//!
//! W[n, i] = scales[g_idx[i], n] * (q[i, n] - zero[g_idx[i], n])
//! ```
//!
//! Field i of a stream begins at bit `i * bits` at every width, so one formula reads them all; only 3-bit fields 10 and 21 of
//! each 32 span two words.
//!
//! Format 1 (`checkpoint_format` "gptq") stores `zero - 1`: a field of all ones means 2^bits, so the 1 is added to each field,
//! not to whole words, where it would carry into the next field. Format 2 ("gptq_v2") stores `zero`. Some files declare format
//! 1 but hold format 2's zeros; if symmetric, they are recognized by every field being 2^(bits-1), one more than in format 1.
//!
//! With act-order, stored input k of the layout is the k-th of a stable sort by group: the inputs that `g_idx` scattered
//! become contiguous groups, and the permutation maps them back.

use std::ops::Range;

use super::bit_fields::{BitField, BitStreams, WORD_BITS};
use super::config::{GptqConfig, GptqParams, ZeroFormat};
use super::module_tensors::ModuleTensors;
use super::weight::{QuantGroup, QuantLayout, QuantizedWeight};
use crate::checkpoint::Checkpoint;
use crate::error::{ErrorCode, Result};
use crate::tensor::TensorView;

/// A GPTQ weight, borrowed from the checkpoint.
pub struct GptqWeight<'a> {
    in_features: usize,
    out_features: usize,
    bits: usize,
    layout: QuantLayout,
    /// The row of `scales` and `qzeros` of each group of the layout; not its index if the file has empty groups.
    stored_groups: Vec<u32>,
    qweight: BitStreams<'a>,
    qzeros: &'a [[u8; 4]],
    scales: TensorView<'a>,
    /// Zero point minus its stored field.
    zero_offset: i32,
}

impl<'a> GptqWeight<'a> {
    /// Opens and checks the module at `path`.
    ///
    /// # Errors
    /// `checkpoint_tensor_missing`, `checkpoint_dtype_unsupported`, `quant_shape_mismatch`, `quant_value_invalid`.
    pub fn open(
        checkpoint: &'a Checkpoint,
        config: &GptqConfig,
        params: GptqParams,
        path: &str,
        in_features: usize,
        out_features: usize,
    ) -> Result<Self> {
        let hint = format!("the quantization config declares {params} for this module");
        let module = ModuleTensors { checkpoint, path, hint };
        let bits = usize::from(params.bits);
        let in_words = whole_words(&module, "in_features", in_features, bits)?;
        let out_words = whole_words(&module, "out_features", out_features, bits)?;
        let group_size = params.group_size.unwrap_or(in_features);
        let groups = in_features.div_ceil(group_size);

        let words = module.words("qweight", &[in_words, out_features])?;
        let qweight = BitStreams { words, columns: out_features };
        let qzeros = module.words("qzeros", &[groups, out_words])?;
        let scales = open_scales(&module, &[groups, out_features], params)?;
        let (layout, stored_groups) = open_layout(&module, in_features, group_size, groups, params)?;

        let mut zeros = params.zeros;
        if zeros == ZeroFormat::MinusOne && params.sym && all_zeros_are_symmetric(qzeros, out_words, bits) {
            config.zeros_reported.call_once(|| {
                tracing::warn!(module = path, "declares checkpoint_format gptq, but stores the zero points of gptq_v2");
            });
            zeros = ZeroFormat::Plain;
        }
        let zero_offset = match zeros {
            ZeroFormat::MinusOne => 1,
            ZeroFormat::Plain => 0,
        };
        Ok(Self { in_features, out_features, bits, layout, stored_groups, qweight, qzeros, scales, zero_offset })
    }
}

impl QuantizedWeight for GptqWeight<'_> {
    fn in_features(&self) -> usize {
        self.in_features
    }

    fn out_features(&self) -> usize {
        self.out_features
    }

    fn layout(&self) -> &QuantLayout {
        &self.layout
    }

    fn read_codes(&self, inputs: Range<usize>, outputs: Range<usize>, codes: &mut [u8]) {
        assert!(inputs.end <= self.in_features && outputs.end <= self.out_features);
        assert_eq!(codes.len(), inputs.len() * outputs.len());
        if outputs.is_empty() {
            return;
        }
        for (stored, codes) in inputs.zip(codes.chunks_exact_mut(outputs.len())) {
            let input = match &self.layout.permutation {
                Some(permutation) => permutation[stored] as usize,
                None => stored,
            };
            self.qweight.read(0, &BitField::new(input, self.bits), outputs.clone(), codes);
        }
    }

    fn code_streams(&self) -> BitStreams<'_> {
        self.qweight
    }

    fn first_bit(&self, input: usize) -> usize {
        assert!(input < self.in_features);
        self.layout.permutation.as_ref().map_or(input, |permutation| permutation[input] as usize) * self.bits
    }

    fn read_scales(&self, group: usize, outputs: Range<usize>, scales: &mut [f32], zeros: &mut [i32]) {
        assert!(outputs.end <= self.out_features);
        assert_eq!(outputs.len(), zeros.len());
        let stored = self.stored_groups[group] as usize;
        let start = stored * self.out_features;
        self.scales.read_f32(start + outputs.start..start + outputs.end, scales);
        let words = self.out_features * self.bits / WORD_BITS;
        let row = &self.qzeros[stored * words..][..words];
        for (zero, output) in zeros.iter_mut().zip(outputs) {
            let field = BitField::new(output, self.bits);
            let high = if field.straddles { u32::from_le_bytes(row[field.word + 1]) } else { 0 };
            *zero = field.read(u32::from_le_bytes(row[field.word]), high) as i32 + self.zero_offset;
        }
    }
}

/// Whether every zero-point field is 2^(bits-1).
fn all_zeros_are_symmetric(qzeros: &[[u8; 4]], row_words: usize, bits: usize) -> bool {
    // The pattern repeats after at most `bits` words (32 fields), and each row begins with a field.
    let mut pattern = [0u32; 8];
    for index in 0..WORD_BITS {
        let bit = index * bits + bits - 1;
        pattern[bit / WORD_BITS] |= 1 << (bit % WORD_BITS);
    }
    qzeros
        .chunks_exact(row_words)
        .all(|row| row.iter().enumerate().all(|(i, &word)| u32::from_le_bytes(word) == pattern[i % bits]))
}

/// Words of a bit stream over one dimension.
fn whole_words(module: &ModuleTensors<'_, '_>, dimension: &str, features: usize, bits: usize) -> Result<usize> {
    match features.checked_mul(bits) {
        Some(total) if total > 0 && total.is_multiple_of(WORD_BITS) => Ok(total / WORD_BITS),
        _ => {
            let what = format!("{bits}-bit codes of {dimension} do not fill whole 32-bit words");
            Err(module.mismatch(&what, "qweight").with_found(features))
        }
    }
}

fn open_scales<'a>(module: &ModuleTensors<'a, '_>, shape: &[usize], params: GptqParams) -> Result<TensorView<'a>> {
    let view = module.tensor("scales", shape)?;
    if !view.dtype().is_float() {
        return Err(module
            .error(ErrorCode::CheckpointDtypeUnsupported, "the scales are not floats", "scales")
            .with_expected("float16, bfloat16 or float32")
            .with_found(view.dtype()));
    }
    // A finite scale can still make an infinite weight; no code is more than 2^bits from its zero point.
    let furthest = f32::from(1u16 << params.bits);
    let mut row = vec![0.0f32; shape[1]];
    for group in 0..shape[0] {
        view.read_f32(group * row.len()..(group + 1) * row.len(), &mut row);
        if let Some(output) = row.iter().position(|scale| !(scale * furthest).is_finite()) {
            return Err(module
                .error(ErrorCode::QuantValueInvalid, "a scale makes weights that are not finite", "scales")
                .with_expected("a finite number of usual magnitude")
                .with_found(format!("{} for group {group}, output {output}", row[output])));
        }
    }
    Ok(view)
}

/// The layout, and the file's group for each group of the layout.
fn open_layout(
    module: &ModuleTensors<'_, '_>,
    in_features: usize,
    group_size: usize,
    groups: usize,
    params: GptqParams,
) -> Result<(QuantLayout, Vec<u32>)> {
    match group_index(module, in_features, groups)? {
        None if params.desc_act && groups > 1 && !module.checkpoint.contains(&module.name("g_idx")) => Err(module
            .error(ErrorCode::CheckpointTensorMissing, "an act-order weight has no group index", "g_idx")
            .with_hint("desc_act needs g_idx; quantize the model again")),
        None => {
            let sizes = (0..groups).map(|g| group_size.min(in_features - g * group_size));
            let groups: Vec<QuantGroup> = sizes.map(|inputs| QuantGroup { bits: params.bits, inputs }).collect();
            let stored = (0..groups.len() as u32).collect();
            Ok((QuantLayout { groups, permutation: None }, stored))
        }
        Some(index) => Ok(layout_of(&index, groups, params.bits)),
    }
}

/// The group of each input, or `None` for `i / group_size`.
fn group_index(module: &ModuleTensors<'_, '_>, in_features: usize, groups: usize) -> Result<Option<Vec<u32>>> {
    if !module.checkpoint.contains(&module.name("g_idx")) {
        return Ok(None);
    }
    let words = module.words("g_idx", &[in_features])?;
    let index: Vec<u32> = words.iter().map(|&word| u32::from_le_bytes(word)).collect();
    if let Some(input) = index.iter().position(|&group| group as usize >= groups) {
        return Err(module
            .error(ErrorCode::QuantValueInvalid, "a group index is out of range", "g_idx")
            .with_expected(format!("0..{groups}"))
            .with_found(format!("{} for input {input}", index[input] as i32)));
    }
    Ok(index.iter().any(|&group| group != 0).then_some(index))
}

/// The layout with inputs stably sorted by group, and the file's group for each of its groups: empty groups are dropped.
fn layout_of(index: &[u32], groups: usize, bits: u8) -> (QuantLayout, Vec<u32>) {
    let mut sizes = vec![0usize; groups];
    for &group in index {
        sizes[group as usize] += 1;
    }
    let permutation = (!index.is_sorted()).then(|| {
        let mut order: Vec<u32> = (0..index.len() as u32).collect();
        order.sort_by_key(|&input| index[input as usize]);
        order
    });
    let filled = || sizes.iter().enumerate().filter(|&(_, &inputs)| inputs > 0);
    let groups = filled().map(|(_, &inputs)| QuantGroup { bits, inputs }).collect();
    (QuantLayout { groups, permutation }, filled().map(|(group, _)| group as u32).collect())
}
