//! Finds strings that a text must not contain, while it is generated token by token.
//!
//! A string is found wherever it begins and ends, regardless of case and of token boundaries. What matters is at which token it
//! begins, because generation goes back to that one; so the tokens from the first on where a string may be beginning are not
//! final yet.

use std::collections::VecDeque;
use std::sync::Arc;

use super::automaton::Automaton;

/// What is known after a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BannedScan {
    /// Where the first string that the text now contains begins: the position of the token.
    pub found: Option<usize>,
    /// The first token where a string may be beginning, or whose text is not known yet.
    pub beginning: Option<usize>,
}

/// Finds banned strings in a text that arrives token by token.
#[derive(Clone, Debug, Default)]
pub struct BannedStrings {
    automata: Arc<[Automaton]>,
    /// Of each automaton: length of the longest prefix of its string that ends the text so far.
    states: Vec<usize>,
    /// The position of the token of each of the last bytes, as many as the longest state.
    tokens: VecDeque<usize>,
    /// The first token of an incomplete character that ends the text.
    incomplete: Option<usize>,
}

impl BannedStrings {
    /// Looks for these strings, which are not empty.
    pub fn new(strings: &[String]) -> Self {
        let automata: Arc<[_]> = strings.iter().map(|string| Automaton::new(string.to_lowercase())).collect();
        Self { states: vec![0; automata.len()], automata, tokens: VecDeque::new(), incomplete: None }
    }

    /// Adds the text of the token at a position; `is_special` if it is left out of the text.
    pub fn push(&mut self, position: usize, text: &str, is_special: bool) -> BannedScan {
        let mut found: Option<usize> = None;
        if text.is_empty() && !is_special {
            self.incomplete.get_or_insert(position);
        }
        for c in text.chars() {
            // What the first character began with came from the tokens before.
            let token = self.incomplete.take().unwrap_or(position);
            for lower in c.to_lowercase() {
                for &byte in lower.encode_utf8(&mut [0; 4]).as_bytes() {
                    let start = self.push_byte(token, byte);
                    found = [found, start].into_iter().flatten().min();
                }
            }
        }
        let in_progress = self.longest();
        self.tokens.drain(..self.tokens.len() - in_progress);
        BannedScan { found, beginning: self.beginning() }
    }

    /// The first token where a string may be beginning, or whose text is not known yet.
    pub fn beginning(&self) -> Option<usize> {
        [self.tokens.front().copied(), self.incomplete].into_iter().flatten().min()
    }

    /// Adds a byte of a token; the first token of the longest string that it completes.
    fn push_byte(&mut self, token: usize, byte: u8) -> Option<usize> {
        self.tokens.push_back(token);
        let mut longest = None;
        for (automaton, state) in self.automata.iter().zip(&mut self.states) {
            if automaton.push(state, byte) {
                longest = longest.max(Some(automaton.len()));
            }
        }
        longest.and_then(|length| self.tokens.get(self.tokens.len() - length)).copied()
    }

    /// Length of the longest beginning of a string that ends the text.
    fn longest(&self) -> usize {
        self.automata.iter().zip(&self.states).map(|(automaton, &state)| automaton.held(state)).max().unwrap_or(0)
    }

    /// Whether a text contains one of the strings.
    pub fn is_in(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        self.automata.iter().any(|automaton| text.contains(automaton.string()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scans(strings: &[&str], pieces: &[&str]) -> Vec<(Option<usize>, Option<usize>)> {
        let strings: Vec<String> = strings.iter().map(|&string| string.to_owned()).collect();
        let mut banned = BannedStrings::new(&strings);
        let scan = |(position, text): (usize, &&str)| banned.push(position, text, false);
        pieces.iter().enumerate().map(scan).map(|scan| (scan.found, scan.beginning)).collect()
    }

    #[test]
    fn a_string_is_found_at_the_token_where_it_begins_whatever_its_case() {
        assert_eq!(scans(&["Hello world"], &["oh, HEL", "lo", " world!"])[2].0, Some(0));
        assert_eq!(scans(&["b"], &["a", "b", "c"]), [(None, None), (Some(1), None), (None, None)]);
        assert_eq!(
            scans(&["abc"], &["ab", "x", "b", "a"]),
            [(None, Some(0)), (None, None), (None, None), (None, Some(3))]
        );
    }

    #[test]
    fn a_character_of_several_tokens_begins_at_the_first_of_them() {
        assert_eq!(
            scans(&["€"], &["a", "", "", "€"]),
            [(None, None), (None, Some(1)), (None, Some(1)), (Some(1), None)]
        );
    }

    proptest! {
        #[test]
        fn found_and_beginning_are_as_by_definition(
            pieces in prop::collection::vec("[abB]{1,3}", 1..8),
            strings in prop::collection::vec("[abB]{1,4}", 1..4),
        ) {
            let mut banned = BannedStrings::new(&strings);
            let (mut text, mut owners) = (String::new(), Vec::new());
            for (position, piece) in pieces.iter().enumerate() {
                let before = text.len();
                text += &piece.to_lowercase();
                owners.resize(text.len(), position);
                let found = (before + 1..=text.len())
                    .flat_map(|end| strings.iter().map(move |string| (end, string.to_lowercase())))
                    .filter(|(end, string)| text[..*end].ends_with(string.as_str()))
                    .map(|(end, string)| owners[end - string.len()])
                    .min();
                let begins = |start: &usize| {
                    let rest = &text[*start..];
                    strings.iter().any(|s| s.len() > rest.len() && s.to_lowercase().starts_with(rest))
                };
                let beginning = (0..text.len()).find(begins).map(|start| owners[start]);
                prop_assert_eq!(banned.push(position, piece, false), BannedScan { found, beginning });
            }
        }
    }
}
