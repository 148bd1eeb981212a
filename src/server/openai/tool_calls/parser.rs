//! Finds calls of tools in the text of a model while it is written.
//!
//! The parser goes from character to character, so what it makes of a text does not depend on the pieces in which it comes. What
//! may yet turn out to be a call is held back; what turns out not to be one is content, as it was written. A call whose arguments
//! have begun was passed on and stays a call: what the model wrote of them is what the client gets, be it valid JSON or not.

use super::format::ToolCallFormat;
use super::json_call::{CallProgress, JsonCall, Parsed};
use super::json_value::{JsonValueScan, Scanned, is_space};

/// Splits a text into content and calls.
#[derive(Debug)]
pub struct ToolCallParser {
    format: ToolCallFormat,
    /// Names of the functions, sorted: without a marker, only JSON that names one of them is a call.
    functions: Vec<String>,
    /// Calls that are passed on; the others are dropped.
    max_calls: usize,
    state: State,
    /// Text that is content unless a call begins.
    held: String,
    parsed: Vec<Parsed>,
    calls: usize,
}

/// How a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextEnd {
    /// By itself.
    Whole,
    /// At the largest number of tokens.
    Cut,
}

#[derive(Debug)]
enum State {
    /// Outside of calls, after so many characters of the marker.
    Content { marker: usize },
    /// At the beginning of the text: nothing but white space so far.
    Start,
    /// After the marker.
    AfterMarker,
    /// In a call that is a JSON object.
    Json { call: JsonCall, is_marked: bool },
    /// After a call that is a JSON object, and so many characters of what may end the calls.
    AfterJson { end: usize },
    /// In the name of a function, which ends with a marker or where arguments begin.
    Name { name: String },
    /// In a marker after the name.
    NameMarker { name: String, marker: String },
    /// In the id that a model gave a call.
    CallId { name: String, marker: String },
    /// Before the arguments of the function.
    BeforeArguments { name: String },
    /// In the arguments.
    Arguments { scan: JsonValueScan },
}

impl ToolCallParser {
    /// A parser for a text that has not begun, of a model that may call these functions.
    pub fn new(format: ToolCallFormat, functions: impl IntoIterator<Item = String>, parallel: bool) -> Self {
        let mut functions: Vec<String> = functions.into_iter().collect();
        functions.sort();
        Self {
            format,
            functions,
            max_calls: if parallel { usize::MAX } else { 1 },
            state: State::Start,
            held: String::new(),
            parsed: Vec::new(),
            calls: 0,
        }
    }

    /// Reads the next piece of the text.
    pub fn push(&mut self, text: &str) -> Vec<Parsed> {
        text.chars().for_each(|c| self.read(c));
        std::mem::take(&mut self.parsed)
    }

    /// What is left at the end of the text. Content that was held back is content; white space and separators beside calls are
    /// dropped, and so is what may have become a call where the text was cut off.
    pub fn finish(&mut self, end: TextEnd) -> Vec<Parsed> {
        let is_between_calls = match &self.state {
            State::AfterJson { .. } => true,
            State::Content { marker: 0 } => self.calls > 0,
            _ => false,
        };
        if is_between_calls || (end == TextEnd::Cut && self.may_be_in_call()) {
            self.held.clear();
        }
        self.give_up_held();
        self.state = State::Content { marker: 0 };
        std::mem::take(&mut self.parsed)
    }

    /// Whether the text that is held may be the beginning of a call.
    fn may_be_in_call(&self) -> bool {
        match &self.state {
            State::Content { marker } => *marker > 0,
            State::Start => false,
            // Without a marker, JSON is most often an answer.
            State::Json { call, is_marked } => *is_marked || call.may_call(&self.functions),
            _ => true,
        }
    }

    /// Whether a call began.
    pub fn has_calls(&self) -> bool {
        self.calls > 0
    }

