//! From the text of a grammar to its rules.

use std::collections::HashMap;
use std::iter::Peekable;
use std::str::Chars;

use super::rules::{MAX_RULES, Node, Rules};

/// Most groups that may be open at once.
const MAX_NESTING: usize = 200;

/// Largest number of repetitions, as in llama.cpp.
const MAX_REPEATS: u32 = 2000;

type Result<T> = std::result::Result<T, String>;

/// Reads a grammar.
pub(super) fn parse(gbnf: &str) -> Result<Rules> {
    let mut parser = Parser { rest: gbnf.chars().peekable(), line: 1, ids: HashMap::new(), bodies: Vec::new() };
    parser.id_of("root".to_owned())?;
    parser.skip_space(true);
    while parser.rest.peek().is_some() {
        parser.rule().map_err(|what| format!("line {}: {what}", parser.line))?;
        parser.skip_space(true);
    }
    let mut names: Vec<_> = parser.ids.into_iter().collect();
    names.sort_by_key(|(_, id)| *id);
    let body = |((name, _), body): ((String, usize), Option<Node>)| match body {
        Some(body) => Ok(body),
        None if name == "root" => Err("there is no rule named root".to_owned()),
        None => Err(format!("there is no rule named {name}")),
    };
    Ok(Rules { bodies: names.into_iter().zip(parser.bodies).map(body).collect::<Result<_>>()? })
}

struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
    line: usize,
    /// Numbers of the rules by name.
    ids: HashMap<String, usize>,
    /// What each of them matches, once that was read.
    bodies: Vec<Option<Node>>,
}

