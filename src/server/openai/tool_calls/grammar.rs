//! Grammars of texts that call tools, in the format of a model.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json};

use super::format::ToolCallFormat;
use super::tools::Function;
use crate::engine::Grammar;

/// What a text may be besides calls.
#[derive(Clone, Debug)]
pub enum OtherText {
    /// Nothing: there must be a call.
    Forbidden,
    /// Any text, which calls may end.
    Any,
    /// Instead of calls, JSON under this JSON schema.
    Json(Json),
}

/// A grammar of calls.
pub struct CallGrammar<'a> {
    /// The format of the model.
    pub format: ToolCallFormat,
    /// How a Mistral model writes calls.
    pub mistral_style: MistralStyle,
    /// The functions that may be called.
    pub functions: &'a [&'a Function],
    /// Whether there may be several calls.
    pub parallel: bool,
    /// What the text may be otherwise.
    pub other_text: OtherText,
    /// The token of a marker that is a special token of the model.
    pub special_id: &'a dyn Fn(&str) -> Option<u32>,
}

/// How Mistral models write calls, which their versions do differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MistralStyle {
    /// `[TOOL_CALLS] [{"name": …, "arguments": …}]`.
    List,
    /// `[TOOL_CALLS]name[ARGS]{…}`.
    Names,
    /// `[TOOL_CALLS]name[CALL_ID]id[ARGS]{…}`.
    NamesAndIds,
}

impl MistralStyle {
    /// The style that a chat template teaches.
    pub fn of_template(template: &str) -> Self {
        match (template.contains("[CALL_ID]"), template.contains("[ARGS]")) {
            (true, _) => Self::NamesAndIds,
            (false, true) => Self::Names,
            (false, false) => Self::List,
        }
    }
}