    fn read(&mut self, c: char) {
        match std::mem::replace(&mut self.state, State::Content { marker: 0 }) {
            State::Content { marker } => self.in_content(c, marker),
            State::Start => self.at_start(c),
            State::AfterMarker => self.after_marker(c),
            State::Json { call, is_marked } => self.in_json(c, call, is_marked),
            State::AfterJson { end } => self.after_json(c, end),
            State::Name { name } => self.in_name(c, name),
            State::NameMarker { name, marker } => self.in_name_marker(c, name, marker),
            State::CallId { name, marker } => self.in_call_id(c, name, marker),
            State::BeforeArguments { name } => self.before_arguments(c, name),
            State::Arguments { scan } => self.in_arguments(c, scan),
        }
    }

    fn at_start(&mut self, c: char) {
        if is_space(c) {
            self.hold(c, State::Start);
        } else if c == '{' && self.format == ToolCallFormat::Llama3 {
            self.in_json(c, JsonCall::new(), false);
        } else {
            self.in_content(c, 0);
        }
    }

    /// The first character of a marker occurs nowhere else in it, so a marker that breaks off can only begin anew with the
    /// character that breaks it.
    fn in_content(&mut self, c: char, matched: usize) {
        let marker = self.format.marker();
        if marker[matched..].starts_with(c) {
            let matched = matched + 1;
            let state = if matched == marker.len() { State::AfterMarker } else { State::Content { marker: matched } };
            self.hold(c, state);
        } else if matched > 0 {
            self.not_a_call(c);
        } else if c.is_whitespace() {
            self.hold(c, State::Content { marker: 0 });
        } else {
            self.give_up_held();
            self.emit(Parsed::Content(c.to_string()));
        }
    }

    fn after_marker(&mut self, c: char) {
        match (self.format, c) {
            _ if is_space(c) => self.hold(c, State::AfterMarker),
            (_, '{') => self.in_json(c, JsonCall::new(), true),
            // A list of calls; its brackets only separate them.
            (ToolCallFormat::Mistral, '[') if !self.held.ends_with('[') => self.hold(c, State::AfterMarker),
            (ToolCallFormat::Mistral, _) if is_of_name(c) => self.in_name(c, String::new()),
            _ => self.not_a_call(c),
        }
    }

    fn in_json(&mut self, c: char, mut call: JsonCall, is_marked: bool) {
        let mut events = Vec::new();
        let functions = &self.functions;
        let accepts = |name: &str| is_marked || functions.binary_search_by(|known| known.as_str().cmp(name)).is_ok();
        let progress = call.push(c, accepts, &mut |event| events.push(event));
        if !events.is_empty() {
            self.held.clear();
            events.into_iter().for_each(|event| self.emit(event));
        }
        let has_begun = call.has_begun();
        match progress {
            CallProgress::Reading if has_begun => self.state = State::Json { call, is_marked },
            CallProgress::Reading => self.hold(c, State::Json { call, is_marked }),
            CallProgress::Complete => self.state = State::AfterJson { end: 0 },
            CallProgress::Malformed if has_begun => self.after_json(c, 0),
            CallProgress::Malformed => self.not_a_call(c),
        }
    }

    /// Between calls that follow one marker, up to what ends them.
    fn after_json(&mut self, c: char, matched: usize) {
        let end = match self.format {
            ToolCallFormat::Hermes => "</tool_call>",
            ToolCallFormat::Mistral => "]",
            // The next marker, which begins calls again.
            ToolCallFormat::Llama3 => self.format.marker(),
        };
        let separates = |c: char| match self.format {
            // A brace too much is what small models get wrong most.
            ToolCallFormat::Hermes => c == '}',
            ToolCallFormat::Llama3 => c == ';',
            ToolCallFormat::Mistral => c == ',',
        };
        if end[matched..].starts_with(c) {
            let is_whole = matched + 1 == end.len();
            match self.format {
                ToolCallFormat::Hermes | ToolCallFormat::Mistral if is_whole => self.held.clear(),
                _ if is_whole => self.hold(c, State::AfterMarker),
                _ => self.hold(c, State::AfterJson { end: matched + 1 }),
            }
        } else if matched > 0 && self.format.marker().starts_with(&end[..matched]) {
            // Not the end, but perhaps the next marker.
            self.in_content(c, matched);
        } else if matched > 0 {
            self.not_a_call(c);
        } else if is_space(c) || separates(c) {
            self.hold(c, State::AfterJson { end: 0 });
        } else if c == '{' {
            self.in_json(c, JsonCall::new(), self.format != ToolCallFormat::Llama3);
        } else {
            self.not_a_call(c);
        }
    }

