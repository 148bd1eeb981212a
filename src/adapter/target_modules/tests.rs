//! The matcher against answers computed by running PEFT, and its limits.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::adapter::config::AdapterConfig;

/// Stands for `@` in the tables.
const Q_PROJ: &str = "model.layers.3.self_attn.q_proj";

/// One JSON array per line.
fn rows(table: &str) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str(&line.trim().replace('@', Q_PROJ)).expect(line);
    table.lines().filter(|line| !line.trim().is_empty()).map(parse).collect()
}

/// Is the module adapted? Answers of PEFT 0.21.2's `check_target_module_exists`, with layer indices and excludes:
/// adapted, module, target_modules, layers_to_transform, layers_pattern, exclude_modules. The 46 cases of PEFT's own
/// test of the function are among them.
const TARGETS: &str = r#"
    [false, "", [], null, null, null]
    [false, "", ["q_proj"], null, null, null]
    [false, "q_proj", [], null, null, null]
    [true, "q_proj", ["q_proj"], null, null, null]
    [false, "q_proj", ["proj"], null, null, null]
    [true, "@", ["q_proj"], null, null, null]
    [false, "@", ["v_proj"], null, null, null]
    [true, "@", ["v_proj", "q_proj"], null, null, null]
    [true, "@", ["self_attn.q_proj"], null, null, null]
    [false, "@", ["attn.q_proj"], null, null, null]
    [true, "@", ["@"], null, null, null]
    [false, "@", ["self_attn"], null, null, null]
    [false, "@", ["q_proj."], null, null, null]
    [false, "@", [".*q_proj"], null, null, null]
    [false, "@.inner", ["q_proj"], null, null, null]
    [false, "@", ["Q_PROJ"], null, null, null]
    [false, "@", [""], null, null, null]
    [false, "@", "q_proj", null, null, null]
    [true, "@", ".*q_proj", null, null, null]
    [true, "@", ".*\\.(q|v)_proj", null, null, null]
    [false, "@", ".*\\.(k|v)_proj", null, null, null]
    [true, "@", "model\\.layers\\.[\\d]{1,}\\.self_attn\\.q_proj", null, null, null]
    [false, "@", "model\\.layers\\.\\d", null, null, null]
    [true, "@", "^(?!.*visual).*proj$", null, null, null]
    [false, "visual.blocks.0.q_proj", "^(?!.*visual).*proj$", null, null, null]
    [true, "@", "k_proj|.*q_proj", null, null, null]
    [true, "@", "model.*|x", null, null, null]
    [true, "@", "(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|k_proj).*?)|(?:\\bmodel\\.layers\\.[\\d]{1,}\\.(?:self_attn|mlp)\\.(?:(?:q_proj|k_proj)))", null, null, null]
    [false, "@", "(?!x)x", null, null, null]
    [true, "@", ".*(\\w)_proj", null, null, null]
    [true, "@", "(?i).*Q_PROJ", null, null, null]
    [true, "@", ["q_proj"], [3], ["layers"], null]
    [false, "@", ["q_proj"], [2], ["layers"], null]
    [true, "@", ["q_proj"], 3, ["layers"], null]
    [false, "@", ["q_proj"], 2, "layers", null]
    [true, "@", ["q_proj"], [0, 1, 2, 3], "layers", null]
    [true, "@", ["q_proj"], [], "layers", null]
    [true, "@", ["q_proj"], [3], null, null]
    [false, "@", ["q_proj"], [2], null, null]
    [true, "@", ["q_proj"], [3], [], null]
    [true, "@", ["q_proj"], [3], "", null]
    [false, "@", ["q_proj"], [3], ["h"], null]
    [true, "@", ["q_proj"], [3], ["h", "layers"], null]
    [false, "@", ["q_proj"], [3], ["h|layers"], null]
    [false, "model.layers.30.self_attn.q_proj", ["q_proj"], [3], ["layers"], null]
    [true, "model.layers.003.self_attn.q_proj", ["q_proj"], [3], ["layers"], null]
    [true, "layers.3.q_proj", ["q_proj"], [3], ["layers"], null]
    [false, "layers.3.q_proj", ["q_proj"], [3], null, null]
    [false, "model.layers.q_proj", ["q_proj"], [3], ["layers"], null]
    [true, "model.layers.1.mlp.experts.7.down_proj", ["down_proj"], [1], ["layers"], null]
    [false, "model.layers.1.mlp.experts.7.down_proj", ["down_proj"], [7], ["layers"], null]
    [true, "model.layers.1.mlp.experts.7.down_proj", ["down_proj"], [7], ["experts"], null]
    [true, "model.layers.1.mlp.experts.7.down_proj", ["down_proj"], [1], null, null]
    [false, "model.layers.1.mlp.experts.7.down_proj", ["down_proj"], [7], null, null]
    [true, "@", ["@"], [0], ["layers"], null]
    [true, "@", ["q_proj"], [3], [".ayers"], null]
    [true, "lm_head", ["lm_head"], [0], ["layers"], null]
    [false, "@", ["q_proj"], null, null, ["q_proj"]]
    [true, "@", ["q_proj"], null, null, ["v_proj"]]
    [false, "@", ["q_proj"], null, null, ["@"]]
    [false, "@", ["q_proj"], null, null, ".*layers\\.3\\..*"]
    [true, "@", ["q_proj"], null, null, "layers\\.3"]
    [false, "@", ".*q_proj", null, null, ["self_attn.q_proj"]]
    [true, "@", ["q_proj"], null, null, []]
    [true, "@", ["q_proj"], null, null, ""]
    [false, "q_proj", ["v_proj"], null, null, null]
    [true, "q_proj", ["q_proj", "v_proj"], null, null, null]
    [true, "q_proj", "q_proj", null, null, null]
    [true, "q_proj", ".*proj", null, null, null]
    [true, "q_proj", "q_.*", null, null, null]
    [false, "q_proj", ".*mlp.*", null, null, null]
    [true, "q_proj", ".*_pr.*", null, null, null]
    [true, "model.layers.1.mlp.up_proj", ["up_proj"], [1], ["layers"], null]
    [false, "model.layers.1.mlp.up_proj", ["up_proj"], [0], ["layers"], null]
    [false, "model.layers.1.mlp.up_proj", ["up_proj"], [2], ["layers"], null]
    [false, "model.layers.10.mlp.up_proj", ["up_proj"], [0], ["layers"], null]
    [false, "model.layers.10.mlp.up_proj", ["up_proj"], [1], ["layers"], null]
    [true, "model.layers.1.mlp.up_proj", ["up_proj"], [0, 1, 2], ["layers"], null]
    [true, "model.layers.1.mlp.up_proj", ["up_proj", "q_proj"], [1], ["layers"], null]
    [true, "model.layers.1.mlp.up_proj", ["up_proj", "q_proj"], [0, 1, 2], ["layers"], null]
    [true, "model.layers.1.mlp.up_proj", ["up_proj"], [1], [], null]
    [false, "model.layers.1.mlp.up_proj", ["up_proj"], [0], [], null]
    [true, "model.layers.1.mlp.up_proj", ["up_proj"], [1], "", null]
    [false, "model.layers.1.mlp.up_proj", ["up_proj"], [0], "", null]
    [true, "model.layers.1.mlp.up_proj", ["up_proj"], [1], null, null]
    [false, "model.layers.1.mlp.up_proj", ["up_proj"], [0], null, null]
    [false, "transformer.h.1.attn.attention.q_proj.inner", ["q_proj"], null, [], null]
    [false, "transformer.h.1.attn.attention.q_proj", [], null, [], null]
    [true, "transformer.h.1.attn.attention.q_proj", ["q_proj"], null, [], null]
    [true, "transformer.h.1.attn.attention.q_proj", ["q_proj", "v_proj"], null, [], null]
    [false, "transformer.h.1.attn.attention.dropout", ["q_proj", "v_proj"], null, [], null]
    [true, "transformer.h.1.attn.attention.q_proj", ["q_proj"], [1], ["h"], null]
    [false, "transformer.h.1.attn.attention.q_proj", ["q_proj"], [0], ["h"], null]
    [false, "transformer.h.1.attn.attention.q_proj", ["q_proj"], [2], ["h"], null]
    [true, "transformer.h.1.attn.attention.q_proj", ["q_proj"], [0, 1, 2], ["h"], null]
    [true, "transformer.h.1.attn.attention.q_proj", ["q_proj", "v_proj"], [0, 1, 2], ["h"], null]
    [true, "model.mlp.q_proj", ["q_proj"], null, [], null]
    [false, "model.layers.1.mlp.up_proj", ["up_proj"], [1], ["model"], null]
    [false, "model.layers.1.mlp.up_proj", ["up_proj"], [1], ["up_proj"], null]
    [true, "layers.1.up_proj", ["up_proj"], [1], ["layers"], null]
    [true, "model.layers.001.up_proj", ["up_proj"], [1], ["layers"], null]
    [true, "model.layers.1.experts.2.up_proj", ["up_proj"], [1], ["layers"], null]
    [false, "model.layers.2.experts.1.up_proj", ["up_proj"], [1], ["layers"], null]
    [true, "blocks.1.linear", ["linear"], [1], ["blocks"], null]
    [false, "blocks.1.norm", ["linear"], [1], ["blocks"], null]
    [true, "mlp.blocks.1.linear", ["linear"], [1], ["blocks"], null]
    [false, "mlp.blocks.1.norm", ["linear"], [1], ["blocks"], null]
