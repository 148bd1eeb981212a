//! Grammars of requests, and what llguidance is given for them.

use llguidance::api::TopLevelGrammar;
use serde_json::{Map, Value, json};

use super::gbnf;
use crate::error::{Error, ErrorCode, Result};

/// Largest size of a grammar as text, in bytes.
pub const MAX_GRAMMAR_BYTES: usize = 256 << 10;

/// Most brackets of a Lark grammar or a regular expression that may be open at once: its parsers are recursive.
const MAX_NESTING: usize = 200;

/// Whitespace between the parts of a JSON text, as a regular expression: a space, or a new line and its indentation. Without a
/// bound, a model may write whitespace forever.
const JSON_WHITESPACE: &str = r"[ ]|\n[ \t]{0,20}";

/// What the text of a completion must match from beginning to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grammar {
    /// JSON that is valid under this JSON schema.
    JsonSchema(String),
    /// Any JSON object.
    JsonObject,
    /// A regular expression in the syntax of Rust's `regex`; it matches the whole text.
    Regex(String),
    /// A grammar in llguidance's variant of Lark syntax, whose start rule is `start`.
    Lark(String),
    /// A grammar in GBNF, llama.cpp's variant of Backus-Naur form, whose start rule is `root`.
    Gbnf(String),
    /// One of these strings.
    Choices(Vec<String>),
}

impl Grammar {
    /// The one grammar that is given, if one is.
    ///
    /// # Errors
    /// `request_invalid`: there are several.
    pub fn only(given: impl IntoIterator<Item = Grammar>) -> Result<Option<Grammar>> {
        let mut given = given.into_iter();
        let (first, second) = (given.next(), given.next());
        match (&first, &second) {
            (Some(one), Some(other)) => {
                let what = format!("{} and {} are given, and a request has one grammar", one.name(), other.name());
                Err(Error::new(ErrorCode::RequestInvalid, what)
                    .with_setting(one.name())
                    .with_expected("one of json_schema, json_object, regex, grammar, gbnf and choices"))
            }
            _ => Ok(first),
        }
    }

