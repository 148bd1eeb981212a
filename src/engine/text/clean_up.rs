//! transformers' clean-up of decoded text: no space before punctuation and English contractions.
//!
//! `clean_up_tokenization_spaces` asks for it; it is meant for WordPiece, whose decoder puts a space before each word.

/// What is replaced by what, in this order over the whole text.
///
/// Source: `PreTrainedTokenizerBase.clean_up_tokenization` in transformers 5.23.
const REPLACEMENTS: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// Cleans up a text that arrives in pieces; what may still be part of something to replace is held back.
#[derive(Clone, Debug, Default)]
pub(super) struct CleanUp {
    /// What each replacement holds back: the longest end of its text so far that begins its pattern.
    held: [String; REPLACEMENTS.len()],
}

impl CleanUp {
    /// Cleans up a whole text.
    pub fn whole(text: &str) -> String {
        REPLACEMENTS.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
    }

    /// The text that is certain after this piece.
    pub fn push(&mut self, text: &str) -> String {
        self.run(text, false)
    }

    /// Whether nothing of a text is held back, whatever comes before it, once it has been pushed or at some point within: it has a
    /// character with which no beginning of a pattern ends.
    pub fn starts_anew_in(text: &str) -> bool {
        let beginnings = REPLACEMENTS.map(|(from, _)| &from[..from.len() - 1]);
        text.chars().any(|c| !beginnings.iter().any(|beginning| beginning.contains(c)))
    }

    /// The text held back, at the end. Resets it.
    pub fn finish(&mut self) -> String {
        self.run("", true)
    }

    fn run(&mut self, text: &str, is_end: bool) -> String {
        self.held.iter_mut().zip(REPLACEMENTS).fold(text.to_owned(), |text, (held, (from, to))| {
            held.push_str(&text);
            let kept = if is_end { 0 } else { beginning_at_end(held, from) };
            // What a whole pattern has used cannot begin another one.
            let mut last = 0;
            while let Some(at) = held[last..].find(from) {
                last += at + from.len();
            }
            let rest = held.split_off((held.len() - kept).max(last));
            std::mem::replace(held, rest).replace(from, to)
        })
    }
}

/// Length of the longest end of a text that is a beginning of the pattern, but not all of it.
fn beginning_at_end(text: &str, pattern: &str) -> usize {
    (1..pattern.len()).rev().find(|&length| text.ends_with(&pattern[..length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spaces_before_punctuation_go() {
        assert_eq!(CleanUp::whole("do n't , he 's \" ' \" ok ."), "don't, he's \"'\" ok.");
    }

    proptest! {
        #[test]
        fn a_character_of_no_beginning_forgets_what_came_before_it(
            [before, after] in ["[ .',nrestvma]{0,12}", "[ .',nrestvma]{0,12}"],
            c in "[.,!?tmseaé]",
        ) {
            let text = before + &c;
            prop_assert!(CleanUp::starts_anew_in(&text));
            let [mut all, mut anew] = [(); 2].map(|()| CleanUp::default());
            all.push(&text);
            anew.push(&c);
            prop_assert_eq!(&all.held, &anew.held);
            prop_assert_eq!(all.push(&after) + &all.finish(), anew.push(&after) + &anew.finish());
        }

        #[test]
        fn pieces_give_the_same_as_the_whole(pieces in prop::collection::vec("[ .',nrestvm]{0,4}", 0..12)) {
            let mut clean_up = CleanUp::default();
            let mut text: String = pieces.iter().map(|piece| clean_up.push(piece)).collect();
            text += &clean_up.finish();
            prop_assert_eq!(text, CleanUp::whole(&pieces.concat()));
        }
    }
}
