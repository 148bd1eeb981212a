//! Packed weights on the device, with the values that kernels multiply.

use std::sync::Arc;

use ::support::Rng;
use ::support::harness::Tensor;
use ::support::random_weights::RandomCodes;
use exlora::backend::cuda::driver::{Device, DeviceMemory};
use exlora::backend::cuda::layout::{
    ElementType, ScaleRows, Weight, WeightLayout, pack_codes, pack_dense, unpack_codes, unpack_dense,
};
use exlora::quant::{QuantGroup, StoredWeight};
use exlora::tensor::DType;

use crate::support::upload;

/// A weight on the device.
pub struct PackedWeight {
    _memory: Vec<DeviceMemory>,
    pub weight: Weight,
    pub outputs: usize,
    pub inputs: usize,
    /// `[outputs, inputs]`
    values: Vec<f32>,
}

impl PackedWeight {
    /// Packs a weight on the host and copies it.
    pub fn new(device: &Arc<Device>, element: ElementType, stored: &StoredWeight<'_>) -> Self {
        let layout = WeightLayout::of(stored).expect("it can be packed");
        let mut weight = layout.descriptor().expect("it is small");
        let mut memory = Vec::new();
        let mut place = |values: DeviceMemory| {
            memory.push(values);
            memory.last().map_or(0, DeviceMemory::address)
        };
        let values = match stored {
            StoredWeight::Dense(view) => {
                let words = pack_dense(&layout, *view, element, 0..layout.strips());
                weight.codes = place(upload(device, &words));
                unpack_dense(&layout, element, 0, &words)
            }
            StoredWeight::Quantized(codes) => {
                let words = pack_codes(&layout, &**codes, 0..layout.strips());
                let scales = ScaleRows::of(&layout, &**codes).expect("it has scales");
                weight.codes = place(upload(device, &words));
                weight.scales = place(upload(device, &scales.scales));
                weight.scale_type = scales.scale_type as u32;
                weight.zeros = scales.zeros.as_ref().map_or(0, |zeros| place(upload(device, zeros)));
                unpack_codes(&layout, &scales, 0, &words)
            }
        };
        weight.order = layout.order.as_ref().map_or(0, |order| place(upload(device, order)));
        Self { _memory: memory, weight, outputs: layout.out_features, inputs: layout.in_features, values }
    }

    /// Random floats.
    pub fn dense(device: &Arc<Device>, element: ElementType, rng: &mut Rng, outputs: usize, inputs: usize) -> Self {
        let values = rng.normals(outputs * inputs, (inputs as f32).powf(-0.5));
        let tensor = Tensor::new(DType::F32, &[outputs, inputs], &values);
        Self::new(device, element, &StoredWeight::Dense(tensor.view()))
    }

    /// Random codes.
    pub fn coded(device: &Arc<Device>, element: ElementType, codes: RandomCodes) -> Self {
        Self::new(device, element, &StoredWeight::Quantized(Box::new(codes)))
    }

    /// Its product with x, in f64.
    pub fn times(&self, x: &[f64]) -> Vec<f64> {
        let row = |row: &[f32]| row.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum();
        self.values.chunks_exact(self.inputs).map(row).collect()
    }
}

/// Groups of one width and size, the last one perhaps smaller.
pub fn groups(bits: u8, inputs: usize, size: usize) -> Vec<QuantGroup> {
    (0..inputs).step_by(size).map(|first| QuantGroup { bits, inputs: size.min(inputs - first) }).collect()
}
