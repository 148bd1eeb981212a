//! GPTQ files written from the specification: bit by bit, so that nothing here resembles the reader.

use half::f16;

use super::{Rng, StoredTensor};

/// How inputs are assigned to groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupOrder {
    /// `i / group_size`, with `g_idx` written.
    InOrder,
    /// `i / group_size`, without `g_idx`.
    Absent,
    /// `i / group_size`, with a `g_idx` of zeros.
    AllZero,
    /// The same sizes, scattered.
    ActOrder,
    /// Any group for any input: sizes differ, some may be empty.
    Irregular,
}

/// What to write.
#[derive(Clone, Copy, Debug)]
pub struct GptqSpec {
    pub bits: usize,
    /// -1 for the whole column.
    pub group_size: i64,
    pub order: GroupOrder,
    /// Zeros as they are (gptq_v2) rather than less one (gptq).
    pub v2: bool,
    pub sym: bool,
}

impl GptqSpec {
    pub fn new(bits: usize, group_size: i64) -> Self {
        Self { bits, group_size, order: GroupOrder::InOrder, v2: false, sym: false }
    }

    /// The `quantization_config` that goes with it.
    pub fn config(&self) -> serde_json::Value {
        serde_json::json!({
            "quant_method": "gptq", "bits": self.bits, "group_size": self.group_size, "sym": self.sym,
            "desc_act": matches!(self.order, GroupOrder::ActOrder | GroupOrder::Irregular),
            "checkpoint_format": if self.v2 { "gptq_v2" } else { "gptq" },
        })
    }
}

/// A quantized weight, unpacked.
#[derive(Clone, Debug)]
pub struct GptqModule {
    pub spec: GptqSpec,
    pub in_features: usize,
    pub out_features: usize,
    /// `[in, out]`
    pub codes: Vec<u8>,
    /// `[groups, out]`, the true zero points.
    pub zeros: Vec<i32>,
    /// `[groups, out]`
    pub scales: Vec<f16>,
    /// Group of each input.
    pub g_idx: Vec<i32>,
}

impl GptqModule {
    /// Random codes of every value, random zero points of every value the format can hold, random scales.
    pub fn random(spec: GptqSpec, in_features: usize, out_features: usize, random: &mut Rng) -> Self {
        let size = if spec.group_size < 0 { in_features } else { spec.group_size as usize };
        let groups = in_features.div_ceil(size);
        let mut g_idx: Vec<i32> = (0..in_features).map(|i| (i / size) as i32).collect();
        match spec.order {
            GroupOrder::ActOrder => random.shuffle(&mut g_idx),
            GroupOrder::Irregular => g_idx.iter_mut().for_each(|g| *g = random.below(groups) as i32),
            GroupOrder::InOrder | GroupOrder::Absent | GroupOrder::AllZero => {}
        }
        let span = 1 << spec.bits;
        let zero = |random: &mut Rng| match (spec.sym, spec.v2) {
            (true, _) => span as i32 / 2,
            (false, true) => random.below(span) as i32,
            (false, false) => random.below(span) as i32 + 1,
        };
        Self {
            spec,
            in_features,
            out_features,
            codes: (0..in_features * out_features).map(|_| random.below(span) as u8).collect(),
            zeros: (0..groups * out_features).map(|_| zero(random)).collect(),
            scales: (0..groups * out_features).map(|_| f16::from_f32(random.uniform(0.4 / span as f32))).collect(),
            g_idx,
        }
    }

    /// What the weight means: `[out, in]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut weight = Vec::with_capacity(self.codes.len());
        for n in 0..self.out_features {
            for i in 0..self.in_features {
                let at = self.g_idx[i] as usize * self.out_features + n;
                let steps = i32::from(self.codes[i * self.out_features + n]) - self.zeros[at];
                weight.push(self.scales[at].to_f32() * steps as f32);
            }
        }
        weight
    }

    /// Its tensors under a module path.
    pub fn tensors(&self, path: &str) -> Vec<StoredTensor> {
        let (bits, outs) = (self.spec.bits, self.out_features);
        let groups = self.scales.len() / outs;

        // One stream a column, along the inputs.
        let mut qweight = vec![0u32; self.in_features * bits / 32 * outs];
        for n in 0..outs {
            let column = (0..self.in_features).map(|i| u32::from(self.codes[i * outs + n]));
            for (row, word) in stream(column, bits).into_iter().enumerate() {
                qweight[row * outs + n] = word;
            }
        }
        // One stream a row, along the outputs.
        let stored = |zero: i32| if self.spec.v2 { zero as u32 } else { zero as u32 - 1 };
        let qzeros: Vec<u32> =
            self.zeros.chunks(outs).flat_map(|row| stream(row.iter().map(|&zero| stored(zero)), bits)).collect();

        let name = |part: &str| format!("{path}.{part}");
        let words = |values: &[u32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let mut tensors = vec![
            StoredTensor::new(&name("qweight"), "I32", &[qweight.len() / outs, outs], words(&qweight)),
            StoredTensor::new(&name("qzeros"), "I32", &[groups, qzeros.len() / groups], words(&qzeros)),
            StoredTensor::new(
                &name("scales"),
                "F16",
                &[groups, outs],
                self.scales.iter().flat_map(|s| s.to_le_bytes()).collect(),
            ),
        ];
        match self.spec.order {
            GroupOrder::Absent => {}
            GroupOrder::AllZero => {
                tensors.push(StoredTensor::i32(&name("g_idx"), &[self.in_features], &vec![0; self.in_features]));
            }
            _ => tensors.push(StoredTensor::i32(&name("g_idx"), &[self.in_features], &self.g_idx)),
        }
        tensors
    }
}

/// Fields of `bits` bits written one bit after the other, lowest first, into 32-bit words.
fn stream(fields: impl Iterator<Item = u32>, bits: usize) -> Vec<u32> {
    let flat: Vec<u32> = fields.flat_map(|field| (0..bits).map(move |bit| (field >> bit) & 1)).collect();
    flat.chunks(32).map(|word| word.iter().rev().fold(0, |value, &bit| value << 1 | bit)).collect()
}
