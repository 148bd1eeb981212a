//! Greedy rows on the device: their largest logits are those of a scan over all logits, bit for bit, and their logits stay there.

use exlora::backend::HeadSpec;
use exlora::tensor::DType;
use exlora::{Completion, Request};
use support::Rng;
use support::adapter_cases::LinearsCase;
use support::harness::{Member, Tensor, Weight};

use crate::compute::devices;
use crate::decoder::{engine, mixed_batch, on_cuda};
use crate::emulated::counter;

const MODEL: &str = "quill-4m";
/// Logits of a row of that model.
const VOCAB: u64 = 2048;

/// The head of one linear, on rows without adapters: its weight `[outputs, 8]`, and a bias.
fn head_of(weight: &[f32], bias: Vec<f32>, x: Vec<f32>) -> LinearsCase {
    let (outputs, rows) = (bias.len(), x.len() / 8);
    LinearsCase {
        inputs: 8,
        stride: outputs,
        members: vec![Member {
            weight: Weight::Dense(Tensor::new(DType::F16, &[outputs, 8], weight)),
            bias: Some(Tensor::new(DType::F32, &[outputs], &bias)),
        }],
        adapters: Vec::new(),
        x,
        mixtures: vec![Vec::new(); rows],
        repeat: 0,
    }
}

#[test]
fn greedy_rows_have_the_largest_of_their_logits_and_all_others_the_same_bits() {
    // Heads of one linear, which adapters change and replace by larger ones.
    let mut seeds = 0..;
    for (rows, inputs) in [(1, 96), (5, 64), (17, 33), (23, 130), (9, 160), (3, 100)] {
        let mut cases = seeds.by_ref().map(|seed| (seed, LinearsCase::random(seed, inputs, rows)));
        let (seed, case) = cases.find(|(_, case)| case.members.len() == 1).expect("some have one");
        let mut rng = Rng(seed);
        let (device, _) = devices()[seed as usize % 2];
        let spec = |group| HeadSpec { multiplier: 0.5, cap: (rows % 2 == 0).then_some(1.5), ..HeadSpec::of(group) };
        let mixed: Vec<bool> = (0..rows).map(|_| rng.below(2) == 0).collect();
        for is_greedy in [vec![true; rows], mixed, vec![false; rows]] {
            let told = case.check_greedy(device, spec, &is_greedy);
            assert_eq!(told, is_greedy.iter().filter(|is_greedy| **is_greedy).count(), "seed {seed}");
        }
    }
}

#[test]
fn a_head_of_several_linears_writes_the_logits_of_greedy_rows() {
    let case = (0..).map(|seed| LinearsCase::random(seed, 64, 4)).find(|case| case.members.len() > 1);
    let told = case.expect("some have several").check_greedy(devices()[0].0, HeadSpec::of, &[true; 4]);
    assert_eq!(told, 0);
}

#[test]
fn of_equal_rows_of_the_head_the_first_is_chosen_and_a_number_that_is_not_finite_is_told() {
    let outputs = 700;
    let mut weight = Rng(5).normals(outputs * 8, 0.1);
    // The same row thrice, far from each other, larger than all others on the second row of x.
    for copy in [3, 411, 699] {
        weight[copy * 8..][..8].fill(4.0);
    }
    let x = [Rng(6).normals(8, 1.0), vec![1.0; 8], vec![-1.0; 8]].concat();
    for (device, _) in devices() {
        let tied = head_of(&weight, vec![0.0; outputs], x.clone());
        assert_eq!(tied.check_greedy(device, HeadSpec::of, &[true, true, false]), 2);
        let (_, largest) = tied.head_of(device, HeadSpec::of, 0.0, &[true; 3]);
        assert_eq!(largest[1].map(|largest| largest.token), Some(3));
        for (token, value) in [(411, f32::NAN), (600, f32::INFINITY), (650, f32::NEG_INFINITY)] {
            let mut bias = vec![0.0; outputs];
            bias[token] = value;
            // One more that is not finite, behind it.
            bias[699] = f32::INFINITY;
            let broken = head_of(&weight, bias, x.clone());
            assert_eq!(broken.check_greedy(device, HeadSpec::of, &[true, false, true]), 2, "{value}");
            let (_, largest) = broken.head_of(device, HeadSpec::of, 0.0, &[true; 3]);
            for largest in largest {
                let found = largest.expect("it is told");
                assert_eq!((found.token, found.logit.to_string()), (token as u32, value.to_string()));
            }
        }
    }
}

/// Requests that say nothing of their logits.
fn greedy(new_tokens: usize) -> Vec<Request> {
    mixed_batch(new_tokens).into_iter().map(|request| Request { return_logits: false, ..request }).collect()
}

fn token_ids(completions: &[Completion]) -> Vec<&[u32]> {
    completions.iter().map(|completion| &completion.token_ids[..]).collect()
}

#[test]
fn a_step_of_greedy_rows_copies_no_logits_to_the_host_and_a_mixed_one_those_that_are_read() {
    let new_tokens = 3;
    let engine = engine(MODEL, on_cuda());
    let expected = engine.generate(&mixed_batch(new_tokens)).expect("with logits");
    let row_bytes = VOCAB * size_of::<f32>() as u64;
    let mut mixed = greedy(new_tokens);
    mixed[1].logprobs = 2;
    mixed[4].return_logits = true;
    for (requests, rows_of_step) in [(greedy(new_tokens), 0), (mixed, 2)] {
        let before = counter("downloaded_bytes");
        let found = engine.generate(&requests).expect("the batch runs");
        let after = counter("downloaded_bytes");
        assert_eq!(token_ids(&found), token_ids(&expected));
        let (Some(before), Some(after)) = (before, after) else { return };
        let least = rows_of_step * new_tokens as u64 * row_bytes;
        // Beside logits, a step reads some bytes for each row that it has room for.
        let found = after - before;
        assert!((least..least + new_tokens as u64 * row_bytes).contains(&found), "{found} bytes, at least {least}");
    }
}

#[test]
#[ignore = "make test-slow"]
fn greedy_drafts_are_verified_on_the_device() {
    let engine = engine(MODEL, on_cuda());
    let prompt: Vec<u32> = (0..12).map(|i| 40 + i % 3).collect();
    let requests: Vec<Request> =
        greedy(6).into_iter().map(|request| Request { prompt: prompt.clone().into(), ..request }).collect();
    let expected = engine.generate(&requests).expect("without drafts");
    let drafting: Vec<Request> =
        requests.iter().map(|request| Request { ngram_draft: true, max_ngram: 1, ..request.clone() }).collect();
    let found = engine.generate(&drafting).expect("with drafts");
    assert_eq!(token_ids(&found), token_ids(&expected));
    let verified = |completion: &Completion| {
        let usage = completion.finish.usage;
        usage.accepted_draft_tokens + usage.rejected_draft_tokens
    };
    assert!(found.iter().map(verified).sum::<usize>() > 0, "nothing was drafted");
}
