//! A group: packed linears that read the same input.

use super::pack::{PADDING, Packed, pack};
use crate::backend::LinearSource;
use crate::backend::cpu::kernels::digits::{SPAN_BLOCKS, SPAN_WORDS, row_words};
use crate::backend::cpu::kernels::dispatch::Kernels;
use crate::backend::cpu::kernels::tile::BLOCK;
use crate::backend::cpu::kernels::tile::Tiles;
use crate::backend::cpu::runtime::arena::{Arena, ArenaSlice};
use crate::backend::cpu::runtime::threads::Pool;
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::TensorView;

/// Packed linears that read the same input.
pub(crate) struct Group {
    pub(crate) members: Vec<Linear>,
    pub(crate) in_features: usize,
    /// All members' outputs.
    pub(crate) out_features: usize,
    /// Distinct ways in which the quantized members take their input.
    pub(crate) digit_inputs: Vec<DigitInput>,
}

/// How some quantized linears of a group take their input: in which order, and in which spans its digits share a step.
#[derive(PartialEq, Eq)]
pub(crate) struct DigitInput {
    /// The model's input of each packed one, or [`PADDING`]; `None` where they are the same.
    order: Option<Vec<u32>>,
    /// Packed inputs of each span.
    spans: Vec<usize>,
    /// Packed inputs.
    inputs: usize,
}

/// One linear of a group.
pub(crate) struct Linear {
    packed: Packed,
    /// Which of the group's digit inputs it reads; `None` for a linear of floats.
    pub(crate) digit_input: Option<usize>,
    bias: Option<ArenaSlice>,
    /// Where its outputs begin among the group's.
    pub(crate) first_output: usize,
}

impl Linear {
    /// Width of its output.
    pub(crate) fn out_features(&self) -> usize {
        self.packed.out_features
    }

    /// Its weight, for a kernel.
    pub(crate) fn tiles<'a>(&'a self, arena: &'a Arena) -> Tiles<'a> {
        self.packed.view(arena)
    }

    /// Number of tiles.
    pub(crate) fn tile_count(&self) -> usize {
        self.packed.tiles
    }

    /// Its bias, if it has one.
    pub(crate) fn bias<'a>(&self, arena: &'a Arena) -> Option<&'a [f32]> {
        self.bias.map(|bias| arena.values(bias))
    }

    /// Whether it is stored as floats that equal these.
    pub(crate) fn equals(&self, arena: &Arena, values: TensorView<'_>) -> bool {
        self.packed.equals(arena, values)
    }
}

impl Group {
    /// Packs the members.
    ///
    /// # Errors
    /// `memory_exhausted`; `internal` if the members' inputs differ or one contradicts itself.
    pub(crate) fn pack(pool: &mut Pool, arena: &mut Arena, sources: &[LinearSource<'_>]) -> Result<Self> {
        let in_features = sources.first().map_or(0, |source| source.weight.in_features());
        let mut group = Self { members: Vec::new(), in_features, out_features: 0, digit_inputs: Vec::new() };
        for source in sources {
            let mut packed = pack(pool, arena, &source.weight)?;
            if packed.in_features != in_features {
                return Err(Error::new(ErrorCode::Internal, "the linears of a group read inputs of different widths")
                    .with_expected(in_features)
                    .with_found(packed.in_features));
            }
            let digit_input = DigitInput::of(&mut packed).map(|input| {
                group.digit_inputs.iter().position(|known| *known == input).unwrap_or_else(|| {
                    group.digit_inputs.push(input);
                    group.digit_inputs.len() - 1
                })
            });
            let bias = match source.bias {
                Some(bias) if bias.len() >= packed.out_features && bias.dtype().is_float() => {
                    let slice = arena.take(packed.out_features * size_of::<f32>())?;
                    bias.read_f32(0..packed.out_features, arena.values_mut(slice));
                    Some(slice)
                }
                Some(bias) => {
                    return Err(Error::new(ErrorCode::Internal, "a bias does not fit its weight")
                        .with_expected(packed.out_features)
                        .with_found(bias.len()));
                }
                None => None,
            };
            let out_features = packed.out_features;
            group.members.push(Linear { packed, digit_input, bias, first_output: group.out_features });
            group.out_features += out_features;
        }
        Ok(group)
    }

    /// The model's input of each packed input of a member, unless they are the same.
    pub(crate) fn order(&self, member: usize) -> Option<&[u32]> {
        self.digit_inputs[self.members[member].digit_input?].order.as_deref()
    }
}

impl DigitInput {
    /// Of a packed weight, which gives up its order, unless it is one of floats.
    fn of(packed: &mut Packed) -> Option<Self> {
        let spans: Vec<usize> = packed.coded_spans()?.iter().map(|span| span.blocks * BLOCK).collect();
        Some(Self { order: packed.order.take(), inputs: spans.iter().sum(), spans })
    }

    /// Words of a row in digits.
    pub(crate) fn words(&self) -> usize {
        row_words(self.inputs, self.spans.len())
    }

    /// Writes a row in digits; `x` is padded to whole blocks.
    pub(crate) fn split(&self, kernels: &Kernels, x: &[f32], out: &mut [u32]) {
        let (mut digits, mut of_spans) = out.split_at_mut(self.inputs);
        let mut gathered = [0.0; SPAN_BLOCKS * BLOCK];
        let mut start = 0;
        for &inputs in &self.spans {
            let (own_digits, other_digits) = digits.split_at_mut(inputs);
            let (of_span, of_others) = of_spans.split_at_mut(SPAN_WORDS);
            let values = match &self.order {
                None => &x[start..start + inputs],
                Some(order) => {
                    for (value, &input) in gathered.iter_mut().zip(&order[start..start + inputs]) {
                        *value = if input == PADDING { 0.0 } else { x[input as usize] };
                    }
                    &gathered[..inputs]
                }
            };
            kernels.split(values, own_digits, of_span);
            (digits, of_spans, start) = (other_digits, of_others, start + inputs);
        }
    }
}
