//! Quantization configs, and the unsupported formats that are refused by name.

use std::path::Path;

use exlora::checkpoint::Checkpoint;
use exlora::quant::config::{GptqConfig, ZeroFormat};
use exlora::quant::{QuantConfig, open_linear};
use exlora::text_prefix::TextPrefix;
use exlora::{Error, ErrorCode};
use serde_json::{Value, json};

use support::{StoredTensor, safetensors};

fn gptq() -> Value {
    json!({"quant_method": "gptq", "bits": 4, "group_size": 128})
}

fn with(key: &str, value: Value) -> Value {
    let mut config = gptq();
    config[key] = value;
    config
}

fn refusal(config: &Value) -> Error {
    QuantConfig::from_json(config).expect_err("refused")
}

fn read(config: &Value) -> GptqConfig {
    match QuantConfig::from_json(config).expect("valid") {
        QuantConfig::Gptq(config) => config,
        QuantConfig::Exl2 => panic!("gptq"),
    }
}

fn dynamic(rules: Value) -> GptqConfig {
    read(&with("dynamic", rules))
}

/// One test per name: a config with it is refused, and the message contains the name.
macro_rules! refused_by_config {
    ($($test:ident: $config:expr => $name:literal;)+) => {$(
        #[test]
        fn $test() {
            let error = refusal(&$config);
            assert_eq!(error.code(), ErrorCode::QuantFormatUnsupported);
            assert_eq!(error.found(), Some($name));
            assert!(error.to_string().contains($name), "{error}");
        }
    )+};
}

refused_by_config! {
    gptq_p_is_refused: with("checkpoint_format", json!("gptq_p")) => "gptq_p";
    marlin_is_refused: with("checkpoint_format", json!("marlin")) => "marlin";
    marlin_by_its_old_flag_is_refused: with("is_marlin_format", json!(true)) => "marlin";
    bitblas_is_refused: with("format", json!("bitblas")) => "bitblas";
    bitblas_by_its_flag_is_refused: with("is_bitblas_format", json!(true)) => "bitblas";
    awq_is_refused: json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}) => "awq";
    gguf_is_refused: json!({"quant_method": "gguf"}) => "gguf";
    bitsandbytes_is_refused: json!({"quant_method": "bitsandbytes", "load_in_4bit": false}) => "bitsandbytes";
    bitsandbytes_in_4_bits_is_refused: json!({"load_in_4bit": true}) => "bitsandbytes";
    bitsandbytes_in_8_bits_is_refused: json!({"load_in_8bit": true}) => "bitsandbytes";
    bnb_is_refused: json!({"method": "bnb"}) => "bnb";
    fp8_is_refused: json!({"quant_method": "fp8", "weight_block_size": [128, 128]}) => "fp8";
    compressed_tensors_is_refused: json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}) => "compressed-tensors";
    eetq_is_refused: json!({"quant_method": "eetq"}) => "eetq";
    hqq_is_refused: json!({"quant_method": "hqq"}) => "hqq";
    aqlm_is_refused: json!({"quant_method": "aqlm"}) => "aqlm";
    exl3_is_refused: json!({"quant_method": "exl3", "bits": 3.0}) => "exl3";
    auto_round_is_refused: json!({"quant_method": "auto-round", "bits": 4, "group_size": 128}) => "auto-round";
    an_unknown_method_is_refused: json!({"quant_method": "Next-Year"}) => "next-year";
    a_second_spelling_cannot_hide_a_method: with("method", json!("qqq")) => "qqq";
    packing_in_int64_is_refused: with("pack_dtype", json!("int64")) => "int64";
    packing_in_int16_is_refused: with("pack_dtype", json!("int16")) => "int16";
    five_bits_are_refused: with("bits", json!(5)) => "5 bits";
    one_bit_is_refused: with("bits", json!(1)) => "1 bits";
    sixteen_bits_are_refused: with("bits", json!(16)) => "16 bits";
    a_rule_with_another_format_is_refused: with("dynamic", json!({"lm_head": {"format": "marlin"}})) => "marlin";
    a_rule_with_another_width_is_refused: with("dynamic", json!({"lm_head": {"bits": 6}})) => "6 bits";
}

/// One test per name: the tensors of that format are recognized without a config.
macro_rules! refused_by_tensors {
    ($($test:ident: $part:literal => $name:literal;)+) => {$(
        #[test]
        fn $test() {
            let path = "model.layers.0.mlp.up_proj";
            let tensors = [
                StoredTensor::new(&format!("{path}.weight"), "U8", &[32], vec![0; 32]),
                StoredTensor::new(&format!("{path}.{}", $part), "F32", &[1], vec![0; 4]),
            ];
            let checkpoint = Checkpoint::from_bytes(safetensors(&tensors), Path::new("memory")).expect("a valid file");
            let error = open_linear(&checkpoint, None, path, 8, 4).err().expect("refused");
            assert_eq!(error.code(), ErrorCode::QuantFormatUnsupported);
            assert_eq!(error.found(), Some($name));
            assert_eq!(error.tensor(), Some(&*format!("{path}.{}", $part)));
        }
    )+};
}

