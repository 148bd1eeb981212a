//! Results as they complete, for more requests than fit in memory or for who doesn't want to wait for the last.

use std::iter::{Enumerate, Fuse};

use super::Engine;
use super::in_flight::InFlight;
use super::output::Completion;
use super::request::Request;
use crate::error::Result;

impl Engine {
    /// Runs requests and returns each result as soon as it is there, with the index of its request. Results of short requests
    /// overtake those of long ones.
    ///
    /// The iterator takes requests as it goes: those whose results were not returned yet are at most twice
    /// [`EngineOptions::max_rows`](crate::EngineOptions::max_rows). A request with `n` samples has `n` results with its index,
    /// told apart by [`Completion::sample`]. A refused or failed request has an error as its result and harms no other.
    /// Dropping the iterator ends the requests that are running.
    ///
    /// ```
    /// use exlora::{Engine, EngineOptions, Request};
    ///
    /// let engine = Engine::load("tests/fixtures/quill-4m", EngineOptions::default())?;
    /// let prompts = ["The king", "The queen", ""];
    /// let requests = prompts.iter().map(|&prompt| Request::new(prompt).max_new_tokens(8));
    /// for (index, result) in engine.as_completed(requests) {
    ///     match result {
    ///         Ok(completion) => println!("{}{}", prompts[index], completion.text),
    ///         Err(error) => println!("request {index}: {error}"),
    ///     }
    /// }
    /// # Ok::<(), exlora::Error>(())
    /// ```
    pub fn as_completed<I: IntoIterator<Item = Request>>(&self, requests: I) -> AsCompleted<I::IntoIter> {
        AsCompleted { requests: requests.into_iter().fuse().enumerate(), in_flight: InFlight::new(self) }
    }
}

/// The results of [`Engine::as_completed`]: the index of each request, and its result.
pub struct AsCompleted<I> {
    requests: Enumerate<Fuse<I>>,
    in_flight: InFlight,
}

impl<I: Iterator<Item = Request>> AsCompleted<I> {
    /// As `next`; an error from `between_steps` (Ctrl-C) ends the wait, after which the iterator can be used on.
    ///
    /// # Errors
    /// What `between_steps` returned.
    pub fn next_with(
        &mut self,
        between_steps: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Option<(usize, Result<Completion>)>> {
        while self.in_flight.has_room() {
            let Some((index, request)) = self.requests.next() else { break };
            self.in_flight.submit(index, request);
        }
        Ok(self.in_flight.next_with(between_steps)?.map(|finished| (finished.index, finished.result)))
    }
}

impl<I: Iterator<Item = Request>> Iterator for AsCompleted<I> {
    type Item = (usize, Result<Completion>);

    fn next(&mut self) -> Option<Self::Item> {
        // Nothing interrupts it.
        self.next_with(&mut || Ok(())).ok().flatten()
    }
}
