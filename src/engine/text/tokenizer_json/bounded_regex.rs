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
    let (mut start, mut window, mut is_slow) = (from, FIRST_WINDOW, false);
    while start <= text.len() {
        let began = Instant::now();
        let end = if is_slow { after(text, start) } else { boundary(text, start.saturating_add(window)) };
        region.clear();
        let outcome = if is_slow {
            let options = SearchOptions::SEARCH_OPTION_NONE;
            regex.match_with_param(text, start, options, Some(&mut *region), limits_of(text))
        } else {
            let (last, options) = (boundary(text, end.saturating_add(OVERLAP)), SearchOptions::SEARCH_OPTION_NONE);
            regex.search_with_param(text, start, last, options, Some(&mut *region), limits_of(text))
        };
        match outcome {
            // Of two matches that begin further, the first may not have been seen.
            Ok(Some(_)) => match region.pos(0).filter(|&(begin, _)| begin < end || end == text.len()) {
                None => start = end,
                found => return Ok(found),
            },
            Ok(None) if end >= text.len() && !is_slow => return Ok(None),
            Ok(None) => start = end,
            Err(error) => return limits::fail(format!("a regular expression fails on it: {}", error.description())),
        }
        is_slow = began.elapsed() > SLOW;
        window = (window * 2).min(MAX_WINDOW);
        check_time()?;
    }
    Ok(None)
}

fn limits_of(text: &str) -> MatchParam {
    let retries = u32::try_from(text.len().saturating_mul(32)).unwrap_or(u32::MAX).saturating_add(100_000);
    let mut limits = MatchParam::default();
    limits.set_retry_limit_in_match(retries.min(10_000_000));
    limits.set_match_stack_limit(retries);
    limits
}

/// The first boundary of a character at `at` or after it; the end of the text if there is none.
fn boundary(text: &str, at: usize) -> usize {
    (at..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len())
}

/// The position after the character at `at`.
fn after(text: &str, at: usize) -> usize {
    at + text[at..].chars().next().map_or(1, char::len_utf8)
}
