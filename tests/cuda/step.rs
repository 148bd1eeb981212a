//! A step's tables on the device, what its slots hold, and how results are compared.

use std::sync::Arc;

use ::support::Rng;
use exlora::adapter::batch::{AdapterBatch, SlotId};
use exlora::backend::StepRows;
use exlora::backend::cuda::driver::{Device, DeviceMemory};
use exlora::backend::cuda::layout::Weight;
use exlora::backend::cuda::table_builder::TableBuilder;
use exlora::backend::cuda::tables::{GROUP_LINEARS, RowMask, Slot, SlotEmbedding, SlotGroup, SlotLinear};
use half::f16;

use crate::support::upload;

/// Each row's adapters: index of the slot, request weight.
pub type Routes = Vec<Vec<(usize, f32)>>;

/// The tables of a step, on the device.
pub struct Step {
    _memory: DeviceMemory,
    /// Address of the `StepTables`.
    pub tables: u64,
    /// Address of the `AttentionTables`, if positions were given.
    pub attention: u64,
}

impl Step {
    /// Of rows with these tokens, adapters and positions.
    pub fn new(device: &Arc<Device>, tokens: &[u32], routes: &Routes, slots: &[DeviceSlot], rows: &StepRows) -> Self {
        let batch = route(routes);
        let mut builder = TableBuilder::default();
        let slot_of = |id: SlotId| slots.get(id.0 as usize).map(|slot| slot.slot);
        let step = builder.push_step(tokens, &batch, slot_of).expect("the routing fits");
        let attention = builder.push_attention(rows).expect("the rows have sequences");
        let memory = device.allocate(builder.image().len()).expect("allocated");
        builder.set_base(memory.address());
        memory.upload(0, builder.image().bytes()).expect("uploaded");
        Self {
            tables: memory.address() + step.offset as u64,
            attention: memory.address() + attention.offset as u64,
            _memory: memory,
        }
    }
}

/// The routing of rows with those adapters.
pub fn route(routes: &Routes) -> AdapterBatch {
    let of_row = |list: &Vec<(usize, f32)>| list.iter().map(|&(slot, weight)| (SlotId(slot as u32), weight)).collect();
    let lists: Vec<Vec<(SlotId, f32)>> = routes.iter().map(of_row).collect();
    let mut batch = AdapterBatch::default();
    batch.rebuild(lists.iter().map(Vec::as_slice));
    batch
}

/// What a slot changes at one linear. Its t has the products of the replaced rows first, then those of both low-rank parts.
#[derive(Clone, Default)]
pub struct LinearDelta {
    /// Outputs of the base's weight, or of the one that the adapter brings.
    pub outputs: usize,
    /// Whether the adapter brings a weight.
    pub brings_weight: bool,
    pub bias: Option<Vec<f32>>,
    /// Ids of replaced rows, ascending, and the factor on their products.
    pub rows: Vec<u32>,
    pub rows_scale: f32,
    /// What is taken out of the weight.
    pub removed: Option<LowRank>,
    pub low: Option<LowRank>,
}

impl LinearDelta {
    /// Nothing, at a linear of that many outputs.
    pub fn at(outputs: usize) -> Self {
        Self { outputs, rows_scale: 0.25, ..Self::default() }
    }

    /// Values of its t.
    pub fn stack_rows(&self) -> usize {
        self.rows.len() + self.removed.iter().chain(&self.low).map(|low| low.rank).sum::<usize>()
    }

    /// Which of 32 rows after the other are replaced.
    fn row_masks(&self) -> Vec<RowMask> {
        let within = |first: usize| self.rows.iter().filter(move |&&id| (first..first + 32).contains(&(id as usize)));
        (0..self.outputs)
            .step_by(32)
            .map(|first| RowMask {
                bits: within(first).map(|id| 1 << (id % 32)).sum(),
                before: self.rows.iter().filter(|&&id| (id as usize) < first).count() as u32,
            })
            .collect()
    }
}

/// A low-rank part, of which t = A x is known.
#[derive(Clone)]
pub struct LowRank {
    pub rank: usize,
    /// `[out_features, rank]`
    pub b: Vec<f16>,
    pub scale: f32,
    pub b_bias: Option<Vec<f32>>,
    pub b_bias_scale: f32,
    pub magnitude: Option<Magnitude>,
}

/// DoRA's magnitude.
#[derive(Clone)]
pub struct Magnitude {
    pub m: Vec<f32>,
    /// `[4, out_features]`
    pub norm_terms: Vec<f64>,
}

impl LowRank {
    /// Random factors of a rank.
    pub fn random(rng: &mut Rng, rank: usize, outputs: usize) -> Self {
        Self {
            rank,
            b: rng.normals(outputs * rank, 1.0).into_iter().map(f16::from_f32).collect(),
            scale: 0.25 + rng.below(4) as f32 * 0.5,
            b_bias: None,
            b_bias_scale: 0.75,
            magnitude: None,
        }
    }

    /// What it makes of output `output`, which is `y` before it, given `t = A x`: in f64.
    pub fn apply(&self, t: &[f32], output: usize, weight: f32, y: f64) -> f64 {
        let (outputs, f) = (self.b.len() / self.rank, f64::from(weight));
        let b = &self.b[output * self.rank..(output + 1) * self.rank];
        let product: f64 = b.iter().zip(t).map(|(b, &t)| b.to_f64() * f64::from(t)).sum();
        let b_bias = self.b_bias.as_ref().map_or(0.0, |b_bias| f64::from(b_bias[output]));
        let y = y + f * (f64::from(self.scale) * product + f64::from(self.b_bias_scale) * b_bias);
        let Some(magnitude) = &self.magnitude else { return y };
        let term = |i: usize| magnitude.norm_terms[i * outputs + output];
        let square = if weight == 1.0 { term(3) } else { term(0) + 2.0 * f * term(1) + f * f * term(2) };
        y * f64::from(magnitude.m[output]) / square.sqrt()
    }