"#;

#[test]
fn modules_are_selected_as_peft_selects_them() {
    for row in rows(TARGETS) {
        let config = json!({
            "peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": row[2],
            "layers_to_transform": row[3], "layers_pattern": row[4], "exclude_modules": row[5],
        });
        let config = AdapterConfig::parse(config.to_string().as_bytes(), Path::new("config"), "adapter 'x'");
        let targeting = config.expect("valid").targeting;
        let excluded = targeting.excluded_by(row[1].as_str().expect("a path")).expect("affordable");
        assert_eq!(excluded.is_none(), row[0], "{row}: {excluded:?}");
    }
}

#[test]
fn a_saved_module_and_everything_inside_is_never_targeted() {
    let saved = |name: &str| Targeting { saved: vec![name.to_owned()], ..Targeting::default() };
    for (name, module, expected) in [
        ("q_proj", Q_PROJ, true),
        ("self_attn", Q_PROJ, true),
        ("layers.3", Q_PROJ, true),
        ("model", Q_PROJ, true),
        ("attn", Q_PROJ, false),
        ("proj", Q_PROJ, false),
        ("lm_head", "lm_head", true),
        ("lm", "lm_head", false),
    ] {
        let found = saved(name).excluded_by(module).expect("no pattern");
        assert_eq!(found, expected.then_some("modules_to_save"), "{name} {module}");
    }
}

