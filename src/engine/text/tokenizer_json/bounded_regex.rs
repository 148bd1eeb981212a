//! Regular expressions of tokenizer.json, with bounds on their matching.
//!
//! They are Oniguruma's, as in the `tokenizers` crate, and find the same matches; but its searches may take for ever, and panic
//! where one attempt backtracks ten million times. Here an attempt's backtracking is bounded by the length of the text, and the
//! time of the call is checked after every few positions.

use std::time::{Duration, Instant};

use onig::{MatchParam, Regex, Region, SearchOptions};
use serde::Serialize;
use tokenizers::tokenizer::pattern::Pattern;

use super::fault::Fault;
use super::limits;
use super::limits::check_time;

/// The longest pattern of public tokenizers has about a thousand bytes.
const MAX_PATTERN_BYTES: usize = 16 << 10;

/// How many positions where a match may begin are tried between two checks of the time: more while that is quick, few once it
/// was slow.
const FIRST_WINDOW: usize = 64;
const MAX_WINDOW: usize = 1024;
const SLOW_WINDOW: usize = 4;
const SLOW: Duration = Duration::from_millis(1);

/// What a `Split` or `Replace` looks for.
#[derive(Serialize)]
pub(crate) enum Needle {
    /// A text, not empty.
    Text(String),
    /// A regular expression.
    Regex {
        /// As it is written.
        pattern: String,
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
        let invalid = |error: onig::Error| format!("a regular expression is invalid: {}", error.description());
        Ok(Self::Regex { pattern: pattern.to_owned(), regex: Regex::new(pattern).map_err(invalid)? })
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
            Needle::Regex { regex, .. } => each_match(regex, text, add)?,
        }
        if end_of_last != text.len() {
            spans.push(((end_of_last, text.len()), false));
        }
        Ok(spans)
    }
}

/// Calls `found` with the start and end of each match, as [`Regex::find_iter`] yields them.
fn each_match(regex: &Regex, text: &str, mut found: impl FnMut(usize, usize)) -> Result<(), Fault> {
    let mut region = Region::new();
    let (mut from, mut end_of_last) = (0, None);
    while from <= text.len() {
        let Some((start, end)) = search(regex, text, from, &mut region)? else { break };
        if start == end && end_of_last == Some(end) {
            // An empty match right after a match does not count.
            from = after(text, from);
            continue;
        }
        (from, end_of_last) = (end, Some(end));
        found(start, end);
    }
    Ok(())
}

/// The first match that begins at `from` or later.
fn search(regex: &Regex, text: &str, from: usize, region: &mut Region) -> Result<Option<(usize, usize)>, Fault> {
    let retries = u32::try_from(text.len().saturating_mul(32)).unwrap_or(u32::MAX).saturating_add(100_000);
    let (mut start, mut window) = (from, FIRST_WINDOW);
    loop {
        let mut end = start.saturating_add(window).min(text.len());
        while !text.is_char_boundary(end) {
            end += 1;
        }
        let mut limits = MatchParam::default();
        limits.set_retry_limit_in_match(retries.min(10_000_000));
        limits.set_match_stack_limit(retries);
        region.clear();
        let began = Instant::now();
        let outcome =
            regex.search_with_param(text, start, end, SearchOptions::SEARCH_OPTION_NONE, Some(&mut *region), limits);
        match outcome {
            Ok(Some(_)) => return Ok(region.pos(0)),
            Ok(None) if end == text.len() => return Ok(None),
            Ok(None) => start = end,
            Err(error) => return limits::fail(format!("a regular expression fails on it: {}", error.description())),
        }
        window = if began.elapsed() > SLOW { SLOW_WINDOW } else { (window * 2).min(MAX_WINDOW) };
        check_time()?;
    }
}

/// The position after the character at `at`.
fn after(text: &str, at: usize) -> usize {
    at + text[at..].chars().next().map_or(1, char::len_utf8)
}
