//! Embeddings under adapters.

use proptest::prelude::*;
use support::adapter_cases::EmbeddingCase;
use support::harness::{assert_close, bits, fast, isas, oracle};

const TOLERANCE: f32 = 1e-5;

proptest! {
    #![proptest_config(support::cases(64))]

    #[test]
    fn embeddings_agree_with_the_oracle(seed: u64, hidden in 1usize..150, rows in 1usize..24) {
        let case = EmbeddingCase::random(seed, hidden, rows);
        let expected = case.run(oracle());
        for isa in isas() {
            assert_close(&isa.to_string(), hidden, &case.run(fast(isa, 2)), &expected, TOLERANCE);
        }
    }

    #[test]
    fn a_row_of_an_embedding_has_the_same_bits_alone_and_a_base_row_those_of_the_base(
        seed: u64, hidden in 1usize..150, rows in 1usize..24
    ) {
        let mut case = EmbeddingCase::random(seed, hidden, rows);
        case.mixtures[0].clear();
        case.tokens[0] = 1;
        for isa in isas() {
            let together = case.run(fast(isa, 3));
            for row in 0..rows.min(4) {
                let alone = case.only(row).run(fast(isa, 1));
                prop_assert_eq!(bits(&alone), bits(&together[row * hidden..(row + 1) * hidden]));
            }
            let bare = EmbeddingCase { adapters: Vec::new(), ..case.only(0) };
            prop_assert_eq!(bits(&bare.run(fast(isa, 1))), bits(&together[..hidden]));
        }
    }
}