refused_by_tensors! {
    exl3_is_known_by_its_tensors: "trellis" => "exl3";
    scaled_weights_are_known_by_their_scale: "weight_scale" => "scaled fp8 or int8";
    fp8_in_blocks_is_known_by_its_scale: "weight_scale_inv" => "fp8";
    compressed_tensors_are_known_by_their_packing: "weight_packed" => "compressed-tensors";
    bitsandbytes_is_known_by_its_absmax: "weight.absmax" => "bitsandbytes";
    bitsandbytes_int8_is_known_by_its_scale: "SCB" => "bitsandbytes";
    eetq_is_known_by_its_scales: "weight_scales" => "eetq";
    hqq_is_known_by_its_weight: "W_q" => "hqq";
    aqlm_is_known_by_its_codebooks: "codebooks" => "aqlm";
    quip_is_known_by_its_indices: "Qidxs" => "quip#";
    marlin_is_known_by_its_weight: "B" => "marlin";
}

#[test]
fn exl2_needs_no_other_keys() {
    for config in [json!({"quant_method": "exl2", "bits": 4.5, "head_bits": 6}), json!({"method": "EXL2"})] {
        assert!(matches!(QuantConfig::from_json(&config).expect("valid"), QuantConfig::Exl2));
    }
    let both = json!({"quant_method": "exl2", "method": "gptq", "bits": 4, "group_size": 32});
    assert_eq!(refusal(&both).code(), ErrorCode::QuantConfigInvalid);
    let rule = with("dynamic", json!({"lm_head": {"quant_method": "exl2"}}));
    assert_eq!(refusal(&rule).code(), ErrorCode::QuantConfigInvalid);
}

#[test]
fn compression_config_is_refused_as_compressed_tensors() {
    let error =
        QuantConfig::read(Path::new("x"), &json!({"compression_config": {"format": "dense"}})).expect_err("refused");
    assert_eq!((error.code(), error.found()), (ErrorCode::QuantFormatUnsupported, Some("compressed-tensors")));
}

#[test]
fn malformed_values_are_refused() {
    let cases = [
        json!([]),
        json!({"quant_method": "gptq", "group_size": 128}),
        json!({"quant_method": "gptq", "bits": 4}),
        with("bits", json!("4")),
        with("bits", json!(4.5)),
        with("group_size", json!(0)),
        with("group_size", json!(-2)),
        with("group_size", json!(1e9)),
        with("desc_act", json!("yes")),
        with("sym", json!(1)),
        with("quant_method", json!(4)),
        with("dynamic", json!([])),
        with("dynamic", json!({"lm_head": 4})),
        with("dynamic", json!({"(": {}})),
        with("dynamic", json!({"-:[": {}})),
        with("dynamic", json!({"lm_head": {"group_size": 0}})),
        with("dynamic", Value::Object([("a".repeat(5000), json!({}))].into_iter().collect())),
    ];
    for case in cases {
        assert_eq!(refusal(&case).code(), ErrorCode::QuantConfigInvalid, "{case}");
    }
    let mut contradiction = with("checkpoint_format", json!("gptq"));
    contradiction["format"] = json!("gptq_v2");
    assert_eq!(refusal(&contradiction).code(), ErrorCode::QuantConfigInvalid);
}

#[test]
fn both_spellings_are_read() {
    let one =
        json!({"quant_method": "gptq", "checkpoint_format": "gptq_v2", "bits": 3, "group_size": -1, "desc_act": true});
    let other = json!({"method": "GPTQ", "format": "gptq_v2", "bits": 3, "group_size": -1, "desc_act": true});
    let (one, other) = (read(&one), read(&other));
    assert_eq!(one.params(), other.params());
    assert_eq!(one.params().zeros, ZeroFormat::Plain);
    assert_eq!((one.params().bits, one.params().group_size, one.params().desc_act), (3, None, true));
}

#[test]
fn without_a_format_zeros_are_stored_minus_one() {
    let config = read(&json!({"bits": 4, "group_size": 128, "checkpoint_format": null}));
    assert_eq!(config.params().zeros, ZeroFormat::MinusOne);
}

