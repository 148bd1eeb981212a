//! Builds the output of a response from the text of the model, with the events that tell of it.

use super::events::Event;
use super::response::{OutputItem, OutputText, Status};
use crate::server::openai::tool_calls::{CallIds, Parsed};

/// The output of a response while it is generated: at most its last item is open.
pub struct Output {
    /// What the ids of its items end with.
    id: String,
    items: Vec<OutputItem>,
    is_open: bool,
    /// Of calls, if the model may make some.
    call_ids: Option<CallIds>,
}

impl Output {
    /// The output of the response with this id, without its `resp_`.
    pub fn new(id: &str, call_ids: Option<CallIds>) -> Self {
        Self { id: id.to_owned(), items: Vec::new(), is_open: false, call_ids }
    }

    /// Adds what the model wrote.
    pub fn push(&mut self, parsed: Parsed, out: &mut Vec<Event>) {
        match parsed {
            Parsed::Content(text) => self.text(text, out),
            Parsed::Call(name) => self.call(name, out),
            Parsed::Arguments(text) => self.arguments(text, out),
        }
    }

    /// Ends the output. Where nothing was written, it is an empty message.
    pub fn finish(&mut self, status: Status, out: &mut Vec<Event>) {
        if self.items.is_empty() {
            self.open_message(out);
        }
        self.close(status, out);
    }

    /// The items so far.
    pub fn items(&self) -> &[OutputItem] {
        &self.items
    }

    fn text(&mut self, delta: String, out: &mut Vec<Event>) {
        if !self.is_open || matches!(self.items.last(), Some(OutputItem::FunctionCall { .. })) {
            self.close(Status::Completed, out);
            self.open_message(out);
        }
        let output_index = self.items.len().saturating_sub(1);
        if let Some(OutputItem::Message { id, content, .. }) = self.items.last_mut()
            && let Some(part) = content.last_mut()
        {
            part.text += &delta;
            out.push(Event::OutputTextDelta {
                item_id: id.clone(),
                output_index,
                content_index: 0,
                delta,
                logprobs: [],
            });
        }
    }

    fn open_message(&mut self, out: &mut Vec<Event>) {
        let output_index = self.items.len();
        let id = format!("msg_{}_{output_index}", self.id);
        let item =
            |content| OutputItem::Message { id: id.clone(), status: Status::InProgress, role: "assistant", content };
        out.push(Event::OutputItemAdded { output_index, item: item(Vec::new()) });
        let part = OutputText::default();
        out.push(Event::ContentPartAdded { item_id: id.clone(), output_index, content_index: 0, part: part.clone() });
        self.items.push(item(vec![part]));
        self.is_open = true;
    }

    fn call(&mut self, name: String, out: &mut Vec<Event>) {
        let call_id = self.call_ids.as_mut().map(CallIds::next_id).unwrap_or_default();
        self.close(Status::Completed, out);
        let output_index = self.items.len();
        let id = format!("fc_{}_{output_index}", self.id);
        let item = OutputItem::FunctionCall { id, call_id, status: Status::InProgress, name, arguments: String::new() };
        out.push(Event::OutputItemAdded { output_index, item: item.clone() });
        self.items.push(item);
        self.is_open = true;
    }

    fn arguments(&mut self, delta: String, out: &mut Vec<Event>) {
        let output_index = self.items.len().saturating_sub(1);
        if let Some(OutputItem::FunctionCall { id, arguments, .. }) = self.items.last_mut() {
            *arguments += &delta;
            out.push(Event::FunctionCallArgumentsDelta { item_id: id.clone(), output_index, delta });
        }
    }

