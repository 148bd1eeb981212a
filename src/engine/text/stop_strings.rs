//! Finds stop strings in text that arrives in pieces.
//!
//! A stop string may begin in one piece and end in another, and its beginning must be held back until it is known not to be a
//! stop string. It may contain special tokens, alone or among other text, also where those are left out of the text: such
//! text is looked at but not emitted. Each stop string is an automaton (Knuth, Morris, Pratt 1977) whose state is the length of its longest prefix
//! that ends the text so far: the largest state is what must be held back, a full one is a match. Each byte is read once.

use std::ops::Range;
use std::sync::Arc;

use super::automaton::Automaton;

/// The result of pushing one piece of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopScan {
    /// Text that cannot be part of a stop string.
    pub emit: String,
    /// The stop string found, if any. `emit` ends before it.
    pub matched: Option<String>,
}

/// Finds the stop string that is completed first; of several that end at the same place, the longest. How the text is
/// split into pieces makes no difference.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    automata: Arc<[Automaton]>,
    /// Of each automaton: length of the longest prefix of its stop string that ends the text so far.
    states: Vec<usize>,
    /// Text held back: the longest beginning of a stop string that ends the text so far.
    held: String,
    /// Which parts of it are not emitted.
    hidden: Vec<Range<usize>>,
}

impl StopStrings {
    /// Looks for these strings. Empty ones are ignored: they would match before the first byte.
    pub fn new(stops: Vec<String>) -> Self {
        let automata: Arc<[_]> = stops.into_iter().filter(|stop| !stop.is_empty()).map(Automaton::new).collect();
        Self { states: vec![0; automata.len()], automata, held: String::new(), hidden: Vec::new() }
    }

    /// Adds the next piece of the text; a stop string that it completes counts only if `may_stop`. Must not be called again
    /// after a match.
    pub fn push(&mut self, text: &str, may_stop: bool) -> StopScan {
        let new = self.held.len();
        self.held.push_str(text);
        for (i, &byte) in text.as_bytes().iter().enumerate() {
            let mut longest: Option<&str> = None;
            for (automaton, state) in self.automata.iter().zip(&mut self.states) {
                if automaton.push(state, byte) && longest.is_none_or(|other| automaton.len() > other.len()) {
                    longest = Some(automaton.string());
                }
            }
            if may_stop && let Some(stop) = longest.map(str::to_owned) {
                return StopScan { emit: self.take(new + i + 1 - stop.len()), matched: Some(stop) };
            }
        }
        // A stop string begins with a whole character, so this is a character boundary.
        let held = self.automata.iter().zip(&self.states).map(|(automaton, &state)| automaton.held(state));
        let held = held.max().unwrap_or(0);
        StopScan { emit: self.take(self.held.len() - held), matched: None }
    }

    /// Adds text that is looked at but not emitted.
    pub fn push_hidden(&mut self, text: &str, may_stop: bool) -> StopScan {
        let start = self.held.len();
        self.hidden.push(start..start + text.len());
        self.push(text, may_stop)
    }

    /// The text held back, once the text has ended for another reason.
    pub fn finish(&mut self) -> String {
        self.states.fill(0);
        self.take(self.held.len())
    }

