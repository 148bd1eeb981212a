//! A group: packed linears that read the same input.

use super::pack::{PADDING, Packed, pack};
use crate::backend::cpu::kernels::digits::{Digits, QUAD, SPAN_BLOCKS};
use crate::backend::cpu::kernels::dispatch::Kernels;
use crate::backend::cpu::kernels::tile::BLOCK;
use crate::backend::cpu::kernels::tile::Tiles;
use crate::backend::cpu::runtime::arena::{Arena, ArenaSlice};
use crate::backend::cpu::runtime::threads::Pool;
use crate::backend::{ActivationDType, LinearSource};
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::TensorView;

/// Packed linears that read the same input.
pub(crate) struct Group {
    pub(crate) members: Vec<Linear>,
    pub(crate) in_features: usize,
    /// All members' outputs.
    pub(crate) out_features: usize,
    /// Distinct ways in which the quantized members take the group's input.
    pub(crate) packed_inputs: Vec<PackedInput>,
}

/// The input of some quantized linears of a group, as their product takes it, in the packed order.
#[derive(PartialEq, Eq)]
pub(crate) struct PackedInput {
    /// The model's input of each packed one, or [`PADDING`]; `None` where they are the same.
    order: Option<Vec<u32>>,
    /// Packed inputs.
    inputs: usize,
    form: InputForm,
}

/// What a product takes an input as.
#[derive(PartialEq, Eq)]
enum InputForm {
    Floats,
    /// Rounded to what one digit holds of them.
    RoundedFloats,
    /// Digits, of spans of so many packed inputs.
    Digits(Digits, Vec<usize>),
}

/// One linear of a group.
pub(crate) struct Linear {
    packed: Packed,
    /// Which of the group's packed inputs it reads; `None` where it reads the input as it is.
    pub(crate) packed_input: Option<usize>,
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
    pub(crate) fn pack(
        pool: &mut Pool,
        kernels: &Kernels,
        activations: ActivationDType,
        arena: &mut Arena,
        sources: &[LinearSource<'_>],
    ) -> Result<Self> {
        let in_features = sources.first().map_or(0, |source| source.weight.in_features());
        let mut group = Self { members: Vec::new(), in_features, out_features: 0, packed_inputs: Vec::new() };
        for source in sources {
            let mut packed = pack(pool, arena, source)?;
            if packed.in_features != in_features {
                return Err(Error::new(ErrorCode::Internal, "the linears of a group read inputs of different widths")
                    .with_expected(in_features)
                    .with_found(packed.in_features));
            }
            let packed_input = PackedInput::of(kernels, activations, &mut packed).map(|input| {
                group.packed_inputs.iter().position(|known| *known == input).unwrap_or_else(|| {
                    group.packed_inputs.push(input);
                    group.packed_inputs.len() - 1
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
            group.members.push(Linear { packed, packed_input, bias, first_output: group.out_features });
            group.out_features += out_features;
        }
        Ok(group)
    }

    /// The model's input of each packed input of a member, unless they are the same.
    pub(crate) fn order(&self, member: usize) -> Option<&[u32]> {
        self.packed_inputs[self.members[member].packed_input?].order.as_deref()
    }
}

impl PackedInput {
    /// Of a packed weight, which gives up its order; `None` if it takes the input as it is.
    fn of(kernels: &Kernels, activations: ActivationDType, packed: &mut Packed) -> Option<Self> {
        let coded_spans = packed.coded_spans()?;
        let digits = match activations {
            ActivationDType::F32 => Digits::Three,
            ActivationDType::Int8 => Digits::One,
        };
        let spans: Vec<usize> = coded_spans.iter().map(|span| span.blocks * BLOCK).collect();
        let inputs = spans.iter().sum();
        let form = match (kernels.takes_digits(digits, coded_spans), activations) {
            (true, _) => InputForm::Digits(digits, spans),
            (false, ActivationDType::Int8) => InputForm::RoundedFloats,
            (false, ActivationDType::F32) => InputForm::Floats,
        };
        let order = packed.order.take();
        (form != InputForm::Floats || order.is_some()).then_some(Self { order, inputs, form })
    }

    /// Words of a row.
    pub(crate) fn words(&self) -> usize {
        match &self.form {
            InputForm::Digits(digits, spans) => digits.row_words(self.inputs, spans.len()),
            InputForm::Floats | InputForm::RoundedFloats => self.inputs,
        }
    }

    /// The digits of its rows; `None` where their words are floats.
    pub(crate) fn digits(&self) -> Option<Digits> {
        match self.form {
            InputForm::Digits(digits, _) => Some(digits),
            InputForm::Floats | InputForm::RoundedFloats => None,
        }
    }

    /// Writes a row; `x` is padded to whole blocks.
    pub(crate) fn write(&self, kernels: &Kernels, x: &[f32], out: &mut [u32]) {
        match &self.form {
            InputForm::Digits(digits, spans) => self.split(kernels, *digits, spans, x, out),
            InputForm::Floats => self.gather(0, x, bytemuck::cast_slice_mut(out)),
            InputForm::RoundedFloats => {
                let out = bytemuck::cast_slice_mut(out);
                self.gather(0, x, out);
                kernels.round(out);
            }
        }
    }

    /// Writes a row as digits.
    fn split(&self, kernels: &Kernels, digits: Digits, spans: &[usize], x: &[f32], out: &mut [u32]) {
        let (mut words, mut of_spans) = out.split_at_mut(self.inputs / QUAD * digits.quad_words());
        let mut gathered = [0.0; SPAN_BLOCKS * BLOCK];
        let mut start = 0;
        for &inputs in spans {
            let (own_words, other_words) = words.split_at_mut(inputs / QUAD * digits.quad_words());
            let (of_span, of_others) = of_spans.split_at_mut(digits.span_words());
            let values = match self.order {
                None => &x[start..start + inputs],
                Some(_) => {
                    self.gather(start, x, &mut gathered[..inputs]);
                    &gathered[..inputs]
                }
            };
            kernels.split(digits, values, own_words, of_span);
            (words, of_spans, start) = (other_words, of_others, start + inputs);
        }
    }

    /// Writes the packed inputs from `start` on.
    fn gather(&self, start: usize, x: &[f32], out: &mut [f32]) {
        let Some(order) = &self.order else { return out.copy_from_slice(&x[start..start + out.len()]) };
        for (value, &input) in out.iter_mut().zip(&order[start..]) {
            *value = if input == PADDING { 0.0 } else { x[input as usize] };
        }
    }
}
