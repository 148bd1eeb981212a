//! Linears under adapters, through the head so that weights may bring more outputs.

use proptest::prelude::*;
use support::adapter_cases::LinearsCase;
use support::harness::{assert_close, bits, fast, isas, oracle};

const TOLERANCE: f32 = 1e-5;

proptest! {
    #![proptest_config(support::cases(96))]

    #[test]
    fn linears_agree_with_the_oracle(seed: u64, inputs in 32usize..200, rows in 1usize..24) {
        let case = LinearsCase::random(seed, inputs, rows);
        let expected = case.run(oracle());
        for isa in isas() {
            assert_close(&isa.to_string(), case.stride, &case.run(fast(isa, 2)), &expected, TOLERANCE);
        }
    }

    #[test]
    fn a_row_of_a_linear_has_the_same_bits_alone_and_on_any_number_of_threads(
        seed: u64, inputs in 32usize..200, rows in 2usize..24
    ) {
        let case = LinearsCase::random(seed, inputs, rows);
        for isa in isas() {
            let together = case.run(fast(isa, 3));
            for row in 0..rows.min(4) {
                let among = &together[row * case.stride..(row + 1) * case.stride];
                prop_assert_eq!(bits(&case.only(row).run(fast(isa, 1))), bits(among));
            }
        }
    }

    #[test]
    fn a_base_row_of_a_linear_has_the_same_bits_with_adapters_and_without(seed: u64, inputs in 32usize..200, rows in 1usize..24) {
        let mut case = LinearsCase::random(seed, inputs, rows);
        let row = seed as usize % rows;
        case.mixtures[row].clear();
        let bare = LinearsCase { adapters: Vec::new(), ..case.only(row) };
        for isa in isas() {
            let among = case.run(fast(isa, 2));
            prop_assert_eq!(bits(&bare.run(fast(isa, 2))), bits(&among[row * case.stride..(row + 1) * case.stride]));
        }
    }
}
