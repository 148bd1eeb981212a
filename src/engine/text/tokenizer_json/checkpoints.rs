//! Where a regular expression's matching must be interrupted to look at the time.
//!
//! Oniguruma counts how often an attempt backtracks, and nothing else. Loops that give nothing back (`a*+`, and `a*b` as it is
//! compiled) run without backtracking, and a loop around them, or another before them, runs them again and again:
//! `(?:a*b|a)*c` takes a time that grows with the square of the text in one attempt at one position. So a checkpoint, which is
//! one of Oniguruma's callouts, is put before every part of a pattern that may walk along the text. Between two checkpoints no
//! more than one such walk takes place.
//!
//! Source of the syntax: Oniguruma 6.9.10, `doc/RE` and `regparse.c`, `ONIG_SYNTAX_ONIGURUMA`.

use super::fault::Fault;

/// A callout: it matches the empty text, always.
const CHECKPOINT: &str = "(?{t})";

/// A repetition up to this number is not worth a checkpoint; the backtracking around it is counted.
const SHORT_REPETITION: usize = 64;

/// The pattern with checkpoints; `None` if each attempt of it takes a time in proportion to the text.
///
/// # Errors
/// It uses something whose time cannot be bounded, or that tokenizers have no use for.
pub(super) fn with_checkpoints(pattern: &str) -> Result<Option<String>, Fault> {
    let mut parser = Parser { pattern, at: 0, groups: Vec::new(), atom: None, walks: Vec::new(), enters_again: false };
    parser.parse()?;
    let mut walks = parser.walks;
    walks.sort_unstable();
    walks.dedup();
    if walks.is_empty() || (walks.len() == 1 && !parser.enters_again) {
        return Ok(None);
    }
    let (mut written, mut done) = (String::with_capacity(pattern.len() + walks.len() * CHECKPOINT.len()), 0);
    for walk in walks {
        written += &pattern[done..walk];
        written += CHECKPOINT;
        done = walk;
    }
    Ok(Some(written + &pattern[done..]))
}

/// An open group.
struct Group {
    start: usize,
    is_lookbehind: bool,
}

struct Parser<'a> {
    /// One that Oniguruma has compiled.
    pattern: &'a str,
    at: usize,
    groups: Vec<Group>,
    /// Where the last atom begins: what a quantifier that follows would repeat.
    atom: Option<usize>,
    /// Where atoms begin that may walk along the text.
    walks: Vec<usize>,
    /// Whether a group is repeated or called.
    enters_again: bool,
}

