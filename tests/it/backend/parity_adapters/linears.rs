//! Linears under adapters, through the head so that weights may bring more outputs.

use proptest::prelude::*;

use super::random::{Adapter, Place, random_adapters, random_mixtures, route_in, upload_all};
use support::Rng;
use support::harness::{Device, Harness, Member, Mixture, assert_close, bits, fast, isas, oracle, random_member};

const TOLERANCE: f32 = 1e-5;

/// A head of one linear or a group of several, adapters on it, and rows with their mixtures.
#[derive(Clone)]
struct Linears {
    inputs: usize,
    /// Room for the outputs of a row.
    stride: usize,
    members: Vec<Member>,
    adapters: Vec<Adapter>,
    x: Vec<f32>,
    mixtures: Vec<Mixture>,
    repeat: u32,
}

impl Linears {
    fn random(seed: u64, inputs: usize, rows: usize) -> Self {
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

    fn rows(&self) -> usize {
        self.mixtures.len()
    }

    /// One row of it alone.
    fn only(&self, row: usize) -> Self {
        let x = self.x[row * self.inputs..(row + 1) * self.inputs].to_vec();
        Self { x, mixtures: vec![self.mixtures[row].clone()], ..self.clone() }
    }

    /// Outputs `[rows, stride]`; what a row has no outputs for stays 7.
    fn run(&self, device: Device) -> Vec<f32> {
        let mut harness = Harness::open(device);
        let (group, sites) = harness.group(&self.members);
        upload_all(&mut harness, &sites, &self.adapters);
        let x = harness.put(self.inputs, &self.x);
        let picked: Vec<u32> = (0..self.rows() as u32).collect();
        let mut logits = vec![7.0; self.rows() * self.stride];
        let batch = route_in(self.repeat, &self.mixtures);
        harness.compute().head(group, x, &picked, &batch, &mut logits, self.stride).expect("the head runs");
        logits
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn linears_agree_with_the_oracle(seed: u64, inputs in 32usize..200, rows in 1usize..24) {
        let case = Linears::random(seed, inputs, rows);
        let expected = case.run(oracle());
        for isa in isas() {
            assert_close(&isa.to_string(), case.stride, &case.run(fast(isa, 2)), &expected, TOLERANCE);
        }
    }

    #[test]
    fn a_row_of_a_linear_has_its_bits_alone_and_on_any_number_of_threads(
        seed: u64, inputs in 32usize..200, rows in 2usize..24
    ) {
        let case = Linears::random(seed, inputs, rows);
        for isa in isas() {
            let together = case.run(fast(isa, 3));
            for row in 0..rows.min(4) {
                let among = &together[row * case.stride..(row + 1) * case.stride];
                prop_assert_eq!(bits(&case.only(row).run(fast(isa, 1))), bits(among));
            }
        }
    }

    #[test]
    fn a_base_row_of_a_linear_knows_nothing_of_adapters(seed: u64, inputs in 32usize..200, rows in 1usize..24) {
        let mut case = Linears::random(seed, inputs, rows);
        let row = seed as usize % rows;
        case.mixtures[row].clear();
        let bare = Linears { adapters: Vec::new(), ..case.only(row) };
        for isa in isas() {
            let among = case.run(fast(isa, 2));
            prop_assert_eq!(bits(&bare.run(fast(isa, 2))), bits(&among[row * case.stride..(row + 1) * case.stride]));
        }
    }
}
