//! Grammars in GBNF, llama.cpp's variant of Backus-Naur form, as llguidance takes them.
//!
//! A rule that does not contain itself, not even by way of others, describes a regular language and becomes a terminal; the
//! others become rules. If `root` is such a terminal, the text is matched as a whole. Otherwise llguidance cuts it into terminals,
//! each of which goes on for as long as it can: what a model writes is in the language of the grammar, but where the end of
//! a terminal is ambiguous, not all of the language can be written (docs/structured-output.md).

mod lark;
mod parser;

/// Most rules of a grammar.
const MAX_RULES: usize = 4096;

/// A grammar: its rules, the first of which is `root`.
#[derive(Debug)]
struct Rules {
    /// What each rule matches.
    bodies: Vec<Node>,
}

/// What a part of a rule matches.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    /// One of these characters, as ascending ranges that do not touch.
    Chars(Vec<(char, char)>),
    /// A text.
    Text(String),
    /// All of these, one after another; nothing, if there are none.
    Sequence(Vec<Node>),
    /// One of these.
    Choice(Vec<Node>),
    /// This, repeated: least and largest number.
    Repeat(Box<Node>, u32, Option<u32>),
    /// What that rule matches.
    Rule(usize),
}

impl Node {
    /// The parts of this part.
    fn children(&self) -> &[Node] {
        match self {
            Node::Chars(_) | Node::Text(_) | Node::Rule(_) => &[],
            Node::Sequence(nodes) | Node::Choice(nodes) => nodes,
            Node::Repeat(node, ..) => std::slice::from_ref(&**node),
        }
    }

    /// Adds the rules that it names.
    fn add_rules_to(&self, rules: &mut Vec<usize>) {
        match self {
            Node::Rule(rule) => rules.push(*rule),
            other => other.children().iter().for_each(|node| node.add_rules_to(rules)),
        }
    }
}

/// A grammar in GBNF as one in llguidance's variant of Lark.
///
/// # Errors
/// What is wrong with it, and where.
pub(super) fn to_lark(gbnf: &str) -> Result<String, String> {
    lark::write(&parser::parse(gbnf)?)
}
