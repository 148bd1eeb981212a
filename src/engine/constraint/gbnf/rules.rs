//! The rules of a grammar in GBNF, as the parser finds them.

/// Most rules of a grammar.
pub(super) const MAX_RULES: usize = 4096;

/// A grammar: its rules, the first of which is `root`.
#[derive(Debug)]
pub(super) struct Rules {
    /// What each rule matches.
    pub(super) bodies: Vec<Node>,
}

/// What a part of a rule matches.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
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
    pub(super) fn children(&self) -> &[Node] {
        match self {
            Node::Chars(_) | Node::Text(_) | Node::Rule(_) => &[],
            Node::Sequence(nodes) | Node::Choice(nodes) => nodes,
            Node::Repeat(node, ..) => std::slice::from_ref(&**node),
        }
    }

    /// Adds the rules that it names.
    pub(super) fn add_rules_to(&self, rules: &mut Vec<usize>) {
        match self {
            Node::Rule(rule) => rules.push(*rule),
            other => other.children().iter().for_each(|node| node.add_rules_to(rules)),
        }
    }
}