    /// Takes the first bytes of the held text, and returns what is to be emitted of them.
    fn take(&mut self, end: usize) -> String {
        let rest = self.held.split_off(end);
        let taken = std::mem::replace(&mut self.held, rest);
        let (mut emit, mut done) = (String::new(), 0);
        for hidden in &mut self.hidden {
            emit += &taken[done..hidden.start.min(end)];
            done = hidden.end.min(end);
            *hidden = hidden.start.saturating_sub(end)..hidden.end.saturating_sub(end);
        }
        emit += &taken[done..];
        self.hidden.retain(|hidden| !hidden.is_empty());
        emit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By definition: the first position at which some stop string ends the text, and the longest one there.
    fn oracle(text: &str, stops: &[String]) -> (String, Option<String>) {
        for end in (1..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let ends = stops.iter().filter(|stop| !stop.is_empty() && text[..end].ends_with(stop.as_str()));
            if let Some(stop) = ends.max_by_key(|stop| stop.len()) {
                return (text[..end - stop.len()].to_owned(), Some(stop.clone()));
            }
        }
        (text.to_owned(), None)
    }

    fn run(pieces: &[String], stops: &[String]) -> (String, Option<String>) {
        let mut watch = StopStrings::new(stops.to_vec());
        let mut out = String::new();
        for piece in pieces {
            let step = watch.push(piece, true);
            out.push_str(&step.emit);
            if step.matched.is_some() {
                return (out, step.matched);
            }
        }
        out.push_str(&watch.finish());
        (out, None)
    }

    #[test]
    fn a_possible_beginning_of_a_stop_string_is_held_back() {
        let mut watch = StopStrings::new(vec!["\n\nUser:".into()]);
        assert_eq!(watch.push("Hello\n", true).emit, "Hello");
        assert_eq!(watch.push("\n", true).emit, "");
        assert_eq!(watch.push("\n", true).emit, "\n", "the last two line breaks may still begin a stop string");
        assert_eq!(watch.push("Us", true).emit, "");
        assert_eq!(watch.push("e!", true).emit, "\n\nUse!");
        assert_eq!(
            watch.push("\n\nUser: x", true),
            StopScan { emit: String::new(), matched: Some("\n\nUser:".into()) }
        );
    }

    #[test]
    fn held_text_is_returned_at_the_end() {
        let mut watch = StopStrings::new(vec!["END".into()]);
        assert_eq!(watch.push("the EN", true).emit, "the ");
        assert_eq!(watch.finish(), "EN");
        assert_eq!(watch.finish(), "");
    }

    #[test]
    fn without_stop_strings_all_text_is_emitted() {
        let mut watch = StopStrings::new(vec![String::new()]);
        assert_eq!(watch.push("ä", true), StopScan { emit: "ä".into(), matched: None });
    }

    #[test]
    fn hidden_text_is_matched_but_not_emitted() {
        let mut watch = StopStrings::new(vec!["a<end>b".into(), "<stop>".into()]);
        assert_eq!(watch.push("xa", true).emit, "x");
        assert_eq!(watch.push_hidden("<end>", true).emit, "");
        assert_eq!(watch.push("c", true).emit, "ac");
        assert_eq!(watch.push("a", true).emit, "");
        watch.push_hidden("<end>", true);
        assert_eq!(watch.clone().finish(), "a");
        assert_eq!(watch.push("b", true), StopScan { emit: String::new(), matched: Some("a<end>b".into()) });
        let mut watch = StopStrings::new(vec!["<stop>".into()]);
        assert_eq!(watch.push("x<", true).emit, "x");
        assert_eq!(watch.push_hidden("<stop>", true), StopScan { emit: "<".into(), matched: Some("<stop>".into()) });
    }

    #[test]
    fn a_stop_string_that_may_not_end_the_text_is_part_of_it() {
        let mut watch = StopStrings::new(vec!["aa".into()]);
        assert_eq!(watch.push("xaa", false).emit, "xa");
        assert_eq!(watch.push("b", false).emit, "ab");
        assert_eq!(watch.push("a", false).emit, "");
        assert_eq!(watch.push("a", true), StopScan { emit: String::new(), matched: Some("aa".into()) });
    }

    proptest! {
        #[test]
        fn pieces_give_the_same_result_as_the_whole_text(
            pieces in prop::collection::vec("[abé]{0,4}", 0..8),
            stops in prop::collection::vec("[abé]{0,4}", 0..4),
        ) {
            prop_assert_eq!(run(&pieces, &stops), oracle(&pieces.concat(), &stops));
        }

        #[test]
        fn no_more_text_is_held_than_necessary(
            pieces in prop::collection::vec("[ab]{0,4}", 1..8),
            stops in prop::collection::vec("[ab]{1,4}", 1..4),
        ) {
            let mut watch = StopStrings::new(stops.clone());
            let (mut text, mut out) = (String::new(), String::new());
            for piece in &pieces {
                text.push_str(piece);
                let step = watch.push(piece, true);
                out.push_str(&step.emit);
                if step.matched.is_some() {
                    return Ok(());
                }
                let needed = (0..=text.len()).rev()
                    .find(|&n| n == 0 || stops.iter().any(|stop| stop.starts_with(&text[text.len() - n..])));
                prop_assert_eq!(text.len() - out.len(), needed.unwrap_or(0));
            }
        }
    }
}