    fn in_name(&mut self, c: char, mut name: String) {
        match c {
            '[' => self.hold(c, State::NameMarker { name, marker: c.to_string() }),
            '{' => self.before_arguments(c, name),
            _ if is_of_name(c) => {
                name.push(c);
                self.hold(c, State::Name { name });
            }
            _ => self.not_a_call(c),
        }
    }

    fn in_name_marker(&mut self, c: char, name: String, mut marker: String) {
        marker.push(c);
        match marker.as_str() {
            "[ARGS]" => self.hold(c, State::BeforeArguments { name }),
            "[CALL_ID]" => self.hold(c, State::CallId { name, marker: String::new() }),
            begun if "[ARGS]".starts_with(begun) || "[CALL_ID]".starts_with(begun) => {
                self.hold(c, State::NameMarker { name, marker });
            }
            _ => self.not_a_call(c),
        }
    }

    fn in_call_id(&mut self, c: char, name: String, mut marker: String) {
        marker.push(c);
        match marker.as_str() {
            "[ARGS]" => self.hold(c, State::BeforeArguments { name }),
            begun if "[ARGS]".starts_with(begun) => self.hold(c, State::CallId { name, marker }),
            _ if marker.len() == c.len_utf8() && is_of_name(c) => {
                self.hold(c, State::CallId { name, marker: String::new() });
            }
            _ => self.not_a_call(c),
        }
    }

    fn before_arguments(&mut self, c: char, name: String) {
        match c {
            _ if is_space(c) => self.hold(c, State::BeforeArguments { name }),
            '{' => {
                self.held.clear();
                self.emit(Parsed::Call(name));
                self.in_arguments(c, JsonValueScan::default());
            }
            _ => self.not_a_call(c),
        }
    }

    fn in_arguments(&mut self, c: char, mut scan: JsonValueScan) {
        match scan.push(c) {
            Scanned::Inside => {
                self.emit(Parsed::Arguments(c.to_string()));
                self.state = State::Arguments { scan };
            }
            Scanned::Last => self.emit(Parsed::Arguments(c.to_string())),
            Scanned::After | Scanned::Malformed => self.in_content(c, 0),
        }
    }

    fn hold(&mut self, c: char, state: State) {
        self.held.push(c);
        self.state = state;
    }

    /// What was held is content; the character that showed it may begin a marker.
    fn not_a_call(&mut self, c: char) {
        self.give_up_held();
        self.in_content(c, 0);
    }

    fn give_up_held(&mut self) {
        if !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            self.emit(Parsed::Content(held));
        }
    }

    /// Adds an event, or joins it with the last one.
    fn emit(&mut self, event: Parsed) {
        self.calls += usize::from(matches!(event, Parsed::Call(_)));
        let is_dropped = self.calls > self.max_calls && !matches!(event, Parsed::Content(_));
        match (event, self.parsed.last_mut()) {
            _ if is_dropped => {}
            (Parsed::Content(text), Some(Parsed::Content(last))) => *last += &text,
            (Parsed::Arguments(text), Some(Parsed::Arguments(last))) => *last += &text,
            (event, _) => self.parsed.push(event),
        }
    }
}