#[test]
fn config_json_takes_precedence_over_quantize_config_json() {
    let dir = tempfile::tempdir().expect("a folder");
    assert!(QuantConfig::read(dir.path(), &json!({})).expect("no error").is_none());
    std::fs::write(dir.path().join("quantize_config.json"), with("bits", json!(8)).to_string()).expect("written");
    let bits = |config: Value| {
        let config = QuantConfig::read(dir.path(), &config).expect("valid").expect("quantized");
        config.gptq().expect("gptq").params().bits
    };
    assert_eq!(bits(json!({})), 8);
    assert_eq!(bits(json!({"quantization_config": null})), 8);
    assert_eq!(bits(json!({"quantization_config": gptq()})), 4);
    std::fs::write(dir.path().join("quantize_config.json"), "{").expect("written");
    let error = QuantConfig::read(dir.path(), &json!({})).expect_err("refused");
    assert_eq!(error.code(), ErrorCode::QuantConfigInvalid);
    assert_eq!(error.path(), Some(&*dir.path().join("quantize_config.json")));
}

#[test]
fn the_first_matching_rule_applies() {
    let config = dynamic(json!({
        r"+:.*\.down_proj": {"bits": 8},
        r"-:model\.layers\.0\.": {},
        r"model\.layers\..*": {"bits": 2, "group_size": -1},
    }));
    let bits = |path: &str| config.params_of(path).expect("matched").map(|params| params.bits);
    assert_eq!(bits("model.layers.0.mlp.down_proj"), Some(8));
    assert_eq!(bits("model.layers.0.mlp.up_proj"), None);
    assert_eq!(bits("model.layers.1.mlp.up_proj"), Some(2));
    assert_eq!(bits("lm_head"), Some(4));
    let params = config.params_of("model.layers.0.mlp.down_proj").expect("matched").expect("quantized");
    assert_eq!(params.group_size, Some(128), "keys that a rule omits come from the config");
}

/// As Python's `re.match`: from the start of the path, not necessarily to its end.
#[test]
fn a_pattern_is_anchored_at_the_start_only() {
    let config = dynamic(json!({"layers": {"bits": 2}, "model.layers.1": {"bits": 8}, "(?=lm)": {"bits": 3}}));
    let bits = |path: &str| config.params_of(path).expect("matched").expect("quantized").bits;
    assert_eq!(bits("model.layers.0.mlp"), 4);
    assert_eq!(bits("model.layers.12.mlp"), 8);
    assert_eq!(bits("lm_head"), 3);
}

/// Of a multimodal folder: with the prefix of its files, or with that under which transformers has loaded them since 4.52.
#[test]
fn patterns_see_the_prefix_of_a_multimodal_model() {
    let rules = json!({
        r"-:^model\.layers\.1\.": {},
        r"^model\.layers\.0\.": {"bits": 8},
        r"-:^model\.language_model\.layers\.1\.": {},
        r"^model\.language_model\.layers\.0\.": {"bits": 2},
        r"-:^language_model\.model\.layers\.1\.": {},
        r"^language_model\.model\.layers\.0\.": {"bits": 3},
        r"^model\.language_model\.layers\.2\.": {"bits": 2},
        r"^language_model\.lm_head": {"bits": 8},
    });
    let paths = [0, 1, 2].map(|layer| format!("model.layers.{layer}.mlp.up_proj"));
    for (prefix, expected, head) in [
        (TextPrefix::None, [Some(8), None, Some(4)], 4),
        (TextPrefix::Inner, [Some(2), None, Some(2)], 4),
        (TextPrefix::Outer, [Some(3), None, Some(2)], 8),
    ] {
        let config = QuantConfig::from_json(&with("dynamic", rules.clone())).expect("valid").with_prefix(prefix);
        let config = config.gptq().expect("gptq");
        let bits = |path: &str| config.params_of(path).expect("matched").map(|params| params.bits);
        assert_eq!(paths.each_ref().map(|path| bits(path)), expected, "{prefix:?}");
        assert_eq!(bits("lm_head"), Some(head), "{prefix:?}");
    }
}

/// A rule for everything that is not the text model, as the quantizer names that, is not about a module that is quantized.
#[test]
fn a_rule_that_leaves_a_quantized_module_dense_needs_all_its_names() {
    let bits = |rules: Value| {
        let config = QuantConfig::from_json(&with("dynamic", rules)).expect("valid").with_prefix(TextPrefix::Outer);
        let found = config.gptq().expect("gptq").params_of("model.layers.3.mlp.up_proj").expect("matched");
        found.map(|params| params.bits)
    };
    let others = r"-:^(?!model\.language_model\.)";
    assert_eq!(bits(json!({others: {}})), Some(4));
    assert_eq!(bits(json!({others: {}, r".*\.layers\.3\.": {"bits": 8}})), Some(8));
    assert_eq!(bits(json!({others: {}, r"-:^model\.language_model\.": {}})), None);
}

#[test]
fn a_pattern_that_backtracks_too_much_is_an_error_not_a_hang() {
    let config = dynamic(json!({r"(?=(x+x+)+y)\1": {"bits": 2}}));
    let error = config.params_of(&"x".repeat(60)).expect_err("refused");
    assert_eq!(error.code(), ErrorCode::QuantConfigInvalid);
}
