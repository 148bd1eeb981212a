//! tokenizer.json: whatever it holds, loading, encoding and decoding end soon, in a result or an error, in little memory; and
//! what real tokenizers hold loads and gives the ids of the `tokenizers` crate.

use std::path::Path;
use std::sync::Once;
use std::time::{Duration, Instant};

use exlora::{Error, ErrorCode, Tokenizer};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use support::allocator::with_peak;

/// A small BPE tokenizer with one member replaced.
fn bpe(member: &str, value: Value) -> Value {
    let alphabet = ('a'..='z').chain(['Ġ', '▁', ' ', '<', '>', '\u{e9}']).map(String::from);
    let vocab: Map<String, Value> =
        alphabet.chain(["ab", "abc"].map(String::from)).enumerate().map(|(id, token)| (token, id.into())).collect();
    let mut file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null, "added_tokens": [added(34, "<s>")],
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": [["a", "b"], ["ab", "c"]]}
    });
    match member.split_once('.') {
        Some((outer, inner)) => file[outer][inner] = value,
        None => file[member] = value,
    }
    file
}

fn added(id: u64, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
           "special": true})
}

fn written(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("tokenizer.json"), text).expect("written");
    dir
}

fn open(dir: &Path) -> Result<Tokenizer, Error> {
    Tokenizer::open(dir).map(|tokenizer| tokenizer.expect("there is a file"))
}

fn texts() -> Vec<String> {
    vec![
        String::new(),
        "the abc of <s>it</s>".into(),
        "ééé \u{301}\u{fdfa}\u{200d}日本\u{1F468}\u{200D}\u{1F469}".into(),
        "a".repeat(3_000),
        " ".repeat(3_000),
        "ab ".repeat(1_000),
        format!("f{}", "x".repeat(200)),
    ]
}

/// Loads, encodes and decodes; the first error.
fn use_all(json: &str) -> Result<(), Error> {
    let dir = written(json);
    let tokenizer = open(dir.path())?;
    let mut first = Ok(());
    for text in texts() {
        for parse_special in [true, false] {
            let decoded = tokenizer.encode(&text, true, parse_special).and_then(|ids| tokenizer.decode(&ids, false));
            first = first.and(decoded.map(|_| ()));
        }
    }
    let ids: Vec<u32> = (0..60).filter(|&id| tokenizer.token_of(id).is_some()).collect();
    let each = ids.iter().try_for_each(|&id| tokenizer.decode(&[id], false).map(|_| ()));
    first.and(each).and(tokenizer.decode(&ids.repeat(100), false).map(|_| ()))
}

/// Every way to use the file ends within seconds and a hundred megabytes.
fn ends(what: &str, json: &str) -> Result<(), Error> {
    // As the command does: printing where a panic began takes more memory than the limit.
    static SILENCED: Once = Once::new();
    SILENCED.call_once(exlora::guard::silence_guarded_panics);
    let began = Instant::now();
    let (outcome, peak) = with_peak(|| use_all(json));
    assert!(began.elapsed() < Duration::from_secs(60), "{what} took {:?}", began.elapsed());
    assert!(peak < 100 << 20, "{what} took {peak} bytes");
    if let Err(error) = &outcome {
        assert_eq!(error.code(), ErrorCode::TokenizerInvalid, "{what}: {error}");
        assert!(error.to_string().len() < 4_000, "{what}: {} bytes of error", error.to_string().len());
    }
    outcome
}

fn refused(what: &str, file: &Value) {
    assert!(ends(what, &file.to_string()).is_err(), "{what} is not refused");
}

fn sequence(kind: &str, step: Value, count: usize) -> Value {
    json!({"type": "Sequence", kind: vec![step; count]})
}

fn nested(kind: &str, depth: usize) -> Value {
    (0..depth).fold(json!({"type": "Sequence", kind: []}), |inner, _| json!({"type": "Sequence", kind: [inner]}))
}

fn replace(pattern: Value, content: &str) -> Value {
    json!({"type": "Replace", "pattern": pattern, "content": content})
}

fn regex(pattern: &str) -> Value {
    json!({"Regex": pattern})
}

fn split(pattern: Value) -> Value {
    json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false})
}

/// A charsmap: the trie's size, its units, and the texts.
fn charsmap(size: u32, units: &[u32], texts: &[u8]) -> Value {
    let mut bytes: Vec<u8> = size.to_le_bytes().into();
    bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
    bytes.extend(texts);
    json!({"type": "Precompiled", "precompiled_charsmap": base64(&bytes)})
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        let digits = (0..4).map(|i| char::from(ALPHABET[(bits >> (18 - 6 * i)) as usize & 63]));
        text.extend(digits.take(chunk.len() + 1).chain("==".chars()).take(4));
    }
    text
}

