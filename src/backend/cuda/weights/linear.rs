//! One linear of the base on the device: its weight in strips, and its bias.

use std::ops::Range;

use super::placer::Placer;
use crate::backend::LinearSource;
use crate::backend::cuda::driver::DeviceMemory;
use crate::backend::cuda::layout::{
    self, ElementType, STRIP_ROWS, ScaleForm, ScaleRows, ScaleType, Weight, WeightLayout,
};
use crate::error::{Error, ErrorCode, Result};
use crate::quant::StoredWeight;
use crate::tensor::{DType, TensorView, zeros};

/// Bytes of strips that are copied back at once.
const PART_BYTES: usize = 32 << 20;
/// Alignment of the arrays of a weight.
const ALIGNMENT: usize = 256;

/// A linear.
pub(crate) struct Linear {
    weight: Weight,
    layout: WeightLayout,
    element: ElementType,
    /// The type in which a dense weight was stored.
    dtype: Option<DType>,
    /// Codes first, then scales, zeros and order.
    memory: DeviceMemory,
    bias: Option<Bias>,
}

/// Where the arrays of a linear's weight go, in bytes: codes first, then scales, zeros and order.
pub(super) struct LinearPlan {
    pub(super) layout: WeightLayout,
    form: ScaleForm,
    /// All of them.
    pub(super) bytes: usize,
    scales: usize,
    zeros: usize,
    order: usize,
}

struct Bias {
    memory: DeviceMemory,
    /// The same, to compare adapters with.
    values: Vec<f32>,
}

impl Linear {
    /// Copies a linear to the device and packs it there.
    ///
    /// # Errors
    /// `memory_exhausted`; `checkpoint_dtype_unsupported` if a value exceeds the element type; `internal` or `quant_value_invalid` if the weight contradicts itself or its bias; the device failed.
    pub(super) fn load(placer: &mut Placer, element: ElementType, source: &LinearSource<'_>) -> Result<Self> {
        let dtype = match &source.weight {
            StoredWeight::Dense(view) => Some(view.dtype()),
            StoredWeight::Quantized(_) => None,
        };
        let plan = LinearPlan::of(&source.weight)?;
        let memory = placer.take(plan.bytes)?;
        if let StoredWeight::Quantized(weight) = &source.weight {
            let scales = ScaleRows::of(&plan.layout, &**weight)?;
            placer.upload(&memory, plan.scales, &scales.scales)?;
            if let Some(zeros) = &scales.zeros {
                placer.upload(&memory, plan.zeros, bytemuck::cast_slice(zeros))?;
            }
        }
        if let Some(order) = &plan.layout.order {
            placer.upload(&memory, plan.order, bytemuck::cast_slice(order))?;
        }
        placer.repack(&plan.layout, &source.weight, memory.address())?;
        let bias = source.bias.map(|bias| Bias::load(placer, bias, plan.layout.out_features)).transpose()?;
        Ok(Self { weight: plan.weight(memory.address())?, layout: plan.layout, element, dtype, memory, bias })
    }

    /// Its weight, for kernels.
    pub(crate) fn weight(&self) -> &Weight {
        &self.weight
    }

    /// The address of its bias `[out_features]`, or 0.
    pub(crate) fn bias(&self) -> u64 {
        self.bias.as_ref().map_or(0, |bias| bias.memory.address())
    }

    /// Width of its output.
    pub(crate) fn out_features(&self) -> usize {
        self.layout.out_features
    }

    /// Bytes it occupies on the device.
    pub(crate) fn bytes(&self) -> usize {
        self.memory.len() + self.bias.as_ref().map_or(0, |bias| bias.memory.len())
    }

