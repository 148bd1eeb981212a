//! Which modules a config means: `rank_pattern`, `alpha_pattern`, `target_modules` and its filters, matched as PEFT does.
//!
//! Their strings are Python regular expressions out of an untrusted file. They may need look-ahead, which has no
//! linear-time engine; so their length, number, size and backtracking are capped, and whatever exceeds a cap is an
//! error, never a "no". Source of the rules: PEFT 0.21.2, `get_pattern_key` and `check_target_module_exists`.

use fancy_regex::{Regex, RegexBuilder};

use crate::error::{Error, ErrorCode, Result};

/// Longest pattern, in bytes. The longest seen in the wild, written for vision models, have about 700.
const MAX_PATTERN_BYTES: usize = 4096;

/// Most entries of one pattern map that are plain module names: one a module, for a large model.
const MAX_PATTERNS: usize = 16_384;

/// Most entries of one pattern map that need a regular expression.
const MAX_REGEXES: usize = 64;

/// Steps back that one match may take.
const BACKTRACK_LIMIT: usize = 20_000;

/// Bytes of one compiled pattern.
const COMPILED_BYTES: usize = 512 << 10;

/// A regular expression of a config, and the field it stands in.
#[derive(Clone, Debug)]
struct FieldRegex {
    regex: Regex,
    field: &'static str,
    source: String,
}

impl FieldRegex {
    /// Compiles `around(source)`; `source` is what messages show.
    fn new(field: &'static str, source: &str, around: impl Fn(&str) -> String) -> Result<Self> {
        if source.len() > MAX_PATTERN_BYTES {
            return Err(invalid(field, source, "is too long")
                .expected(format!("at most {MAX_PATTERN_BYTES} bytes"))
                .found(format!("{} bytes", source.len())));
        }
        // On its own first: a pattern with unbalanced brackets must not become valid by what stands around it.
        let built = RegexBuilder::new(source).delegate_size_limit(COMPILED_BYTES).build().and_then(|_| {
            RegexBuilder::new(&around(source))
                .backtrack_limit(BACKTRACK_LIMIT)
                .delegate_size_limit(COMPILED_BYTES)
                .delegate_dfa_size_limit(COMPILED_BYTES)
                .build()
        });
        let regex = built.map_err(|error| invalid(field, source, &format!("is not valid: {error}")))?;
        Ok(Self { regex, field, source: source.to_owned() })
    }

    fn is_match(&self, module: &str) -> Result<bool> {
        self.regex.is_match(module).map_err(|error| self.exhausted(module, &error))
    }

    fn exhausted(&self, module: &str, error: &fancy_regex::Error) -> Error {
        invalid(self.field, &self.source, &format!("could not be matched with '{module}': {error}"))
    }
}

fn invalid(field: &str, source: &str, what: &str) -> Error {
    let shown: String = source.chars().take(120).collect();
    Error::new(ErrorCode::AdapterPatternInvalid, format!("a pattern of {field} {what}")).found(format!("'{shown}'"))
}

/// A key of `rank_pattern` or `alpha_pattern`: it covers a module if it matches a whole dotted tail of its path.
#[derive(Clone, Debug)]
enum TailPattern {
    /// Letters, digits, `_`, `-` and dots; a dot still stands for any character.
    Plain(String),
    Regex(FieldRegex),
}

impl TailPattern {
    fn new(field: &'static str, source: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if source.len() <= MAX_PATTERN_BYTES && source.chars().all(plain) {
            return Ok(TailPattern::Plain(source.to_owned()));
        }
        FieldRegex::new(field, source, |source| format!(r"\A(?:(.*\.)?({source})$)")).map(TailPattern::Regex)
    }

    fn covers(&self, module: &str) -> Result<bool> {
        match self {
            TailPattern::Regex(regex) => regex.is_match(module),
            TailPattern::Plain(pattern) => {
                let mut rest = module.chars().rev();
                let tail = pattern.chars().rev().all(|p| rest.next().is_some_and(|c| p == '.' || p == c));
                Ok(tail && matches!(rest.next(), None | Some('.')))
            }
        }
    }
}

/// `rank_pattern` or `alpha_pattern`: values by pattern, the first that covers a module wins, in the order of the file.
#[derive(Clone, Debug)]
pub struct PatternMap<T> {
    entries: Vec<(TailPattern, T)>,
}