impl Parser<'_> {
    fn id_of(&mut self, name: String) -> Result<usize> {
        if let Some(&id) = self.ids.get(&name) {
            return Ok(id);
        }
        if self.bodies.len() == MAX_RULES {
            return Err(format!("there are more than {MAX_RULES} rules"));
        }
        self.bodies.push(None);
        self.ids.insert(name, self.bodies.len() - 1);
        Ok(self.bodies.len() - 1)
    }

    fn next(&mut self) -> Option<char> {
        let next = self.rest.next();
        self.line += usize::from(next == Some('\n'));
        next
    }

    fn take(&mut self, expected: char) -> bool {
        let is_next = self.rest.peek() == Some(&expected);
        if is_next {
            self.next();
        }
        is_next
    }

    fn expect(&mut self, expected: char) -> Result<()> {
        if self.take(expected) { Ok(()) } else { Err(format!("expected '{expected}', found {}", self.found())) }
    }

    fn found(&mut self) -> String {
        self.rest.peek().map_or_else(|| "the end".to_owned(), |c| format!("{c:?}"))
    }

    /// Spaces and comments, and new lines where the rule goes on behind them.
    fn skip_space(&mut self, newlines: bool) {
        while let Some(&next) = self.rest.peek() {
            match next {
                ' ' | '\t' => {}
                '\r' | '\n' if newlines => {}
                '#' => {
                    while self.rest.peek().is_some_and(|c| !matches!(c, '\r' | '\n')) {
                        self.next();
                    }
                    continue;
                }
                _ => return,
            }
            self.next();
        }
    }

    fn name(&mut self) -> Result<String> {
        let mut name = String::new();
        while let Some(&c) = self.rest.peek().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')) {
            name.push(c);
            self.next();
        }
        if name.is_empty() { Err(format!("expected the name of a rule, found {}", self.found())) } else { Ok(name) }
    }

    fn rule(&mut self) -> Result<()> {
        let name = self.name()?;
        self.skip_space(false);
        for c in "::=".chars() {
            self.expect(c)?;
        }
        self.skip_space(true);
        let body = self.choice(0)?;
        if !matches!(self.rest.peek(), None | Some('\r' | '\n')) {
            return Err(format!("expected the end of the rule, found {}", self.found()));
        }
        let id = self.id_of(name.clone())?;
        match self.bodies[id].replace(body) {
            None => Ok(()),
            Some(_) => Err(format!("the rule {name} is there twice")),
        }
    }

    /// Sequences with `|` between them, inside of so many groups.
    fn choice(&mut self, depth: usize) -> Result<Node> {
        if depth > MAX_NESTING {
            return Err(format!("more than {MAX_NESTING} groups are open"));
        }
        let mut choices = vec![self.sequence(depth)?];
        while self.take('|') {
            self.skip_space(true);
            choices.push(self.sequence(depth)?);
        }
        Ok(if choices.len() == 1 { choices.remove(0) } else { Node::Choice(choices) })
    }

    fn sequence(&mut self, depth: usize) -> Result<Node> {
        let mut items = Vec::new();
        while let Some(&next) = self.rest.peek() {
            let item = match next {
                '"' => self.text()?,
                '[' => self.class()?,
                '(' => {
                    self.next();
                    self.skip_space(true);
                    let group = self.choice(depth + 1)?;
                    self.expect(')')?;
                    group
                }
                '.' => {
                    self.next();
                    Node::Chars(complement(Vec::new()))
                }
                '<' | '!' => return Err("tokens in angle brackets are not supported".to_owned()),
                c if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') => {
                    let name = self.name()?;
                    Node::Rule(self.id_of(name)?)
                }
                _ => break,
            };
            self.skip_space(depth > 0);
            items.push(self.repeated(item, depth)?);
        }
        Ok(if items.len() == 1 { items.remove(0) } else { Node::Sequence(items) })
    }

    /// An item with the operators behind it.
    fn repeated(&mut self, mut item: Node, depth: usize) -> Result<Node> {
        loop {
            let (least, most) = match self.rest.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    self.next();
                    let bounds = self.bounds()?;
                    if self.rest.peek() != Some(&'}') {
                        return Err(format!("expected '}}', found {}", self.found()));
                    }
                    bounds
                }
                _ => return Ok(item),
            };
            self.next();
            self.skip_space(depth > 0);
            item = match (least, most) {
                (_, Some(0)) => Node::Sequence(Vec::new()),
                (1, Some(1)) => item,
                _ => Node::Repeat(Box::new(item), least, most),
            };
        }
    }

    fn bounds(&mut self) -> Result<(u32, Option<u32>)> {
        self.skip_space(true);
        let least = self.number()?;
        self.skip_space(true);
        if !self.take(',') {
            return Ok((least, Some(least)));
        }
        self.skip_space(true);
        if self.rest.peek() == Some(&'}') {
            return Ok((least, None));
        }
        let most = self.number()?;
        self.skip_space(true);
        if most < least { Err(format!("{{{least},{most}}} has no number")) } else { Ok((least, Some(most))) }
    }

    fn number(&mut self) -> Result<u32> {
        let mut digits = String::new();
        while let Some(&c) = self.rest.peek().filter(|c| c.is_ascii_digit()) {
            digits.push(c);
            self.next();
        }
        match digits.parse() {
            Ok(number) if number <= MAX_REPEATS => Ok(number),
            Err(_) if digits.is_empty() => Err(format!("expected a number, found {}", self.found())),
            _ => Err(format!("more than {MAX_REPEATS} repetitions")),
        }
    }

    fn text(&mut self) -> Result<Node> {
        self.expect('"')?;
        let mut text = String::new();
        while !self.take('"') {
            text.push(self.character()?);
        }
        Ok(if text.is_empty() { Node::Sequence(Vec::new()) } else { Node::Text(text) })
    }

    fn class(&mut self) -> Result<Node> {
        self.expect('[')?;
        let is_negated = self.take('^');
        let mut ranges = Vec::new();
        while !self.take(']') {
            let first = self.character()?;
            let mut last = first;
            if self.take('-') {
                // A hyphen before the end is itself.
                if self.rest.peek() == Some(&']') {
                    ranges.push(('-', '-'));
                } else {
                    last = self.character()?;
                }
            }
            if last < first {
                return Err(format!("the range {first:?}-{last:?} has no character"));
            }
            ranges.push((first, last));
        }
        let ranges = if is_negated { complement(ranges) } else { merged(ranges) };
        if ranges.is_empty() { Err("a class has no character".to_owned()) } else { Ok(Node::Chars(ranges)) }
    }

    /// A character of a text or a class, which may be escaped.
    fn character(&mut self) -> Result<char> {
        let escape = match self.next() {
            None => return Err("the grammar ends within a text or a class".to_owned()),
            Some('\\') => self.next(),
            Some(c) => return Ok(c),
        };
        let digits = match escape {
            Some('t') => return Ok('\t'),
            Some('r') => return Ok('\r'),
            Some('n') => return Ok('\n'),
            Some(c @ ('\\' | '"' | '[' | ']' | '-')) => return Ok(c),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            other => {
                let found = other.map_or_else(|| "the end".to_owned(), |c| format!("\\{c}"));
                return Err(format!("unknown escape: {found}"));
            }
        };
        let mut code = 0_u32;
        for _ in 0..digits {
            let digit = self.next().and_then(|c| c.to_digit(16));
            code = code << 4 | digit.ok_or_else(|| format!("expected {digits} hexadecimal digits"))?;
        }
        char::from_u32(code).ok_or_else(|| format!("U+{code:04X} is no character"))
    }
}

