//! The HTTP server: OpenAI's routes over one engine, in which every adapter is a model.

mod adapters;
mod auth;
mod client_names;
mod client_paths;
mod client_watch;
mod connections;
mod engine_loop;
mod error;
mod exposition;
mod health;
mod json;
mod key;
mod listen;
mod metrics;
mod openai;
mod openapi;
mod options;
mod page;
mod prompt_text;
mod request_head;
mod request_log;
mod router;
mod schema;
mod scrape;
mod serve_connection;
mod socket;
mod sse;
mod state;
mod turn_away;
mod write_timeout;

pub use self::key::Key;
pub use self::listen::{Server, StopHandle};
pub use self::openai::tool_calls::ToolCallFormat;
pub use self::options::ServeOptions;
