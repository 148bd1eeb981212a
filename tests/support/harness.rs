//! A backend driven by hand, through its traits alone: weights are loaded first, and the first use of anything else
//! finishes the backend.

use exlora::adapter::batch::{AdapterBatch, SlotId};
use exlora::adapter::delta::SiteDelta;
use exlora::backend::cpu::{self, CpuOptions, Isa};
use exlora::backend::{
    Backend, BackendBuilder, BackendMemory, BufferId, Compute, EmbeddingId, GroupId, LinearSource, NormId, NormSource,
    PrepareError, reference,
};
use exlora::quant::{QuantGroup, StoredWeight};
use exlora::sites::SiteId;
use exlora::tensor::{DType, TensorView};
use half::{bf16, f16};

use super::Rng;
use super::deltas::Change;
use super::random_weights::RandomCodes;

/// The types that numbers are stored in.
pub const FLOATS: [DType; 3] = [DType::F16, DType::BF16, DType::F32];

/// The instruction sets of this machine.
pub fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

/// A backend to test.
#[derive(Clone, Copy, Debug)]
pub enum Device {
    Cpu {
        isa: Option<Isa>,
        threads: Option<usize>,
    },
    Reference,
    /// Another backend, by a function that opens it.
    Other(fn() -> Box<dyn BackendBuilder>),
}

impl Device {
    /// The CPU backend with its default options.
    pub const CPU: Self = Device::Cpu { isa: None, threads: None };

    /// The backend, without weights yet.
    pub fn open(self) -> Box<dyn BackendBuilder> {
        match self {
            Device::Cpu { isa, threads } => {
                cpu::open(&CpuOptions { isa, threads, ..CpuOptions::default() }).expect("the backend opens")
            }
            Device::Reference => reference::open(),
            Device::Other(open) => open(),
        }
    }
}

/// The fast paths.
pub fn fast(isa: Isa, threads: usize) -> Device {
    Device::Cpu { threads: Some(threads), isa: Some(isa) }
}

/// The reference.
pub fn oracle() -> Device {
    Device::Reference
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

enum State {
    Loading(Box<dyn BackendBuilder>),
    Ready(Backend),
    Finishing,
}

/// A backend and the few things a test needs around it.
pub struct Harness {
    state: State,
    sites: u32,
}

impl Harness {
    pub fn open(device: Device) -> Self {
        Self::with(device.open())
    }

    /// Over a backend without weights yet.
    pub fn with(builder: Box<dyn BackendBuilder>) -> Self {
        Self { state: State::Loading(builder), sites: 0 }
    }

    fn builder(&mut self) -> &mut dyn BackendBuilder {
        match &mut self.state {
            State::Loading(builder) => &mut **builder,
            _ => panic!("a test must load all weights before it computes"),
        }
    }

    /// The backend, finished at its first use.
    pub fn backend(&mut self) -> &mut Backend {
        if let State::Loading(_) = self.state {
            let State::Loading(builder) = std::mem::replace(&mut self.state, State::Finishing) else { unreachable!() };
            self.state = State::Ready(builder.finish().expect("the backend finishes"));
        }
        match &mut self.state {
            State::Ready(backend) => backend,
            _ => unreachable!("the backend is finished"),
        }
    }

    /// What computes.
    pub fn compute(&mut self) -> &mut dyn Compute {
        &mut *self.backend().compute
    }

    /// Resident bytes, but for what others leave free of a device.
    pub fn memory(&mut self) -> BackendMemory {
        let mut memory = self.backend().memory.read();
        if let Some(device) = &mut memory.device {
            device.free_bytes = 0;
        }
        memory
    }

    /// A free site.
    pub fn site(&mut self) -> SiteId {
        self.sites += 1;
        SiteId(self.sites - 1)
    }

    /// Loads a group; its members' sites are the next free ids.
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
                checkpoint: None,
            })
            .collect();
        (self.builder().load_linears(&sources).expect("the group packs"), sites)
    }

    /// Loads a norm's weight at a site of its own.
    pub fn norm_weight(&mut self, values: &[f32]) -> (NormId, SiteId) {
        self.norm_weight_of(&Tensor::new(DType::F32, &[values.len()], values))
    }

    /// Loads a norm's weight of any type at a site of its own.
    pub fn norm_weight_of(&mut self, weight: &Tensor) -> (NormId, SiteId) {
        let site = self.site();
        (self.builder().load_norm(&NormSource::plain(site, weight.view())).expect("the norm loads"), site)
    }

    /// Loads a norm with a bias, or an offset that is added to its weight, at a site of its own.
    pub fn norm_with(&mut self, weight: &Tensor, bias: Option<&Tensor>, offset: f32) -> (NormId, SiteId) {
        let site = self.site();
        let source = NormSource { site, weight: weight.view(), bias: bias.map(Tensor::view), offset };
        (self.builder().load_norm(&source).expect("the norm loads"), site)
    }

    /// Loads an embedding table at a site of its own.
    pub fn table(&mut self, table: &Tensor) -> (EmbeddingId, SiteId) {
        let site = self.site();
        (self.builder().load_embedding(site, table.view()).expect("the table loads"), site)
    }

    /// Prepares and installs what an adapter changes at some sites, and returns the bytes it occupies.
    pub fn upload(&mut self, slot: SlotId, sites: &[SiteId], changes: &[Change]) -> Result<usize, PrepareError> {
        let deltas: Vec<SiteDelta<'_>> = changes.iter().map(|change| change.delta(sites)).collect();
        let prepared = self.backend().adapters.prepare(&deltas, &mut || Ok(()))?;
        let bytes = prepared.bytes();
        self.compute().install_adapter(slot, prepared)?;
        Ok(bytes)
    }

    /// A buffer that holds these rows.
    pub fn put(&mut self, width: usize, values: &[f32]) -> BufferId {
        let buffer = self.buffer(width, values.len() / width);
        self.compute().write_rows(buffer, 0, values).expect("rows fit");
        buffer
    }

    /// An empty buffer.
    pub fn buffer(&mut self, width: usize, rows: usize) -> BufferId {
        let buffer = self.compute().create_buffer(width);
        self.compute().reserve_rows(rows).expect("rows are reserved");
        buffer
    }

    /// What a buffer holds.
    pub fn get(&mut self, buffer: BufferId, width: usize, rows: usize) -> Vec<f32> {
        let mut out = vec![0.0; rows * width];
        self.compute().read_rows(buffer, &mut out).expect("rows are there");
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
