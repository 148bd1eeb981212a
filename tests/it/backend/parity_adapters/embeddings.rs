//! Embeddings under adapters.

use exlora::adapter::batch::SlotId;
use proptest::prelude::*;

use super::random::{Adapter, Place, random_adapters, random_mixtures, route_in, upload_all};
use support::Rng;
use support::harness::{Device, FLOATS, Harness, Mixture, Tensor, assert_close, bits, fast, isas, oracle};

const TOLERANCE: f32 = 1e-5;

/// An embedding, adapters on it, and tokens with their mixtures.
#[derive(Clone)]
struct Embedding {
    table: Tensor,
    adapters: Vec<Adapter>,
    tokens: Vec<u32>,
    mixtures: Vec<Mixture>,
    repeat: u32,
}

impl Embedding {
    fn random(seed: u64, hidden: usize, rows: usize) -> Self {
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

    fn only(&self, row: usize) -> Self {
        Self { tokens: vec![self.tokens[row]], mixtures: vec![self.mixtures[row].clone()], ..self.clone() }
    }

    fn run(&self, device: Device) -> Vec<f32> {
        let mut harness = Harness::open(device);
        let hidden = self.table.shape[1];
        let (table, site) = harness.table(&self.table);
        upload_all(&mut harness, &[site], &self.adapters);
        let out = harness.room(hidden, self.tokens.len());
        let batch = route_in(self.repeat, &self.mixtures);
        harness.compute().embed(table, &self.tokens, 1.25, &batch, out).expect("tokens embed");
        harness.get(out, hidden, self.tokens.len())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn embeddings_agree_with_the_oracle(seed: u64, hidden in 1usize..150, rows in 1usize..24) {
        let case = Embedding::random(seed, hidden, rows);
        let expected = case.run(oracle());
        for isa in isas() {
            assert_close(&isa.to_string(), hidden, &case.run(fast(isa, 2)), &expected, TOLERANCE);
        }
    }

    #[test]
    fn a_row_of_an_embedding_has_its_bits_alone_and_the_base_row_those_of_the_base(
        seed: u64, hidden in 1usize..150, rows in 1usize..24
    ) {
        let mut case = Embedding::random(seed, hidden, rows);
        case.mixtures[0].clear();
        case.tokens[0] = 1;
        for isa in isas() {
            let together = case.run(fast(isa, 3));
            for row in 0..rows.min(4) {
                let alone = case.only(row).run(fast(isa, 1));
                prop_assert_eq!(bits(&alone), bits(&together[row * hidden..(row + 1) * hidden]));
            }
            let bare = Embedding { adapters: Vec::new(), ..case.only(0) };
            prop_assert_eq!(bits(&bare.run(fast(isa, 1))), bits(&together[..hidden]));
        }
    }
}
