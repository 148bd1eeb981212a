//! Where the text of a JSON value ends, told character by character.

/// What a character is to the value that is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scanned {
    /// It belongs to the value.
    Inside,
    /// It belongs to the value and ends it.
    Last,
    /// The value, a number or word, ended before it.
    After,
    /// It cannot be here.
    Malformed,
}

/// Follows the text of one JSON value from its first character to its last. It looks at brackets, strings and the characters that
/// may be outside of strings, not at what they spell: what a model wrote is passed on as it is.
#[derive(Clone, Debug, Default)]
pub(super) struct JsonValueScan {
    /// Open brackets.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// Whether the value is a number or a word, which end where something else begins.
    is_bare: bool,
}

impl JsonValueScan {
    /// What the next character is. White space before the value is the caller's.
    pub fn push(&mut self, c: char) -> Scanned {
        if self.in_string {
            return self.push_in_string(c);
        }
        match c {
            '{' | '[' if !self.is_bare => self.depth += 1,
            '"' if !self.is_bare => self.in_string = true,
            '}' | ']' | ',' if self.is_bare => return Scanned::After,
            c if self.is_bare && is_space(c) => return Scanned::After,
            '}' | ']' if self.depth > 0 => {
                self.depth -= 1;
                if self.depth == 0 {
                    return Scanned::Last;
                }
            }
            ',' | ':' if self.depth > 0 => {}
            c if self.depth > 0 && is_space(c) => {}
            c if c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.') => self.is_bare = self.depth == 0,
            _ => return Scanned::Malformed,
        }
        Scanned::Inside
    }

    fn push_in_string(&mut self, c: char) -> Scanned {
        match c {
            _ if self.escaped => self.escaped = false,
            '\\' => self.escaped = true,
            '"' => {
                self.in_string = false;
                if self.depth == 0 {
                    return Scanned::Last;
                }
            }
            _ => {}
        }
        Scanned::Inside
    }
}

/// JSON's white space.
pub(super) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value at the beginning of the text, and how it ended.
    fn value(text: &str) -> (&str, Scanned) {
        let mut scan = JsonValueScan::default();
        for (at, c) in text.char_indices() {
            match scan.push(c) {
                Scanned::Inside => {}
                Scanned::Last => return (&text[..at + c.len_utf8()], Scanned::Last),
                ended => return (&text[..at], ended),
            }
        }
        (text, Scanned::Inside)
    }

    #[test]
    fn a_value_ends_with_its_last_character() {
        for (text, expected) in [
            (r#"{"a": [1, {"b": "}\"]"}]}, 3"#, r#"{"a": [1, {"b": "}\"]"}]}"#),
            (r#""a\\" "b""#, r#""a\\""#),
            ("[[]]]", "[[]]"),
            ("{}}", "{}"),
        ] {
            assert_eq!(value(text), (expected, Scanned::Last));
        }
    }

    #[test]
    fn a_number_or_word_ends_before_what_follows() {
        for text in ["-1.5e+3,", "true}", "null ", "12]"] {
            assert_eq!(value(text), (&text[..text.len() - 1], Scanned::After));
        }
    }

    #[test]
    fn what_is_no_json_is_malformed_where_it_begins() {
        for (text, before) in
            [("{\"a\": <", "{\"a\": "), ("'a'", ""), (",", ""), ("}", ""), ("tr\"", "tr"), ("1{", "1")]
        {
            assert_eq!(value(text), (before, Scanned::Malformed));
        }
    }
}
