//! One call written as a JSON object, `{"name": …, "arguments": {…}}`, read character by character.

use super::json_value::{JsonValueScan, Scanned, is_space};

/// What a text of calls consists of, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Text outside of calls.
    Content(String),
    /// A call of this function begins.
    Call(String),
    /// More of the JSON text of the last call's arguments.
    Arguments(String),
}

/// How far a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallProgress {
    /// It goes on.
    Reading,
    /// This character ended it.
    Complete,
    /// This character cannot be here.
    Malformed,
}

/// Reads a call. It begins, with an event, once its name is known and its arguments begin, which then are passed on as they come.
#[derive(Debug)]
pub(super) struct JsonCall {
    expected: Expected,
    key: Key,
    /// The text of a key or a value that is needed as a whole.
    text: String,
    name: Option<String>,
    /// Arguments that came before the name.
    early_arguments: Option<String>,
    has_arguments: bool,
    /// Whether it has keys besides the name and the arguments.
    has_other_keys: bool,
    has_begun: bool,
}

#[derive(Debug)]
enum Expected {
    Object,
    Key,
    RestOfKey(JsonValueScan),
    Colon,
    Value,
    RestOfValue(JsonValueScan),
    CommaOrEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Name,
    Arguments,
    /// Such as an id of the model's own.
    Other,
}

impl JsonCall {
    pub fn new() -> Self {
        Self {
            expected: Expected::Object,
            key: Key::Other,
            text: String::new(),
            name: None,
            early_arguments: None,
            has_arguments: false,
            has_other_keys: false,
            has_begun: false,
        }
    }

    /// Whether the event of its beginning was made: from then on it stays a call.
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Whether what was read is the beginning of a call of one of these functions, as far as can be told.
    pub fn may_call(&self, functions: &[String]) -> bool {
        let begins = |whole: &str| format!("\"{whole}\"").starts_with(&self.text);
        match (&self.expected, self.key) {
            _ if self.name.is_some() => true,
            _ if self.has_other_keys => false,
            (Expected::RestOfKey(_), _) => ["name", "arguments", "parameters"].into_iter().any(begins),
            (Expected::RestOfValue(_), Key::Name) => functions.iter().any(|function| begins(function)),
            _ => true,
        }
    }

    /// Reads the next character. `accepts` tells which functions may be called.
    pub fn push(&mut self, c: char, accepts: impl Fn(&str) -> bool, out: &mut impl FnMut(Parsed)) -> CallProgress {
        match self.read(c, &accepts, out) {
            Some(progress) => progress,
            None => CallProgress::Malformed,
        }
    }

    /// `None` if the character cannot be here.
    fn read(&mut self, c: char, accepts: &impl Fn(&str) -> bool, out: &mut impl FnMut(Parsed)) -> Option<CallProgress> {
        match &mut self.expected {
            Expected::RestOfKey(scan) => {
                self.text.push(c);
                if scan.push(c) == Scanned::Last {
                    self.end_of_key()?;
                }
            }
            Expected::RestOfValue(scan) => {
                let scanned = scan.push(c);
                return self.in_value(c, scanned, accepts, out);
            }
            _ if is_space(c) => {}
            Expected::Object if c == '{' => self.expected = Expected::Key,
            Expected::Key if c == '"' => {
                let mut scan = JsonValueScan::default();
                scan.push(c);
                self.text = c.to_string();
                self.expected = Expected::RestOfKey(scan);
            }
            Expected::Colon if c == ':' => self.expected = Expected::Value,
            Expected::Value => {
                let mut scan = JsonValueScan::default();
                let scanned = scan.push(c);
                self.text.clear();
                self.expected = Expected::RestOfValue(scan);
                self.begin_value(c, out)?;
                return self.in_value(c, scanned, accepts, out);
            }
            Expected::CommaOrEnd if c == ',' => self.expected = Expected::Key,
            Expected::CommaOrEnd | Expected::Key if c == '}' => return self.end(out),
            _ => return None,
        }
        Some(CallProgress::Reading)
    }

    fn end_of_key(&mut self) -> Option<()> {
        let key: String = serde_json::from_str(&self.text).ok()?;
        self.key = match key.as_str() {
            "name" if self.name.is_none() => Key::Name,
            "arguments" | "parameters" if !self.has_arguments => Key::Arguments,
            // A second one contradicts the first.
            "name" | "arguments" | "parameters" => return None,
            _ => Key::Other,
        };
        self.has_other_keys |= self.key == Key::Other;
        self.expected = Expected::Colon;
        Some(())
    }

    /// The first character of a value tells whether it is one that its key may have.
    fn begin_value(&mut self, c: char, out: &mut impl FnMut(Parsed)) -> Option<()> {
        match (self.key, c) {
            (Key::Name, '"') | (Key::Arguments, '"' | 'n') | (Key::Other, _) => {}
            (Key::Arguments, '{') => {
                if self.name.is_some() {
                    self.begin(out);
                }
            }
            _ => return None,
        }
        self.has_arguments |= self.key == Key::Arguments;
        Some(())
    }

