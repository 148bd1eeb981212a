//! A case: what it loads into a backend, and what it then computes there.

use half::bf16;

use crate::adapter::batch::{AdapterBatch, SlotId};
use crate::adapter::delta::{LowRank, SiteDelta};
use crate::backend::{
    Backend, BackendBuilder, BufferId, Compute, EmbeddingId, GroupId, LinearSource, NormId, NormSource, PrepareError,
};
use crate::doctor::random::Rng;
use crate::doctor::random_weights::RandomCodes;
use crate::error::{Error, ErrorCode, Result};
use crate::quant::{QuantGroup, StoredWeight};
use crate::sites::SiteId;
use crate::tensor::{DType, Tensor, TensorView};

/// Slots that a case may use.
const SLOTS: u32 = 8;

/// How near to the reference a result has to be, as a ratio of norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Precision {
    /// Everything is computed in f32.
    Single,
    /// Activations are rounded once, to the device's type.
    Half,
    /// The same, and keys and values are rounded to f16 on every device.
    HalfCache,
    /// Activations are rounded by each kernel of a decoder layer, keys and values to f16 on every device.
    HalfRepeatedly,
}

/// A seeded computation that any backend can do.
pub(super) struct Case {
    /// What it is: `linear, 4 bits, 9 rows`.
    pub(super) kernel: String,
    pub(super) precision: Precision,
    load: Box<Load>,
}

/// Loads what a case needs.
type Load = dyn Fn(&mut Loading<'_>) -> Result<Run>;

/// Computes what a case has loaded.
pub(super) type Run = Box<dyn FnOnce(&mut Backend) -> Result<Vec<f32>>>;

impl Case {
    pub(super) fn new(
        kernel: impl Into<String>,
        precision: Precision,
        load: impl Fn(&mut Loading<'_>) -> Result<Run> + 'static,
    ) -> Self {
        Self { kernel: kernel.into(), precision, load: Box::new(load) }
    }

    /// Loads what it needs, random numbers from a seed.
    pub(super) fn load(&self, builder: &mut dyn BackendBuilder, sites: &mut u32, seed: u64) -> Result<Run> {
        (self.load)(&mut Loading { builder, rng: Rng(seed), sites })
    }
}

/// Computes a case and empties the slots that it used.
pub(super) fn run(run: Run, backend: &mut Backend) -> Result<Vec<f32>> {
    let values = run(backend);
    (0..SLOTS).for_each(|slot| backend.compute.drop_adapter(SlotId(slot)));
    values
}

/// A backend that still takes weights, and random numbers for them.
pub(super) struct Loading<'a> {
    builder: &'a mut dyn BackendBuilder,
    pub(super) rng: Rng,
    /// Number of sites so far, over all cases.
    sites: &'a mut u32,
}

/// The base's weight of a linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BaseWeight {
    /// 16 bits: numbers that float16 and bfloat16 both hold.
    Dense,
    /// Codes of a width, in groups of that many inputs.
    Codes(u8, usize),
    /// Codes of every width in turn, inputs in a random order.
    MixedCodes,
}

/// A group that was loaded.
#[derive(Clone)]
pub(super) struct Group {
    pub(super) id: GroupId,
    pub(super) sites: Vec<SiteId>,
    pub(super) inputs: usize,
    /// Outputs of each linear.
    pub(super) widths: Vec<usize>,
}

impl Group {
    /// Outputs of all its linears.
    pub(super) fn outputs(&self) -> usize {
        self.widths.iter().sum()
    }
}