/// Whether a character may be part of a function's name or an id.
fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    /// Content, and calls as pairs of function and arguments.
    type Message = (String, Vec<(String, String)>);

    fn parser(format: ToolCallFormat) -> ToolCallParser {
        ToolCallParser::new(format, ["f", "get_time"].map(str::to_owned), true)
    }

    fn join(events: impl IntoIterator<Item = Parsed>) -> Message {
        let mut message = Message::default();
        for event in events {
            match event {
                Parsed::Content(text) => message.0 += &text,
                Parsed::Call(name) => message.1.push((name, String::new())),
                Parsed::Arguments(text) => message.1.last_mut().expect("a call began").1 += &text,
            }
        }
        message
    }

    fn parse(parser: ToolCallParser, pieces: &[&str]) -> Message {
        parse_to(TextEnd::Whole, parser, pieces)
    }

    fn parse_to(end: TextEnd, mut parser: ToolCallParser, pieces: &[&str]) -> Message {
        let mut events: Vec<Parsed> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
        events.extend(parser.finish(end));
        join(events)
    }

    fn check(format: ToolCallFormat, text: &str, content: &str, calls: &[(&str, &str)]) {
        let calls: Vec<(String, String)> = calls.iter().map(|&(f, a)| (f.to_owned(), a.to_owned())).collect();
        assert_eq!(parse(parser(format), &[text]), (content.to_owned(), calls), "{text}");
    }

    #[test]
    fn hermes_calls_lie_between_their_markers() {
        let check =
            |text: &str, content: &str, calls: &[(&str, &str)]| check(ToolCallFormat::Hermes, text, content, calls);
        let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
        let f = ("f", "{\"a\": 1}");
        check(call, "", &[f]);
        check(&format!("Let me see.\n\n{call}"), "Let me see.", &[f]);
        check(&format!("{call}\n{call}\n"), "", &[f, f]);
        check(&format!("{call}\nDone."), "\nDone.", &[f]);
        check(&call.replace("\"f\"", "\"unknown\""), "", &[("unknown", f.1)]);
        check("a <tool_cal> <b", "a <tool_cal> <b", &[]);
        check("  text  ", "  text  ", &[]);
        check("", "", &[]);
    }

    #[test]
    fn what_small_models_get_wrong_in_hermes_calls_is_forgiven() {
        let check = |text: &str, calls: &[(&str, &str)]| check(ToolCallFormat::Hermes, text, "", calls);
        let f = ("f", "{\"a\": 1}");
        check("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}", &[f]);
        check("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}</tool_call>", &[f]);
        check("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}}</tool_call>", &[f]);
        let two = "{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n{\"name\": \"get_time\"}";
        check(&format!("<tool_call>{two}</tool_call>"), &[f, ("get_time", "{}")]);
        check(&format!("<tool_call>{}", two.replace('\n', "<tool_call>")), &[f, ("get_time", "{}")]);
        check("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"</tool_call>", &[("f", "{\"a\": \"</tool_call>")]);
    }

    #[test]
    fn llama_calls_are_json_at_the_beginning_or_after_the_marker() {
        let check =
            |text: &str, content: &str, calls: &[(&str, &str)]| check(ToolCallFormat::Llama3, text, content, calls);
        let call = "{\"name\": \"f\", \"parameters\": {\"a\": \"b;\"}}";
        let f = ("f", "{\"a\": \"b;\"}");
        check(call, "", &[f]);
        check(&format!("\n {call}"), "", &[f]);
        check(&format!("<|python_tag|>{call}"), "", &[f]);
        check(&format!("{call}; {call};{call}"), "", &[f, f, f]);
        check(&format!("<|python_tag|>{call}; <|python_tag|> {call}"), "", &[f, f]);
        check(&format!("Wait.\n<|python_tag|>{call}"), "Wait.", &[f]);
        check(&format!("Wait. {call}"), &format!("Wait. {call}"), &[]);
        check(&format!("{call} So."), " So.", &[f]);
        let answer = "{\"name\": \"Ada\", \"parameters\": {}}";
        check(answer, answer, &[]);
        check(&format!("{call}; {answer}"), &format!("; {answer}"), &[f]);
        check("<|python_tag|>brave_search.call(query=\"x\")", "<|python_tag|>brave_search.call(query=\"x\")", &[]);
    }

    #[test]
    fn mistral_calls_are_a_list_or_each_has_a_marker() {
        let check =
            |text: &str, content: &str, calls: &[(&str, &str)]| check(ToolCallFormat::Mistral, text, content, calls);
        let call = "{\"name\": \"f\", \"arguments\": {\"a\": []}}";
        let f = ("f", "{\"a\": []}");
        check(&format!("[TOOL_CALLS] [{call}]"), "", &[f]);
        check(&format!("[TOOL_CALLS][{call}, {call}]"), "", &[f, f]);
        check(&format!("[TOOL_CALLS]{call}"), "", &[f]);
        check(&format!("So [1]: [TOOL_CALLS] [{call}"), "So [1]:", &[f]);
        check("[TOOL_CALLS]f[ARGS]{\"a\": []}", "", &[f]);
        check("[TOOL_CALLS]f{\"a\": []}[TOOL_CALLS]get_time[ARGS]{}", "", &[f, ("get_time", "{}")]);
        check("[TOOL_CALLS]f[CALL_ID]aB3dE6gH9[ARGS] {\"a\": []}", "", &[f]);
        check("Hm.[TOOL_CALLS]f[ARGS]{\"a\": []}\n", "Hm.", &[f]);
        for text in
            ["[TOOL_CALLS]f[ARG]{}", "[TOOL_CALLS]f g", "[TOOL_CALLS] [[", "[TOOL_CALLS]f[CALL_ID] [ARGS]{}", "[TOOL"]
        {
            check(text, text, &[]);
        }
    }

    #[test]
    fn malformed_json_is_content_until_arguments_have_begun() {
        let hermes =
            |text: &str, content: &str, calls: &[(&str, &str)]| check(ToolCallFormat::Hermes, text, content, calls);
        for text in
            ["<tool_call>\n{\"name\": f}\n</tool_call>", "<tool_call>none</tool_call>", "<tool_call>{\"name\": \"f"]
        {
            hermes(text, text, &[]);
        }
        hermes("<tool_call><tool_call>{\"name\": \"f\"}</tool_call>", "<tool_call>", &[("f", "{}")]);
        hermes(
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": ?}}</tool_call>",
            "?}}</tool_call>",
            &[("f", "{\"a\": ")],
        );
    }

    /// However early a text is cut off: its content is the beginning of the whole text's, and its calls are those of the whole
    /// text, the last with the beginning of its arguments.
    #[test]
    fn a_call_that_is_cut_off_is_no_content() {
        let hermes = "<tool_call>\n{\"name\": \"get_time\", \"arguments\": {\"a\": \"<b\"}}\n</tool_call>";
        let llama = "{\"name\": \"get_time\", \"parameters\": {\"a\": [1]}}";
        let texts = [
            (ToolCallFormat::Hermes, format!("Let me see.\n{hermes}\n{hermes}")),
            (ToolCallFormat::Llama3, format!("{llama}; {llama}")),
            (ToolCallFormat::Llama3, format!("Wait.\n<|python_tag|>{llama}")),
            (ToolCallFormat::Llama3, "{\"parameters\": {}, \"name\": \"f\"}".to_owned()),
            (
                ToolCallFormat::Mistral,
                "So: [TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": [\"]\"]}}]".to_owned(),
            ),
            (
                ToolCallFormat::Mistral,
                "Hm.[TOOL_CALLS]f[CALL_ID]aB3dE6gH9[ARGS]{\"a\": 1}[TOOL_CALLS]f[ARGS]{}".to_owned(),
            ),
        ];
        for (format, text) in texts {
            let (whole_content, whole_calls) = parse(parser(format), &[&text]);
            for (end, _) in text.char_indices() {
                let cut = &text[..end];
                let (content, calls) = parse_to(TextEnd::Cut, parser(format), &[cut]);
                assert!(
                    whole_content.starts_with(content.trim_end()),
                    "{format:?}: {cut:?} has the content {content:?}"
                );
                assert!(calls.len() <= whole_calls.len());
                for (call, whole) in calls.iter().zip(&whole_calls) {
                    assert!(call.0 == whole.0 && whole.1.starts_with(&call.1), "{cut:?}: {call:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_call_stays_content_where_it_is_cut_off() {
        for (format, text) in [
            (ToolCallFormat::Llama3, "{\"answer\": 42, \"name\": \"f"),
            (ToolCallFormat::Llama3, "{\"name\": \"Ada"),
            (ToolCallFormat::Llama3, "{\"name\": \"Ada\", \"arguments\": {"),
            (ToolCallFormat::Llama3, "{\"names"),
            (ToolCallFormat::Hermes, "{\"name\": \"f\", \"arguments\": {"),
            (ToolCallFormat::Hermes, "<tool_call>none"),
            (ToolCallFormat::Hermes, "1 <tool_cal> 2  "),
            (ToolCallFormat::Mistral, "[1] and [2]"),
        ] {
            assert_eq!(parse_to(TextEnd::Cut, parser(format), &[text]), (text.to_owned(), Vec::new()), "{format:?}");
        }
    }

    #[test]
    fn arguments_come_in_pieces() {
        let mut parser = parser(ToolCallFormat::Hermes);
        assert_eq!(parser.push("I <tool_call>{\"name\": \"f\","), [Parsed::Content("I".into())]);
        assert_eq!(parser.push(" \"arguments\": "), []);
        assert_eq!(parser.push("{\"a"), [Parsed::Call("f".into()), Parsed::Arguments("{\"a".into())]);
        assert_eq!(parser.push("\": 1"), [Parsed::Arguments("\": 1".into())]);
        assert_eq!(parser.push("}}</tool"), [Parsed::Arguments("}".into())]);
        assert_eq!(parser.push("_call>"), []);
        assert_eq!(parser.finish(TextEnd::Whole), []);
        assert!(parser.has_calls());
    }

    #[test]
    fn without_parallel_calls_only_the_first_is_passed_on() {
        let parser = ToolCallParser::new(ToolCallFormat::Hermes, Vec::new(), false);
        let call = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
        let expected = ("\nyes".to_owned(), vec![("f".to_owned(), "{}".to_owned())]);
        assert_eq!(parse(parser, &[call, call, "\nyes"]), expected);
    }

    #[test]
    fn the_first_character_of_a_marker_occurs_once() {
        for marker in ToolCallFormat::ALL.map(ToolCallFormat::marker) {
            assert!(marker.is_ascii() && marker.matches(&marker[..1]).count() == 1, "{marker}");
        }
    }

    fn text() -> impl Strategy<Value = String> {
        let parts = [
            "<tool_call>",
            "</tool_call>",
            "<|python_tag|>",
            "[TOOL_CALLS]",
            "[ARGS]",
            "[CALL_ID]",
            "{\"name\": ",
            "\"f\"",
            ", \"arguments\": ",
            "\"parameters\"",
            "{\"a\": 1}",
            "{",
            "}",
            "[",
            "]",
            "\"",
            ":",
            ",",
            ";",
            " ",
            "\n",
            "<",
            "\\",
            "é",
            "null",
            "get_time",
            "{\"name\": \"f\", \"arguments\": {\"a\": \"b\"}}",
            "text",
        ];
        proptest::collection::vec(select(parts.to_vec()), 0..16).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn any_split_of_a_text_gives_the_same_message(
            format in select(ToolCallFormat::ALL.to_vec()), text in text(), cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| text.floor_char_boundary(cut.index(text.len() + 1))).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|ends| &text[ends[0]..ends[1]]).collect();
            prop_assert_eq!(parse(parser(format), &pieces), parse(parser(format), &[&text]));
        }

        #[test]
        fn a_text_without_a_call_is_content_as_it_is(format in select(ToolCallFormat::ALL.to_vec()), text in text()) {
            let (content, calls) = parse(parser(format), &[&text]);
            if calls.is_empty() {
                prop_assert_eq!(content, text);
            }
        }
    }
}