    fn in_value(
        &mut self,
        c: char,
        scanned: Scanned,
        accepts: &impl Fn(&str) -> bool,
        out: &mut impl FnMut(Parsed),
    ) -> Option<CallProgress> {
        match scanned {
            Scanned::Malformed => return None,
            Scanned::Inside | Scanned::Last if self.key == Key::Arguments && self.has_begun => {
                out(Parsed::Arguments(c.to_string()));
            }
            Scanned::Inside | Scanned::Last => self.text.push(c),
            Scanned::After => {}
        }
        if scanned == Scanned::Inside {
            return Some(CallProgress::Reading);
        }
        self.end_of_value(accepts, out)?;
        self.expected = Expected::CommaOrEnd;
        match scanned {
            Scanned::After => self.read(c, accepts, out),
            _ => Some(CallProgress::Reading),
        }
    }

    fn end_of_value(&mut self, accepts: &impl Fn(&str) -> bool, out: &mut impl FnMut(Parsed)) -> Option<()> {
        match self.key {
            Key::Name => {
                let name: String = serde_json::from_str(&self.text).ok()?;
                if name.is_empty() || !accepts(&name) {
                    return None;
                }
                self.name = Some(name);
                if let Some(arguments) = self.early_arguments.take() {
                    self.begin(out);
                    out(Parsed::Arguments(arguments));
                }
            }
            Key::Arguments if !self.has_begun => {
                let arguments = match self.text.as_bytes().first() {
                    Some(b'{') => self.text.clone(),
                    // Some models write the JSON text of the arguments as a string, which is OpenAI's form.
                    Some(b'"') => serde_json::from_str(&self.text).ok()?,
                    _ if self.text == "null" => "{}".to_owned(),
                    _ => return None,
                };
                if self.name.is_some() {
                    self.begin(out);
                    out(Parsed::Arguments(arguments));
                } else {
                    self.early_arguments = Some(arguments);
                }
            }
            Key::Arguments | Key::Other => {}
        }
        Some(())
    }

    fn begin(&mut self, out: &mut impl FnMut(Parsed)) {
        self.has_begun = true;
        out(Parsed::Call(self.name.clone().unwrap_or_default()));
    }

    /// A call without arguments has none to pass on: an empty object.
    fn end(&mut self, out: &mut impl FnMut(Parsed)) -> Option<CallProgress> {
        self.name.as_ref()?;
        if !self.has_begun {
            self.begin(out);
            out(Parsed::Arguments("{}".to_owned()));
        }
        Some(CallProgress::Complete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The function and its arguments, and how far the call came.
    fn read(text: &str) -> (Option<(String, String)>, CallProgress) {
        let mut call = JsonCall::new();
        let mut found = None;
        let mut progress = CallProgress::Reading;
        for c in text.chars() {
            progress = call.push(c, |name| name != "unknown", &mut |parsed| match parsed {
                Parsed::Call(name) => found = Some((name, String::new())),
                Parsed::Arguments(text) => found.as_mut().expect("a call began").1 += &text,
                Parsed::Content(text) => panic!("content in a call: {text}"),
            });
            if progress != CallProgress::Reading {
                break;
            }
        }
        assert_eq!(call.has_begun(), found.is_some());
        (found, progress)
    }

    #[test]
    fn a_call_has_a_name_and_the_text_of_its_arguments() {
        for (text, name, arguments) in [
            (r#"{"name": "f", "arguments": {"a": [1, "}"]}}"#, "f", r#"{"a": [1, "}"]}"#),
            (r#"{"name":"f","parameters":{}}"#, "f", "{}"),
            (r#"{ "arguments" : {"a":1} , "name" : "f" }"#, "f", r#"{"a":1}"#),
            (r#"{"id": 3, "type": "function", "name": "f\u0041", "arguments": {}, "x": [{}]}"#, "fA", "{}"),
            (r#"{"name": "f", "arguments": "{\"a\": \"b\"}"}"#, "f", r#"{"a": "b"}"#),
            (r#"{"arguments": "{}", "name": "f"}"#, "f", "{}"),
            (r#"{"name": "f", "arguments": null}"#, "f", "{}"),
            (r#"{"name": "f"}"#, "f", "{}"),
            (r#"{"name": "f", }"#, "f", "{}"),
        ] {
            let expected = Some((name.to_owned(), arguments.to_owned()));
            assert_eq!(read(text), (expected, CallProgress::Complete), "{text}");
        }
    }

    #[test]
    fn what_is_no_call_does_not_begin() {
        for text in [
            "[",
            r#"{"name": 3}"#,
            r#"{"name": ""}"#,
            r#"{"name": "unknown"}"#,
            r#"{"arguments": {}}"#,
            r#"{"name": "f", "arguments": [1]}"#,
            r#"{"name": "f", "arguments": 1}"#,
            r#"{"name": "f", "arguments": nothing}"#,
            r#"{"name": "f" "arguments": {}}"#,
            r#"{"name": "f", "name": "g", "arguments": {}}"#,
            r#"{name: "f"}"#,
            "{}",
        ] {
            assert_eq!(read(text), (None, CallProgress::Malformed), "{text}");
        }
    }

    #[test]
    fn arguments_that_began_are_kept_as_far_as_they_go() {
        for (text, arguments, progress) in [
            (r#"{"name": "f", "arguments": {"a": </"#, r#"{"a": "#, CallProgress::Malformed),
            (r#"{"name": "f", "arguments": {"a": 1}, "arguments": {}}"#, r#"{"a": 1}"#, CallProgress::Malformed),
            (r#"{"name": "f", "arguments": {"a": "b"#, r#"{"a": "b"#, CallProgress::Reading),
        ] {
            assert_eq!(read(text), (Some(("f".to_owned(), arguments.to_owned())), progress), "{text}");
        }
    }
}
