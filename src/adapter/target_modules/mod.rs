//! Which modules a config selects: `target_modules` with its filters, `rank_pattern`, `alpha_pattern`, matched as PEFT does.
//!
//! The strings are Python regular expressions from an untrusted file. They may need look-ahead, for which there is no
//! linear-time engine. So their length, number, size and backtracking are capped, and exceeding a cap is an error, never
//! "no match". Source of the rules: PEFT 0.21.2, `get_pattern_key` and `check_target_module_exists`.

use fancy_regex::{Regex, RegexBuilder};

use crate::error::{Error, ErrorCode, Result};

/// Longest pattern, in bytes. The longest seen in the wild, written for vision models, have about 700.
const MAX_PATTERN_BYTES: usize = 4096;

/// Most entries of one pattern map that are plain module names: one per module of a large model.
const MAX_PATTERNS: usize = 16_384;

/// Most entries of one pattern map that need a regular expression.
const MAX_REGEXES: usize = 64;

/// Backtracking steps that one match may take.
const BACKTRACK_LIMIT: usize = 20_000;

/// Largest size of a compiled pattern, in bytes.
const COMPILED_BYTES: usize = 512 << 10;

/// A regular expression of a config, with the field it comes from.
#[derive(Clone, Debug)]
struct FieldRegex {
    regex: Regex,
    field: &'static str,
    source: String,
}

impl FieldRegex {
    /// Compiles `around(source)`; messages show `source`.
    fn new(field: &'static str, source: &str, around: impl Fn(&str) -> String) -> Result<Self> {
        if source.len() > MAX_PATTERN_BYTES {
            return Err(invalid(field, source, "is too long")
                .with_expected(format!("at most {MAX_PATTERN_BYTES} bytes"))
                .with_found(format!("{} bytes", source.len())));
        }
        // Alone first: a pattern with unbalanced brackets must not become valid by what surrounds it.
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
    Error::new(ErrorCode::AdapterPatternInvalid, format!("a pattern of {field} {what}"))
        .with_found(format!("'{shown}'"))
}

/// A key of `rank_pattern` or `alpha_pattern`. It covers a module if it matches a suffix of its path that begins at a dot.
#[derive(Clone, Debug)]
enum SuffixPattern {
    /// Letters, digits, `_`, `-` and dots; a dot still matches any character.
    Plain(String),
    Regex(FieldRegex),
}

impl SuffixPattern {
    fn new(field: &'static str, source: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if source.len() <= MAX_PATTERN_BYTES && source.chars().all(plain) {
            return Ok(SuffixPattern::Plain(source.to_owned()));
        }
        FieldRegex::new(field, source, |source| format!(r"\A(?:(.*\.)?({source})$)")).map(SuffixPattern::Regex)
    }

    fn covers(&self, module: &str) -> Result<bool> {
        match self {
            SuffixPattern::Regex(regex) => regex.is_match(module),
            SuffixPattern::Plain(pattern) => {
                let mut rest = module.chars().rev();
                let is_suffix = pattern.chars().rev().all(|p| rest.next().is_some_and(|c| p == '.' || p == c));
                Ok(is_suffix && matches!(rest.next(), None | Some('.')))
            }
        }
    }
}

