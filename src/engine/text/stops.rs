//! Stop strings in text that comes in pieces.
//!
//! A stop may begin in one piece and end in another, and its beginning must not be shown before it is known not to be
//! one. Each stop is an automaton (Knuth, Morris, Pratt 1977) whose state is the length of its longest prefix that ends
//! the text so far: the largest state is what must be held back, a full one is a match. A byte is looked at once.

/// What became certain with a piece of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopStep {
    /// Text that no stop can take back.
    pub emit: String,
    /// The stop that was found; neither it nor what follows is in `emit`. The text ends here.
    pub matched: Option<String>,
}

/// Finds the stop that is complete first; of several that end there, the longest. Where pieces are cut changes nothing.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    stops: Vec<Automaton>,
    /// Text held back: the longest beginning of a stop that ends the text so far.
    held: String,
}

#[derive(Clone, Debug)]
struct Automaton {
    stop: String,
    /// `borders[i]`: length of the longest proper prefix of `stop[..=i]` that is also its suffix.
    borders: Vec<usize>,
    /// Length of the longest prefix of `stop` that ends the text so far.
    state: usize,
}

impl Automaton {
    fn new(stop: String) -> Self {
        let bytes = stop.as_bytes();
        let mut borders = vec![0; bytes.len()];
        for i in 1..bytes.len() {
            borders[i] = advance(bytes, &borders, borders[i - 1], bytes[i]);
        }
        Self { stop, borders, state: 0 }
    }

    /// Takes a byte; whether the stop is complete with it.
    fn push(&mut self, byte: u8) -> bool {
        self.state = advance(self.stop.as_bytes(), &self.borders, self.state, byte);
        self.state == self.stop.len()
    }
}

/// The state after `byte`; `state` is shorter than `stop`.
fn advance(stop: &[u8], borders: &[usize], mut state: usize, byte: u8) -> usize {
    while stop[state] != byte {
        if state == 0 {
            return 0;
        }
        state = borders[state - 1];
    }
    state + 1
}

impl StopStrings {
    /// Watches for these strings; empty ones are left out, for they would end every text before it began.
    pub fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).map(Automaton::new).collect();
        Self { stops, held: String::new() }
    }

    /// Takes the next piece. After a match there is nothing more to push.
    pub fn push(&mut self, text: &str) -> StopStep {
        let mut buffer = std::mem::take(&mut self.held);
        let new = buffer.len();
        buffer.push_str(text);
        for (i, &byte) in text.as_bytes().iter().enumerate() {
            let mut longest: Option<&str> = None;
            for automaton in &mut self.stops {
                if automaton.push(byte) && longest.is_none_or(|other| automaton.stop.len() > other.len()) {
                    longest = Some(&automaton.stop);
                }
            }
            if let Some(stop) = longest {
                buffer.truncate(new + i + 1 - stop.len());
                return StopStep { emit: buffer, matched: Some(stop.to_owned()) };
            }
        }
        // A stop begins with a whole character, so this is a character's border.
        let held = self.stops.iter().map(|automaton| automaton.state).max().unwrap_or(0);
        self.held = buffer.split_off(buffer.len() - held);
        StopStep { emit: buffer, matched: None }
    }

    /// What was held back, once the text has ended for another reason.
    pub fn finish(&mut self) -> String {
        for automaton in &mut self.stops {
            automaton.state = 0;
        }
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By definition: the first border at which some stop ends the text, and the longest of those.
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
            let step = watch.push(piece);
            out.push_str(&step.emit);
            if step.matched.is_some() {
                return (out, step.matched);
            }
        }
        out.push_str(&watch.finish());
        (out, None)
    }

    #[test]
    fn text_that_may_begin_a_stop_is_held_back_until_it_cannot() {
        let mut watch = StopStrings::new(vec!["\n\nUser:".into()]);
        assert_eq!(watch.push("Hello\n").emit, "Hello");
        assert_eq!(watch.push("\n").emit, "");
        assert_eq!(watch.push("\n").emit, "\n", "the last two line breaks may still begin it");
        assert_eq!(watch.push("Us").emit, "");
        assert_eq!(watch.push("e!").emit, "\n\nUse!");
        assert_eq!(watch.push("\n\nUser: x"), StopStep { emit: String::new(), matched: Some("\n\nUser:".into()) });
    }

    #[test]
    fn what_is_held_at_the_end_is_text() {
        let mut watch = StopStrings::new(vec!["END".into()]);
        assert_eq!(watch.push("the EN").emit, "the ");
        assert_eq!(watch.finish(), "EN");
        assert_eq!(watch.finish(), "");
    }

    #[test]
    fn without_stops_everything_passes() {
        let mut watch = StopStrings::new(vec![String::new()]);
        assert_eq!(watch.push("ä"), StopStep { emit: "ä".into(), matched: None });
    }

    proptest! {
        #[test]
        fn pieces_give_what_the_whole_text_gives(
            pieces in prop::collection::vec("[abé]{0,4}", 0..8),
            stops in prop::collection::vec("[abé]{0,4}", 0..4),
        ) {
            prop_assert_eq!(run(&pieces, &stops), oracle(&pieces.concat(), &stops));
        }

        #[test]
        fn no_more_is_held_than_a_stop_could_need(
            pieces in prop::collection::vec("[ab]{0,4}", 1..8),
            stops in prop::collection::vec("[ab]{1,4}", 1..4),
        ) {
            let mut watch = StopStrings::new(stops.clone());
            let (mut text, mut out) = (String::new(), String::new());
            for piece in &pieces {
                text.push_str(piece);
                let step = watch.push(piece);
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
