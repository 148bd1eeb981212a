//! Requests in flight: submitted, with their results to be taken as they complete.

use std::collections::VecDeque;
use std::sync::Arc;

use super::job::Job;
use super::job_state::JobState;
use super::output::Completion;
use super::request::{MAX_SAMPLES, Request};
use super::turns::Waiter;
use super::{CheckedRequest, Engine};
use crate::error::Result;

/// Requests are submitted ahead of their results up to this many times the number that run at once: enough that a row never
/// waits for the next request, few enough that other callers' requests don't wait for long.
const LOOK_AHEAD: usize = 2;

/// The result of one sample of a request.
pub struct Finished {
    /// The caller's number of the request.
    pub index: usize,
    /// Which of its samples, from 0.
    pub sample: usize,
    /// The completion, or why there is none.
    pub result: Result<Completion>,
}

/// Requests in flight. Dropping it ends them.
pub struct InFlight {
    engine: Engine,
    /// That of all its jobs.
    waiter: Arc<Waiter>,
    running: Vec<Running>,
    held: Vec<HeldSamples>,
    finished: VecDeque<Finished>,
}

struct Running {
    index: usize,
    job: Job,
    /// What it has produced so far.
    completion: Completion,
}

/// Samples that start once the first one of their request has computed the prompt, so that they find it in the prefix cache.
struct HeldSamples {
    index: usize,
    request: CheckedRequest,
    first: Arc<JobState>,
    next: usize,
}

impl HeldSamples {
    fn can_start(&self) -> bool {
        self.first.has_cached_prompt(self.request.prefill_tokens())
    }
}

impl InFlight {
    /// No requests yet.
    pub fn new(engine: &Engine) -> Self {
        Self {
            engine: engine.clone(),
            waiter: Arc::default(),
            running: Vec::new(),
            held: Vec::new(),
            finished: VecDeque::new(),
        }
    }

    /// Whether another request should be submitted before the next result is awaited.
    pub fn has_room(&self) -> bool {
        self.running.len() + self.held.len() + self.finished.len() < self.engine.max_rows.saturating_mul(LOOK_AHEAD)
    }

    /// Whether nothing was submitted whose result was not taken.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty() && self.held.is_empty() && self.finished.is_empty()
    }

    /// Submits a request. If it is refused, each of its samples has that result.
    pub fn submit(&mut self, index: usize, request: Request) {
        let samples = samples_of(&request);
        self.submit_checked(index, samples, self.engine.check(request));
    }

    /// Submits a request of `samples` samples that was checked.
    pub(super) fn submit_checked(&mut self, index: usize, samples: usize, checked: Result<CheckedRequest>) {
        match checked {
            Ok(request) => {
                let first = self.start(index, &request, 0);
                if samples > 1 {
                    self.held.push(HeldSamples { index, request, first, next: 1 });
                }
            }
            Err(error) => {
                let refused = |sample| Finished { index, sample, result: Err(error.clone()) };
                self.finished.extend((0..samples).map(refused));
            }
        }
    }

    /// The next result, computing steps as needed; `None` if nothing is in flight.
    ///
    /// # Errors
    /// What `between_steps` returned.
    pub fn next_with(&mut self, between_steps: &mut dyn FnMut() -> Result<()>) -> Result<Option<Finished>> {
        loop {
            if let Some(finished) = self.finished.pop_front() {
                return Ok(Some(finished));
            }
            self.start_held();
            if self.running.is_empty() && self.finished.is_empty() {
                return Ok(None);
            }
            between_steps()?;
            let is_ready = || self.running.iter().any(|running| running.job.state().has_output());
            self.engine.core.step_unless(&self.waiter, is_ready)?;
            self.take_chunks();
        }
    }

    /// The next result if one is ready. Never computes a step or waits for one.
    pub fn poll(&mut self) -> Option<Finished> {
        if self.finished.is_empty() {
            self.take_chunks();
            self.start_held();
        }
        self.finished.pop_front()
    }

    /// Starts the samples that were held back, as far as there is room.
    fn start_held(&mut self) {
        let mut waiting = Vec::new();
        for mut held in std::mem::take(&mut self.held) {
            while held.next < held.request.request.n && self.has_room() && held.can_start() {
                self.start(held.index, &held.request, held.next);
                held.next += 1;
            }
            if held.next < held.request.request.n {
                waiting.push(held);
            }
        }
        self.held = waiting;
    }

    fn start(&mut self, index: usize, request: &CheckedRequest, sample: usize) -> Arc<JobState> {
        let job = self.engine.start(request, sample, &self.waiter);
        let state = Arc::clone(job.state());
        let adapters = &request.request.adapters;
        let adapters = adapters.iter().map(|(adapter, weight)| (adapter.label(), *weight)).collect();
        self.running.push(Running { index, job, completion: Completion::unfinished(adapters, sample) });
        state
    }

    /// Takes all chunks that are ready.
    fn take_chunks(&mut self) {
        let finished = &mut self.finished;
        self.running.retain_mut(|running| {
            let Some(result) = running.take_chunks() else { return true };
            finished.push_back(Finished { index: running.index, sample: running.completion.sample, result });
            false
        });
    }
}

impl Running {
    /// Takes the chunks that are ready, and returns the result if the request has ended.
    fn take_chunks(&mut self) -> Option<Result<Completion>> {
        loop {
            let chunk = match self.job.poll_chunk() {
                Ok(chunk) => chunk?,
                Err(error) => return Some(Err(error)),
            };
            let is_last = chunk.finish.is_some();
            if let Err(error) = self.completion.append(chunk) {
                return Some(Err(error));
            }
            if is_last {
                let unfinished = Completion::unfinished(Vec::new(), self.completion.sample);
                return Some(Ok(std::mem::replace(&mut self.completion, unfinished)));
            }
        }
    }
}

/// Number of results of a request, which has one even if it is refused for its number of samples.
pub fn samples_of(request: &Request) -> usize {
    if (1..=MAX_SAMPLES).contains(&request.n) { request.n } else { 1 }
}