impl<'a> Parser<'a> {
    fn parse(&mut self) -> Result<(), Fault> {
        while let Some(c) = self.peek() {
            let start = self.at;
            match c {
                '\\' => self.escape()?,
                '[' => {
                    self.class()?;
                    self.atom = Some(start);
                }
                '(' => self.open_group()?,
                ')' => {
                    self.at += 1;
                    let Some(group) = self.groups.pop() else { return self.unclear() };
                    self.atom = Some(group.start);
                }
                '|' => {
                    self.at += 1;
                    self.atom = None;
                }
                '*' | '+' | '?' | '{' => match self.quantifier() {
                    Some(most) => self.repeated(most)?,
                    None => self.character(start),
                },
                _ => self.character(start),
            }
        }
        Ok(())
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn rest(&self) -> &'a str {
        &self.pattern[self.at..]
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    /// Skips what is there, if it is; whether it was.
    fn skip(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        self.at += if found { text.len() } else { 0 };
        found
    }

    fn skip_while(&mut self, most: usize, accept: impl Fn(char) -> bool) {
        let end = self.rest().char_indices().take(most).find(|&(_, c)| !accept(c));
        let all: usize = self.rest().chars().take(most).map(char::len_utf8).sum();
        self.at += end.map_or(all, |(end, _)| end);
    }

    /// Skips everything up to a text, and that.
    fn skip_past(&mut self, end: &str) -> Result<(), Fault> {
        let Some(found) = self.rest().find(end) else { return self.unclear() };
        self.at += found + end.len();
        Ok(())
    }

    fn character(&mut self, start: usize) {
        self.next();
        self.atom = Some(start);
    }

    /// What a quantifier does to the atom before it.
    fn repeated(&mut self, most: usize) -> Result<(), Fault> {
        let is_group = self.atom.is_some_and(|start| self.pattern[start..].starts_with('('));
        self.enters_again |= is_group && most > 1;
        if most > SHORT_REPETITION { self.walk(self.atom) } else { Ok(()) }
    }

    fn walk(&mut self, atom: Option<usize>) -> Result<(), Fault> {
        if self.groups.iter().any(|group| group.is_lookbehind) {
            return Err("a lookbehind in it has no short length".into());
        }
        self.walks.extend(atom);
        Ok(())
    }

    fn unclear<T>(&self) -> Result<T, Fault> {
        Err(format!("what it means at byte {} is unclear", self.at).into())
    }

    /// The largest number of repetitions of a quantifier; `None` where there is an ordinary `{`.
    fn quantifier(&mut self) -> Option<usize> {
        let start = self.at;
        match self.next() {
            Some('?') => return Some(1),
            Some('{') => {}
            _ => return Some(usize::MAX),
        }
        let interval = self.rest().split_once('}').map(|(interval, _)| interval);
        let (low, high) = interval.map_or(("", None), |interval| match interval.split_once(',') {
            Some((low, high)) => (low, Some(high)),
            None => (interval, None),
        });
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        // Either end may be missing, but not both.
        if (low.is_empty() && high.is_none_or(str::is_empty)) || !is_number(low) || !high.is_none_or(is_number) {
            self.at = start;
            return None;
        }
        self.at += interval.map_or(0, str::len) + 1;
        let number = |text: &str| text.parse().unwrap_or(usize::MAX);
        Some(match high {
            None => number(low),
            Some("") => usize::MAX,
            // The larger number may come first.
            Some(high) => number(high).max(if low.is_empty() { 0 } else { number(low) }),
        })
    }

    fn escape(&mut self) -> Result<(), Fault> {
        let start = self.at;
        self.at += 1;
        let Some(c) = self.next() else { return self.unclear() };
        let mut walks = false;
        match c {
            'x' | 'o' | 'p' | 'P' if self.rest().starts_with('{') => self.skip_past("}")?,
            'x' => self.skip_while(2, |c| c.is_ascii_hexdigit()),
            'u' => self.skip_while(4, |c| c.is_ascii_hexdigit()),
            // An octal number, or the text of a group again.
            '0'..='9' => {
                self.skip_while(2, |c| c.is_ascii_digit());
                walks = c != '0';
            }
            'k' | 'g' => {
                walks = true;
                self.enters_again |= c == 'g';
                if self.skip("<") {
                    self.skip_past(">")?;
                } else if self.skip("'") {
                    self.skip_past("'")?;
                }
            }
            'X' => walks = true,
            // Control and meta characters: `\cx`, `\C-x`, `\M-x`, `\M-\C-x`.
            'c' | 'C' | 'M' => return self.unclear(),
            _ => {}
        }
        self.atom = Some(start);
        if walks { self.walk(self.atom) } else { Ok(()) }
    }

    /// A character class. A `]` that comes first is an ordinary one.
    fn class(&mut self) -> Result<(), Fault> {
        let mut depth = 0;
        loop {
            match self.next() {
                None => return self.unclear(),
                Some('[') if depth > 0 && self.rest().starts_with(':') => {
                    self.at += 1;
                    self.skip("^");
                    self.skip_while(usize::MAX, |c| c.is_ascii_lowercase());
                    if !self.skip(":]") {
                        return self.unclear();
                    }
                }
                Some('[') => {
                    depth += 1;
                    self.skip("^");
                    self.skip("]");
                }
                Some(']') => {
                    depth -= 1;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                Some('\\') => {
                    if matches!(self.next(), None | Some('c' | 'C' | 'M')) {
                        return self.unclear();
                    }
                }
                Some(_) => {}
            }
        }
    }

    fn open_group(&mut self) -> Result<(), Fault> {
        let start = self.at;
        self.at += 1;
        let mut is_lookbehind = false;
        if self.skip("?") {
            if self.skip("#") {
                return self.comment();
            }
            if self.skip("<=") || self.skip("<!") {
                is_lookbehind = true;
            } else if self.skip("<") {
                self.skip_past(">")?;
            } else if self.skip("'") {
                self.skip_past("'")?;
            } else if !(self.skip("=") || self.skip("!") || self.skip(">") || self.options()?) {
                return Err("it uses conditions, callouts or absent operators".into());
            }
        } else if self.rest().starts_with('*') {
            return Err("it uses callouts".into());
        }
        if self.pattern[..self.at].ends_with(')') {
            // Options up to the end of the group around them.
            self.atom = None;
        } else {
            self.groups.push(Group { start, is_lookbehind });
            self.atom = None;
        }
        Ok(())
    }

    /// Options with the colon or parenthesis behind them; `false` where there is something else.
    fn options(&mut self) -> Result<bool, Fault> {
        let start = self.at;
        self.skip_while(usize::MAX, |c| c.is_ascii_alphabetic() || c == '-');
        let options = &self.pattern[start..self.at];
        if options.contains('x') {
            return Err("it is an extended one (?x)".into());
        }
        Ok(self.skip(":") || (!options.is_empty() && self.skip(")")))
    }

    fn comment(&mut self) -> Result<(), Fault> {
        loop {
            match self.next() {
                None => return self.unclear(),
                Some(')') => return Ok(()),
                Some('\\') => _ = self.next(),
                Some(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use onig::Regex;

    use super::*;

    fn written(pattern: &str) -> Option<String> {
        Regex::new(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        let written = with_checkpoints(pattern).unwrap_or_else(|fault| panic!("{pattern}: {fault}"))?;
        Regex::new(&written).unwrap_or_else(|error| panic!("{written}: {error}"));
        Some(written.replace(CHECKPOINT, "!"))
    }

    #[test]
    fn a_checkpoint_is_before_every_part_that_walks_along_the_text() {
        for (pattern, expected) in [
            (r"\s+(?!\S)|\s+", r"!\s+(?!\S)|!\s+"),
            (r"[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}]++[\r\n]*", r"[^\r\n\p{L}\p{N}]?!\p{L}+| ?![^\s\p{L}]++![\r\n]*"),
            ("(?:a*b|a)*c", "!(?:!a*b|a)*c"),
            ("(?i:ab*?){2,}(?<n>x)+", "!(?i:a!b*?){2,}!(?<n>x)+"),
            (r"\x{41}*\x41+\u0041*\101+\p{Han}*\\+\.*", r"!\x{41}*!\x41+!\u0041*!\101+!\p{Han}*!\\+!\.*"),
            ("[]a]*[^]a]*[a[b]]*[[:alpha:]\\]]+é+", "![]a]*![^]a]*![a[b]]*![[:alpha:]\\]]+!é+"),
            (r"(a+)\1\X", r"(!a+)!\1!\X"),
            (r"(?<x>b)\k<x>\X*", r"(?<x>b)!\k<x>!\X*"),
            ("(?#a*)a*{(?#(b)+b{,}b{65,}{x}", "(?#a*)!a*!{(?#(b)+b{,}!b{65,}{x}"),
            ("(?<x>a(?:b\\g<x>)?)", "(?<x>a(?:b!\\g<x>)?)"),
            ("(?i)a*(?-i:b)*", "(?i)!a*!(?-i:b)*"),
            ("(?:a*b){0,60}", "(?:!a*b){0,60}"),
        ] {
            assert_eq!(written(pattern).as_deref(), Some(expected), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_with_one_walk_needs_none() {
        for pattern in
            ["a", " ", r"\p{N}{1,3}", "[0-9]+", r"(?i:'s|'t)", "(?=a*b)", "(?:ab)?c*", "(a{0,64}){2}", "(?<=a{2})b+"]
        {
            assert_eq!(written(pattern), None, "{pattern}");
        }
    }

    #[test]
    fn what_cannot_be_bounded_is_refused() {
        for pattern in [
            "(?~b)",
            "(?{x})a",
            "(*FAIL)",
            "(a)(?(1)b|c)",
            "(?x: a )",
            "(?<=a+)b",
            "(?<!(?:ab)*)c",
            "(?<=x(?:a{2,99}))b",
        ] {
            Regex::new(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
            assert!(with_checkpoints(pattern).is_err(), "{pattern}");
        }
    }
}
