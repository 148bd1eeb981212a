//! The embedding kernel against the host's arithmetic: bit for bit without adapters, and with them against f64.

use std::sync::Arc;

use ::support::Rng;
use exlora::backend::StepRows;
use exlora::backend::cuda::driver::Device;
use exlora::backend::cuda::ops::embed::{Embed, EmbedKernel, SQUARES_COLUMNS};
use exlora::backend::cuda::tables::{FloatRows, FloatType, SlotEmbedding};
use half::{bf16, f16};

use crate::step::{DeviceSlot, LowRank, Routes, Step, assert_close, bits};
use crate::support::{device, download, upload};

const VOCAB: usize = 11;
const MULTIPLIER: f32 = 1.5;
/// The embedding of the tests, among those of an adapter.
const EMBEDDING: usize = 2;
const TYPES: [FloatType; 3] = [FloatType::F16, FloatType::Bf16, FloatType::F32];

/// Rows as they are stored, `[rows, width]`.
#[derive(Clone)]
struct Rows {
    float_type: FloatType,
    /// Exact in the type.
    values: Vec<f32>,
    width: usize,
}

impl Rows {
    fn random(rng: &mut Rng, float_type: FloatType, rows: usize, width: usize) -> Self {
        let round = |value: f32| match float_type {
            FloatType::F16 => f16::from_f32(value).to_f32(),
            FloatType::Bf16 => bf16::from_f32(value).to_f32(),
            FloatType::F32 => value,
        };
        Self { float_type, values: rng.normals(rows * width, 1.0).into_iter().map(round).collect(), width }
    }

    fn count(&self) -> usize {
        self.values.len() / self.width
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..(row + 1) * self.width]
    }

    fn bytes(&self) -> Vec<u8> {
        let bytes = self.values.iter().flat_map(|&value| match self.float_type {
            FloatType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
            FloatType::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
            FloatType::F32 => value.to_le_bytes().to_vec(),
        });
        bytes.collect()
    }
}

/// What an adapter changes at the embedding.
#[derive(Clone, Default)]
struct EmbeddingDelta {
    table: Option<Rows>,
    /// Tokens and their rows.
    rows: Option<(Vec<u32>, Rows)>,
    /// A transposed, and the rest.
    low: Option<(Rows, LowRank)>,
}

impl EmbeddingDelta {
    fn slot(&self, device: &Arc<Device>) -> DeviceSlot {
        let mut slot = DeviceSlot::empty();
        let rows = |slot: &mut DeviceSlot, rows: &Rows| FloatRows {
            values: slot.hold(upload(device, &rows.bytes())),
            rows: rows.count() as u32,
            float_type: rows.float_type as u32,
        };
        let mut embedding = SlotEmbedding::default();
        if let Some(table) = &self.table {
            embedding.table = rows(&mut slot, table);
        }
        if let Some((ids, values)) = &self.rows {
            (embedding.row_ids, embedding.rows) = (slot.hold(upload(device, ids)), rows(&mut slot, values));
        }
        if let Some((a, low)) = &self.low {
            (embedding.a, embedding.low_rank) = (rows(&mut slot, a), slot.low_rank(device, low));
        }
        let mut embeddings = vec![SlotEmbedding::default(); EMBEDDING];
        embeddings.push(embedding);
        slot.set_embeddings(device, &embeddings);
        slot
    }
}

/// The result of a launch.
struct Embedded {
    hidden: Vec<f32>,
    sum_squares: Vec<f32>,
}

/// Runs the kernel with that many blocks along the rows.
fn embed(table: &Rows, tokens: &[u32], routes: &Routes, deltas: &[EmbeddingDelta], blocks: usize) -> Embedded {
    let device = device();
    let (rows, hidden_size) = (tokens.len(), table.width);
    let slots: Vec<DeviceSlot> = deltas.iter().map(|delta| delta.slot(&device)).collect();
    let step = Step::new(&device, tokens, routes, &slots, &StepRows::default());
    let memory = upload(&device, &table.bytes());
    let hidden = device.allocate(rows * hidden_size * 4).expect("allocated");
    let sum_squares = device.allocate(rows * hidden_size.div_ceil(SQUARES_COLUMNS) * 4).expect("allocated");
    let arguments = Embed {
        step: step.tables,
        table: FloatRows { values: memory.address(), rows: VOCAB as u32, float_type: table.float_type as u32 },
        hidden: hidden.address(),
        sum_squares: sum_squares.address(),
        hidden_size: hidden_size as u32,
        embedding: EMBEDDING as u32,
        multiplier: MULTIPLIER,
        padding: 0,
    };
    EmbedKernel::load(&device).expect("compiled").launch(&arguments, blocks).expect("launched");
    Embedded { hidden: download(&hidden), sum_squares: download(&sum_squares) }
}

/// A row in f64, step by step.
fn expected(table: &Rows, token: u32, route: &[(usize, f32)], deltas: &[EmbeddingDelta]) -> Vec<f64> {
    let token = token as usize;
    let of_route = || route.iter().map(|&(slot, weight)| (&deltas[slot], weight));
    let mut tables = of_route().filter_map(|(delta, _)| delta.table.as_ref());
    let mut row = tables.next_back().unwrap_or(table).row(token);
    for (ids, values) in of_route().filter_map(|(delta, _)| delta.rows.as_ref()) {
        if let Some(index) = ids.iter().position(|&id| id as usize == token) {
            row = values.row(index);
        }
    }
    let mut y: Vec<f64> = row.iter().map(|&value| f64::from(value)).collect();
    for (delta, weight) in of_route() {
        let Some((a, low)) = &delta.low else { continue };
        let t = if token < a.count() { a.row(token).to_vec() } else { vec![0.0; low.rank] };
        for (column, y) in y.iter_mut().enumerate() {
            *y = low.apply(&t, column, weight, *y);
        }
    }
    y.into_iter().map(|value| f64::from(MULTIPLIER) * value).collect()
}

