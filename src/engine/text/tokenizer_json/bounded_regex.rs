//! Regular expressions of tokenizer.json, with bounds on their matching.
//!
//! They are Oniguruma's, as in the `tokenizers` crate, and find the same matches; but its searches may take for ever, and panic
//! where one attempt backtracks ten million times. Here an attempt's backtracking is bounded by the length of the text, and the
//! time of the call is checked after every few positions and at the checkpoints within an attempt ([`with_checkpoints`]).

use std::time::{Duration, Instant};

use onig::{Regex, Region, SearchOptions};
use serde::Serialize;
use tokenizers::tokenizer::pattern::Pattern;

use super::checkpoints::with_checkpoints;
use super::fault::Fault;
use super::limits;
use super::match_limits::match_limits;

/// The longest pattern of public tokenizers has about a thousand bytes.
const MAX_PATTERN_BYTES: usize = 16 << 10;

/// How much of a pattern an error shows.
const NAMED_CHARS: usize = 80;

/// How many positions where a match may begin are tried between two checks of the time: more while that is quick, one by one
/// once it was slow.
const FIRST_WINDOW: usize = 64;
const MAX_WINDOW: usize = 1024;
const SLOW: Duration = Duration::from_millis(1);

/// Oniguruma looks for a text that every match contains first, of at most 24 bytes (`OPT_EXACT_MAXLEN`), and does not see one
/// that crosses the end of the positions to try. So positions that many bytes further are tried as well.
const OVERLAP: usize = 32;

/// What a `Split` or `Replace` looks for.
#[derive(Serialize)]
pub(crate) enum Needle {
    /// A text, not empty.
    Text(String),
    /// A regular expression.
    Regex {
        /// As it is written.
        pattern: String,
        /// With checkpoints.
        #[serde(skip)]
        regex: Regex,
    },
}

impl Needle {
    pub(super) fn text(text: String) -> Result<Self, Fault> {
        if text.is_empty() { Err("a pattern is empty".into()) } else { Ok(Self::Text(text)) }
    }

    pub(super) fn regex(pattern: &str) -> Result<Self, Fault> {
        if pattern.is_empty() || pattern.len() > MAX_PATTERN_BYTES {
            return Err(
                format!("a regular expression has {} bytes; 1 to {MAX_PATTERN_BYTES} work", pattern.len()).into()
            );
        }
        let invalid = |error: onig::Error| about(pattern, &format!("is invalid: {}", error.description()));
        let mut regex = Regex::new(pattern).map_err(invalid)?;
        let written =
            with_checkpoints(pattern).map_err(|fault| about(pattern, &format!("is not supported: {fault}")))?;
        if let Some(written) = written {
            regex = Regex::new(&written).map_err(invalid)?;
        }
        Ok(Self::Regex { pattern: pattern.to_owned(), regex })
    }
}

/// Contiguous spans of a text, and which of them match.
pub(super) type Spans = Vec<((usize, usize), bool)>;

impl Pattern for &Needle {
    fn find_matches(&self, text: &str) -> tokenizers::Result<Spans> {
        if text.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let mut spans = Spans::new();
        let mut end_of_last = 0;
        let mut add = |start, end| {
            if end_of_last != start {
                spans.push(((end_of_last, start), false));
            }
            spans.push(((start, end), true));
            end_of_last = end;
        };
        match self {
            Needle::Text(needle) => {
                text.match_indices(needle).for_each(|(start, found)| add(start, start + found.len()))
            }
            Needle::Regex { regex, pattern } => each_match(&Search { regex, pattern, text }, add)?,
        }
        if end_of_last != text.len() {
            spans.push(((end_of_last, text.len()), false));
        }
        Ok(spans)
    }
}

/// What is wrong with a regular expression, which is named.
fn about(pattern: &str, what: &str) -> Fault {
    let name: String = pattern.chars().take(NAMED_CHARS).collect();
    let dots = if name.len() < pattern.len() { "…" } else { "" };
    format!("the regular expression '{name}{dots}' {what}").into()
}

/// A regular expression and the text that it is looked for in.
struct Search<'a> {
    regex: &'a Regex,
    pattern: &'a str,
    text: &'a str,
}

/// Calls `found` with the start and end of each match, as [`Regex::find_iter`] yields them.
fn each_match(search: &Search<'_>, mut found: impl FnMut(usize, usize)) -> Result<(), Fault> {
    let mut region = Region::new();
    let (mut from, mut end_of_last) = (0, None);
    while from <= search.text.len() {
        let Some((start, end)) = search.first_match(from, &mut region)? else { break };
        if start == end && end_of_last == Some(end) {
            // An empty match right after a match does not count.
            from = after(search.text, from);
            continue;
        }
        (from, end_of_last) = (end, Some(end));
        found(start, end);
    }
    Ok(())
}

impl Search<'_> {
    /// The first match that begins at `from` or later.
    fn first_match(&self, from: usize, region: &mut Region) -> Result<Option<(usize, usize)>, Fault> {
        let text = self.text;
        let (mut start, mut window, mut is_slow) = (from, FIRST_WINDOW, false);
        while start <= text.len() {
            let began = Instant::now();
            let end = if is_slow { after(text, start) } else { boundary(text, start.saturating_add(window)) };
            region.clear();
            let (options, param) = (SearchOptions::SEARCH_OPTION_NONE, match_limits(text));
            let outcome = if is_slow {
                self.regex.match_with_param(text, start, options, Some(&mut *region), param)
            } else {
                let last = boundary(text, end.saturating_add(OVERLAP));
                self.regex.search_with_param(text, start, last, options, Some(&mut *region), param)
            };
            // Before the outcome, because an attempt that takes too long is given up.
            if let Some(allowed) = limits::exceeded_time() {
                return limits::fail(about(self.pattern, &format!("takes more than {allowed:?}")));
            }
            match outcome {
                // Of two matches that begin further, the first may not have been seen.
                Ok(Some(_)) => match region.pos(0).filter(|&(begin, _)| begin < end || end == text.len()) {
                    None => start = end,
                    found => return Ok(found),
                },
                Ok(None) if end >= text.len() && !is_slow => return Ok(None),
                Ok(None) => start = end,
                Err(error) => {
                    return limits::fail(about(self.pattern, &format!("fails on it: {}", error.description())));
                }
            }
            is_slow = began.elapsed() > SLOW;
            window = (window * 2).min(MAX_WINDOW);
        }
        Ok(None)
    }
}

/// The first boundary of a character at `at` or after it; the end of the text if there is none.
fn boundary(text: &str, at: usize) -> usize {
    (at..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len())
}

/// The position after the character at `at`.
fn after(text: &str, at: usize) -> usize {
    at + text[at..].chars().next().map_or(1, char::len_utf8)
}