#[test]
fn what_the_library_panics_on_is_refused() {
    let of_model = |field: &str, value: Value| bpe(&format!("model.{field}"), value);
    let mut prefixed = of_model("continuing_subword_prefix", json!("##########"));
    prefixed["model"]["merges"] = json!([["a", "b"]]);
    let template = |single: Value| {
        json!({"type": "TemplateProcessing", "single": single, "pair": [],
               "special_tokens": {"<s>": {"id": "<s>", "ids": [34], "tokens": ["<s>"]}}})
    };
    let table = [
        ("an empty Replace", bpe("normalizer", replace(json!({"String": ""}), "x"))),
        ("an empty Replace decoder", bpe("decoder", replace(json!({"String": ""}), "x"))),
        ("an empty Split", bpe("pre_tokenizer", split(json!({"String": ""})))),
        ("an empty Prepend", bpe("normalizer", json!({"type": "Prepend", "prepend": ""}))),
        ("FixedLength 0", bpe("pre_tokenizer", json!({"type": "FixedLength", "length": 0}))),
        ("a long prefix", prefixed),
        ("a merge longer than every token", of_model("merges", json!([["abc", "abc"]]))),
        ("a merge of unknown tokens", of_model("merges", json!([["a", "nothing"]]))),
        ("a charsmap without a trie", bpe("normalizer", charsmap(0, &[], b"x\0"))),
        ("a charsmap of one unit", bpe("normalizer", charsmap(4, &[0xFFFF_FFFF], b"x\0"))),
        ("a charsmap that claims 4 GB", bpe("normalizer", charsmap(u32::MAX, &[0; 4], b""))),
        (
            "a charsmap that is not base64",
            bpe("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "é"})),
        ),
        ("a charsmap that is not UTF-8", bpe("normalizer", charsmap(4, &[0], b"\xFF"))),
        (
            "a template without its token",
            bpe("post_processor", template(json!([{"SpecialToken": {"id": "x", "type_id": 0}}]))),
        ),
        (
            "a template with a second text",
            bpe("post_processor", template(json!([{"Sequence": {"id": "B", "type_id": 0}}]))),
        ),
        ("a pattern that backtracks", bpe("pre_tokenizer", split(regex(&format!("f(?:{})*[YZ]", ".?".repeat(80)))))),
        (
            "a Strip longer than a token",
            bpe("decoder", json!({"type": "Strip", "content": "a", "start": 0, "stop": 5})),
        ),
        ("an id of 2^32-1", of_model("vocab", json!({"a": u32::MAX, "b": 1, "ab": 2, "c": 3, "abc": 4}))),
        ("an id below zero", of_model("vocab", json!({"a": -1}))),
        ("an added id of 2^32-1", bpe("added_tokens", json!([added(u64::from(u32::MAX), "x")]))),
        ("an unknown component", bpe("normalizer", json!({"type": "Uppercase"}))),
        ("a component without a type", bpe("decoder", json!({"suffix": "x"}))),
        ("a list as a component", bpe("pre_tokenizer", json!([]))),
        ("an unknown version", bpe("version", json!("2.0"))),
        ("an unknown model", of_model("type", json!("Tiktoken"))),
    ];
    for (what, file) in table {
        refused(what, &file);
    }
}

#[test]
fn what_grows_without_end_is_refused() {
    let long = "x".repeat(1 << 20);
    let mut units = vec![0; 256];
    units[usize::from(b'a')] = 1 << 10 | 1 << 8 | u32::from(b'a');
    let pieces = vec![json!({"Sequence": {"id": "A", "type_id": 0}}); 10_000];
    let template = json!({"type": "TemplateProcessing", "single": pieces, "pair": [], "special_tokens": {}});
    let ids = vec![40; 1 << 20];
    let tokens = vec!["<s>"; 1 << 20];
    let special = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}], "pair": [],
                         "special_tokens": {"<s>": {"id": "<s>", "ids": ids, "tokens": tokens}}});
    let doubling = replace(regex("."), "xx");
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let table = [
        ("a long Replace", bpe("normalizer", replace(json!({"String": "a"}), &long))),
        ("a long Replace decoder", bpe("decoder", replace(json!({"String": "a"}), &long))),
        ("a long Prepend", bpe("normalizer", json!({"type": "Prepend", "prepend": long}))),
        ("Replace that doubles", bpe("normalizer", sequence("normalizers", doubling.clone(), 40))),
        ("decoders that double", bpe("decoder", sequence("decoders", doubling, 40))),
        ("ByteLevel upon ByteLevel", bpe("pre_tokenizer", sequence("pretokenizers", byte_level.clone(), 40))),
        ("ByteLevel normalizers", bpe("normalizer", sequence("normalizers", byte_level, 40))),
        ("suffixes that double", bpe("decoder", sequence("decoders", json!({"type": "BPEDecoder", "suffix": ""}), 60))),
        ("a charsmap with a long text", bpe("normalizer", charsmap(1024, &units, &[b'x'; 100_000]))),
        ("a template of many texts", bpe("post_processor", template.clone())),
        ("templates upon templates", bpe("post_processor", sequence("processors", special.clone(), 3))),
        ("a template of many ids", bpe("post_processor", special)),
        ("too many components", bpe("normalizer", sequence("normalizers", json!({"type": "NFC"}), 100_000))),
        ("nested normalizers", bpe("normalizer", nested("normalizers", 60))),
        ("nested pre-tokenizers", bpe("pre_tokenizer", nested("pretokenizers", 60))),
        ("nested decoders", bpe("decoder", nested("decoders", 60))),
        ("nested post-processors", bpe("post_processor", nested("processors", 60))),
        ("a long token", bpe("model.vocab", json!({(&long[..10_000]): 1}))),
        ("a long added token", bpe("added_tokens", json!([added(40, &long)]))),
        ("a long suffix", bpe("model.end_of_word_suffix", json!(long))),
        ("a long pattern", bpe("pre_tokenizer", split(regex(&long)))),
    ];
    for (what, file) in table {
        refused(what, &file);
    }
}