    /// Whether its weight was stored as floats that equal these.
    ///
    /// # Errors
    /// `memory_exhausted`; the device failed.
    pub(super) fn weight_equals(&self, values: TensorView<'_>) -> Result<bool> {
        let is_exact = match self.element {
            ElementType::F16 => self.dtype == Some(DType::F16),
            ElementType::Bf16 => self.dtype == Some(DType::BF16),
        };
        let in_features = self.layout.in_features;
        if !is_exact || values.shape() != [self.layout.out_features, in_features] {
            return Ok(false);
        }
        for strips in parts(&self.layout) {
            let rows = strips.start * STRIP_ROWS..self.layout.out_features.min(strips.end * STRIP_ROWS);
            let mut wanted = zeros(rows.len() * in_features)?;
            values.read_f32(rows.start * in_features..rows.end * in_features, &mut wanted);
            if self.unpack(strips, None)? != wanted {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether its bias equals these.
    pub(super) fn bias_equals(&self, values: TensorView<'_>) -> bool {
        self.bias.as_ref().is_some_and(|bias| values.shape() == [bias.values.len()] && values.to_f32() == bias.values)
    }

    /// The weight that kernels multiply, `[out_features, in_features]`.
    ///
    /// # Errors
    /// `memory_exhausted`; the device failed.
    pub(super) fn dense(&self) -> Result<Vec<f32>> {
        let scales = match self.dtype {
            Some(_) => None,
            None => Some(self.read_scales()?),
        };
        let mut dense = Vec::new();
        for strips in parts(&self.layout) {
            dense.append(&mut self.unpack(strips, scales.as_ref())?);
        }
        Ok(dense)
    }

    fn unpack(&self, strips: Range<usize>, scales: Option<&ScaleRows>) -> Result<Vec<f32>> {
        let mut words = zeros(strips.len() * self.layout.strip_words)?;
        let offset = strips.start * self.layout.strip_words * size_of::<u32>();
        self.memory.download_beside_steps(offset, bytemuck::cast_slice_mut(&mut words))?;
        Ok(match scales {
            None => layout::unpack_dense(&self.layout, self.element, strips.start, &words),
            Some(scales) => layout::unpack_codes(&self.layout, scales, strips.start, &words),
        })
    }

    fn read_scales(&self) -> Result<ScaleRows> {
        let count = self.layout.strips() * self.layout.scale_rows() * STRIP_ROWS;
        let (scale_type, scale_bytes) = match self.weight.scale_type {
            0 => (ScaleType::F16, 2),
            _ => (ScaleType::F32, 4),
        };
        let offset = |address: u64| (address - self.memory.address()) as usize;
        let mut scales = zeros(count * scale_bytes)?;
        self.memory.download_beside_steps(offset(self.weight.scales), &mut scales)?;
        let mut zero_points = None;
        if self.weight.zeros != 0 {
            let mut bits = zeros::<u16>(count)?;
            self.memory.download_beside_steps(offset(self.weight.zeros), bytemuck::cast_slice_mut(&mut bits))?;
            zero_points = Some(bits);
        }
        Ok(ScaleRows { scale_type, scales, zeros: zero_points })
    }
}

impl Bias {
    fn load(placer: &mut Placer, bias: TensorView<'_>, out_features: usize) -> Result<Self> {
        if bias.len() < out_features || !bias.dtype().is_float() {
            return Err(Error::new(ErrorCode::Internal, "a bias does not fit its weight")
                .with_expected(out_features)
                .with_found(bias.len()));
        }
        let mut values = zeros(out_features)?;
        bias.read_f32(0..out_features, &mut values);
        Ok(Self { memory: placer.place(bytemuck::cast_slice(&values))?, values })
    }
}

impl LinearPlan {
    /// Of a stored weight.
    ///
    /// # Errors
    /// `memory_exhausted` for one that exceeds the address space; `internal` or `quant_value_invalid` if it contradicts itself.
    pub(super) fn of(weight: &StoredWeight<'_>) -> Result<Self> {
        let layout = WeightLayout::of(weight)?;
        let form = match weight {
            StoredWeight::Dense(_) => ScaleForm::default(),
            StoredWeight::Quantized(weight) => ScaleForm::of(&layout, &**weight),
        };
        let too_large = || Error::new(ErrorCode::MemoryExhausted, "a weight exceeds the address space");
        let code_bytes = layout.strips().checked_mul(layout.strip_words * size_of::<u32>()).ok_or_else(too_large)?;
        let scales = layout.strips() * layout.scale_rows() * STRIP_ROWS;
        let mut bytes = 0usize;
        let mut take = |length: usize| {
            let start = bytes.next_multiple_of(ALIGNMENT);
            bytes = start + length;
            start
        };
        take(code_bytes);
        let scales_at = take(scales * form.scale_type.bytes());
        let zeros_at = take(if form.has_zeros { scales * size_of::<u16>() } else { 0 });
        let order_at = take(layout.order.as_ref().map_or(0, |order| size_of_val(&**order)));
        Ok(Self { bytes, scales: scales_at, zeros: zeros_at, order: order_at, form, layout })
    }

    /// The weight at an address.
    fn weight(&self, address: u64) -> Result<Weight> {
        let at = |offset: usize, is_there: bool| if is_there { address + offset as u64 } else { 0 };
        Ok(Weight {
            codes: address,
            scales: at(self.scales, self.layout.scale_rows() > 0),
            zeros: at(self.zeros, self.form.has_zeros),
            order: at(self.order, self.layout.order.is_some()),
            scale_type: self.form.scale_type as u32,
            ..self.layout.descriptor()?
        })
    }
}

/// Runs of strips of at most [`PART_BYTES`].
fn parts(layout: &WeightLayout) -> impl Iterator<Item = Range<usize>> {
    let strip_bytes = (layout.strip_words * size_of::<u32>()).max(1);
    let (strips, run) = (layout.strips(), (PART_BYTES / strip_bytes).max(1));
    (0..strips).step_by(run).map(move |start| start..strips.min(start + run))
}
