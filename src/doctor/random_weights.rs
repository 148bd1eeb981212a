//! A quantized weight made of seeded random numbers, in no file format: what kernels are checked and measured on.

use std::ops::Range;

use crate::quant::{BitStreams, QuantGroup, QuantLayout, QuantizedWeight};

use super::random::Rng;

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
    /// `[rows, outputs]` The codes as a bit stream for each output; each group begins with a word.
    words: Vec<[u8; 4]>,
    /// Where each input begins in a stream.
    first_bits: Vec<usize>,
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
        let (words, first_bits) = streams(&groups, &codes, out_features);
        Self { out_features, layout: QuantLayout { groups, permutation }, codes, scales, zeros, words, first_bits }
    }

    /// The largest code everywhere, of scale 1, with these zeros.
    pub fn largest(out_features: usize, groups: Vec<QuantGroup>, zero: i32) -> Self {
        let largest = |group: &QuantGroup| vec![u8::MAX >> (8 - group.bits); group.inputs * out_features];
        let codes: Vec<u8> = groups.iter().flat_map(largest).collect();
        let (words, first_bits) = streams(&groups, &codes, out_features);
        let (scales, zeros) = (vec![1.0; groups.len() * out_features], vec![zero; groups.len() * out_features]);
        let layout = QuantLayout { groups, permutation: None };
        Self { out_features, layout, codes, scales, zeros, words, first_bits }
    }

    /// The weights `[outputs, inputs]`, exact, in the model's order of inputs.
    pub fn weights(&self) -> Vec<f64> {
        let (inputs, outputs) = (self.in_features(), self.out_features);
        let mut weights = vec![0.0; inputs * outputs];
        let of_groups =
            self.layout.groups.iter().enumerate().flat_map(|(group, g)| std::iter::repeat_n(group, g.inputs));
        for (k, group) in of_groups.enumerate() {
            let input = self.layout.permutation.as_ref().map_or(k, |order| order[k] as usize);
            for n in 0..outputs {
                let (code, at) = (i32::from(self.codes[k * outputs + n]), group * outputs + n);
                weights[n * inputs + input] = f64::from(self.scales[at]) * f64::from(code - self.zeros[at]);
            }
        }
        weights
    }

    /// The same codes and scales with every zero in the middle of its codes, as in symmetric GPTQ and EXL2.
    pub fn symmetric(mut self) -> Self {
        for (group, zeros) in self.layout.groups.iter().zip(self.zeros.chunks_exact_mut(self.out_features)) {
            zeros.fill(1 << (group.bits - 1));
        }
        self
    }
}

/// Codes `[inputs, outputs]` as a bit stream for each output, and where each input begins in one.
fn streams(groups: &[QuantGroup], codes: &[u8], outputs: usize) -> (Vec<[u8; 4]>, Vec<usize>) {
    let (mut words, mut first_bits, mut codes) = (Vec::new(), Vec::new(), codes.chunks_exact(outputs));
    for group in groups {
        let first_row = words.len() / outputs;
        let rows = (group.inputs * usize::from(group.bits)).div_ceil(32);
        let mut streams = vec![0u32; rows * outputs];
        for (input, codes) in codes.by_ref().take(group.inputs).enumerate() {
            first_bits.push(first_row * 32 + input * usize::from(group.bits));
            for bit in 0..usize::from(group.bits) {
                let at = input * usize::from(group.bits) + bit;
                for (output, code) in codes.iter().enumerate() {
                    streams[at / 32 * outputs + output] |= u32::from(code >> bit & 1) << (at % 32);
                }
            }
        }
        words.extend(streams.into_iter().map(u32::to_le_bytes));
    }
    (words, first_bits)
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

    fn code_streams(&self) -> BitStreams<'_> {
        BitStreams { words: &self.words, columns: self.out_features }
    }

    fn first_bit(&self, input: usize) -> usize {
        self.first_bits[input]
    }

    fn read_scales(&self, group: usize, outputs: Range<usize>, scales: &mut [f32], zeros: &mut [i32]) {
        scales.copy_from_slice(&self.scales[group * self.out_features..][outputs.clone()]);
        zeros.copy_from_slice(&self.zeros[group * self.out_features..][outputs]);
    }
}