#[test]
fn a_unigram_tokenizer_has_bounds_too() {
    let unigram = |vocab: Value| bpe("model", json!({"type": "Unigram", "unk_id": 0, "vocab": vocab}));
    ends("a small one", &unigram(json!([["<unk>", 0.0], ["a", -1.0], ["ab", -1.5]])).to_string()).expect("right");
    refused("a token of a megabyte", &unigram(json!([["<unk>", 0.0], ["a".repeat(1 << 20), -1.0]])));
    refused("no vocabulary", &unigram(json!([])));
    refused("no unknown token", &bpe("model", json!({"type": "Unigram", "unk_id": null, "vocab": [["b", -1.0]]})));
    refused("an unknown token outside", &bpe("model", json!({"type": "Unigram", "unk_id": 9, "vocab": [["b", -1.0]]})));
}

#[test]
fn a_wordpiece_tokenizer_has_bounds_too() {
    let wordpiece = |max: u64, prefix: &str| {
        bpe(
            "model",
            json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": prefix,
            "max_input_chars_per_word": max, "vocab": {"[UNK]": 0, "a": 1, "##a": 2}}),
        )
    };
    ends("a small one", &wordpiece(100, "##").to_string()).expect("right");
    refused("words without end", &wordpiece(u64::MAX, "##"));
    refused("a long prefix", &wordpiece(100, &"#".repeat(1 << 20)));
}

/// Each is slow for a search that backtracks without a bound; a slow search is an error after seconds.
#[test]
fn regular_expressions_end() {
    let patterns = [
        "(a|a)*Z",
        "(a*)*Z",
        "(?:a+)+Z",
        "(?:a?){40}a{40}",
        "(.*)(.*)(.*)(.*)Z",
        ".*.*.*=.*",
        "(a|aa|aaa)+$Z",
        "a*?(?>a*)Z",
        "(?:.?){22}Z|.",
        r"(\w+\s?)+Z",
        r"(?<x>a|b\g<x>c)+Z",
        r"(a+)\1*Z",
        "(?i:s|ss|ß)*Z",
        "((((a?)+)+)+)+Z",
        "(?:x{0,1000}){0,1000}Z",
        "(?=(a+))a*b\\1",
        "[^\\n]*Z",
        r"\s+$Z",
    ];
    for pattern in patterns {
        for (member, component) in
            [("pre_tokenizer", split(regex(pattern))), ("normalizer", replace(regex(pattern), ""))]
        {
            let _ = ends(pattern, &bpe(member, component).to_string());
        }
    }
}

