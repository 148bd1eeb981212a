//! A backend driven by hand: values go in through an embedding table and come out through an identity head, so that
//! whatever implements the trait is tested through the trait alone.

use std::collections::HashMap;

use exlora::adapter::batch::{AdapterBatch, SlotId};
use exlora::adapter::delta::SiteDelta;
use exlora::backend::cpu::{self, CpuOptions, Isa};
use exlora::backend::{Backend, BufferId, GroupId, LinearSource, NormId, UploadError};
use exlora::quant::{QuantGroup, StoredWeight};
use exlora::sites::SiteId;
use exlora::tensor::{DType, TensorView};
use half::{bf16, f16};

use super::deltas::Change;
use super::random_weights::{RandomCodes, Rng};

/// The types that numbers are stored in.
pub const FLOATS: [DType; 3] = [DType::F16, DType::BF16, DType::F32];

/// The instruction sets of this machine.
pub fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

/// The fast paths.
pub fn fast(isa: Isa, threads: usize) -> CpuOptions {
    CpuOptions { threads: Some(threads), isa: Some(isa), ..CpuOptions::default() }
}

/// The reference.
pub fn oracle() -> CpuOptions {
    CpuOptions { reference: true, ..CpuOptions::default() }
}

/// A tensor that owns its bytes.
#[derive(Clone)]
pub struct Tensor {
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// Values rounded to a type.
    pub fn new(dtype: DType, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|&value| match dtype {
            DType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
            DType::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        });
        Self { dtype, shape: shape.to_vec(), bytes: bytes.collect() }
    }

    /// As a view.
    pub fn view(&self) -> TensorView<'_> {
        TensorView::new(self.dtype, &self.shape, &self.bytes).expect("values fill the shape")
    }
}

/// A stored weight of a test.
#[derive(Clone)]
pub enum Weight {
    Dense(Tensor),
    Coded(RandomCodes),
}

/// One linear of a test's group.
#[derive(Clone)]
pub struct Member {
    pub weight: Weight,
    pub bias: Option<Tensor>,
}

/// The mixture of one row.
pub type Mixture = Vec<(SlotId, f32)>;

/// Routing of rows.
pub fn route(mixtures: &[Mixture]) -> AdapterBatch {
    let mut batch = AdapterBatch::default();
    batch.rebuild(mixtures.iter().map(Vec::as_slice));
    batch
}

/// A backend and the few things a test needs around it.
pub struct Harness {
    pub backend: Box<dyn Backend>,
    heads: HashMap<usize, GroupId>,
    sites: u32,
}

impl Harness {
    pub fn open(options: &CpuOptions) -> Self {
        Self { backend: cpu::open(options).expect("the backend opens"), heads: HashMap::new(), sites: 0 }
    }

    /// A free site.
    pub fn site(&mut self) -> SiteId {
        self.sites += 1;
        SiteId(self.sites - 1)
    }

    /// Packs a group; its members' sites are the next free ids.
    pub fn group(&mut self, members: &[Member]) -> (GroupId, Vec<SiteId>) {
        let sites: Vec<SiteId> = (0..members.len() as u32).map(|i| SiteId(self.sites + i)).collect();
        self.sites += members.len() as u32;
        let sources: Vec<LinearSource<'_>> = members
            .iter()
            .zip(&sites)
            .map(|(member, &site)| LinearSource {
                site,
                weight: match &member.weight {
                    Weight::Dense(tensor) => StoredWeight::Dense(tensor.view()),
                    Weight::Coded(codes) => StoredWeight::Quantized(Box::new(codes.clone())),
                },
                bias: member.bias.as_ref().map(Tensor::view),
            })
            .collect();
        (self.backend.load_linears(&sources).expect("the group packs"), sites)
    }

    /// Uploads what an adapter changes at some sites and returns the bytes it occupies.
    pub fn upload(&mut self, slot: SlotId, sites: &[SiteId], changes: &[Change]) -> Result<usize, UploadError> {
        let deltas: Vec<SiteDelta<'_>> = changes.iter().map(|change| change.delta(sites)).collect();
        self.backend.upload_adapter(slot, &deltas)
    }