    /// With a random bias of B.
    pub fn with_b_bias(mut self, rng: &mut Rng) -> Self {
        self.b_bias = Some(rng.normals(self.b.len() / self.rank, 1.0));
        self
    }

    /// With a random magnitude. The norm at a weight of 1 is none that the other terms give, so that it matters which is used.
    pub fn with_magnitude(mut self, rng: &mut Rng) -> Self {
        let outputs = self.b.len() / self.rank;
        let between = |rng: &mut Rng, low: f32, high: f32| f64::from((low + high + rng.uniform(high - low)) / 2.0);
        let mut norm_terms: Vec<f64> = (0..outputs).map(|_| between(rng, 2.0, 4.0)).collect();
        norm_terms.extend((0..outputs).map(|_| between(rng, -0.5, 0.5)));
        norm_terms.extend((0..outputs).map(|_| between(rng, 0.5, 1.0)));
        norm_terms.extend((0..outputs).map(|_| between(rng, 5.0, 6.0)));
        self.magnitude = Some(Magnitude { m: rng.uniforms(outputs, 3.0), norm_terms });
        self
    }
}

/// A slot whose adapter changes the linears of one group, on the device.
pub struct DeviceSlot {
    _memory: Vec<DeviceMemory>,
    slot: Slot,
}

impl DeviceSlot {
    /// An adapter with those deltas at group `group` and none at the ones before it.
    pub fn new(device: &Arc<Device>, group: usize, deltas: &[LinearDelta]) -> Self {
        let mut slot = Self::empty();
        let mut linears = [SlotLinear::default(); GROUP_LINEARS];
        let mut stack_rows = 0;
        for (linear, delta) in linears.iter_mut().zip(deltas) {
            let mut first = stack_rows as u32;
            stack_rows += delta.stack_rows();
            if let Some(low) = &delta.low {
                *linear = slot.low_rank(device, low);
                linear.rank_offset = (stack_rows - low.rank) as u32;
            }
            linear.outputs = delta.outputs as u32;
            if delta.brings_weight {
                // Kernels that expand do not read it.
                linear.weight = slot.hold(upload(device, &[Weight::default()]));
            }
            linear.bias = delta.bias.as_ref().map_or(0, |bias| slot.hold(upload(device, bias)));
            if !delta.rows.is_empty() {
                linear.replaced_rows = slot.hold(upload(device, &delta.row_masks()));
                (linear.rows_offset, linear.rows_scale) = (first, delta.rows_scale);
                first += delta.rows.len() as u32;
            }
            if let Some(removed) = &delta.removed {
                linear.removed_b = slot.hold(upload(device, &removed.b));
                (linear.removed_rank, linear.removed_offset) = (removed.rank as u32, first);
                linear.removed_scale = removed.scale;
            }
        }
        let mut groups = vec![SlotGroup::default(); group];
        groups.push(SlotGroup { stack_rows: stack_rows as u32, linears, ..SlotGroup::default() });
        slot.slot.groups = slot.hold(upload(device, &groups));
        slot.slot.group_count = groups.len() as u32;
        slot
    }

    /// Keeps memory as long as the slot, and returns its address.
    pub fn hold(&mut self, memory: DeviceMemory) -> u64 {
        self._memory.push(memory);
        self._memory.last().map_or(0, DeviceMemory::address)
    }

    /// A low-rank part but for A, in memory of the slot.
    pub fn low_rank(&mut self, device: &Arc<Device>, low: &LowRank) -> SlotLinear {
        SlotLinear {
            b: self.hold(upload(device, &low.b)),
            b_bias: low.b_bias.as_ref().map_or(0, |bias| self.hold(upload(device, bias))),
            magnitude: low.magnitude.as_ref().map_or(0, |it| self.hold(upload(device, &it.m))),
            norm_terms: low.magnitude.as_ref().map_or(0, |it| self.hold(upload(device, &it.norm_terms))),
            outputs: (low.b.len() / low.rank) as u32,
            rank: low.rank as u32,
            scale: low.scale,
            b_bias_scale: low.b_bias_scale,
            ..SlotLinear::default()
        }
    }

    /// With those embeddings.
    pub fn set_embeddings(&mut self, device: &Arc<Device>, embeddings: &[SlotEmbedding]) {
        self.slot.embeddings = self.hold(upload(device, embeddings));
        self.slot.embedding_count = embeddings.len() as u32;
    }

    /// An adapter that changes nothing, not even at group 0.
    pub fn empty() -> Self {
        Self { _memory: Vec::new(), slot: Slot::default() }
    }
}

/// Fails unless `got` is `want` up to a ratio of norms.
pub fn assert_close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let error: f64 = got.iter().zip(want).map(|(&got, want)| (f64::from(got) - want).powi(2)).sum();
    let norm: f64 = want.iter().map(|want| want * want).sum();
    assert!(norm > 0.0, "{what}: nothing is wanted");
    let ratio = (error / norm).sqrt();
    assert!(ratio < tolerance, "{what}: the norm of the error is {ratio:.2e} of what is wanted");
}

/// Bits, so that results compare exactly.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