/// The same characters as ascending ranges that do not touch.
fn merged(mut ranges: Vec<(char, char)>) -> Vec<(char, char)> {
    ranges.sort_unstable();
    let mut merged: Vec<(char, char)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if after(*end).is_none_or(|next| first <= next) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// All other characters.
fn complement(ranges: Vec<(char, char)>) -> Vec<(char, char)> {
    let (mut rest, mut next) = (Vec::new(), Some('\0'));
    for (first, last) in merged(ranges) {
        if let (Some(start), Some(end)) = (next, before(first))
            && start <= end
        {
            rest.push((start, end));
        }
        next = after(last);
    }
    rest.extend(next.map(|start| (start, char::MAX)));
    rest
}

fn after(c: char) -> Option<char> {
    (c..=char::MAX).nth(1)
}

fn before(c: char) -> Option<char> {
    ('\0'..=c).nth_back(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(gbnf: &str) -> Node {
        parse(gbnf).expect("a grammar").bodies.remove(0)
    }

    fn text(text: &str) -> Node {
        Node::Text(text.to_owned())
    }

    #[test]
    fn classes_are_ranges_of_characters() {
        let class = |gbnf: &str| match root(gbnf) {
            Node::Chars(ranges) => ranges,
            other => panic!("{other:?}"),
        };
        assert_eq!(class("root ::= [a-cx-zd\\n]"), [('\n', '\n'), ('a', 'd'), ('x', 'z')]);
        assert_eq!(class(r"root ::= [\]\x41\u00e9\U0001F600-]").len(), 5);
        assert_eq!(class("root ::= [^a-c]"), [('\0', '`'), ('d', char::MAX)]);
        assert_eq!(class("root ::= [^\\x00-\\uD7FF]"), [('\u{E000}', char::MAX)]);
        assert_eq!(class("root ::= ."), [('\0', char::MAX)]);
    }

    #[test]
    fn operators_groups_and_new_lines_are_those_of_llama_cpp() {
        let repeat = |node: Node, least, most| Node::Repeat(Box::new(node), least, most);
        let body = root("# a comment\nroot ::= \"a\"? ( # in a group\n \"b\" |\n \"c\" )+ |\n \"d\"{2,} \"e\"{3}\n");
        let group = Node::Choice(vec![text("b"), text("c")]);
        let first = Node::Sequence(vec![repeat(text("a"), 0, Some(1)), repeat(group, 1, None)]);
        let second = Node::Sequence(vec![repeat(text("d"), 2, None), repeat(text("e"), 3, Some(3))]);
        assert_eq!(body, Node::Choice(vec![first, second]));
        assert_eq!(root("root ::= \"\" | \"a\"{0,0}"), Node::Choice(vec![Node::Sequence(vec![]); 2]));
        assert_eq!(root("other-one ::= \"x\"\nroot ::= other-one"), Node::Rule(1));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (gbnf, expected) in [
            ("", "no rule named root"),
            ("root ::= other", "no rule named other"),
            ("root ::= \"a\"\nroot ::= \"b\"", "line 2: the rule root is there twice"),
            ("root ::= \"a", "ends within a text"),
            ("root ::= [a", "ends within a text"),
            ("root ::= [b-a]", "no character"),
            ("root ::= []", "no character"),
            ("root ::= [^\\x00-\\U0010FFFF]", "no character"),
            ("root ::= \"\\q\"", "unknown escape"),
            ("root ::= \"\\uD800\"", "U+D800 is no character"),
            ("root ::= ( \"a\"", "expected ')'"),
            ("root ::= \"a\" )", "expected the end of the rule"),
            ("root := \"a\"", "expected ':'"),
            ("root ::= \"a\"{3,2}", "no number"),
            ("root ::= \"a\"{2001}", "more than 2000"),
            ("root ::= <think>", "not supported"),
        ] {
            let error = parse(gbnf).expect_err(gbnf);
            assert!(error.contains(expected), "{gbnf}: {error}");
        }
        assert!(parse(&format!("root ::= {}", "(".repeat(10_000))).expect_err("deep").contains("groups are open"));
        let many: String = (0..5000).map(|i| format!("a{i} ::= \"x\"\n")).collect();
        assert!(parse(&many).expect_err("many").contains("more than 4096 rules"));
    }
}
