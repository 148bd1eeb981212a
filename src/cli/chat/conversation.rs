//! The conversation of a chat: a system message, and turns of a question and its answer.

use crate::engine::ChatMessage;

#[derive(Default)]
pub(super) struct Conversation {
    pub system: Option<String>,
    turns: Vec<Turn>,
    /// Turns before this one no longer fit the context; they are kept for saving only.
    first: usize,
}

pub(super) struct Turn {
    pub question: String,
    pub answer: String,
}

impl Conversation {
    pub(super) fn new(system: Option<String>) -> Self {
        Self { system, ..Self::default() }
    }

    /// What the model sees before it answers `question`.
    pub(super) fn prompt(&self, question: &str) -> Vec<ChatMessage> {
        self.messages_since(self.first, Some(question))
    }

    /// All messages, also those that the model no longer sees.
    pub(super) fn messages(&self) -> Vec<ChatMessage> {
        self.messages_since(0, None)
    }

    fn messages_since(&self, first: usize, question: Option<&str>) -> Vec<ChatMessage> {
        let system = self.system.iter().map(|text| ChatMessage::new("system", text.as_str()));
        let turns = self.turns[first..].iter().flat_map(|turn| {
            [ChatMessage::new("user", turn.question.as_str()), ChatMessage::new("assistant", turn.answer.as_str())]
        });
        let question = question.iter().map(|text| ChatMessage::new("user", *text));
        system.chain(turns).chain(question).collect()
    }

    pub(super) fn push(&mut self, question: String, answer: String) {
        self.turns.push(Turn { question, answer });
    }

    /// Removes the last turn.
    pub(super) fn pop(&mut self) -> Option<Turn> {
        let turn = self.turns.pop();
        self.first = self.first.min(self.turns.len());
        turn
    }

    /// Forgets all turns.
    pub(super) fn clear(&mut self) {
        (self.turns, self.first) = (Vec::new(), 0);
    }

    /// Leaves the oldest turn that the model still sees out of its prompts; `false` if there is none.
    pub(super) fn leave_out_oldest(&mut self) -> bool {
        let can = self.first < self.turns.len();
        self.first += usize::from(can);
        can
    }

    /// All turns.
    pub(super) fn len(&self) -> usize {
        self.turns.len()
    }

    /// Turns that the model sees, and turns that it no longer sees.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.turns.len() - self.first, self.first)
    }

    /// Lets the model see all but the `left_out` oldest turns.
    pub(super) fn set_left_out(&mut self, left_out: usize) {
        self.first = left_out.min(self.turns.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(messages: &[ChatMessage]) -> String {
        let json: Vec<_> = messages.iter().map(|message| serde_json::to_value(message).expect("serializes")).collect();
        let text = |value: &serde_json::Value| value["content"].as_str().expect("a text").to_owned();
        json.iter().map(text).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_oldest_turns_are_left_out_and_the_system_message_stays() {
        let mut conversation = Conversation::new(Some("s".into()));
        for turn in ["1", "2", "3"] {
            conversation.push(format!("q{turn}"), format!("a{turn}"));
        }
        assert_eq!(texts(&conversation.prompt("q4")), "s q1 a1 q2 a2 q3 a3 q4");
        assert!(conversation.leave_out_oldest() && conversation.leave_out_oldest());
        assert_eq!((texts(&conversation.prompt("q4")), conversation.counts()), ("s q3 a3 q4".into(), (1, 2)));
        assert_eq!(texts(&conversation.messages()), "s q1 a1 q2 a2 q3 a3", "saving keeps all");
        assert!(conversation.leave_out_oldest() && !conversation.leave_out_oldest());
        assert_eq!(texts(&conversation.prompt("q4")), "s q4");
        let turn = conversation.pop().expect("a turn");
        assert_eq!((turn.question.as_str(), turn.answer.as_str(), conversation.counts()), ("q3", "a3", (0, 2)));
        conversation.set_left_out(0);
        assert_eq!(texts(&conversation.prompt("q3")), "s q1 a1 q2 a2 q3");
        conversation.clear();
        assert_eq!((texts(&conversation.messages()), conversation.counts()), ("s".into(), (0, 0)));
    }
}