impl CallGrammar<'_> {
    /// The grammar, in llguidance's variant of Lark syntax.
    pub fn build(&self) -> Grammar {
        let mut lark = String::new();
        let calls = match self.format {
            ToolCallFormat::Hermes => self.hermes(),
            ToolCallFormat::Llama3 => self.llama3(),
            ToolCallFormat::Mistral => self.mistral(),
        };
        let start = match (&self.other_text, self.format) {
            (OtherText::Forbidden, _) => "start: calls\n".to_owned(),
            (OtherText::Json(schema), _) => format!("start: other | calls\nother: %json {schema}\n"),
            (OtherText::Any, ToolCallFormat::Llama3) => {
                // Without a marker, a call is told by its brace.
                "start: TEXT | calls\nTEXT: /\\s*[^\\s{](?s:.*)/\n".to_owned()
            }
            (OtherText::Any, _) => self.after_any_text(),
        };
        lark += &start;
        lark += &calls;
        // A rule for each call, and one for all.
        let rules: Vec<String> = (0..self.functions.len()).map(|i| format!("call_{i}")).collect();
        let _ = writeln!(lark, "call: {}", rules.join(" | "));
        for (i, function) in self.functions.iter().enumerate() {
            let _ = writeln!(
                lark,
                "call_{i}: {} arguments_{i}{}",
                self.before_arguments(&function.name),
                self.after_arguments()
            );
            let _ = writeln!(
                lark,
                "arguments_{i}: %json {}",
                schema_text(function.schema(), function.strict == Some(false))
            );
        }
        Grammar::Lark(lark)
    }

    /// Any text, up to the marker of the first call if there is one.
    fn after_any_text(&self) -> String {
        let marker = self.format.marker();
        match (self.special_id)(marker) {
            Some(_) => "start: TEXT | TEXT? calls\nTEXT: /(?s:.+)/\n".to_owned(),
            // The first marker ends the text before it, and is part of it.
            None => {
                let marker_regex = regex::escape(marker);
                format!(
                    "start: TEXT | text_and_marker calls_after_marker\n\
                     TEXT: /(?s:.+)/ & ~/(?s:.*){marker_regex}(?s:.*)/\n\
                     text_and_marker[suffix={}]: /(?s:.*)/\n",
                    quoted(marker)
                )
            }
        }
    }

    fn hermes(&self) -> String {
        let (open, close) = (self.marker("<tool_call>"), self.marker("</tool_call>"));
        let more =
            if self.parallel { format!(" (\"\\n\" {open} \"\\n\" call \"\\n\" {close})*") } else { String::new() };
        format!("calls: {open} calls_after_marker\ncalls_after_marker: \"\\n\" call \"\\n\" {close}{more}\n")
    }

    fn llama3(&self) -> String {
        let more = if self.parallel { " (\"; \" call)*" } else { "" };
        format!("calls: call{more}\n")
    }

    fn mistral(&self) -> String {
        let open = self.marker("[TOOL_CALLS]");
        let after_marker = match (self.mistral_style, self.parallel) {
            (MistralStyle::List, true) => "\" \"? \"[\" call (\", \" call)* \"]\"".to_owned(),
            (MistralStyle::List, false) => "\" \"? \"[\" call \"]\"".to_owned(),
            (_, true) => format!("call ({open} call)*"),
            (_, false) => "call".to_owned(),
        };
        format!("calls: {open} calls_after_marker\ncalls_after_marker: {after_marker}\n")
    }

    fn before_arguments(&self, name: &str) -> String {
        let is_json = self.format != ToolCallFormat::Mistral || self.mistral_style == MistralStyle::List;
        if is_json {
            let key = if self.format == ToolCallFormat::Llama3 { "parameters" } else { "arguments" };
            return quoted(&format!("{{\"name\": \"{name}\", \"{key}\": "));
        }
        let id = match self.mistral_style {
            MistralStyle::NamesAndIds => format!("{} /[A-Za-z0-9]{{9}}/ ", self.marker("[CALL_ID]")),
            _ => String::new(),
        };
        format!("{} {id}{}", quoted(name), self.marker("[ARGS]"))
    }

    fn after_arguments(&self) -> &'static str {
        match (self.format, self.mistral_style) {
            (ToolCallFormat::Mistral, MistralStyle::Names | MistralStyle::NamesAndIds) => "",
            _ => " \"}\"",
        }
    }

    /// A marker as a terminal: a special token of the model, or the characters.
    fn marker(&self, marker: &str) -> String {
        (self.special_id)(marker).map_or_else(|| quoted(marker), |id| format!("<[{id}]>"))
    }
}

/// A string of a Lark grammar, which is a JSON string.
fn quoted(text: &str) -> String {
    Json::from(text).to_string()
}