/// Attempts that take a time of the square or cube of the text's length without backtracking much.
#[test]
fn a_pattern_that_is_slow_on_a_long_text_is_an_error_that_names_it() {
    // The last takes the square of the length, hence a longer text: many times what it may take on any processor.
    let patterns = [
        ("(?:a*b|a)*[c-e]{2}", 100_000),
        ("(?>(?>(?>a*)b|a)*b|a)*[c-e]{2}", 100_000),
        (r"(?<x>(?>a*)b|a\g<x>|[c-e]{2})", 100_000),
        ("a*?(?>a*)[d-e]", 400_000),
    ];
    for (pattern, length) in patterns {
        let text = format!("{}c", "a".repeat(length));
        let dir = written(&bpe("pre_tokenizer", split(regex(pattern))).to_string());
        let tokenizer = open(dir.path()).expect("loads");
        let began = Instant::now();
        let error = tokenizer.encode(&text, false, true).expect_err(pattern).to_string();
        assert!(began.elapsed() < Duration::from_secs(15), "{pattern} took {:?}", began.elapsed());
        assert!(error.contains(pattern) && error.contains("takes more than"), "{error}");
    }
    let dir = written(&bpe("pre_tokenizer", split(regex("(?~b)c"))).to_string());
    let error = open(dir.path()).err().expect("an absent operator").to_string();
    assert!(error.contains("(?~b)c"), "{error}");
}

#[test]
fn damaged_files_are_errors() {
    let whole = bpe("normalizer", json!({"type": "NFC"})).to_string();
    for end in (0..whole.len()).step_by(97) {
        assert!(use_all(&whole[..end]).is_err());
    }
    for text in ["null", "[]", "{}", "{\"model\":null}", "\u{feff}{}", &"[".repeat(100_000), &"{\"a\":".repeat(100_000)]
    {
        assert_eq!(use_all(text).expect_err("no tokenizer").code(), ErrorCode::TokenizerInvalid);
    }
}

/// Components as public tokenizers have them (GPT-2, Llama 2 and 3, Qwen, Gemma, Mistral, DeepSeek, BERT, T5, CLIP).
fn real_components() -> Vec<(&'static str, Value)> {
    let gpt4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let o200k = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let byte_level =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    vec![
        ("pre_tokenizer", byte_level(true)),
        ("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": [split(regex(gpt4)), byte_level(false)]})),
        ("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": [split(regex(o200k)), byte_level(false)]})),
        (
            "pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [
            split(regex(r"\p{N}{1,3}")), split(regex("[一-龥\u{3040}-ゟ゠-ヿ]+")),
            split(regex(r"[!-/:-@\[-`{-~]?[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")),
            byte_level(false)]}),
        ),
        (
            "pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [
            json!({"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Removed", "invert": true}),
            json!({"type": "Punctuation", "behavior": "Contiguous"}), json!({"type": "Digits", "individual_digits": true})]}),
        ),
        (
            "pre_tokenizer",
            json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false}),
        ),
        ("pre_tokenizer", json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false})),
        (
            "pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "▁", "add_prefix_space": true}]}),
        ),
        ("pre_tokenizer", json!({"type": "BertPreTokenizer"})),
        ("pre_tokenizer", json!({"type": "Whitespace"})),
        (
            "normalizer",
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            replace(json!({"String": " "}), "▁")]}),
        ),
        ("normalizer", replace(json!({"String": " "}), "▁")),
        ("normalizer", json!({"type": "NFC"})),
        (
            "normalizer",
            json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true}),
        ),
        (
            "normalizer",
            json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Strip", "strip_left": false, "strip_right": true},
            replace(regex(" {2,}"), "▁"), {"type": "Lowercase"}, {"type": "Nmt"}, {"type": "StripAccents"}]}),
        ),
        (
            "post_processor",
            json!({"type": "Sequence", "processors": [byte_level(true), {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [34], "tokens": ["<s>"]}}}]}),
        ),
        ("post_processor", json!({"type": "BertProcessing", "sep": ["<s>", 34], "cls": ["<s>", 34]})),
        (
            "decoder",
            json!({"type": "Sequence", "decoders": [replace(json!({"String": "▁"}), " "), {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}),
        ),
        ("decoder", byte_level(true)),
        ("decoder", json!({"type": "WordPiece", "prefix": "##", "cleanup": true})),
        ("decoder", json!({"type": "BPEDecoder", "suffix": "</w>"})),
        ("decoder", json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true})),
    ]
}

