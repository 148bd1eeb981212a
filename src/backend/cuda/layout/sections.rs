//! Which inputs are where: sections of one width, padded to whole units, and the rows of scales of each.

use super::{LANES, SCALE_INPUTS, STRIP_ROWS, UNIT_INPUTS, Weight, WeightSection};
use crate::error::{Error, ErrorCode, Result};
use crate::quant::{QuantGroup, QuantizedWeight, StoredWeight};

/// In an order of inputs: this one is padding.
pub const PADDING: u32 = u32::MAX;
/// The shift of a row of scales that spans a whole section.
const WHOLE_SECTION: u32 = 31;

/// The units of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Width of a code; 16 for floats.
    pub bits: usize,
    /// First unit.
    pub first_unit: usize,
    /// Number of units.
    pub units: usize,
    /// First word in a strip.
    pub first_word: usize,
    /// First row of scales in a strip.
    pub first_scale_row: usize,
    /// A row of scales spans `32 << scale_shift` inputs.
    pub scale_shift: u32,
}

/// The layout of one weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightLayout {
    /// Width of the input.
    pub in_features: usize,
    /// Width of the output.
    pub out_features: usize,
    /// Units of a strip.
    pub units: usize,
    /// Words of a strip.
    pub strip_words: usize,
    /// The sections, in the order of their units.
    pub sections: Vec<Section>,
    /// The group of each row of scales; empty for a dense weight.
    pub scale_groups: Vec<usize>,
    /// `[64 units]` The stored input of each padded one, or [`PADDING`].
    pub stored_inputs: Vec<u32>,
    /// `[64 units]` The model's input of each padded one, or [`PADDING`]; `None` if they are the same but for padding at the end.
    pub order: Option<Vec<u32>>,
}

impl WeightLayout {
    /// Of a dense weight.
    pub fn dense(out_features: usize, in_features: usize) -> Self {
        let units = in_features.div_ceil(UNIT_INPUTS);
        let section = Section { bits: 16, first_unit: 0, units, first_word: 0, first_scale_row: 0, scale_shift: 0 };
        let mut stored_inputs: Vec<u32> = (0..in_features as u32).collect();
        stored_inputs.resize(units * UNIT_INPUTS, PADDING);
        Self {
            in_features,
            out_features,
            units,
            strip_words: units * unit_words(16),
            sections: vec![section],
            scale_groups: Vec::new(),
            stored_inputs,
            order: None,
        }
    }

    /// Of a quantized weight.
    ///
    /// # Errors
    /// `internal` if its groups do not cover its inputs or have an unknown width; `quant_value_invalid` if its input order is
    /// not a permutation.
    pub fn quantized(weight: &dyn QuantizedWeight) -> Result<Self> {
        let (in_features, stored) = (weight.in_features(), weight.layout());
        let covered: usize = stored.groups.iter().map(|group| group.inputs).sum();
        if covered != in_features {
            return Err(Error::new(ErrorCode::Internal, "the groups of a weight do not cover its inputs")
                .with_expected(in_features)
                .with_found(covered));
        }
        let mut layout = Self {
            in_features,
            out_features: weight.out_features(),
            units: 0,
            strip_words: 0,
            sections: Vec::new(),
            scale_groups: Vec::new(),
            stored_inputs: Vec::new(),
            order: None,
        };
        let mut starts = Vec::with_capacity(stored.groups.len());
        stored.groups.iter().fold(0, |start, group| {
            starts.push(start);
            start + group.inputs
        });
        for bits in [8, 6, 5, 4, 3, 2] {
            let of_width = |&g: &usize| stored.groups[g].bits == bits;
            let members: Vec<usize> = (0..starts.len()).filter(of_width).collect();
            layout.push_section(bits, &stored.groups, &starts, &members);
        }
        if layout.stored_inputs.iter().filter(|&&input| input != PADDING).count() != in_features {
            return Err(Error::new(ErrorCode::Internal, "a group of a weight has an unknown width"));
        }
        layout.order = layout.order_of(stored.permutation.as_deref())?;
        Ok(layout)
    }

    /// Of any weight.
    ///
    /// # Errors
    /// Those of [`WeightLayout::quantized`].
    pub fn of(weight: &StoredWeight<'_>) -> Result<Self> {
        match weight {
            StoredWeight::Dense(_) => Ok(Self::dense(weight.out_features(), weight.in_features())),
            StoredWeight::Quantized(weight) => Self::quantized(&**weight),
        }
    }