/// `rank_pattern` or `alpha_pattern`: values by pattern. The first pattern that covers a module wins, in the order of the file.
#[derive(Clone, Debug)]
pub struct PatternMap<T> {
    entries: Vec<(SuffixPattern, T)>,
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
            let pattern = SuffixPattern::new(field, source)?;
            regexes += usize::from(matches!(pattern, SuffixPattern::Regex(_)));
            map.entries.push((pattern, value));
            if map.entries.len() > MAX_PATTERNS || regexes > MAX_REGEXES {
                return Err(Error::new(ErrorCode::AdapterPatternInvalid, format!("{field} has too many patterns"))
                    .with_expected(format!(
                        "at most {MAX_PATTERNS} module names and {MAX_REGEXES} regular expressions"
                    )));
            }
        }
        Ok(map)
    }

    /// The value of the first pattern that covers the module.
    ///
    /// # Errors
    /// `adapter_pattern_invalid` if matching exceeds its limit.
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
    /// Paths, or suffixes of paths that begin at a dot.
    Names(Vec<String>),
    /// One regular expression over whole paths.
    Pattern(Box<SelectorPattern>),
    /// `"all-linear"`: every linear except the output head. Which ones those were is known from the tensors only.
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
    /// `adapter_pattern_invalid` if matching exceeds its limit.
    pub fn selects(&self, module: &str) -> Result<bool> {
        match self {
            Selector::Names(names) => Ok(names.iter().any(|name| is_suffix(name, module))),
            Selector::Pattern(pattern) => pattern.0.is_match(module),
            Selector::AllLinear => Ok(true),
        }
    }
}

/// Whether `name` is the path itself or a suffix of it that begins at a dot.
fn is_suffix(name: &str, module: &str) -> bool {
    module.strip_suffix(name).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

/// Whether `name` is the module itself or one that contains it, at any position of the path.
fn is_within(name: &str, module: &str) -> bool {
    module.match_indices(name).any(|(at, _)| {
        let (before, after) = (&module[..at], &module[at + name.len()..]);
        (before.is_empty() || before.ends_with('.')) && (after.is_empty() || after.starts_with('.'))
    })
}

/// `layers_to_transform` and `layers_pattern`: the layers to which a list of targets is limited.
#[derive(Clone, Debug)]
pub struct LayerFilter {
    layers: Vec<u64>,
    /// Each captures the layer's index; the first that matches decides.
    indices: Vec<FieldRegex>,
}

impl LayerFilter {
    /// A filter for `layers`. Their numbers follow one of the `names` (regular expressions), or any name if there are none.
    ///
    /// # Errors
    /// `adapter_pattern_invalid`.
    pub fn new(layers: Vec<u64>, names: &[String]) -> Result<Self> {
        const FIELD: &str = "layers_pattern";
        if names.len() > MAX_REGEXES {
            return Err(Error::new(ErrorCode::AdapterPatternInvalid, format!("{FIELD} has too many patterns"))
                .with_expected(format!("at most {MAX_REGEXES}")));
        }
        let after_any = |name: &str| format!(r"\A(?:.*?\.{name}\.(?<layer>\d+)\.)");
        let after_name = |name: &str| format!(r"\A(?:(?:^|.*?\.){name}\.(?<layer>\d+)\.)");
        let indices = match names {
            [] => vec![FieldRegex::new(FIELD, "[^.]*", after_any)?],
            _ => names.iter().map(|name| FieldRegex::new(FIELD, name, after_name)).collect::<Result<_>>()?,
        };
        Ok(Self { layers, indices })
    }

    /// Whether the module is in one of the layers.
    fn selects(&self, module: &str) -> Result<bool> {
        for index in &self.indices {
            let found = index.regex.captures(module).map_err(|error| index.exhausted(module, &error))?;
            if let Some(found) = found {
                // With an alternation in the name a match may lack the number.
                let layer = found.name("layer").and_then(|layer| layer.as_str().parse().ok());
                return Ok(layer.is_some_and(|layer: u64| self.layers.contains(&layer)));
            }
        }
        Ok(false)
    }
}

/// Everything by which a config selects the modules it adapts.
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
    /// Whether exactly the linears except the output head are targeted.
    pub fn is_all_linear(&self) -> bool {
        matches!(self.targets, Some(Selector::AllLinear))
    }

    /// Whether `target_modules` is one text, not a list.
    pub fn targets_are_text(&self) -> bool {
        matches!(self.targets, Some(Selector::Pattern(_) | Selector::AllLinear))
    }

    /// The field that excludes a module; `None` if none does.
    ///
    /// # Errors
    /// `adapter_pattern_invalid` if matching exceeds its limit.
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
        // The layer filter applies neither to a module named by its full path nor to regular expressions.
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
mod tests;
