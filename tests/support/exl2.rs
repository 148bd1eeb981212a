//! EXL2 files written from the format's description: bit by bit, rounded by way of f64, so that nothing here resembles the
//! reader.

use half::f16;

use super::{Rng, StoredTensor};

/// A quantized weight, unpacked.
#[derive(Clone, Debug)]
pub struct Exl2Module {
    pub in_features: usize,
    pub out_features: usize,
    /// Width and inputs of each group, in stored order.
    pub groups: Vec<(usize, usize)>,
    /// `[stored input, padded output]`
    pub codes: Vec<u8>,
    /// `[group, padded output]`, 0..16
    pub fields: Vec<u8>,
    /// Of each group.
    pub scale_max: Vec<f16>,
    /// The model's input of each stored one.
    pub order: Vec<usize>,
}

/// Groups that fill so many blocks of 32 inputs: widths as they come but descending, sizes as they come.
pub fn random_groups(blocks: usize, random: &mut Rng) -> Vec<(usize, usize)> {
    let mut groups = Vec::new();
    let mut left = blocks;
    while left > 0 {
        let size = 1 + random.below(left.min(4));
        groups.push(([8, 6, 5, 4, 3, 2][random.below(6)], size * 32));
        left -= size;
    }
    groups.sort_by_key(|&(bits, _)| std::cmp::Reverse(bits));
    groups
}

impl Exl2Module {
    /// Random codes and scale fields of every value; a third of the scales are so small that they are subnormal.
    pub fn random(groups: Vec<(usize, usize)>, out_features: usize, random: &mut Rng) -> Self {
        let in_features: usize = groups.iter().map(|&(_, inputs)| inputs).sum();
        let columns = out_features.div_ceil(32) * 32;
        let mut codes = Vec::with_capacity(in_features * columns);
        for &(bits, inputs) in &groups {
            codes.extend((0..inputs * columns).map(|_| random.below(1 << bits) as u8));
        }
        let scale_max = |&(bits, _): &(usize, usize), random: &mut Rng| {
            // The largest weight of a group is about its scale's maximum times 2^(bits-1).
            let usual = (1.0 + random.uniform(0.5)) / (1 << bits) as f32;
            f16::from_f32(if random.below(3) == 0 { usual * 0.01 } else { usual })
        };
        let mut order: Vec<usize> = (0..in_features).collect();
        random.shuffle(&mut order);
        Self {
            in_features,
            out_features,
            codes,
            fields: (0..groups.len() * columns).map(|_| random.below(16) as u8).collect(),
            scale_max: groups.iter().map(|group| scale_max(group, random)).collect(),
            groups,
            order,
        }
    }

    fn columns(&self) -> usize {
        self.out_features.div_ceil(32) * 32
    }

    /// What the weight means: `[out, in]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let columns = self.columns();
        let mut weight = vec![0.0; self.out_features * self.in_features];
        let mut stored = 0;
        for (g, &(bits, inputs)) in self.groups.iter().enumerate() {
            let step = f16::from_f64(self.scale_max[g].to_f64() / 256.0);
            for k in stored..stored + inputs {
                for n in 0..self.out_features {
                    let square = f64::from(self.fields[g * columns + n] + 1).powi(2);
                    let scale = f16::from_f64(square * step.to_f64());
                    let code = f64::from(self.codes[k * columns + n]) - f64::from(1 << (bits - 1));
                    weight[n * self.in_features + self.order[k]] = f16::from_f64(code * scale.to_f64()).to_f32();
                }
            }
            stored += inputs;
        }
        weight
    }

    /// Its tensors under a module path.
    pub fn tensors(&self, path: &str) -> Vec<StoredTensor> {
        let columns = self.columns();
        let (mut q_weight, mut q_groups) = (Vec::<u8>::new(), Vec::<i16>::new());
        let mut stored = 0;
        for &(bits, inputs) in &self.groups {
            q_groups.extend([bits as i16, (q_weight.len() / 4 / columns) as i16]);
            // Bit b of row r, column n, is bit 32 r + b of the column's stream.
            for row in 0..inputs * bits / 32 {
                for n in 0..columns {
                    let word = (0..32).fold(0u32, |word, b| {
                        let at = row * 32 + b;
                        let code = u32::from(self.codes[(stored + at / bits) * columns + n]);
                        word | (code >> (at % bits) & 1) << b
                    });
                    q_weight.extend(word.to_le_bytes());
                }
            }
            stored += inputs;
        }
        let scales = self.fields.chunks(8).map(|row| (0..8).map(|i| u32::from(row[i]) << (4 * i)).sum::<u32>());
        let mut inverse = vec![0; self.in_features];
        for (k, &input) in self.order.iter().enumerate() {
            inverse[input] = k as i32;
        }
        let name = |part: &str| format!("{path}.{part}");
        let rows = q_weight.len() / 4 / columns;
        let bytes16 = |values: &[i16]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let halves: Vec<u8> = self.scale_max.iter().flat_map(|v| v.to_le_bytes()).collect();
        vec![
            StoredTensor::new(&name("q_weight"), "I32", &[rows, columns], q_weight),
            StoredTensor::i32(&name("q_invperm"), &[self.in_features], &inverse),
            StoredTensor::new(
                &name("q_scale"),
                "I32",
                &[self.groups.len(), columns / 8],
                scales.flat_map(u32::to_le_bytes).collect(),
            ),
            StoredTensor::new(&name("q_scale_max"), "F16", &[self.groups.len()], halves),
            StoredTensor::new(&name("q_groups"), "I16", &[q_groups.len()], bytes16(&q_groups)),
        ]
    }
}
