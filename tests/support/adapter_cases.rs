//! Random adapters on an embedding or on linears, and rows with mixtures of them, to be computed by any backend.

use exlora::adapter::batch::SlotId;
use exlora::backend::{GroupId, HeadSpec, LargestLogit, LogitRows, Write};

use super::Rng;
use super::harness::{Device, FLOATS, Harness, Member, Mixture, Tensor, bits, random_member};
use super::random_adapters::{Adapter, Place, random_adapters, random_mixtures, route_in, upload_all};

/// An embedding, adapters on it, and tokens with their mixtures.
#[derive(Clone)]
pub struct EmbeddingCase {
    pub table: Tensor,
    pub adapters: Vec<Adapter>,
    pub tokens: Vec<u32>,
    pub mixtures: Vec<Mixture>,
    pub repeat: u32,
}

impl EmbeddingCase {
    /// A random case, from one seed.
    pub fn random(seed: u64, hidden: usize, rows: usize) -> Self {
        let mut rng = Rng(seed);
        let rng = &mut rng;
        let vocab = 2 + rng.below(600);
        let spread = (vocab as f32).powf(-0.5);
        let table = Tensor::new(FLOATS[rng.below(3)], &[vocab, hidden], &rng.normals(vocab * hidden, spread));
        let place = Place { inputs: vocab, outputs: hidden, is_table: true, spare_rows: 5 };
        let adapters = random_adapters(rng, &[place]);
        let mixtures = random_mixtures(rng, &adapters, rows);
        let repeat = rng.below(3) as u32;
        // The last adapter of a row that replaces the table says how many tokens there are.
        let replaced = |&(slot, _): &(SlotId, f32)| {
            let changes = &adapters.iter().find(|(other, _)| *other == slot)?.1;
            Some(changes.iter().find(|change| change.repeat == repeat)?.weight.as_ref()?.shape[0])
        };
        let tokens_of = |mixture: &Mixture| mixture.iter().rev().find_map(replaced).unwrap_or(vocab);
        let tokens = mixtures.iter().map(|mixture| rng.below(tokens_of(mixture)) as u32).collect();
        Self { table, adapters, tokens, mixtures, repeat }
    }

    /// One row of it alone.
    pub fn only(&self, row: usize) -> Self {
        Self { tokens: vec![self.tokens[row]], mixtures: vec![self.mixtures[row].clone()], ..self.clone() }
    }

    /// The rows, `[tokens, hidden]`.
    pub fn run(&self, device: Device) -> Vec<f32> {
        let mut harness = Harness::open(device);
        let hidden = self.table.shape[1];
        let (table, site) = harness.table(&self.table);
        upload_all(&mut harness, &[site], &self.adapters);
        let out = harness.buffer(hidden, self.tokens.len());
        let batch = route_in(self.repeat, &self.mixtures);
        harness.compute().embed(table, &self.tokens, 1.25, &batch, out).expect("tokens embed");
        harness.get(out, hidden, self.tokens.len())
    }
}

/// A head of one linear or a group of several, adapters on it, and rows with their mixtures.
#[derive(Clone)]
pub struct LinearsCase {
    pub inputs: usize,
    /// Room for the outputs of a row.
    pub stride: usize,
    pub members: Vec<Member>,
    pub adapters: Vec<Adapter>,
    pub x: Vec<f32>,
    pub mixtures: Vec<Mixture>,
    pub repeat: u32,
}

impl LinearsCase {
    /// A random case, from one seed.
    pub fn random(seed: u64, inputs: usize, rows: usize) -> Self {
        let mut rng = Rng(seed);
        let rng = &mut rng;
        let widths: Vec<usize> = (0..1 + rng.below(3)).map(|_| 1 + rng.below(70)).collect();
        let spare_rows = if widths.len() == 1 { 20 } else { 0 };
        let place = |&outputs: &usize| Place { inputs, outputs, is_table: false, spare_rows };
        let members = widths.iter().map(|&width| random_member(rng, inputs, width)).collect();
        let adapters = random_adapters(rng, &widths.iter().map(place).collect::<Vec<_>>());
        let mixtures = random_mixtures(rng, &adapters, rows);
        let stride = widths.iter().sum::<usize>() + spare_rows;
        let repeat = rng.below(3) as u32;
        Self { inputs, stride, members, adapters, x: rng.normals(rows * inputs, 1.0), mixtures, repeat }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.mixtures.len()
    }