/// A JSON schema as part of a Lark grammar.
fn schema_text(schema: Map<String, Json>, lenient: bool) -> String {
    Grammar::guided_schema(schema, lenient).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::super::json_call::Parsed;
    use super::super::parser::{TextEnd, ToolCallParser};
    use super::*;
    use crate::engine::{Completion, Engine, EngineOptions, Filters, FinishReason, PostSamplingHook, Request};
    use crate::error::ErrorCode;

    static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quill-4m");
        Engine::load(folder, EngineOptions::default()).expect("loads")
    });

    /// A special token of the model, in the place of a marker.
    const SPECIAL: u32 = 1;

    fn functions() -> [Function; 2] {
        let schema = json!({
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["city"], "additionalProperties": false,
        });
        let function = |name: &str, parameters: Option<Json>| Function {
            name: name.to_owned(),
            parameters: parameters.and_then(|schema| schema.as_object().cloned()),
            ..Function::default()
        };
        [function("get_weather", Some(schema)), function("now", None)]
    }

    fn grammar(
        format: ToolCallFormat,
        mistral_style: MistralStyle,
        other_text: OtherText,
        is_special: bool,
    ) -> Grammar {
        let functions = functions();
        let functions: Vec<&Function> = functions.iter().collect();
        let special_id = move |marker: &str| (is_special && marker == format.marker()).then_some(SPECIAL);
        let special_id = &special_id;
        CallGrammar { format, mistral_style, functions: &functions, parallel: true, other_text, special_id }.build()
    }

    /// Whether a text matches a grammar. The model's choices are replaced by the text's tokens; at its end the model has to
    /// choose to end it, if that is allowed. `<S>` is the special token.
    fn accepts(grammar: &Grammar, text: &str) -> bool {
        let tokenizer = ENGINE.tokenizer().expect("has one");
        let mut ids = Vec::new();
        for (i, part) in text.split("<S>").enumerate() {
            ids.extend((i > 0).then_some(SPECIAL));
            ids.extend(tokenizer.encode(part, false, false).expect("encodes"));
        }
        let (count, place) = (ids.len(), AtomicUsize::new(0));
        let hook = PostSamplingHook::new(move |chosen| {
            if let Some(&id) = ids.get(place.fetch_add(1, Ordering::Relaxed)) {
                chosen.token = id;
            }
            Ok(())
        });
        let mut request = Request::new("a").grammar(grammar.clone()).max_new_tokens(count + 1).post_sampling_hook(hook);
        request.filters = Filters { prefer_eos: true, ..Filters::default() };
        match ENGINE.generate(&[request]) {
            // Where nothing may follow, the text ended before it was all read.
            Ok(done) => done[0].finish.reason == FinishReason::Stop && done[0].token_ids.len() >= count,
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::ConstraintFailed, "{error}");
                false
            }
        }
    }

    fn check(grammar: &Grammar, accepted: &[&str], refused: &[&str]) {
        for text in accepted {
            assert!(accepts(grammar, text), "refused: {text}");
        }
        for text in refused {
            assert!(!accepts(grammar, text), "accepted: {text}");
        }
    }

    const ROME: &str = "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\", \"days\": 3}}";
    const NOW: &str = "{\"name\": \"now\", \"arguments\": {}}";

    #[test]
    fn a_call_that_is_required_is_all_there_may_be() {
        let hermes = grammar(ToolCallFormat::Hermes, MistralStyle::List, OtherText::Forbidden, false);
        let call = |call: &str| format!("<tool_call>\n{call}\n</tool_call>");
        let two = format!("{}\n{}", call(ROME), call(NOW));
        let with_argument = NOW.replace("{}", "{\"a\": 1}");
        check(
            &hermes,
            &[&call(ROME), &call(NOW), &two],
            &[
                "",
                "Rome",
                ROME,
                &call("{}"),
                &call(&with_argument),
                &call(&ROME.replace("Rome", "Paris")),
                &format!("So {}", call(NOW)),
            ],
        );
        let llama = grammar(ToolCallFormat::Llama3, MistralStyle::List, OtherText::Forbidden, false);
        let rome = ROME.replace("arguments", "parameters");
        check(&llama, &[&rome, &format!("{rome}; {rome}")], &[ROME, "Rome", &format!("{rome};")]);
    }

    #[test]
    fn mistral_calls_are_in_the_style_of_the_model() {
        let mistral = |style, is_special| grammar(ToolCallFormat::Mistral, style, OtherText::Forbidden, is_special);
        let list = format!("[{ROME}, {NOW}]");
        check(
            &mistral(MistralStyle::List, false),
            &[&format!("[TOOL_CALLS] {list}"), &format!("[TOOL_CALLS]{list}")],
            &[&list],
        );
        check(&mistral(MistralStyle::List, true), &[&format!("<S> {list}")], &[&format!("[TOOL_CALLS]{list}")]);
        let names = ["<S>now[ARGS]{}<S>get_weather[ARGS]{\"city\": \"Oslo\"}", "<S>now[ARGS]{}"];
        check(&mistral(MistralStyle::Names, true), &names, &["now[ARGS]{}", "<S>now", "<S>then[ARGS]{}"]);
        let with_id = "[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{}";
        check(&mistral(MistralStyle::NamesAndIds, false), &[with_id], &["[TOOL_CALLS]now[ARGS]{}"]);
        assert_eq!(MistralStyle::of_template("[TOOL_CALLS]"), MistralStyle::List);
        assert_eq!(MistralStyle::of_template("[TOOL_CALLS] [ARGS]"), MistralStyle::Names);
        assert_eq!(MistralStyle::of_template("[CALL_ID] [ARGS]"), MistralStyle::NamesAndIds);
    }

    #[test]
    fn any_text_may_stand_before_calls_that_are_checked() {
        let wrong = "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}";
        for (is_special, marker) in [(false, "<tool_call>"), (true, "<S>")] {
            let hermes = grammar(ToolCallFormat::Hermes, MistralStyle::List, OtherText::Any, is_special);
            let call = |call: &str| format!("{marker}\n{call}\n</tool_call>");
            check(
                &hermes,
                &[
                    "Rome.",
                    "a < b {\n",
                    "a <tool_c",
                    &call(ROME),
                    &format!("So:\n{}", call(ROME)),
                    &format!("{}\n{}", call(NOW), call(ROME)),
                ],
                &[&call(wrong), &format!("So:\n{}", call(wrong)), &format!("So {marker} Rome")],
            );
        }
        let llama = grammar(ToolCallFormat::Llama3, MistralStyle::List, OtherText::Any, false);
        let [rome, wrong] = [ROME, wrong].map(|call| call.replace("arguments", "parameters"));
        check(&llama, &["Rome {}", "\n  a", &rome], &[&wrong, "{}"]);
        let mistral = grammar(ToolCallFormat::Mistral, MistralStyle::Names, OtherText::Any, true);
        check(&mistral, &["Rome.", "So <S>now[ARGS]{}"], &["<S>now", "So <S>now[ARGS]{} and"]);
    }

    #[test]
    fn json_may_stand_in_the_place_of_calls() {
        let schema = Grammar::guided_schema(json!({"const": 3}).as_object().cloned().expect("an object"), false);
        let hermes = grammar(ToolCallFormat::Hermes, MistralStyle::List, OtherText::Json(schema), false);
        check(&hermes, &["3", &format!("<tool_call>\n{NOW}\n</tool_call>")], &["4", "Rome", "3 <tool_call>"]);
    }

    /// Whatever a model chooses under a grammar of calls, the parser finds calls of the functions with arguments that are valid, and
    /// nothing else.
    #[test]
    fn what_is_generated_under_a_grammar_is_parsed_to_calls() {
        let styles = [MistralStyle::List, MistralStyle::Names, MistralStyle::NamesAndIds];
        for (format, style) in ToolCallFormat::ALL.into_iter().flat_map(|format| styles.map(|style| (format, style))) {
            let requests: [_; 4] = std::array::from_fn(|seed| {
                let grammar = grammar(format, style, OtherText::Forbidden, false);
                let mut request = Request::new("Once").grammar(grammar).max_new_tokens(400);
                request.sampling.temperature = 2.0;
                request.sampling.seed = Some(seed as u64);
                request
            });
            for done in ENGINE.generate(&requests).expect("generates") {
                check_parsed_calls(format, &done);
            }
        }
    }

    fn check_parsed_calls(format: ToolCallFormat, done: &Completion) {
        let mut parser = ToolCallParser::new(format, functions().map(|function| function.name), true);
        let mut events = parser.push(&done.text);
        events.extend(parser.finish(TextEnd::Whole));
        assert!(parser.has_calls(), "{}", done.text);
        // A call that was cut has no arguments to be read.
        if done.finish.reason != FinishReason::Stop {
            return;
        }
        for event in events {
            match event {
                Parsed::Content(text) => panic!("content {text:?} in {}", done.text),
                Parsed::Call(name) => assert!(functions().iter().any(|function| function.name == name), "{name}"),
                Parsed::Arguments(text) => {
                    let arguments: Json = serde_json::from_str(&text).expect("valid JSON");
                    let city = arguments.get("city").and_then(Json::as_str);
                    assert!(arguments == json!({}) || matches!(city, Some("Rome" | "Oslo")), "{text}");
                }
            }
        }
    }
}
