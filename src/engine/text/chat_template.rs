//! Chat templates: Jinja, rendered as transformers renders them.
//!
//! A template is code from a model folder. It gets what transformers gives it (`messages`, `tools`, `documents`,
//! `add_generation_prompt`, the special tokens, `raise_exception`, `strftime_now`, Python's `tojson`) and runs on a budget
//! of steps and bytes, so that a hostile one can neither hang nor exhaust memory.
//!
//! Source of the rules: `transformers.utils.chat_template_utils` 5.23.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind, Value, context};
use regex::Regex;
use serde::Serialize as _;
use serde_json::{Map, Value as Json};

use super::files::{invalid, read, read_object};
use crate::error::{Error, ErrorCode, Result};

/// Steps (and 64-byte units of memory) that a rendering may use: about 128 MiB, plus an allowance per byte of messages.
const FUEL: u64 = 2_000_000;
const FUEL_PER_BYTE: u64 = 8;

/// Depth of macros and includes; transformers' own limit is Python's stack.
const RECURSION_LIMIT: usize = 128;

const NAME: &str = "chat_template";

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// Its text.
    pub content: String,
    /// Whatever else the template may read (tool calls, names).
    #[serde(flatten)]
    pub extra: Map<String, Json>,
}

impl ChatMessage {
    /// A message that is a role and a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), extra: Map::new() }
    }
}

/// A model's chat template and the special tokens it may use.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    /// Why the template does not compile. Reported when it is used: the model works without it.
    broken: Option<String>,
    special: BTreeMap<String, String>,
    path: PathBuf,
}

impl ChatTemplate {
    /// Finds the template where transformers does, in its order: chat_template.jinja, tokenizer_config.json, chat_template.json.
    pub(super) fn find(
        dir: &Path,
        config: &Map<String, Json>,
        special: &BTreeMap<String, String>,
    ) -> Result<Option<Self>> {
        let path = dir.join("chat_template.jinja");
        if let Some(source) = read(&path)? {
            return Ok(Some(Self::compile(&source, special, path)));
        }
        let path = dir.join("tokenizer_config.json");
        if let Some(source) = template_of(config, &path)? {
            return Ok(Some(Self::compile(source, special, path)));
        }
        let path = dir.join("chat_template.json");
        let source = template_of(&read_object(&path)?, &path)?.map(str::to_owned);
        Ok(source.map(|source| Self::compile(&source, special, path)))
    }

    fn compile(source: &str, special: &BTreeMap<String, String>, path: PathBuf) -> Self {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let compiled = syntax.and_then(|syntax| {
            environment.set_syntax(syntax);
            environment.set_recursion_limit(RECURSION_LIMIT);
            environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
            environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
            environment.add_filter("tojson", tojson);
            environment.add_function("raise_exception", raise_exception);
            environment.add_function("strftime_now", strftime_now);
            environment.add_template_owned(NAME, without_generation_tags(source))
        });
        let broken = compiled.err().map(|e| e.to_string());
        Self { environment, broken, special: special.clone(), path }
    }

    /// Renders messages as a prompt.
    pub(super) fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        let failed = |clause: String| Error::new(ErrorCode::ChatTemplateFailed, clause).with_path(&self.path);
        if let Some(broken) = &self.broken {
            return Err(failed(format!("the chat template is not valid: {broken}")));
        }
        let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(FUEL + FUEL_PER_BYTE * bytes as u64));
        let values = context! {
            messages => Value::from(Serde(messages)),
            tools => Value::from(()),
            documents => Value::from(()),
            add_generation_prompt => add_generation_prompt,
            ..Value::from(Serde(&self.special))
        };
        environment
            .get_template(NAME)
            .and_then(|template| template.render(values))
            .map_err(|e| failed(format!("the chat template failed on these messages: {e}")))
    }
}

/// `chat_template`: the source, or a list of named ones, of which "default" is used.
fn template_of<'a>(config: &'a Map<String, Json>, path: &Path) -> Result<Option<&'a str>> {
    match config.get("chat_template") {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(source)) => Ok(Some(source)),
        Some(Json::Array(named)) => {
            let default = named.iter().find(|entry| entry.get("name").and_then(Json::as_str) == Some("default"));
            Ok(default.and_then(|entry| entry.get("template")?.as_str()))
        }
        Some(_) => Err(invalid("chat_template is neither a text nor a list of named texts", path)),
    }
}

