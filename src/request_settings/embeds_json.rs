//! Prompt embeds in JSON: base64 of a safetensors file with one tensor `[tokens, hidden_size]`.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorCode, Result};
use crate::prompt_embeds::PromptEmbeds;

/// What to send.
const HINT: &str = "send base64.b64encode(safetensors.torch.save({\"prompt_embeds\": tensor}))";

/// How files begin that are something else: torch's zip files and pickles, and numpy's arrays.
const OTHER_FILES: [(&[u8], &str); 3] = [
    (b"PK\x03\x04", "a file of torch.save, whose pickle could run any code and is never opened"),
    (b"\x80", "a pickle, which could run any code and is never opened"),
    (b"\x93NUMPY", "a file of numpy.save"),
];

/// Reads the vectors that are the value of `key`. They take at most twice the memory of the text.
///
/// # Errors
/// `request_invalid`: it is no string. `prompt_embeds_invalid`: the string is not base64 of such a file.
pub(crate) fn prompt_embeds_of_json(key: &str, value: &Value) -> Result<PromptEmbeds> {
    let Value::String(text) = value else {
        let error = Error::new(ErrorCode::RequestInvalid, format!("{key} has a wrong value"));
        return Err(error.with_expected("base64 of a safetensors file").with_setting(key).with_hint(HINT));
    };
    let wrong = |what: String| {
        Error::new(ErrorCode::PromptEmbedsInvalid, format!("{key} is {what}")).with_setting(key).with_hint(HINT)
    };
    let bytes = STANDARD.decode(text).map_err(|e| wrong(format!("no base64: {e}")))?;
    if let Some((_, what)) = OTHER_FILES.into_iter().find(|(start, _)| bytes.starts_with(start)) {
        return Err(wrong(what.to_owned()));
    }
    let of_file = |error: Error| wrong(format!("no safetensors file that can be read: {}", error.message()));
    let file = Checkpoint::from_bytes(bytes, Path::new(key)).map_err(of_file)?;
    let names: Vec<&str> = file.names().collect();
    let [name] = names[..] else {
        return Err(wrong("a file with another number of tensors".to_owned()).with_expected(1).with_found(names.len()));
    };
    let tensor = file.tensor(name).map_err(of_file)?;
    let [_, hidden_size] = *tensor.shape() else {
        let error = wrong("of another number of dimensions".to_owned());
        return Err(error.with_expected("[tokens, hidden_size]").with_found(format!("{:?}", tensor.shape())));
    };
    if !tensor.dtype().is_float() {
        let error = wrong("of another type".to_owned());
        return Err(error.with_expected("float32, float16 or bfloat16").with_found(tensor.dtype()));
    }
    PromptEmbeds::new(tensor.try_to_f32()?, hidden_size).map_err(|error| error.with_setting(key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use safetensors::tensor::{Dtype, TensorView, serialize};
    use serde_json::json;

    use super::*;

    /// The base64 of a file with these tensors: type, shape, bytes.
    fn file(tensors: &[(Dtype, &[usize], &[u8])]) -> Value {
        let views = tensors.iter().enumerate().map(|(i, &(dtype, shape, bytes))| {
            (format!("t{i}"), TensorView::new(dtype, shape.to_vec(), bytes).expect("a tensor"))
        });
        json!(STANDARD.encode(serialize(views, None).expect("a file")))
    }

    fn refusal(value: &Value) -> String {
        let error = prompt_embeds_of_json("prompt_embeds", value).expect_err("refused");
        assert_eq!(error.setting(), Some("prompt_embeds"));
        assert!(matches!(error.code(), ErrorCode::PromptEmbedsInvalid | ErrorCode::RequestInvalid));
        error.to_string()
    }

    proptest! {
        #[test]
        fn floats_of_every_type_are_read_as_they_are(tokens in 1..5_usize, hidden_size in 1..7_usize, seed in any::<u16>()) {
            let values: Vec<half::bf16> = (0..tokens * hidden_size)
                .map(|i| half::bf16::from_f32(f32::from(seed.wrapping_mul(i as u16 + 1) % 100) / 4.0)).collect();
            let expected: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
            let f16: Vec<u8> = values.iter().flat_map(|value| half::f16::from_f32(value.to_f32()).to_le_bytes()).collect();
            let bf16: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let f32: Vec<u8> = expected.iter().flat_map(|value| value.to_le_bytes()).collect();
            for (dtype, bytes) in [(Dtype::F16, f16), (Dtype::BF16, bf16), (Dtype::F32, f32)] {
                let read = prompt_embeds_of_json("e", &file(&[(dtype, &[tokens, hidden_size], &bytes)])).expect("reads");
                prop_assert_eq!((read.tokens(), read.hidden_size()), (tokens, hidden_size));
                prop_assert_eq!(read.values(), &expected[..]);
            }
        }

        #[test]
        fn any_bytes_are_an_error_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(prompt_embeds_of_json("e", &json!(STANDARD.encode(bytes))).is_err());
        }
    }

    #[test]
    fn what_is_no_such_file_is_refused_by_its_name() {
        let one: &[u8] = &1_f32.to_le_bytes();
        let nan: &[u8] = &f32::NAN.to_le_bytes();
        for (value, part) in [
            (json!(3), "expected base64"),
            (json!("é"), "no base64"),
            (json!(STANDARD.encode(b"PK\x03\x04 and more")), "torch.save"),
            (json!(STANDARD.encode(b"\x80\x02 and more")), "a pickle"),
            (json!(STANDARD.encode(b"\x93NUMPY and more")), "numpy.save"),
            (json!(STANDARD.encode(b"x")), "no safetensors"),
            (json!(""), "no safetensors"),
            (file(&[]), "expected 1, found 0"),
            (file(&[(Dtype::F32, &[1, 1], one), (Dtype::F32, &[1, 1], one)]), "expected 1, found 2"),
            (file(&[(Dtype::F32, &[1], one)]), "expected [tokens, hidden_size], found [1]"),
            (file(&[(Dtype::I32, &[1, 1], one)]), "found int32"),
            (file(&[(Dtype::U8, &[1, 4], one)]), "unsupported data type"),
            (file(&[(Dtype::F32, &[1, 1], nan)]), "not finite"),
            (file(&[(Dtype::F32, &[0, 4], &[])]), "no whole vectors"),
        ] {
            assert!(refusal(&value).contains(part), "{part}: {}", refusal(&value));
        }
    }
}
