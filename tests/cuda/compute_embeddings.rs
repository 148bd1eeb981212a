//! Embeddings under adapters, through the backend: random cases against the reference backend, and rows against themselves in other
//! batches.

use exlora::ErrorCode;
use exlora::adapter::batch::SlotId;
use exlora::backend::PrepareError;
use exlora::tensor::DType;
use support::Rng;
use support::adapter_cases::EmbeddingCase;
use support::deltas::{Change, Low};
use support::harness::{Harness, Tensor, bits, oracle, route};

use crate::compute::{assert_ratio, cuda};

#[test]
fn embeddings_under_random_adapters_agree_with_the_reference() {
    for (seed, (hidden, rows)) in (0..).zip([(1, 3), (64, 20), (96, 9), (149, 16), (256, 24), (300, 12), (33, 24)]) {
        let case = EmbeddingCase::random(seed, hidden, rows);
        assert_ratio(&format!("seed {seed}"), hidden, &case.run(cuda()), &case.run(oracle()), 1e-3);
    }
}

#[test]
fn a_row_of_an_embedding_has_the_same_bits_alone_and_a_base_row_those_of_the_base() {
    for (seed, (hidden, rows)) in (20..).zip([(70, 12), (300, 7)]) {
        let mut case = EmbeddingCase::random(seed, hidden, rows);
        case.mixtures[0].clear();
        case.tokens[0] = 1;
        let together = case.run(cuda());
        for row in [0, 1, 2, rows - 1] {
            let among = &together[row * hidden..(row + 1) * hidden];
            assert_eq!(bits(&case.only(row).run(cuda())), bits(among), "seed {seed}, row {row}");
        }
        let bare = EmbeddingCase { adapters: Vec::new(), ..case.only(0) };
        assert_eq!(bits(&bare.run(cuda())), bits(&together[..hidden]), "seed {seed}");
    }
}

#[test]
fn a_token_that_only_another_rows_adapter_has_is_an_error() {
    let tensor = |rows: usize| Tensor::new(DType::F16, &[rows, 2], &vec![1.0; 2 * rows]);
    let mut harness = Harness::open(cuda());
    let (table, site) = harness.table(&tensor(3));
    let wider = Change { weight: Some(tensor(5)), ..Change::default() };
    harness.upload(SlotId(0), &[site], &[wider]).expect("the adapter uploads");
    let out = harness.buffer(2, 2);
    let batch = route(&[vec![(SlotId(0), 1.0)], vec![]]);
    harness.compute().embed(table, &[4, 2], 1.0, &batch, out).expect("its own rows have the tokens");
    for tokens in [[4, 3], [5, 2]] {
        let error = harness.compute().embed(table, &tokens, 1.0, &batch, out).unwrap_err();
        assert_eq!(error.code(), ErrorCode::TokenOutOfRange);
    }
}

#[test]
fn a_norm_of_zero_over_the_vocabulary_is_an_error_that_names_the_channel() {
    // E = [3 1; 0 -1] and B A with -1 and 1 in the second channel, so that nothing is left of it.
    let table = Tensor::new(DType::F32, &[2, 2], &[3.0, 1.0, 0.0, -1.0]);
    let low = Low::of(&[&[1.0, -1.0]], &[&[0.0], &[-1.0]], 1.0);
    let magnitude = Some(Tensor::new(DType::F32, &[2], &[1.0, 1.0]));
    let mut harness = Harness::open(cuda());
    let (_, site) = harness.table(&table);
    let before = harness.memory();
    let change = Change::low(0, Low { magnitude, ..low });
    let error = harness.upload(SlotId(0), &[site], &[change]).unwrap_err();
    assert_eq!(error, PrepareError::ZeroNorm { site, output: 1 });
    assert_eq!(harness.memory(), before);
}

#[test]
fn a_norm_over_the_vocabulary_is_that_of_the_trained_rows() {
    let mut rng = Rng(40);
    let mut matrix = |rows: usize, columns: usize, scale: f32| {
        Tensor::new(DType::F16, &[rows, columns], &rng.normals(rows * columns, scale))
    };
    let (table, trained) = (matrix(7, 40, 1.0), matrix(2, 40, 10.0));
    let low = Low { a: matrix(3, 7, 1.0), b: matrix(40, 3, 1.0), scale: 0.5, b_bias: None, magnitude: None };
    let magnitude = Some(Tensor::new(DType::F32, &[40], &[2.0; 40]));
    let change = Change { rows: Some((vec![2, 5], trained)), ..Change::low(0, Low { magnitude, ..low }) };
    let run = |device| {
        let mut harness = Harness::open(device);
        let (table, site) = harness.table(&table);
        harness.upload(SlotId(0), &[site], std::slice::from_ref(&change)).expect("the adapter uploads");
        let out = harness.buffer(40, 4);
        let batch = route(&vec![vec![(SlotId(0), 1.0)]; 4]);
        harness.compute().embed(table, &[0, 2, 5, 6], 1.0, &batch, out).expect("tokens embed");
        harness.get(out, 40, 4)
    };
    assert_ratio("trained rows", 40, &run(cuda()), &run(oracle()), 1e-3);
}