#[test]
fn without_target_modules_nothing_is_excluded() {
    assert_eq!(Targeting::default().excluded_by(Q_PROJ).expect("no pattern"), None);
    let all = Targeting { targets: Some(Selector::AllLinear), ..Targeting::default() };
    assert_eq!(all.excluded_by("lm_head").expect("no pattern"), None);
}

/// Which key applies? Answers of PEFT 0.21.2's `get_pattern_key`: module, keys in the order of the file, index.
const KEYS: &str = r#"
    ["@", ["q_proj"], 0]
    ["@", ["proj"], null]
    ["@", ["layers.3"], null]
    ["@", ["self_attn.q_proj"], 0]
    ["@", ["self_attn_q_proj"], null]
    ["@", ["@"], 0]
    ["@", ["^@"], 0]
    ["@", ["^q_proj"], null]
    ["q_proj", ["^q_proj"], 0]
    ["@", ["v_proj", "q_proj", ".*"], 1]
    ["@", [".*", "q_proj"], 0]
    ["@", ["layers\\.[0-3]\\.self_attn\\..*", "q_proj"], 0]
    ["@", ["q.proj"], 0]
    ["@", [".proj"], null]
    ["@", ["..proj"], 0]
    ["@", [""], null]
    ["", [""], 0]
    ["@", ["q_proj$"], 0]
    ["@", ["k_proj|q_proj"], 0]
    ["@", ["(q|k)_proj"], 0]
    ["@", ["(?!k)._proj"], 0]
    ["@", ["Q_PROJ"], null]
    ["@", ["layers\\.\\d+\\.self_attn\\.[qkv]_proj"], 0]
    ["@", [".*\\.q_proj"], 0]
    ["foo.module.foo", ["foo"], 0]
    ["foo.module.foo", ["^foo"], null]
    ["foo.module.foo", ["module.foo", "foo"], 0]
    ["barfoo", ["foo"], null]
    ["@", [".self_attn.q_proj"], null]
