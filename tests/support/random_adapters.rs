//! Random adapters, each of which changes some of what it could, and random mixtures of them.

use exlora::adapter::batch::{AdapterBatch, SlotId};
use exlora::sites::SiteId;

use super::Rng;
use super::deltas::{Change, random_low};
use super::harness::{FLOATS, Harness, Mixture, Tensor, route};

/// Repeats in which adapters change something; in later ones every row is a base row.
const REPEATS: u32 = 2;

/// A slot, and what its adapter changes.
pub type Adapter = (SlotId, Vec<Change>);

/// Uploads them all.
pub fn upload_all(harness: &mut Harness, sites: &[SiteId], adapters: &[Adapter]) {
    for (slot, changes) in adapters {
        harness.upload(*slot, sites, changes).expect("the adapter uploads");
    }
}

/// The shape of what a random change is made for.
#[derive(Clone, Copy)]
pub struct Place {
    pub inputs: usize,
    pub outputs: usize,
    /// An embedding, whose weight is `[inputs, outputs]`.
    pub is_table: bool,
    /// Rows that a replaced weight may have more than the base.
    pub spare_rows: usize,
}

/// A random change there: each of its parts is present or not.
fn random_change(rng: &mut Rng, site: usize, repeat: u32, place: Place) -> Change {
    let Place { mut inputs, mut outputs, is_table, spare_rows } = place;
    let some = |rng: &mut Rng, shape: &[usize], scale: f32| {
        Tensor::new(FLOATS[rng.below(3)], shape, &rng.normals(shape.iter().product(), scale))
    };
    let spread = (inputs as f32).powf(-0.5);
    let mut change = Change { site, repeat, ..Change::default() };
    if rng.below(4) == 0 {
        let spare = rng.below(spare_rows + 1);
        (inputs, outputs) = if is_table { (inputs + spare, outputs) } else { (inputs, outputs + spare) };
        let shape = if is_table { [inputs, outputs] } else { [outputs, inputs] };
        change.weight = Some(some(rng, &shape, spread));
    }
    if !is_table && rng.below(3) == 0 {
        change.bias = Some(some(rng, &[outputs], 1.0));
    }
    if rng.below(3) == 0 {
        let (rows, width) = if is_table { (inputs, outputs) } else { (outputs, inputs) };
        let ids: Vec<u32> = (0..rows as u32).filter(|_| rng.below(4) == 0).collect();
        change.rows = Some((ids.clone(), some(rng, &[ids.len(), width], spread)));
    }
    let is_nothing = change.weight.is_none() && change.bias.is_none() && change.rows.is_none();
    if rng.below(4) > 0 || is_nothing {
        let rank = 1 + rng.below(20);
        let (dtype, kind) = (FLOATS[rng.below(3)], rng.below(3));
        let mut low = random_low(rng, dtype, rank, outputs, inputs);
        low.b_bias = (kind == 1 && !is_table).then(|| some(rng, &[outputs], 1.0));
        if kind == 2 {
            let magnitude: Vec<f32> = (0..outputs).map(|_| 0.5 + rng.below(100) as f32 * 0.01).collect();
            low.magnitude = Some(Tensor::new(FLOATS[rng.below(3)], &[outputs], &magnitude));
        }
        change.low = Some(low);
    }
    let is_rescaled = change.low.as_ref().is_some_and(|low| low.magnitude.is_some());
    if !is_table && !is_rescaled && rng.below(3) == 0 {
        let (dtype, rank) = (FLOATS[rng.below(3)], 1 + rng.below(12));
        change.removed = Some(random_low(rng, dtype, rank, outputs, inputs));
    }
    change
}

/// Adapters that change some of the places, in some of the repeats.
pub fn random_adapters(rng: &mut Rng, places: &[Place]) -> Vec<Adapter> {
    let slots = (0..1 + rng.below(4)).map(|i| SlotId(2 * i as u32 + 1));
    let change_all = |rng: &mut Rng| {
        let mut changes = Vec::new();
        for (site, &place) in places.iter().enumerate() {
            for repeat in 0..REPEATS {
                if rng.below(4) > 0 {
                    changes.push(random_change(rng, site, repeat, place));
                }
            }
        }
        changes
    };
    slots.map(|slot| (slot, change_all(rng))).collect()
}

/// Up to three adapters a row, at weights of every kind.
pub fn random_mixtures(rng: &mut Rng, adapters: &[Adapter], rows: usize) -> Vec<Mixture> {
    const WEIGHTS: [f32; 6] = [1.0, 1.0, 0.0, 0.37, -1.0, 2.5];
    let entry = |rng: &mut Rng| (adapters[rng.below(adapters.len())].0, WEIGHTS[rng.below(6)]);
    (0..rows).map(|_| (0..rng.below(4)).map(|_| entry(rng)).collect()).collect()
}

/// Routing of rows in some repeat of their layer.
pub fn route_in(repeat: u32, mixtures: &[Mixture]) -> AdapterBatch {
    let mut batch = route(mixtures);
    batch.set_repeat(repeat);
    batch
}