#[test]
fn what_public_tokenizers_hold_gives_the_librarys_ids_and_text() {
    for (member, component) in real_components() {
        let file = bpe(member, component.clone()).to_string();
        let oracle = tokenizers::Tokenizer::from_bytes(&file).expect("the library reads it");
        let dir = written(&file);
        let ours = open(dir.path()).unwrap_or_else(|error| panic!("{component}: {error}"));
        for text in texts() {
            let expected = oracle.encode_fast(text.as_str(), true).expect("encodes");
            let ids = ours.encode(&text, true, true).unwrap_or_else(|error| panic!("{component}: {error}"));
            assert_eq!(ids, expected.get_ids(), "{component}: {text:?}");
            if !ids.is_empty() {
                assert_eq!(ours.decode(&ids, false).expect("decodes"), oracle.decode(&ids, false).expect("decodes"));
            }
        }
    }
}

proptest! {
    #![proptest_config(support::cases(64))]

    /// Matches are looked for in small windows; no match depends on where a window ends.
    #[test]
    fn splits_are_the_librarys(
        text in "[ab \\n]{0,400}",
        pattern in prop::sample::select(vec![
            "a+", "a*", "b|", "(?=b)", "(?<=b)a", r"\s+(?!\S)|\s+", "ab?a", r"\Aa", "b$", r"b\z", ".*b", "[^b]*", "a{3}", r"\ba",
        ]),
        behavior in prop::sample::select(vec!["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]),
        invert: bool,
    ) {
        let component = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert});
        let file = bpe("pre_tokenizer", component).to_string();
        let oracle = tokenizers::Tokenizer::from_bytes(&file).expect("the library reads it");
        let dir = written(&file);
        let ours = open(dir.path()).expect("reads it").encode(&text, false, true);
        match std::panic::catch_unwind(|| oracle.encode_fast(text.as_str(), false)) {
            Ok(Ok(expected)) => prop_assert_eq!(ours.expect("encodes"), expected.get_ids()),
            // Where the library panics, it is an error.
            _ => prop_assert_eq!(ours.expect_err("an error").code(), ErrorCode::TokenizerInvalid),
        }
    }
    /// Checkpoints in a pattern change no match.
    #[test]
    fn splits_of_any_pattern_are_the_librarys(text in "[abé \\n]{0,40}", pattern in patterns()) {
        let file = bpe("pre_tokenizer", split(regex(&pattern))).to_string();
        let Ok(oracle) = tokenizers::Tokenizer::from_bytes(&file) else { return Ok(()) };
        let dir = written(&file);
        let tokenizer = match open(dir.path()) {
            Err(error) => {
                prop_assert!(pattern.contains("(?<") && error.to_string().contains("lookbehind"), "{pattern}: {error}");
                return Ok(());
            }
            Ok(tokenizer) => tokenizer,
        };
        match (tokenizer.encode(&text, false, true), std::panic::catch_unwind(|| oracle.encode_fast(text.as_str(), false))) {
            (Ok(ids), Ok(Ok(expected))) => prop_assert_eq!(ids, expected.get_ids(), "{}", pattern),
            (Ok(_), _) => prop_assert!(false, "the library refuses {pattern}"),
            // The library lets an attempt backtrack more often.
            (Err(error), _) => prop_assert!(error.to_string().contains("limit"), "{pattern}: {error}"),
        }
    }
}

/// Patterns of everything that a pattern of a tokenizer may be made of.
fn patterns() -> impl Strategy<Value = String> {
    let atom = prop::sample::select(vec![
        "a",
        "b",
        "é",
        " ",
        ".",
        r"\s",
        r"\S",
        r"\w",
        r"\n",
        "[ab]",
        "[^b]",
        "[^\\s[b]]",
        r"\p{L}",
        r"\x61",
        r"\b",
        "^",
        "$",
        r"\X",
        "(a|b)\\1",
    ]);
    let quantifier = prop::sample::select(vec!["*", "+", "?", "*?", "+?", "*+", "{2}", "{0,3}", "{1,}", "{,70}"]);
    atom.prop_map(str::to_owned).prop_recursive(4, 24, 4, move |inner| {
        let groups = prop::sample::select(vec!["(?:", "(?>", "(?=", "(?!", "(?i:", "(?<=", "("]);
        prop_oneof![
            3 => prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| parts.concat()),
            2 => (inner.clone(), quantifier.clone()).prop_map(|(part, quantifier)| format!("(?:{part}){quantifier}")),
            2 => (prop::sample::select(vec!["a", "[ab]", r"\s", "."]), quantifier.clone()).prop_map(|(a, q)| format!("{a}{q}")),
            1 => (groups, inner.clone()).prop_map(|(group, part)| format!("{group}{part})")),
            1 => prop::collection::vec(inner, 1..4).prop_map(|parts| format!("(?:{})", parts.join("|"))),
        ]
    })
}