impl<T> Default for PatternMap<T> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<T: Copy> PatternMap<T> {
    /// Compiles the entries of `field`.
    ///
    /// # Errors
    /// `adapter_pattern_invalid`.
    pub fn new<'a>(field: &'static str, entries: impl IntoIterator<Item = (&'a str, T)>) -> Result<Self> {
        let mut map = Self::default();
        let mut regexes = 0;
        for (source, value) in entries {
            let pattern = TailPattern::new(field, source)?;
            regexes += usize::from(matches!(pattern, TailPattern::Regex(_)));
            map.entries.push((pattern, value));
            if map.entries.len() > MAX_PATTERNS || regexes > MAX_REGEXES {
                return Err(Error::new(ErrorCode::AdapterPatternInvalid, format!("{field} has too many patterns"))
                    .expected(format!("at most {MAX_PATTERNS} module names and {MAX_REGEXES} regular expressions")));
            }
        }
        Ok(map)
    }

    /// The value of the first pattern that covers the module.
    ///
    /// # Errors
    /// `adapter_pattern_invalid` if a match was given up.
    pub fn get(&self, module: &str) -> Result<Option<T>> {
        for (pattern, value) in &self.entries {
            if pattern.covers(module)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

/// `target_modules` or `exclude_modules`.
#[derive(Clone, Debug)]
pub enum Selector {
    /// Paths or dotted tails of paths.
    Names(Vec<String>),
    /// One regular expression over whole paths.
    Pattern(Box<SelectorPattern>),
    /// `"all-linear"`: every linear but the output head. Which ones that were, only the tensors tell.
    AllLinear,
}

/// The compiled string of a [`Selector`].
#[derive(Clone, Debug)]
pub struct SelectorPattern(FieldRegex);

impl Selector {
    /// A selector written as one string.
    ///
    /// # Errors
    /// `adapter_pattern_invalid`.
    pub fn from_text(field: &'static str, text: &str) -> Result<Self> {
        if text.eq_ignore_ascii_case("all-linear") {
            return Ok(Selector::AllLinear);
        }
        let regex = FieldRegex::new(field, text, |source| format!(r"\A(?:{source})\z"))?;
        Ok(Selector::Pattern(Box::new(SelectorPattern(regex))))
    }

    /// Whether it selects a module.
    ///
    /// # Errors
    /// `adapter_pattern_invalid` if a match was given up.
    pub fn selects(&self, module: &str) -> Result<bool> {
        match self {
            Selector::Names(names) => Ok(names.iter().any(|name| is_tail(name, module))),
            Selector::Pattern(pattern) => pattern.0.is_match(module),
            Selector::AllLinear => Ok(true),
        }
    }
}

/// Whether `name` is the path itself or a dotted tail of it.
fn is_tail(name: &str, module: &str) -> bool {
    module.strip_suffix(name).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

/// Whether `name` is a dotted part of the path: the module itself, or one that it lies in.
fn is_within(name: &str, module: &str) -> bool {
    module.match_indices(name).any(|(at, _)| {
        let (before, after) = (&module[..at], &module[at + name.len()..]);
        (before.is_empty() || before.ends_with('.')) && (after.is_empty() || after.starts_with('.'))
    })
}

/// `layers_to_transform` and `layers_pattern`: the layers that list targets are narrowed to.
#[derive(Clone, Debug)]
pub struct LayerFilter {
    layers: Vec<u64>,
    /// Each finds the layer's index; the first that matches decides.
    indices: Vec<FieldRegex>,
}

impl LayerFilter {
    /// A filter to `layers`, whose numbers follow one of the `names` (regular expressions), or any name if there are none.
    ///
    /// # Errors
    /// `adapter_pattern_invalid`.
    pub fn new(layers: Vec<u64>, names: &[String]) -> Result<Self> {
        const FIELD: &str = "layers_pattern";
        if names.len() > MAX_REGEXES {
            return Err(Error::new(ErrorCode::AdapterPatternInvalid, format!("{FIELD} has too many patterns"))
                .expected(format!("at most {MAX_REGEXES}")));
        }
        let after_any = |name: &str| format!(r"\A(?:.*?\.{name}\.(?<layer>\d+)\.)");
        let after_name = |name: &str| format!(r"\A(?:(?:^|.*?\.){name}\.(?<layer>\d+)\.)");
        let indices = match names {
            [] => vec![FieldRegex::new(FIELD, "[^.]*", after_any)?],
            _ => names.iter().map(|name| FieldRegex::new(FIELD, name, after_name)).collect::<Result<_>>()?,
        };
        Ok(Self { layers, indices })
    }

    /// Whether the module lies in one of the layers.
    fn selects(&self, module: &str) -> Result<bool> {
        for index in &self.indices {
            let found = index.regex.captures(module).map_err(|error| index.exhausted(module, &error))?;
            if let Some(found) = found {
                // With an alternation in the name a match need not hold a number.
                let layer = found.name("layer").and_then(|layer| layer.as_str().parse().ok());
                return Ok(layer.is_some_and(|layer: u64| self.layers.contains(&layer)));
            }
        }
        Ok(false)
    }
}

/// Everything by which a config tells the modules it adapts.
#[derive(Clone, Debug, Default)]
pub struct Targeting {
    /// `target_modules`; `None` is PEFT's default for the architecture.
    pub targets: Option<Selector>,
    /// `exclude_modules`.
    pub exclude: Option<Selector>,
    /// `modules_to_save`: a module at or below one of these is never targeted.
    pub saved: Vec<String>,
    /// `layers_to_transform` with `layers_pattern`.
    pub layers: Option<LayerFilter>,
}

impl Targeting {
    /// Whether every linear but the output head is targeted, and nothing else.
    pub fn is_all_linear(&self) -> bool {
        matches!(self.targets, Some(Selector::AllLinear))
    }

    /// The field that positively excludes a module; `None` if the config has nothing against it.
    ///
    /// # Errors
    /// `adapter_pattern_invalid` if a match was given up.
    pub fn excluded_by(&self, module: &str) -> Result<Option<&'static str>> {
        if let Some(exclude) = &self.exclude
            && exclude.selects(module)?
        {
            return Ok(Some("exclude_modules"));
        }
        if self.saved.iter().any(|name| is_within(name, module)) {
            return Ok(Some("modules_to_save"));
        }
        let Some(targets) = &self.targets else { return Ok(None) };
        if !targets.selects(module)? {
            return Ok(Some("target_modules"));
        }
        // A path named in full is taken whatever its layer, and a regular expression has no layer filter.
        if let (Selector::Names(names), Some(layers)) = (targets, &self.layers)
            && !names.iter().any(|name| name == module)
            && !layers.selects(module)?
        {
            return Ok(Some("layers_to_transform"));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::adapter::config::AdapterConfig;

    /// Stands for `@` in the tables.
    const Q_PROJ: &str = "model.layers.3.self_attn.q_proj";

    /// One JSON array a line.
    fn rows(table: &str) -> Vec<Value> {
        let parse = |line: &str| serde_json::from_str(&line.trim().replace('@', Q_PROJ)).expect(line);
        table.lines().filter(|line| !line.trim().is_empty()).map(parse).collect()
    }

    /// Is the module adapted? Answers of PEFT 0.21.2's `check_target_module_exists`, with layer indices and excludes:
    /// adapted, module, target_modules, layers_to_transform, layers_pattern, exclude_modules.
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
    fn a_module_at_or_below_a_saved_one_is_never_targeted() {
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
    fn without_target_modules_nothing_is_positively_excluded() {
        assert_eq!(Targeting::default().excluded_by(Q_PROJ).expect("no pattern"), None);
        let all = Targeting { targets: Some(Selector::AllLinear), ..Targeting::default() };
        assert_eq!(all.excluded_by("lm_head").expect("no pattern"), None);
    }

    /// Which key counts? Answers of PEFT 0.21.2's `get_pattern_key`: module, keys in the order of the file, index.
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
    fn the_first_key_in_file_order_that_covers_a_whole_tail_counts() {
        for row in rows(KEYS) {
            let keys = row[1].as_array().expect("keys").iter().map(|key| key.as_str().expect("text"));
            let map = PatternMap::new("rank_pattern", keys.zip(0usize..)).expect("valid");
            let found = map.get(row[0].as_str().expect("a path")).expect("affordable");
            assert_eq!(found, row[2].as_u64().map(|i| i as usize), "{row}");
        }
    }

    proptest! {
        /// The oracle is the regular expression as PEFT writes it.
        #[test]
        fn a_plain_key_means_what_the_same_regular_expression_means(key in "[a-c._1-]{0,5}", module in "[a-c._1-]{0,8}") {
            let TailPattern::Plain(_) = TailPattern::new("rank_pattern", &key).expect("valid") else {
                panic!("{key} is plain");
            };
            let oracle = regex::Regex::new(&format!(r"^(?:(.*\.)?({key})$)")).expect("valid");
            let plain = TailPattern::new("rank_pattern", &key).expect("valid").covers(&module).expect("plain");
            prop_assert_eq!(plain, oracle.is_match(&module));
        }
    }

    fn refused(pattern: &str) -> Error {
        let map = PatternMap::new("rank_pattern", [(pattern, 1usize)]);
        map.and_then(|map| map.get(&"a".repeat(60))).expect_err(pattern)
    }

    #[test]
    fn a_pattern_that_is_invalid_or_too_dear_is_an_error_not_a_no() {
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
}
