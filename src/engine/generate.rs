//! Running several requests to their end, batched together.

use super::in_flight::{Finished, InFlight, samples_of};
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
        let checked = self.check_all(requests).map_err(|refused| refused.error)?;
        let results = self.run_to_end(checked.into_iter().map(Ok), requests, &mut |_| between_steps())?;
        let named = |(index, results): (usize, Vec<Result<Completion>>)| {
            results.into_iter().map(move |result| result.map_err(|e| with_index(e, index, requests)))
        };
        results.into_iter().enumerate().flat_map(named).collect()
    }

    /// As [`Engine::generate`], but each request has its own result: one that is refused or fails does not keep the others
    /// from running.
    pub fn generate_each(&self, requests: &[Request]) -> Vec<Result<Completion>> {
        // Nothing interrupts it.
        self.generate_each_with(requests, &mut |_| Ok(())).unwrap_or_default().into_iter().flatten().collect()
    }

    /// The results of the samples of each request. `between_steps` is called with the number of requests that have all of
    /// theirs, and its error (Ctrl-C) ends all requests.
    ///
    /// # Errors
    /// What `between_steps` returned.
    #[doc(hidden)]
    pub fn generate_each_with(
        &self,
        requests: &[Request],
        between_steps: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Vec<Result<Completion>>>> {
        self.run_to_end(requests.iter().map(|request| self.check(request.clone())), requests, between_steps)
    }

    /// Checks all requests of a batch, none of which is run if one is refused.
    ///
    /// # Errors
    /// The first request that is refused.
    #[doc(hidden)]
    pub fn check_all(&self, requests: &[Request]) -> Result<Vec<CheckedRequest>, Refused> {
        let check = |(index, request): (usize, &Request)| {
            self.check(request.clone()).map_err(|e| Refused { index, error: with_index(e, index, requests) })
        };
        requests.iter().enumerate().map(check).collect()
    }

    /// The results of the samples of each request. They are `checked` one by one, as there is room. See
    /// [`Engine::generate_each_with`] for `between_steps`.
    ///
    /// # Errors
    /// What `between_steps` returned.
    #[doc(hidden)]
    pub fn run_to_end(
        &self,
        mut checked: impl Iterator<Item = Result<CheckedRequest>>,
        requests: &[Request],
        between_steps: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Vec<Result<Completion>>>> {
        let mut results: Vec<Vec<Option<Result<Completion>>>> =
            requests.iter().map(|request| (0..samples_of(request)).map(|_| None).collect()).collect();
        let mut missing: Vec<usize> = results.iter().map(Vec::len).collect();
        let mut in_flight = InFlight::new(self);
        let (mut submitted, mut done) = (0, 0);
        loop {
            while in_flight.has_room() {
                let Some(request) = checked.next() else { break };
                in_flight.submit_checked(submitted, results[submitted].len(), request);
                submitted += 1;
            }
            let Some(Finished { index, sample, result }) = in_flight.next_with(&mut || between_steps(done))? else {
                break;
            };
            results[index][sample] = Some(result);
            missing[index] -= 1;
            done += usize::from(missing[index] == 0);
        }
        between_steps(done)?;
        let no_result = || Err(Error::new(ErrorCode::Internal, "a request ended without a result"));
        let of_request = |samples: Vec<Option<_>>| samples.into_iter().map(|result| result.unwrap_or_else(no_result));
        Ok(results.into_iter().map(|samples| of_request(samples).collect()).collect())
    }
}

/// The first request of a batch that was refused.
pub struct Refused {
    /// Its index.
    pub index: usize,
    /// Names the request, if there are several.
    pub error: Error,
}

/// The error, about a request of a batch.
pub fn with_index(error: Error, index: usize, requests: &[Request]) -> Error {
    if requests.len() > 1 { error.with_subject(format!("request {index}")) } else { error }
}
