//! Running several requests to their end, batched together.

use super::in_flight::{InFlight, samples_of};
use super::output::Completion;
use super::request::Request;
use super::{CheckedRequest, Engine};
use crate::error::{Error, ErrorCode, Result};

impl Engine {
    /// Runs requests to their end, batched together and with all others. Results are in the order of the requests; the `n`
    /// samples of a request follow one another.
    ///
    /// # Errors
    /// As [`Engine::submit`]; if one request is refused, none is run. If one fails while it runs, its error: see
    /// [`Engine::generate_each`] for the results of the others.
    pub fn generate(&self, requests: &[Request]) -> Result<Vec<Completion>> {
        self.generate_with(requests, &mut || Ok(()))
    }

    /// As [`Engine::generate`]; an error from `between_steps` (Ctrl-C) ends all requests.
    ///
    /// # Errors
    /// As [`Engine::generate`], and what `between_steps` returned.
    pub fn generate_with(
        &self,
        requests: &[Request],
        between_steps: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Completion>> {
        let subject = |index: usize| {
            move |e: Error| if requests.len() > 1 { e.with_subject(format!("request {index}")) } else { e }
        };
        let check = |(index, request): (usize, &Request)| self.check(request.clone()).map_err(subject(index));
        let checked = requests.iter().enumerate().map(check).collect::<Result<Vec<_>>>()?;
        let indices = requests.iter().enumerate().flat_map(|(i, request)| std::iter::repeat_n(i, request.n));
        let results = self.run_to_end(checked.into_iter().map(Ok), requests, &mut |_| between_steps())?;
        indices.zip(results).map(|(index, result)| result.map_err(subject(index))).collect()
    }

    /// As [`Engine::generate`], but each request has its own result: one that is refused or fails does not keep the others
    /// from running.
    pub fn generate_each(&self, requests: &[Request]) -> Vec<Result<Completion>> {
        // Nothing interrupts it.
        self.generate_each_with(requests, &mut |_| Ok(())).unwrap_or_default()
    }

    /// As [`Engine::generate_each`]; `between_steps` is called with the number of results so far, and its error (Ctrl-C) ends
    /// all requests.
    ///
    /// # Errors
    /// What `between_steps` returned.
    pub(crate) fn generate_each_with(
        &self,
        requests: &[Request],
        between_steps: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Result<Completion>>> {
        self.run_to_end(requests.iter().map(|request| self.check(request.clone())), requests, between_steps)
    }

    /// The results of requests, which are `checked` one by one as there is room, in order.
    fn run_to_end(
        &self,
        mut checked: impl Iterator<Item = Result<CheckedRequest>>,
        requests: &[Request],
        between_steps: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Result<Completion>>> {
        let mut starts = Vec::with_capacity(requests.len());
        let mut results = Vec::new();
        for request in requests {
            starts.push(results.len());
            results.resize_with(results.len() + samples_of(request), || None);
        }
        let mut in_flight = InFlight::new(self);
        let mut done = 0;
        let mut submitted = 0;
        loop {
            while in_flight.has_room() {
                let Some(request) = checked.next() else { break };
                in_flight.submit_checked(submitted, samples_of(&requests[submitted]), request);
                submitted += 1;
            }
            let Some(finished) = in_flight.next_with(&mut || between_steps(done))? else { break };
            results[starts[finished.index] + finished.sample] = Some(finished.result);
            done += 1;
        }
        between_steps(done)?;
        let missing = || Err(Error::new(ErrorCode::Internal, "a request ended without a result"));
        Ok(results.into_iter().map(|result| result.unwrap_or_else(missing)).collect())
    }
}