    /// One row of it alone.
    pub fn only(&self, row: usize) -> Self {
        let x = self.x[row * self.inputs..(row + 1) * self.inputs].to_vec();
        Self { x, mixtures: vec![self.mixtures[row].clone()], ..self.clone() }
    }

    /// Outputs `[rows, stride]`; what a row has no outputs for stays 7.
    pub fn run(&self, device: Device) -> Vec<f32> {
        self.head(device, HeadSpec::of, 7.0)
    }

    /// As logits `[rows, stride]` of a head; what a row has no outputs for stays `unwritten`.
    pub fn head(&self, device: Device, head: impl Fn(GroupId) -> HeadSpec, unwritten: f32) -> Vec<f32> {
        self.head_of(device, head, unwritten, &[]).0
    }

    /// As [`LinearsCase::head`], where some rows want their largest logit alone, which some devices tell.
    pub fn head_of(
        &self,
        device: Device,
        head: impl Fn(GroupId) -> HeadSpec,
        unwritten: f32,
        is_greedy: &[bool],
    ) -> (Vec<f32>, Vec<Option<LargestLogit>>) {
        let (mut harness, group) = self.open(device);
        let x = harness.put(self.inputs, &self.x);
        let picked: Vec<u32> = (0..self.rows() as u32).collect();
        let mut logits = vec![unwritten; self.rows() * self.stride];
        let batch = route_in(self.repeat, &self.mixtures);
        let rows = LogitRows { is_greedy, ..LogitRows::all(&picked, &batch) };
        let compute = harness.compute();
        compute.head(&head(group), x, rows, &mut logits, self.stride).expect("the head runs");
        compute.take_kv_overflows().expect("the device answers");
        (logits, compute.take_largest_logits().expect("the device answers"))
    }

    /// Fails unless a head whose greedy rows these are has, of those, the largest logit of a plain scan over all logits, which are
    /// not written then, and of all others the same bits as without greedy rows. Returns how many greedy rows the device told.
    pub fn check_greedy(&self, device: Device, head: impl Fn(GroupId) -> HeadSpec, is_greedy: &[bool]) -> usize {
        // A NaN of these bits marks what is not written.
        let unwritten = f32::from_bits(0x7fc0_1234);
        let all = self.head(device, &head, unwritten);
        let (found, largest) = self.head_of(device, &head, unwritten, is_greedy);
        let mut told = 0;
        for (row, logits) in all.chunks(self.stride).enumerate() {
            let found = &found[row * self.stride..][..self.stride];
            let Some(Some(largest)) = largest.get(row) else {
                assert_eq!(bits(found), bits(logits), "{device:?}, row {row}");
                continue;
            };
            assert!(is_greedy[row], "{device:?}, row {row} is not greedy");
            assert!(found.iter().all(|logit| logit.to_bits() == unwritten.to_bits()), "{device:?}, row {row}");
            let outputs = logits.iter().take_while(|logit| logit.to_bits() != unwritten.to_bits()).count();
            let expected = plain_largest(&logits[..outputs]);
            // Both zeros are equal.
            let same = largest.logit == expected.1 || largest.logit.to_bits() == expected.1.to_bits();
            assert!(largest.token == expected.0 && same, "{device:?}, row {row}: {largest:?}, not {expected:?}");
            told += 1;
        }
        told
    }

    /// As a linear written to rows that hold `y`, which fails where an adapter brings more outputs.
    pub fn linear(&self, device: Device, y: &[f32], write: Write) -> Vec<f32> {
        let (mut harness, group) = self.open(device);
        let (x, y) = (harness.put(self.inputs, &self.x), harness.put(self.stride, y));
        let batch = route_in(self.repeat, &self.mixtures);
        harness.compute().linear(group, x, self.rows(), &batch, y, write).expect("the linear runs");
        harness.get(y, self.stride, self.rows())
    }

    fn open(&self, device: Device) -> (Harness, GroupId) {
        let mut harness = Harness::open(device);
        let (group, sites) = harness.group(&self.members);
        upload_all(&mut harness, &sites, &self.adapters);
        (harness, group)
    }
}

/// The token and logit that greedy decoding takes, or those of the first logit that is infinite or NaN.
fn plain_largest(logits: &[f32]) -> (u32, f32) {
    let rows = || (0..).zip(logits.iter().copied());
    let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let first = rows().find(|(_, logit)| !logit.is_finite()).or_else(|| rows().find(|(_, logit)| *logit == peak));
    first.expect("a row has logits")
}