impl Loading<'_> {
    fn site(&mut self) -> SiteId {
        *self.sites += 1;
        SiteId(*self.sites - 1)
    }

    /// The site of the linear, norm or table that was loaded last.
    pub(super) fn last_site(&self) -> SiteId {
        SiteId(*self.sites - 1)
    }

    /// Linears `[width, inputs]` that read one input, with biases.
    pub(super) fn group(&mut self, weight: BaseWeight, inputs: usize, widths: &[usize]) -> Result<Group> {
        let sites: Vec<SiteId> = widths.iter().map(|_| self.site()).collect();
        let biases: Vec<Tensor<'_>> =
            widths.iter().map(|&width| Tensor::from_f32(&[width], &self.rng.normals(width, 0.5))).collect();
        let mut dense: Vec<(Vec<usize>, Vec<u8>)> = Vec::new();
        let mut codes = Vec::new();
        for &width in widths {
            match weight {
                BaseWeight::Dense => dense.push((vec![width, inputs], self.dense(width, inputs))),
                BaseWeight::Codes(bits, size) => codes.push(self.codes(width, groups(inputs, size, |_| bits), false)),
                BaseWeight::MixedCodes => {
                    const BITS: [u8; 6] = [8, 6, 5, 4, 3, 2];
                    codes.push(self.codes(width, groups(inputs, 32, |index| BITS[index % 6]), true));
                }
            }
        }
        let mut weights: Vec<StoredWeight<'_>> =
            codes.into_iter().map(|codes| StoredWeight::Quantized(Box::new(codes))).collect();
        for (shape, bytes) in &dense {
            weights.push(StoredWeight::Dense(view(DType::BF16, shape, bytes)?));
        }
        let sources: Vec<LinearSource<'_>> = (sites.iter().zip(weights).zip(&biases))
            .map(|((&site, weight), bias)| LinearSource { site, weight, bias: Some(bias.view()), checkpoint: None })
            .collect();
        let id = self.builder.load_linears(&sources)?;
        Ok(Group { id, sites, inputs, widths: widths.to_vec() })
    }

    /// A norm's weight `[width]`.
    pub(super) fn norm(&mut self, width: usize) -> Result<NormId> {
        self.norm_of(&[width])
    }

    /// A norm's weight of some shape.
    pub(super) fn norm_of(&mut self, shape: &[usize]) -> Result<NormId> {
        let (site, weight) = (self.site(), self.vector(shape));
        self.builder.load_norm(&NormSource::plain(site, weight.view()))
    }

    /// A norm's weight and bias, `[width]` each.
    pub(super) fn biased_norm(&mut self, width: usize) -> Result<NormId> {
        let (site, weight, bias) = (self.site(), self.vector(&[width]), self.vector(&[width]));
        let source = NormSource { bias: Some(bias.view()), ..NormSource::plain(site, weight.view()) };
        self.builder.load_norm(&source)
    }

    /// Random floats of some shape.
    fn vector(&mut self, shape: &[usize]) -> Tensor<'static> {
        Tensor::from_f32(shape, &self.rng.normals(shape.iter().product(), 1.0))
    }

    /// An embedding table `[vocab, width]`.
    pub(super) fn table(&mut self, vocab: usize, width: usize) -> Result<EmbeddingId> {
        let (site, shape) = (self.site(), [vocab, width]);
        let bytes: Vec<u8> = self
            .rng
            .normals(vocab * width, 1.0)
            .into_iter()
            .flat_map(|value| bf16::from_f32(value).to_le_bytes())
            .collect();
        self.builder.load_embedding(site, view(DType::BF16, &shape, &bytes)?)
    }

    /// Random bfloat16 numbers of a weight, scaled so that outputs of a normal input are about normal.
    fn dense(&mut self, width: usize, inputs: usize) -> Vec<u8> {
        let values = self.rng.normals(width * inputs, (inputs as f32).powf(-0.5));
        values.into_iter().flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect()
    }

    fn codes(&mut self, width: usize, groups: Vec<QuantGroup>, shuffled: bool) -> RandomCodes {
        RandomCodes::new(&mut self.rng, width, groups, true, shuffled)
    }

    /// A low-rank delta at one of a group's linears.
    pub(super) fn low_rank(&mut self, group: &Group, member: usize, rank: usize) -> SiteDelta<'static> {
        let scale = (group.inputs as f32).powf(-0.5);
        let low_rank = Some(self.factors([group.widths[member], group.inputs], rank, scale));
        SiteDelta { low_rank, ..SiteDelta::at(group.sites[member]) }
    }

    /// Factors of a weight `[outputs, inputs]`; `scale` is that of A's values.
    pub(super) fn factors(&mut self, [outputs, inputs]: [usize; 2], rank: usize, scale: f32) -> LowRank<'static> {
        let a = Tensor::from_f32(&[rank, inputs], &self.rng.normals(rank * inputs, scale));
        let b = Tensor::from_f32(&[outputs, rank], &self.rng.normals(outputs * rank, (rank as f32).powf(-0.5)));
        LowRank::new(a, b, 0.75)
    }
}

/// A view of bytes that fill the shape.
fn view<'a>(dtype: DType, shape: &'a [usize], bytes: &'a [u8]) -> Result<TensorView<'a>> {
    TensorView::new(dtype, shape, bytes)
        .ok_or_else(|| Error::new(ErrorCode::Internal, "a case's tensor has other bytes"))
}

/// Groups of a size, the last one perhaps smaller.
fn groups(inputs: usize, size: usize, bits: impl Fn(usize) -> u8) -> Vec<QuantGroup> {
    let group = |(index, first)| QuantGroup { bits: bits(index), inputs: size.min(inputs - first) };
    (0..inputs).step_by(size).enumerate().map(group).collect()
}

/// Prepares an adapter and puts it into a slot.
pub(super) fn install(backend: &mut Backend, slot: u32, deltas: &[SiteDelta<'_>]) -> Result<()> {
    let prepared = backend.adapters.prepare(deltas, &mut || Ok(())).map_err(|error| match error {
        PrepareError::Failed(error) => error,
        PrepareError::ZeroNorm { .. } => Error::new(ErrorCode::Internal, "a DoRA norm of a case is 0"),
    })?;
    backend.compute.install_adapter(SlotId(slot), prepared)
}

/// Rows with these adapters: index of the slot, request weight.
pub(super) fn route(rows: &[&[(u32, f32)]]) -> AdapterBatch {
    let rows: Vec<Vec<(SlotId, f32)>> =
        rows.iter().map(|row| row.iter().map(|&(slot, weight)| (SlotId(slot), weight)).collect()).collect();
    let mut batch = AdapterBatch::default();
    batch.rebuild(rows.iter().map(Vec::as_slice));
    batch
}

/// Rows without adapters.
pub(super) fn base_rows(rows: usize) -> AdapterBatch {
    route(&vec![&[][..]; rows])
}

/// Buffers of these widths, each for that many rows.
pub(super) fn buffers<const N: usize>(
    compute: &mut dyn Compute,
    rows: usize,
    widths: [usize; N],
) -> Result<[BufferId; N]> {
    let buffers = widths.map(|width| compute.create_buffer(width));
    compute.reserve_rows(rows)?;
    Ok(buffers)
}

/// The first rows of a buffer, `[rows, width]`.
pub(super) fn read(compute: &mut dyn Compute, buffer: BufferId, rows: usize, width: usize) -> Result<Vec<f32>> {
    let mut values = vec![0.0; rows * width];
    compute.read_rows(buffer, &mut values)?;
    Ok(values)
}