    /// Strips of the weight, the last of them perhaps not full.
    pub fn strips(&self) -> usize {
        self.out_features.div_ceil(STRIP_ROWS)
    }

    /// Rows of scales of a strip.
    pub fn scale_rows(&self) -> usize {
        self.scale_groups.len()
    }

    /// The descriptor, whose addresses are still 0.
    ///
    /// # Errors
    /// `memory_exhausted` if a dimension exceeds 32 bits.
    pub fn descriptor(&self) -> Result<Weight> {
        let small = |n: usize| {
            u32::try_from(n).map_err(|_| {
                Error::new(ErrorCode::MemoryExhausted, "a weight is too large for a kernel's 32-bit indices")
                    .with_found(n)
            })
        };
        let mut weight = Weight {
            in_features: small(self.in_features)?,
            out_features: small(self.out_features)?,
            units: small(self.units)?,
            strip_words: small(self.strip_words)?,
            scale_rows: small(self.scale_rows())?,
            section_count: small(self.sections.len())?,
            ..Weight::default()
        };
        for (section, out) in self.sections.iter().zip(&mut weight.sections) {
            *out = WeightSection {
                first_unit: small(section.first_unit)?,
                bits: small(section.bits)?,
                first_word: small(section.first_word)?,
                first_scale_row: small(section.first_scale_row)?,
                scale_shift: section.scale_shift,
            };
        }
        Ok(weight)
    }

    /// Adds the groups of one width, if there are any.
    fn push_section(&mut self, bits: u8, groups: &[QuantGroup], starts: &[usize], members: &[usize]) {
        let Some((&last, before)) = members.split_last() else { return };
        let sizes = before.iter().map(|&g| groups[g].inputs);
        // Where each group but the last fills whole rows of scales, the groups follow each other without padding.
        let is_regular = sizes.clone().all(|inputs| inputs.is_multiple_of(SCALE_INPUTS));
        let spans = sizes.map(|inputs| 1usize << inputs.trailing_zeros()).min();
        let scale_shift = match spans {
            None => WHOLE_SECTION,
            Some(span) if is_regular => (span / SCALE_INPUTS).trailing_zeros(),
            Some(_) => 0,
        };
        let section = Section {
            bits: usize::from(bits),
            first_unit: self.units,
            units: 0,
            first_word: self.strip_words,
            first_scale_row: self.scale_groups.len(),
            scale_shift,
        };
        let first_input = self.stored_inputs.len();
        for &group in before.iter().chain([&last]) {
            let (start, inputs) = (starts[group], groups[group].inputs);
            let rows = if scale_shift == WHOLE_SECTION { 1 } else { inputs.div_ceil(SCALE_INPUTS << scale_shift) };
            self.scale_groups.extend(std::iter::repeat_n(group, rows));
            self.stored_inputs.extend(start as u32..(start + inputs) as u32);
            if scale_shift == 0 {
                self.stored_inputs.resize(self.stored_inputs.len().next_multiple_of(SCALE_INPUTS), PADDING);
            }
        }
        self.stored_inputs.resize(self.stored_inputs.len().next_multiple_of(UNIT_INPUTS), PADDING);
        let units = (self.stored_inputs.len() - first_input) / UNIT_INPUTS;
        self.sections.push(Section { units, ..section });
        self.units += units;
        self.strip_words += units * unit_words(section.bits);
    }

    /// The model's input of each padded one, unless they are the same.
    fn order_of(&self, permutation: Option<&[u32]>) -> Result<Option<Vec<u32>>> {
        if let Some(permutation) = permutation {
            let mut seen = vec![false; self.in_features];
            let fresh = |&input: &u32| seen.get_mut(input as usize).is_some_and(|seen| !std::mem::replace(seen, true));
            if permutation.len() != self.in_features || !permutation.iter().all(fresh) {
                return Err(Error::new(
                    ErrorCode::QuantValueInvalid,
                    "the input order of a weight is not a permutation",
                ));
            }
        }
        let input = |&stored: &u32| match permutation {
            Some(permutation) if stored != PADDING => permutation[stored as usize],
            _ => stored,
        };
        let order: Vec<u32> = self.stored_inputs.iter().map(input).collect();
        let is_identity = order[..self.in_features].iter().enumerate().all(|(k, &input)| input as usize == k);
        Ok((!is_identity).then_some(order))
    }
}

/// Words of a unit.
pub(super) fn unit_words(bits: usize) -> usize {
    bits * LANES
}