    /// The grammar as llguidance takes it.
    ///
    /// # Errors
    /// `constraint_invalid`: it is too large, nested too deeply, or its JSON cannot be read.
    pub(super) fn to_llguidance(&self) -> Result<TopLevelGrammar> {
        let bytes = match self {
            Grammar::JsonSchema(text) | Grammar::Regex(text) | Grammar::Lark(text) | Grammar::Gbnf(text) => text.len(),
            Grammar::Choices(choices) => choices.iter().map(String::len).sum(),
            Grammar::JsonObject => 0,
        };
        if bytes > MAX_GRAMMAR_BYTES {
            return Err(self
                .invalid("is too large")
                .with_expected(format!("at most {MAX_GRAMMAR_BYTES} bytes"))
                .with_found(bytes));
        }
        match self {
            Grammar::JsonSchema(schema) => self.json_schema(schema),
            Grammar::JsonObject => self.json_schema(r#"{"type": "object"}"#),
            Grammar::Regex(pattern) => self.regex(without_anchors(pattern)),
            Grammar::Lark(lark) => {
                self.check_nesting(lark)?;
                Ok(TopLevelGrammar::from_lark(lark.clone()))
            }
            Grammar::Gbnf(text) => {
                let lark = gbnf::to_lark(text).map_err(|what| self.invalid(&format!("cannot be used: {what}")))?;
                Ok(TopLevelGrammar::from_lark(lark))
            }
            Grammar::Choices(choices) => {
                if choices.is_empty() || choices.iter().any(String::is_empty) {
                    return Err(self.invalid("must be strings of at least one character, and at least one"));
                }
                let escaped: Vec<String> = choices.iter().map(|choice| regex::escape(choice)).collect();
                Ok(TopLevelGrammar::from_regex(&format!("(?:{})", escaped.join("|"))))
            }
        }
    }

    fn json_schema(&self, schema: &str) -> Result<TopLevelGrammar> {
        let schema: Value = serde_json::from_str(schema).map_err(|e| self.invalid(&format!("is not JSON: {e}")))?;
        let schema = match schema {
            Value::Object(keywords) => keywords,
            Value::Bool(true) => Map::new(),
            other => return Err(self.invalid("must be an object").with_found(other)),
        };
        Ok(TopLevelGrammar::from_json_schema(Self::guided_schema(schema, false)))
    }

    /// A JSON schema with what llguidance is to do about it, unless it says that itself: a bound on white space between the parts
    /// of a text, and whether keywords that cannot be kept are ignored (`lenient`) or an error.
    pub(crate) fn guided_schema(mut schema: Map<String, Value>, lenient: bool) -> Value {
        let guidance = || json!({"whitespace_pattern": JSON_WHITESPACE, "lenient": lenient});
        schema.entry("x-guidance").or_insert_with(guidance);
        Value::Object(schema)
    }

    fn regex(&self, pattern: &str) -> Result<TopLevelGrammar> {
        self.check_nesting(pattern)?;
        if ends_in_escape(pattern) {
            return Err(self.invalid("ends in a backslash that escapes nothing"));
        }
        Ok(TopLevelGrammar::from_regex(pattern))
    }

    /// Brackets inside strings and classes count too: they are few in any grammar that people use.
    fn check_nesting(&self, text: &str) -> Result<()> {
        let mut depth = 0_usize;
        for byte in text.bytes() {
            match byte {
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth > MAX_NESTING {
                return Err(self.invalid(&format!("has more than {MAX_NESTING} open brackets")));
            }
        }
        Ok(())
    }

    /// An error about the grammar.
    pub(super) fn invalid(&self, what: &str) -> Error {
        Error::new(ErrorCode::ConstraintInvalid, format!("{} {what}", self.name())).with_setting(self.name())
    }

    /// The name of the request's field that it was given as.
    pub fn name(&self) -> &'static str {
        match self {
            Grammar::JsonSchema(_) => "json_schema",
            Grammar::JsonObject => "json_object",
            Grammar::Regex(_) => "regex",
            Grammar::Lark(_) => "grammar",
            Grammar::Gbnf(_) => "gbnf",
            Grammar::Choices(_) => "choices",
        }
    }
}

/// The pattern without `^` at its beginning and `$` at its end, which mean nothing where the whole text has to match.
fn without_anchors(pattern: &str) -> &str {
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    match pattern.strip_suffix('$') {
        Some(rest) if !ends_in_escape(rest) => rest,
        _ => pattern,
    }
}

/// Whether the last backslash escapes what comes after the pattern.
fn ends_in_escape(pattern: &str) -> bool {
    !pattern.bytes().rev().take_while(|&byte| byte == b'\\').count().is_multiple_of(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_around_a_whole_pattern_are_dropped() {
        for (pattern, expected) in [("^a$", "a"), ("a", "a"), (r"a\$", r"a\$"), (r"^a\\$", r"a\\"), ("", "")] {
            assert_eq!(without_anchors(pattern), expected);
        }
    }

    #[test]
    fn what_is_too_large_or_nested_too_deeply_is_refused_before_it_is_parsed() {
        let refused = [
            (Grammar::Regex("a".repeat(MAX_GRAMMAR_BYTES + 1)), "too large"),
            (Grammar::Choices(vec!["a".repeat(MAX_GRAMMAR_BYTES), "b".to_owned()]), "too large"),
            (Grammar::Regex("(".repeat(MAX_NESTING + 1)), "open brackets"),
            (Grammar::Regex(r"[0-9]\".to_owned()), "escapes nothing"),
            (Grammar::Regex(r"^\\\$\".to_owned()), "escapes nothing"),
            (Grammar::Lark(format!("start: {}", "[".repeat(MAX_NESTING + 1))), "open brackets"),
            (Grammar::JsonSchema("[".repeat(1000)), "is not JSON"),
            (Grammar::JsonSchema("3".to_owned()), "must be an object"),
            (Grammar::Choices(Vec::new()), "at least one"),
            (Grammar::Choices(vec![String::new()]), "at least one"),
        ];
        for (grammar, expected) in refused {
            let Err(error) = grammar.to_llguidance() else { panic!("it is accepted") };
            assert_eq!(error.code(), ErrorCode::ConstraintInvalid);
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
