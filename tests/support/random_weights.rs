//! A quantized weight made of random numbers, in no file format: what kernels are tested and measured on.

use std::ops::Range;

use exlora::quant::{QuantGroup, QuantLayout, QuantizedWeight};

use super::Rng;

/// Random codes, scales and zeros.
#[derive(Clone)]
pub struct RandomCodes {
    out_features: usize,
    layout: QuantLayout,
    /// `[inputs, outputs]`
    codes: Vec<u8>,
    /// `[groups, outputs]`
    scales: Vec<f32>,
    /// `[groups, outputs]`
    zeros: Vec<i32>,
}

impl RandomCodes {
    /// Codes in these groups, scaled so that outputs of a normal input are about normal.
    ///
    /// `half` rounds scales to f16, as GPTQ stores them; `shuffled` gives the inputs a random order.
    pub fn new(rng: &mut Rng, out_features: usize, groups: Vec<QuantGroup>, half: bool, shuffled: bool) -> Self {
        let inputs: usize = groups.iter().map(|group| group.inputs).sum();
        let mut codes = Vec::with_capacity(inputs * out_features);
        let (mut scales, mut zeros) = (Vec::new(), Vec::new());
        for group in &groups {
            let levels = 1usize << group.bits;
            codes.extend((0..group.inputs * out_features).map(|_| rng.below(levels) as u8));
            for _ in 0..out_features {
                let scale = (0.5 + rng.normal().abs()) / (levels as f32 * (inputs as f32).sqrt());
                scales.push(if half { half::f16::from_f32(scale).to_f32() } else { scale });
                // v1 GPTQ files reach 2^bits.
                zeros.push(rng.below(levels + 1) as i32);
            }
        }
        let permutation = shuffled.then(|| {
            let mut order: Vec<u32> = (0..inputs as u32).collect();
            rng.shuffle(&mut order);
            order
        });
        Self { out_features, layout: QuantLayout { groups, permutation }, codes, scales, zeros }
    }
}

impl QuantizedWeight for RandomCodes {
    fn in_features(&self) -> usize {
        self.codes.len() / self.out_features
    }

    fn out_features(&self) -> usize {
        self.out_features
    }

    fn layout(&self) -> &QuantLayout {
        &self.layout
    }

    fn read_codes(&self, inputs: Range<usize>, outputs: Range<usize>, codes: &mut [u8]) {
        for (input, codes) in inputs.zip(codes.chunks_exact_mut(outputs.len())) {
            codes.copy_from_slice(&self.codes[input * self.out_features..][outputs.clone()]);
        }
    }

    fn read_scales(&self, group: usize, outputs: Range<usize>, scales: &mut [f32], zeros: &mut [i32]) {
        scales.copy_from_slice(&self.scales[group * self.out_features..][outputs.clone()]);
        zeros.copy_from_slice(&self.zeros[group * self.out_features..][outputs]);
    }
}
