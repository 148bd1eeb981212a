//! Calls of tools: what a request says about them, how a model writes them, and what the client gets.

mod call_id;
mod format;
mod grammar;
mod json_call;
mod json_value;
mod message;
mod parser;
mod tool_use;
mod tools;

pub use call_id::CallIds;
pub use format::ToolCallFormat;
pub use json_call::Parsed;
pub use message::{MessageReader, ToolCall, ToolCallDelta, whole_message};
pub use parser::{TextEnd, ToolCallParser};
pub use tool_use::{ToolRequest, ToolUse};
pub use tools::{Function, Tool};