#[test]
fn rows_of_a_table_of_any_type_become_the_residual_stream() {
    let tokens = [3, 0, 10, 3, 7];
    for hidden_size in [1, 255, 256, 300, 515] {
        for float_type in TYPES {
            let table = Rows::random(&mut Rng(1), float_type, VOCAB, hidden_size);
            let found = embed(&table, &tokens, &vec![Vec::new(); tokens.len()], &[], 2);
            let want = tokens.map(|token| table.row(token as usize)).concat();
            let want: Vec<f32> = want.into_iter().map(|value| MULTIPLIER * value).collect();
            assert_eq!(bits(&found.hidden), bits(&want), "{hidden_size} columns of {float_type:?}");
            let squares = want.chunks(hidden_size).flat_map(|row| row.chunks(SQUARES_COLUMNS));
            let squares: Vec<f64> =
                squares.map(|block| block.iter().map(|&value| f64::from(value).powi(2)).sum()).collect();
            assert_close(&found.sum_squares, &squares, 1e-6, "sums of squares");
        }
    }
}

/// Adapters of every kind: none of the parts, each alone, and all together, in each type.
fn deltas(rng: &mut Rng, hidden_size: usize) -> Vec<EmbeddingDelta> {
    let mut all = vec![EmbeddingDelta::default()];
    for (index, float_type) in TYPES.into_iter().enumerate() {
        // Larger than the base's; A has more tokens than the base, or fewer.
        let table = Rows::random(rng, float_type, VOCAB + 4, hidden_size);
        let ids: Vec<u32> = [vec![0, 3, 7], vec![3], vec![0, 1, 2, 4, 9, 13]][index].clone();
        let rows = (ids.clone(), Rows::random(rng, float_type, ids.len(), hidden_size));
        let rank = [8, 5, 19][index];
        let a = Rows::random(rng, float_type, [VOCAB, VOCAB + 4, 6][index], rank);
        let low = LowRank::random(rng, rank, hidden_size);
        let low = match index {
            0 => low,
            1 => low.with_b_bias(rng),
            _ => low.with_magnitude(rng),
        };
        all.push(EmbeddingDelta { table: Some(table.clone()), ..EmbeddingDelta::default() });
        all.push(EmbeddingDelta { rows: Some(rows.clone()), ..EmbeddingDelta::default() });
        all.push(EmbeddingDelta { low: Some((a.clone(), low.clone())), ..EmbeddingDelta::default() });
        all.push(EmbeddingDelta { table: Some(table), rows: Some(rows), low: Some((a, low)) });
    }
    all
}

/// Rows under each of `count` adapters, under mixtures of them in either order, and of the base.
fn routes(rng: &mut Rng, count: usize) -> Routes {
    let mut routes: Routes = (0..count).map(|slot| vec![(slot, 1.0)]).collect();
    routes.push(Vec::new());
    for _ in 0..20 {
        const WEIGHTS: [f32; 5] = [1.0, 1.0, 0.0, 0.37, -2.5];
        routes.push((0..2 + rng.below(3)).map(|_| (rng.below(count), WEIGHTS[rng.below(5)])).collect());
    }
    routes
}

/// Tokens that the rows have: those of a larger table only where the last one of the row is.
fn tokens(rng: &mut Rng, routes: &Routes, deltas: &[EmbeddingDelta]) -> Vec<u32> {
    let vocab = |route: &Vec<(usize, f32)>| {
        let larger = route.iter().any(|&(slot, _)| deltas[slot].table.is_some());
        if larger { VOCAB + 4 } else { VOCAB }
    };
    routes.iter().map(|route| rng.below(vocab(route)) as u32).collect()
}

#[test]
fn rows_under_every_kind_of_delta_and_mixtures_of_them_agree_with_f64() {
    for hidden_size in [1, 40, 256, 301] {
        let mut rng = Rng(hidden_size as u64);
        let table = Rows::random(&mut rng, FloatType::Bf16, VOCAB, hidden_size);
        let deltas = deltas(&mut rng, hidden_size);
        let routes = routes(&mut rng, deltas.len());
        let tokens = tokens(&mut rng, &routes, &deltas);
        let found = embed(&table, &tokens, &routes, &deltas, 7);
        for (row, (&token, route)) in tokens.iter().zip(&routes).enumerate() {
            let want = expected(&table, token, route, &deltas);
            let what = format!("{hidden_size} columns, token {token} under {route:?}");
            assert_close(&found.hidden[row * hidden_size..][..hidden_size], &want, 1e-5, &what);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    let mut rng = Rng(2);
    let table = Rows::random(&mut rng, FloatType::F32, VOCAB, 300);
    let deltas = deltas(&mut rng, 300);
    let routes = routes(&mut rng, deltas.len());
    let tokens = tokens(&mut rng, &routes, &deltas);
    let together = embed(&table, &tokens, &routes, &deltas, 5);
    for row in (0..tokens.len()).step_by(5) {
        let alone = embed(&table, &tokens[row..=row], &vec![routes[row].clone()], &deltas, 1);
        assert_eq!(bits(&together.hidden[row * 300..][..300]), bits(&alone.hidden));
        assert_eq!(bits(&together.sum_squares[row * 2..][..2]), bits(&alone.sum_squares));
    }
}