/// transformers' own `{% generation %}` block marks the assistant's tokens for training; it renders its body.
fn without_generation_tags(source: &str) -> String {
    match Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}") {
        Ok(tag) => tag
            .replace_all(source, |found: &regex::Captures<'_>| {
                let word = if found.get(2).is_some() { "endif" } else { "if true" };
                format!("{{%{} {word} {}%}}", &found[1], &found[3])
            })
            .into_owned(),
        Err(_) => source.to_owned(),
    }
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// `datetime.now().strftime(format)`, in UTC: the machine's zone should not change a prompt.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    strftime(format, Timestamp::now())
}

fn strftime(format: &str, time: Timestamp) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, &time.to_zoned_datetime(TimeZone::UTC))
        .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}")))
}

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`: what transformers uses in
/// place of Jinja's own `tojson`, which would escape for HTML.
fn tojson(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let unserializable =
        |e: String| minijinja::Error::new(ErrorKind::BadSerialization, format!("tojson cannot write this: {e}"));
    if value.is_undefined() {
        return Err(unserializable("the value is undefined".to_owned()));
    }
    let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(indent) if indent.is_none() => None,
        Some(indent) => Some(match (indent.as_str(), indent.as_usize()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(width)) => " ".repeat(width.min(64)),
            (None, None) => return Err(unserializable("indent is neither a number nor a text".to_owned())),
        }),
    };
    // Python ends a line after a bare comma once it indents.
    let (mut item, mut key) = (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    if let Some(separators) = options.get::<Option<Value>>("separators")?.filter(|value| !value.is_none()) {
        item = separators.get_item_by_index(0)?.to_string();
        key = separators.get_item_by_index(1)?.to_string();
    }
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;

    let mut json = serde_json::to_value(value).map_err(|e| unserializable(e.to_string()))?;
    if sort_keys {
        json.sort_all_objects();
    }
    let mut out = Vec::new();
    let style = PythonJson { ensure_ascii, indent, item, key, depth: 0, filled: false };
    json.serialize(&mut serde_json::Serializer::with_formatter(&mut out, style))
        .map_err(|e| unserializable(e.to_string()))?;
    String::from_utf8(out).map_err(|e| unserializable(e.to_string()))
}

/// Writes JSON with the layout of Python's `json.dumps`.
struct PythonJson {
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    depth: usize,
    /// Whether the innermost container has an item.
    filled: bool,
}

impl PythonJson {
    fn line(&self, out: &mut (impl std::io::Write + ?Sized)) -> std::io::Result<()> {
        if let Some(indent) = &self.indent {
            out.write_all(b"\n")?;
            for _ in 0..self.depth {
                out.write_all(indent.as_bytes())?;
            }
        }
        Ok(())
    }

    fn begin(&mut self, out: &mut (impl std::io::Write + ?Sized), bracket: &[u8]) -> std::io::Result<()> {
        self.depth += 1;
        self.filled = false;
        out.write_all(bracket)
    }

    fn end(&mut self, out: &mut (impl std::io::Write + ?Sized), bracket: &[u8]) -> std::io::Result<()> {
        self.depth -= 1;
        if self.filled {
            self.line(out)?;
        }
        self.filled = true;
        out.write_all(bracket)
    }

    fn next(&mut self, out: &mut (impl std::io::Write + ?Sized), first: bool) -> std::io::Result<()> {
        self.filled = true;
        if !first {
            out.write_all(self.item.as_bytes())?;
        }
        self.line(out)
    }
}

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array<W: std::io::Write + ?Sized>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.begin(out, b"[")
    }

    fn end_array<W: std::io::Write + ?Sized>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.end(out, b"]")
    }

    fn begin_array_value<W: std::io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        self.next(out, first)
    }

    fn begin_object<W: std::io::Write + ?Sized>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.begin(out, b"{")
    }

    fn end_object<W: std::io::Write + ?Sized>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.end(out, b"}")
    }

    fn begin_object_key<W: std::io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        self.next(out, first)
    }

    fn begin_object_value<W: std::io::Write + ?Sized>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: std::io::Write + ?Sized>(&mut self, _out: &mut W) -> std::io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn end_array_value<W: std::io::Write + ?Sized>(&mut self, _out: &mut W) -> std::io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn write_f64<W: std::io::Write + ?Sized>(&mut self, out: &mut W, value: f64) -> std::io::Result<()> {
        out.write_all(python_float(value).as_bytes())
    }

    fn write_string_fragment<W: std::io::Write + ?Sized>(&mut self, out: &mut W, text: &str) -> std::io::Result<()> {
        if !self.ensure_ascii || text.is_ascii() {
            return out.write_all(text.as_bytes());
        }
        for c in text.chars() {
            if c.is_ascii() {
                write!(out, "{c}")?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

/// `repr(float)`: the shortest digits that round-trip, with an exponent below 1e-4 and from 1e16 on.
fn python_float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let exponent = scientific.split_once('e').and_then(|(_, e)| e.parse::<i32>().ok()).unwrap_or(0);
    match scientific.split_once('e') {
        Some((digits, _)) if value != 0.0 && !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ if value.fract() == 0.0 => format!("{value:.1}"),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(source: &str) -> ChatTemplate {
        let special = [("bos_token".to_owned(), "<s>".to_owned()), ("eos_token".to_owned(), "</s>".to_owned())];
        ChatTemplate::compile(source, &special.into_iter().collect(), "tokenizer_config.json".into())
    }

    fn render(source: &str, messages: &[ChatMessage]) -> String {
        template(source).render(messages, true).expect("renders")
    }

    fn with_tools() -> ChatMessage {
        let Json::Object(extra) = json!({"tool": {"z": [1, 2.5, {"ü<": null}], "a": true, "e": [], "o": {}}}) else {
            unreachable!("an object")
        };
        ChatMessage { extra, ..ChatMessage::new("user", "hi") }
    }

    #[test]
    fn chatml_is_rendered_as_transformers_does() {
        let source = "{% for message in messages %}\n    {% if loop.first and message['role'] != 'system' %}\n\
                      <|im_start|>system\nBe brief.<|im_end|>\n    {% endif %}\n\
                      <|im_start|>{{ message.role }}\n{{ message['content'].strip() }}<|im_end|>\n{% endfor %}\n\
                      {% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}\n";
        let messages = [ChatMessage::new("user", " Hello "), ChatMessage::new("assistant", "Hi")];
        assert_eq!(
            render(source, &messages),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n\
             <|im_start|>assistant\nHi<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn special_tokens_are_variables_and_tools_are_none() {
        assert_eq!(
            render(
                "{{ bos_token }}{% if tools is none and documents is none %}x{% endif %}{{ pad_token }}{{ eos_token }}",
                &[]
            ),
            "<s>x</s>"
        );
    }

    #[test]
    fn namespaces_slices_and_python_methods_work() {
        let source = "{% set ns = namespace(found=false) %}{% for m in messages[1:] %}{% if m.content.startswith('b') %}\
                      {% set ns.found = true %}{% endif %}{% endfor %}{{ ns.found }} {{ messages[0].content.split('-')[-1] }}\
                      {% if messages[0].get('name') is none %} unnamed{% endif %}";
        assert_eq!(render(source, &[ChatMessage::new("user", "x-y"), ChatMessage::new("user", "b")]), "True y unnamed");
    }

    /// Expected texts were written by CPython 3.11's `json.dumps`.
    #[test]
    fn tojson_is_pythons_json_dumps() {
        let messages = [with_tools()];
        assert_eq!(
            render("{{ messages[0].tool | tojson }}", &messages),
            r#"{"z": [1, 2.5, {"ü<": null}], "a": true, "e": [], "o": {}}"#
        );
        assert_eq!(
            render("{{ messages[0].tool | tojson(indent=2) }}", &messages),
            "{\n  \"z\": [\n    1,\n    2.5,\n    {\n      \"ü<\": null\n    }\n  ],\n  \"a\": true,\n  \"e\": [],\n  \"o\": {}\n}"
        );
        assert_eq!(
            render(
                "{{ messages[0].tool | tojson(sort_keys=true, separators=(',', ':'), ensure_ascii=true) }}",
                &messages
            ),
            r#"{"a":true,"e":[],"o":{},"z":[1,2.5,{"\u00fc<":null}]}"#
        );
        assert!(template("{{ nothing | tojson }}").render(&[], true).is_err());
    }

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e100, "1.25e+100"),
            (123.456, "123.456"),
        ];
        for (value, text) in cases {
            assert_eq!(python_float(value), text);
        }
    }

    #[test]
    fn raise_exception_says_why() {
        let error = template("{{ raise_exception('roles must alternate') }}").render(&[], true).expect_err("an error");
        assert_eq!(error.code(), ErrorCode::ChatTemplateFailed);
        assert!(error.to_string().contains("roles must alternate"), "{error}");
    }

    #[test]
    fn a_broken_template_fails_only_when_it_is_used() {
        let error = template("{% if %}").render(&[], true).expect_err("an error");
        assert_eq!(error.code(), ErrorCode::ChatTemplateFailed);
        assert_eq!(error.path(), Some(Path::new("tokenizer_config.json")));
    }

    #[test]
    fn hostile_templates_end_in_an_error() {
        let sources = [
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "{{ 'a' * 99999999 }}{{ 'a' * 99999999 }}{{ 'a' * 99999999 }}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        ];
        for source in sources {
            let error = template(source).render(&[], true).expect_err(source);
            assert_eq!(error.code(), ErrorCode::ChatTemplateFailed);
        }
    }

    #[test]
    fn a_long_chat_has_enough_fuel() {
        let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}";
        let messages: Vec<_> = (0..2000).map(|_| ChatMessage::new("user", "word ".repeat(1000))).collect();
        assert!(render(source, &messages).len() > 9_000_000);
    }

    #[test]
    fn generation_tags_render_their_body() {
        assert_eq!(render("a {%- generation %} b {%- endgeneration -%} c", &[]), "a bc");
    }

    /// Expected texts were written by CPython 3.11's `strftime` in UTC.
    #[test]
    fn dates_are_those_of_strftime() {
        let at = |second: i64| Timestamp::from_second(second).expect("in range");
        let format = "%d %b %Y|%A %a %B %-d %-m|%H:%M:%S %I %p|%y %j|%F %T|100%%";
        assert_eq!(
            strftime(format, at(0)).expect("formats"),
            "01 Jan 1970|Thursday Thu January 1 1|00:00:00 12 AM|70 001|1970-01-01 00:00:00|100%"
        );
        assert_eq!(
            strftime(format, at(1_709_210_096)).expect("formats"),
            "29 Feb 2024|Thursday Thu February 29 2|12:34:56 12 PM|24 060|2024-02-29 12:34:56|100%"
        );
        assert_eq!(strftime("%F %A %j", at(4_133_980_799)).expect("formats"), "2100-12-31 Friday 365");
        assert!(strftime("%!", at(0)).is_err());
    }

    #[test]
    fn the_template_is_found_where_transformers_looks() {
        let dir = tempfile::tempdir().expect("a folder");
        let find = |config: Json| {
            let config = config.as_object().cloned().unwrap_or_default();
            let template = ChatTemplate::find(dir.path(), &config, &BTreeMap::new())?;
            template.map(|template| template.render(&[], false)).transpose()
        };
        assert_eq!(find(json!({})).expect("no error"), None);
        assert_eq!(find(json!({"chat_template": "one"})).expect("no error").as_deref(), Some("one"));
        let list =
            json!({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]});
        assert_eq!(find(list).expect("no error").as_deref(), Some("d"));
        assert!(find(json!({"chat_template": 3})).is_err());

        std::fs::write(dir.path().join("chat_template.json"), r#"{"chat_template": "json"}"#).expect("writes");
        assert_eq!(find(json!({})).expect("no error").as_deref(), Some("json"));
        std::fs::write(dir.path().join("chat_template.jinja"), "jinja\n").expect("writes");
        assert_eq!(find(json!({"chat_template": "one"})).expect("no error").as_deref(), Some("jinja"));
    }
}