    /// Packs a norm's weight at a site of its own.
    pub fn vector(&mut self, values: &[f32]) -> (NormId, SiteId) {
        let site = self.site();
        let vector = Tensor::new(DType::F32, &[values.len()], values);
        (self.backend.load_norm(site, vector.view()).expect("the vector packs"), site)
    }

    /// A buffer that holds these rows.
    pub fn put(&mut self, width: usize, values: &[f32]) -> BufferId {
        let rows = values.len() / width;
        let table = Tensor::new(DType::F32, &[rows, width], values);
        let site = self.site();
        let table = self.backend.load_embedding(site, table.view()).expect("the table packs");
        let buffer = self.room(width, rows);
        let tokens: Vec<u32> = (0..rows as u32).collect();
        self.backend.embed(table, &tokens, 1.0, &AdapterBatch::default(), buffer).expect("rows embed");
        buffer
    }

    /// An empty buffer.
    pub fn room(&mut self, width: usize, rows: usize) -> BufferId {
        let buffer = self.backend.create_buffer(width);
        self.backend.reserve_rows(rows).expect("rows are reserved");
        buffer
    }

    /// What a buffer holds. Exact: each value is multiplied by one and added to zeros.
    pub fn get(&mut self, buffer: BufferId, width: usize, rows: usize) -> Vec<f32> {
        let head = match self.heads.get(&width) {
            Some(&head) => head,
            None => {
                let identity: Vec<f32> = (0..width * width).map(|i| f32::from(i / width == i % width)).collect();
                let weight = Weight::Dense(Tensor::new(DType::F16, &[width, width], &identity));
                let (head, _) = self.group(&[Member { weight, bias: None }]);
                *self.heads.entry(width).or_insert(head)
            }
        };
        let picked: Vec<u32> = (0..rows as u32).collect();
        let mut out = vec![0.0; rows * width];
        self.backend.head(head, buffer, &picked, &AdapterBatch::default(), &mut out, width).expect("the head runs");
        out
    }
}

fn random_groups(rng: &mut Rng, inputs: usize) -> Vec<QuantGroup> {
    const BITS: [u8; 6] = [2, 3, 4, 5, 6, 8];
    let bits = BITS[rng.below(6)];
    // One width or runs of several; groups of a usual size, of irregular ones, or a whole column.
    let (mixed, size) = (rng.below(3) == 0, [32, 64, 128, 0, inputs][rng.below(5)]);
    let mut groups = Vec::new();
    let mut left = inputs;
    while left > 0 {
        let size = if size == 0 { 1 + rng.below(80) } else { size };
        let bits = if mixed { BITS[rng.below(6)] } else { bits };
        groups.push(QuantGroup { bits, inputs: size.min(left) });
        left -= size.min(left);
    }
    groups
}

/// A linear of random kind, dense or coded, with or without a bias.
pub fn random_member(rng: &mut Rng, inputs: usize, outputs: usize) -> Member {
    let weight = if rng.below(4) == 0 {
        let values = rng.normals(outputs * inputs, (inputs as f32).powf(-0.5));
        Weight::Dense(Tensor::new(FLOATS[rng.below(3)], &[outputs, inputs], &values))
    } else {
        let groups = random_groups(rng, inputs);
        let (half, shuffled) = (rng.below(3) > 0, rng.below(2) == 0);
        Weight::Coded(RandomCodes::new(rng, outputs, groups, half, shuffled))
    };
    // Some formats pad biases.
    let padded = outputs + [0, 0, 24][rng.below(3)];
    let bias = (rng.below(2) == 0).then(|| Tensor::new(FLOATS[rng.below(3)], &[padded], &rng.normals(padded, 1.0)));
    Member { weight, bias }
}

/// Bits, so that equality means equality.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Asserts that every row agrees within `tolerance` times the row's largest expected magnitude (at least 1, the scale
/// of the random data).
pub fn assert_close(what: &str, width: usize, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (row, (found, expected)) in found.chunks(width).zip(expected.chunks(width)).enumerate() {
        let scale = expected.iter().fold(1f32, |scale, value| scale.max(value.abs()));
        for (i, (f, e)) in found.iter().zip(expected).enumerate() {
            let error = (f - e).abs() / scale;
            assert!(error <= tolerance, "{what}: row {row} value {i}: {f} for {e}, {error:e} of the row's largest");
        }
    }
}