"#;

#[test]
fn the_first_key_in_file_order_that_matches_a_suffix_applies() {
    for row in rows(KEYS) {
        let keys = row[1].as_array().expect("keys").iter().map(|key| key.as_str().expect("text"));
        let map = PatternMap::new("rank_pattern", keys.zip(0usize..)).expect("valid");
        let found = map.get(row[0].as_str().expect("a path")).expect("affordable");
        assert_eq!(found, row[2].as_u64().map(|i| i as usize), "{row}");
    }
}

proptest! {
    /// The oracle is the regular expression that PEFT builds.
    #[test]
    fn a_plain_key_matches_as_the_same_regular_expression(key in "[a-c._1-]{0,5}", module in "[a-c._1-]{0,8}") {
        let SuffixPattern::Plain(_) = SuffixPattern::new("rank_pattern", &key).expect("valid") else {
            panic!("{key} is plain");
        };
        let oracle = regex::Regex::new(&format!(r"^(?:(.*\.)?({key})$)")).expect("valid");
        let plain = SuffixPattern::new("rank_pattern", &key).expect("valid").covers(&module).expect("plain");
        prop_assert_eq!(plain, oracle.is_match(&module));
    }
}

fn refused(pattern: &str) -> Error {
    let map = PatternMap::new("rank_pattern", [(pattern, 1usize)]);
    map.and_then(|map| map.get(&"a".repeat(60))).expect_err(pattern)
}

#[test]
fn an_invalid_or_too_expensive_pattern_is_an_error() {
    let long = format!("{}\\d", "a".repeat(MAX_PATTERN_BYTES));
    let nested = format!("{}a{}", "(".repeat(500), ")".repeat(500));
    for pattern in
        ["(", "q_proj)|(x", "a**", "[z-a]", r"(?<name", r"(?=(a+)+\1)(a+)+b", r"(?:\w{1000}){1000}", &long, &nested]
    {
        let error = refused(pattern);
        assert_eq!(error.code(), ErrorCode::AdapterPatternInvalid, "{error}");
        assert!(error.message().contains("rank_pattern"), "{error}");
    }
}

#[test]
fn the_number_of_patterns_is_capped() {
    let names: Vec<String> = (0..=MAX_PATTERNS).map(|i| format!("m{i}")).collect();
    let regexes: Vec<String> = (0..=MAX_REGEXES).map(|i| format!("m{i}|x")).collect();
    for keys in [names, regexes] {
        let map = PatternMap::new("alpha_pattern", keys.iter().map(|key| (key.as_str(), 1.0)));
        assert_eq!(map.err().map(|error| error.code()), Some(ErrorCode::AdapterPatternInvalid));
    }
}
