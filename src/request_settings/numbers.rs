//! Numbers that clients write in several ways: a seed below zero, and -1 for all tokens.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::read_json::unexpected;

/// What a seed may be.
const SEED: &str = "an integer of 64 bits";

/// What the number of tokens to sample from may be.
const TOP_K: &str = "an integer of at least 0, or -1 for all tokens";

/// A seed, of which a negative one is the number with the same bits.
pub(super) fn seed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    match (&value, value.as_u64(), value.as_i64()) {
        (Value::Null, ..) => Ok(None),
        (_, Some(seed), _) => Ok(Some(seed)),
        (_, None, Some(seed)) => Ok(Some(seed.cast_unsigned())),
        _ => Err(unexpected(&value, SEED)),
    }
}

/// A number of tokens to sample from: 0 for all, which is -1 to vLLM.
pub(super) fn top_k<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    match (&value, value.as_u64(), value.as_i64()) {
        (Value::Null, ..) => Ok(None),
        (_, Some(tokens), _) => Ok(Some(usize::try_from(tokens).unwrap_or(usize::MAX))),
        (_, None, Some(-1)) => Ok(Some(0)),
        _ => Err(unexpected(&value, TOP_K)),
    }
}

/// A seed as the command line has it.
#[cfg(feature = "cli")]
pub(super) fn seed_arg(text: &str) -> Result<u64, String> {
    let signed = |_| text.parse().map(i64::cast_unsigned);
    text.parse().or_else(signed).map_err(|_| format!("write {SEED}"))
}

/// A number of tokens to sample from as the command line has it.
#[cfg(feature = "cli")]
pub(super) fn top_k_arg(text: &str) -> Result<usize, String> {
    if text == "-1" { Ok(0) } else { text.parse().map_err(|_| format!("write {TOP_K}")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    proptest! {
        #[test]
        fn any_64_bits_are_a_seed(bits: u64) {
            for written in [json!(bits), json!(bits.cast_signed())] {
                prop_assert_eq!(seed(written).expect("a seed"), Some(bits));
            }
        }

        #[test]
        fn only_minus_one_is_a_negative_number_of_tokens(tokens in i64::MIN..0) {
            prop_assert_eq!(top_k(json!(tokens)).ok(), (tokens == -1).then_some(Some(0)));
        }
    }

    #[test]
    fn what_is_no_such_number_is_refused() {
        for value in [json!(1e30), json!(0.5), json!("1"), json!(true), json!([1])] {
            assert!(seed(value.clone()).is_err_and(|error| error.to_string().contains("64 bits")), "{value}");
            assert!(top_k(value.clone()).is_err_and(|error| error.to_string().contains("-1 for all")), "{value}");
        }
        assert_eq!((seed(Value::Null).expect("none"), top_k(Value::Null).expect("none")), (None, None));
        assert_eq!(top_k(json!(40)).expect("a number"), Some(40));
    }
}