    /// Ends the open item, if there is one.
    fn close(&mut self, ended: Status, out: &mut Vec<Event>) {
        if !std::mem::take(&mut self.is_open) {
            return;
        }
        let output_index = self.items.len().saturating_sub(1);
        let Some(item) = self.items.last_mut() else { return };
        match item {
            OutputItem::Message { id, status, content, .. } => {
                *status = ended;
                let part = content.last().cloned().unwrap_or_default();
                let (item_id, text) = (id.clone(), part.text.clone());
                out.push(Event::OutputTextDone {
                    item_id: item_id.clone(),
                    output_index,
                    content_index: 0,
                    text,
                    logprobs: [],
                });
                out.push(Event::ContentPartDone { item_id, output_index, content_index: 0, part });
            }
            OutputItem::FunctionCall { id, status, name, arguments, .. } => {
                *status = ended;
                let (item_id, name, arguments) = (id.clone(), name.clone(), arguments.clone());
                out.push(Event::FunctionCallArgumentsDone { item_id, output_index, name, arguments });
            }
        }
        out.push(Event::OutputItemDone { output_index, item: item.clone() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::openai::tool_calls::ToolCallFormat;

    fn output() -> Output {
        Output::new("1", Some(CallIds::new(ToolCallFormat::Hermes, "resp_1", 0)))
    }

    fn names(events: &[Event]) -> Vec<&'static str> {
        events.iter().map(|event| event.name().trim_start_matches("response.")).collect()
    }

    #[test]
    fn a_text_is_one_message() {
        let mut output = output();
        let mut events = Vec::new();
        for text in ["a", "b"] {
            output.push(Parsed::Content(text.to_owned()), &mut events);
        }
        output.finish(Status::Incomplete, &mut events);
        assert_eq!(
            names(&events),
            [
                "output_item.added",
                "content_part.added",
                "output_text.delta",
                "output_text.delta",
                "output_text.done",
                "content_part.done",
                "output_item.done",
            ]
        );
        let items = serde_json::to_value(output.items()).expect("serializes");
        let part = serde_json::json!({"type": "output_text", "text": "ab", "annotations": [], "logprobs": []});
        let expected = serde_json::json!([
            {"type": "message", "id": "msg_1_0", "status": "incomplete", "role": "assistant", "content": [part]}
        ]);
        assert_eq!(items, expected);
    }

    #[test]
    fn calls_are_items_of_their_own_between_messages() {
        let mut output = output();
        let mut events = Vec::new();
        for parsed in [
            Parsed::Content("a".to_owned()),
            Parsed::Call("f".to_owned()),
            Parsed::Arguments("{".to_owned()),
            Parsed::Arguments("}".to_owned()),
            Parsed::Content("b".to_owned()),
        ] {
            output.push(parsed, &mut events);
        }
        output.finish(Status::Completed, &mut events);
        assert_eq!(
            names(&events)[6..12],
            [
                "output_item.added",
                "function_call_arguments.delta",
                "function_call_arguments.delta",
                "function_call_arguments.done",
                "output_item.done",
                "output_item.added",
            ]
        );
        let items = serde_json::to_value(output.items()).expect("serializes");
        assert_eq!(items[1]["arguments"], "{}");
        assert_eq!(items[1]["id"], "fc_1_1");
        assert!(items[1]["call_id"].as_str().is_some_and(|id| id.starts_with("call_")));
        assert_eq!(items[2]["content"][0]["text"], "b");
    }

    #[test]
    fn a_text_without_characters_is_an_empty_message() {
        let mut output = output();
        let mut events = Vec::new();
        output.finish(Status::Completed, &mut events);
        assert_eq!(output.items().len(), 1);
        assert_eq!(names(&events).len(), 5);
    }

    #[test]
    fn the_type_of_an_event_is_its_name() {
        let mut output = output();
        let mut events = Vec::new();
        output.push(Parsed::Content("a".to_owned()), &mut events);
        output.push(Parsed::Call("f".to_owned()), &mut events);
        output.push(Parsed::Arguments("{}".to_owned()), &mut events);
        output.finish(Status::Completed, &mut events);
        for event in events {
            assert_eq!(serde_json::to_value(&event).expect("serializes")["type"], event.name());
        }
    }
}
