//! A response as server-sent events, while its choices are generated.

use std::collections::VecDeque;

use axum::response::Response;
use futures_util::stream;

use super::finish::UsageObject;
use super::generation::Generation;
use crate::engine::Chunk;
use crate::server::error::ApiError;
use crate::server::sse;

/// What the events of a response say.
pub trait Events: Send + 'static {
    /// Before the first token.
    fn begin(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// The next chunk of a choice.
    fn chunk(&mut self, choice: usize, chunk: Chunk) -> Vec<String>;

    /// After the last chunk of all choices.
    fn end(&mut self, usage: &UsageObject) -> Vec<String>;

    /// Instead of the end, where the response fails.
    fn failed(&mut self, error: &ApiError) -> Vec<String> {
        vec![sse::event(error.body()), sse::DONE.to_owned()]
    }
}

struct Progress<E> {
    generation: Generation,
    events: E,
    ready: VecDeque<String>,
    has_ended: bool,
}

/// The response whose body is the events of a generation.
pub fn response(generation: Generation, mut events: impl Events) -> Response {
    let ready = events.begin().into();
    let progress = Progress { generation, events, ready, has_ended: false };
    sse::response(stream::unfold(progress, next_event))
}

async fn next_event<E: Events>(mut progress: Progress<E>) -> Option<(String, Progress<E>)> {
    loop {
        if let Some(event) = progress.ready.pop_front() {
            return Some((event, progress));
        }
        if progress.has_ended {
            return None;
        }
        let events = &mut progress.events;
        let ready = match progress.generation.next().await {
            Some(Ok((choice, chunk))) => events.chunk(choice, chunk),
            Some(Err(error)) => {
                progress.has_ended = true;
                tracing::info!(code = error.code(), "a stream failed");
                events.failed(&error)
            }
            None => {
                progress.has_ended = true;
                events.end(&progress.generation.usage)
            }
        };
        progress.ready = ready.into();
    }
}
