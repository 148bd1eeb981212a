//! Strict JSON: UTF-8 without a byte order mark, and no object that names something twice; in Python the last one wins.
//! The order of names is kept, because the first matching pattern of `rank_pattern` and `alpha_pattern` wins.

use serde_json::Value;

use crate::unique_value::UniqueValue;

/// Reads one JSON value.
///
/// # Errors
/// What is wrong and where (path, line, column).
pub(super) fn read(bytes: &[u8]) -> Result<Value, String> {
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err("it begins with a byte order mark at line 1 column 1".to_owned());
    }
    if let Err(error) = std::str::from_utf8(bytes) {
        return Err(format!("it is not UTF-8 at byte {}", error.valid_up_to()));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let UniqueValue(value) = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        match path.as_str() {
            "." => error.into_inner().to_string(),
            _ => format!("{path}: {}", error.into_inner()),
        }
    })?;
    json.end().map_err(|error| error.to_string())?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn failure(text: &str) -> String {
        read(text.as_bytes()).expect_err(text)
    }

    #[test]
    fn errors_name_their_position() {
        assert!(failure("{\"r\": 8,}").contains("line 1 column 9"));
        assert!(failure("{\"r\": NaN}").contains("line 1 column"));
        assert!(failure("\u{feff}{}").contains("byte order mark"));
        assert!(failure("{\n\"a\": {\"b\": 1,\n \"b\": 2}}").contains("line 3"));
        assert!(failure("{\"a\": {\"b\": 1, \"b\": 2}}").contains("'b' is there twice"));
        assert!(failure("{} {}").contains("trailing characters"));
        assert!(failure(&"[".repeat(1 << 20)).contains("recursion limit"));
        assert!(failure("{\"r\": 1e999}").contains("number out of range"));
    }

    #[test]
    fn names_keep_the_order_of_the_file() {
        let value = read(br#"{"z": 1, "a": 2, "m": 3}"#).expect("valid");
        assert_eq!(value.as_object().expect("object").keys().collect::<Vec<_>>(), ["z", "a", "m"]);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            "\\PC{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("\\PC{0,4}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn valid_json_reads_as_serde_json_reads_it(value in any_json()) {
            prop_assert_eq!(read(value.to_string().as_bytes()), Ok(value));
        }
    }
}
