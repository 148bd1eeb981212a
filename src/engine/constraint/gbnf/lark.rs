//! From the rules of a grammar to llguidance's variant of Lark.

use std::collections::VecDeque;
use std::fmt::Write;

use super::rules::{Node, Rules};

/// Most rules that may be within each other, as llguidance follows their names.
const MAX_DEPTH: usize = 500;

/// Writes a grammar whose start rule matches what `root` matches.
pub(super) fn write(rules: &Rules) -> Result<String, String> {
    check_depth(rules)?;
    let mut writer = Writer { is_terminal: terminals(rules), lines: String::new(), groups: 0 };
    let mut start = String::new();
    writer.node(&Node::Rule(0), false, &mut start);
    for (rule, body) in rules.bodies.iter().enumerate() {
        let (mut line, mut name) = (String::new(), String::new());
        let is_terminal = writer.is_terminal[rule];
        writer.node(body, is_terminal, &mut line);
        writer.name(rule, &mut name);
        let _ = writeln!(writer.lines, "{name}: {line}");
    }
    Ok(format!("start: {start}\n{}", writer.lines))
}

/// Whether each rule names only rules that are terminals too, so that it does not contain itself.
fn terminals(rules: &Rules) -> Vec<bool> {
    let mut users = vec![Vec::new(); rules.bodies.len()];
    let mut missing = Vec::new();
    for (rule, body) in rules.bodies.iter().enumerate() {
        let mut used = Vec::new();
        body.add_rules_to(&mut used);
        used.iter().for_each(|&used| users[used].push(rule));
        missing.push(used.len());
    }
    let mut is_terminal = vec![false; missing.len()];
    let mut found: VecDeque<usize> = (0..missing.len()).filter(|&rule| missing[rule] == 0).collect();
    while let Some(rule) = found.pop_front() {
        is_terminal[rule] = true;
        for &user in &users[rule] {
            missing[user] -= 1;
            if missing[user] == 0 {
                found.push_back(user);
            }
        }
    }
    is_terminal
}

/// Refuses rules that name each other in a chain which recursion could not follow.
fn check_depth(rules: &Rules) -> Result<(), String> {
    let used = |rule: usize| {
        let mut used = Vec::new();
        rules.bodies[rule].add_rules_to(&mut used);
        used
    };
    let mut seen = vec![false; rules.bodies.len()];
    for root in 0..rules.bodies.len() {
        let mut path = if std::mem::replace(&mut seen[root], true) { Vec::new() } else { vec![used(root)] };
        while let Some(left) = path.last_mut() {
            match left.pop() {
                None => drop(path.pop()),
                Some(rule) if !seen[rule] => {
                    seen[rule] = true;
                    path.push(used(rule));
                }
                Some(_) => {}
            }
            if path.len() > MAX_DEPTH {
                return Err(format!("more than {MAX_DEPTH} rules are within each other"));
            }
        }
    }
    Ok(())
}

struct Writer {
    is_terminal: Vec<bool>,
    /// Terminals and rules, a line each.
    lines: String,
    /// Number of terminals that parts of rules became.
    groups: usize,
}

impl Writer {
    /// Upper case is a terminal to Lark.
    fn name(&self, rule: usize, out: &mut String) {
        let _ = write!(out, "{}{rule}", if self.is_terminal[rule] { 'T' } else { 'r' });
    }

    /// Whether a part is a regular language that no other rule's recursion is in.
    fn is_regular(&self, node: &Node) -> bool {
        match node {
            Node::Rule(rule) => self.is_terminal[*rule],
            other => other.children().iter().all(|node| self.is_regular(node)),
        }
    }

    fn node(&mut self, node: &Node, in_terminal: bool, out: &mut String) {
        let is_compound = matches!(node, Node::Sequence(_) | Node::Choice(_) | Node::Repeat(..));
        if !in_terminal && is_compound && !node.children().is_empty() && self.is_regular(node) {
            let (name, mut line) = (format!("G{}", self.groups), String::new());
            self.groups += 1;
            self.node(node, true, &mut line);
            let _ = writeln!(self.lines, "{name}: {line}");
            out.push_str(&name);
            return;
        }
        match node {
            Node::Rule(rule) => self.name(*rule, out),
            Node::Text(text) => {
                out.push('/');
                text.chars().for_each(|c| character(c, out));
                out.push('/');
            }
            Node::Chars(ranges) => {
                out.push_str("/[");
                for &(first, last) in ranges {
                    character(first, out);
                    out.push('-');
                    character(last, out);
                }
                out.push_str("]/");
            }
            Node::Sequence(nodes) if nodes.is_empty() => out.push_str("\"\""),
            Node::Sequence(nodes) => self.joined(nodes, " ", in_terminal, out),
            Node::Choice(nodes) => self.joined(nodes, " | ", in_terminal, out),
            Node::Repeat(node, least, most) => {
                self.joined(std::slice::from_ref(node), "", in_terminal, out);
                let _ = match (least, most) {
                    (0, None) => write!(out, "*"),
                    (1, None) => write!(out, "+"),
                    (0, Some(1)) => write!(out, "?"),
                    (least, None) => write!(out, "{{{least},}}"),
                    (least, Some(most)) => write!(out, "{{{least},{most}}}"),
                };
            }
        }
    }

    fn joined(&mut self, nodes: &[Node], separator: &str, in_terminal: bool, out: &mut String) {
        out.push('(');
        for (index, node) in nodes.iter().enumerate() {
            if index > 0 {
                out.push_str(separator);
            }
            self.node(node, in_terminal, out);
        }
        out.push(')');
    }
}

/// A character of a regular expression, in which nothing has a meaning of its own.
fn character(c: char, out: &mut String) {
    let _ = write!(out, "\\x{{{:X}}}", u32::from(c));
}

#[cfg(test)]
mod tests {
    use super::super::to_lark;

    #[test]
    fn a_grammar_without_recursion_is_one_terminal() {
        let lark = to_lark("root ::= item{1,3}\nitem ::= [a-b] \"/\" | \"\"").expect("a grammar");
        let expected = "start: T0\nT0: (T1){1,3}\nT1: ((/[\\x{61}-\\x{62}]/ /\\x{2F}/) | \"\")\n";
        assert_eq!(lark, expected);
    }

    #[test]
    fn what_contains_itself_is_a_rule_over_terminals() {
        let lark = to_lark("root ::= \"(\" (root | [x]+) \")\"").expect("a grammar");
        assert_eq!(lark, "start: r0\nG0: (/[\\x{78}-\\x{78}]/)+\nr0: (/\\x{28}/ (r0 | G0) /\\x{29}/)\n");
    }

    #[test]
    fn long_chains_of_rules_are_refused() {
        let chain = |rules: usize| {
            let rules: String = (1..rules).map(|i| format!("r{i} ::= \"x\" r{}\n", i + 1)).collect();
            format!("root ::= r1\n{rules}r{} ::= \"y\"\n", rules.lines().count() + 1)
        };
        assert!(to_lark(&chain(400)).is_ok());
        assert!(to_lark(&chain(4000)).expect_err("deep").contains("within each other"));
    }
}
