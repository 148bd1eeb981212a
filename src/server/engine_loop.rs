//! The one thread that steps the engine: requests in, chunks out.
//!
//! Requests arrive checked. After each step their chunks go into a channel of each request, which holds all that the request
//! can produce, so a slow client keeps nobody waiting. Whoever drops the receiving end ends the request at the next step.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::engine::{CheckedRequest, Chunk, Engine, Job};
use crate::error::{Error, ErrorCode, Result};

/// How long the thread waits for a request where a step had nothing to do, because another thread's step did it.
const PAUSE: Duration = Duration::from_millis(1);

/// The thread, and the bound on what waits for it.
pub struct EngineLoop {
    messages: Sender<Message>,
    /// One for each sample that may run or wait.
    places: Arc<Semaphore>,
    max_samples: usize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Places of a request among those that run or wait. They are free again when all its samples have ended.
pub struct Admission(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// The chunks of a request. Dropping it ends the request.
pub struct RequestStream {
    chunks: UnboundedReceiver<SampleChunk>,
}

/// A chunk of a sample, or why the sample failed.
pub type SampleChunk = (usize, Result<Chunk>);

enum Message {
    Start(Box<Submission>),
    Stop,
}

/// A request, whose samples are numbered from `first_sample` on.
struct Submission {
    request: CheckedRequest,
    first_sample: usize,
    chunks: UnboundedSender<SampleChunk>,
    #[expect(dead_code, reason = "held until the request has ended")]
    admission: Arc<Admission>,
}

impl EngineLoop {
    /// Starts the thread. At most `max_samples` samples run or wait at once.
    ///
    /// # Errors
    /// `io_failed`: the operating system gives no thread.
    pub fn start(engine: &Engine, max_samples: usize) -> Result<Self> {
        let (messages, incoming) = mpsc::channel();
        let engine = engine.clone();
        let thread = std::thread::Builder::new()
            .name("exlora-engine".to_owned())
            .spawn(move || run(&engine, &incoming))
            .map_err(|e| Error::new(ErrorCode::IoFailed, format!("cannot start the engine's thread: {e}")))?;
        let max_samples = max_samples.min(Semaphore::MAX_PERMITS);
        let places = Arc::new(Semaphore::new(max_samples));
        Ok(Self { messages, places, max_samples, thread: Mutex::new(Some(thread)) })
    }

    /// Takes places for the samples of a request, before anything of it is encoded.
    ///
    /// # Errors
    /// `queue_full`; `request_invalid` for more samples than ever fit.
    pub fn admit(&self, samples: usize) -> Result<Admission> {
        if samples > self.max_samples {
            return Err(Error::new(ErrorCode::RequestInvalid, "the request asks for too many completions")
                .with_expected(format!("at most {}", self.max_samples))
                .with_found(samples));
        }
        let places = u32::try_from(samples).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.places).try_acquire_many_owned(places);
        permit.map(Admission).map_err(|_| Error::new(ErrorCode::QueueFull, "too many requests wait"))
    }

    /// Hands requests to the thread, one for each prompt of a client's. Their samples are numbered in order. Never waits.
    ///
    /// # Errors
    /// `server_stopping`.
    pub fn submit(&self, requests: Vec<CheckedRequest>, admission: Admission) -> Result<RequestStream> {
        let (sender, chunks) = unbounded_channel();
        let admission = Arc::new(admission);
        let mut first_sample = 0;
        for request in requests {
            let samples = request.samples();
            let (chunks, admission) = (sender.clone(), Arc::clone(&admission));
            let submission = Submission { request, first_sample, chunks, admission };
            self.messages.send(Message::Start(Box::new(submission))).map_err(|_| stopping())?;
            first_sample += samples;
        }
        Ok(RequestStream { chunks })
    }

    /// Samples that may run and wait together.
    pub fn max_samples(&self) -> usize {
        self.max_samples
    }

    /// Samples that run or wait.
    pub fn samples(&self) -> usize {
        self.max_samples - self.places.available_permits()
    }

    /// Ends all requests, and the thread. Waits for a running step.
    pub fn stop(&self) {
        // Where the thread is gone, there is nobody to tell.
        let _ = self.messages.send(Message::Stop);
        let thread = self.thread.lock().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the engine's thread panicked");
        }
    }
}

impl Drop for EngineLoop {
    fn drop(&mut self) {
        self.stop();
    }
}

impl RequestStream {
    /// The next chunk of any of its samples; `None` once all have ended.
    pub async fn next(&mut self) -> Option<SampleChunk> {
        self.chunks.recv().await
    }
}

/// The error of a request that ends because the server does.
pub fn stopping() -> Error {
    Error::new(ErrorCode::ServerStopping, "the server is being stopped")
}

/// A request whose samples run.
struct Running {
    submission: Submission,
    jobs: Vec<(usize, Job)>,
    /// Samples that were started.
    started: usize,
    has_cached_prompt: bool,
}

fn run(engine: &Engine, incoming: &Receiver<Message>) {
    let mut running: Vec<Running> = Vec::new();
    let mut is_idle = false;
    loop {
        match next_message(incoming, running.is_empty(), is_idle) {
            Next::Start(submission) => {
                running.push(Running {
                    submission: *submission,
                    jobs: Vec::new(),
                    started: 0,
                    has_cached_prompt: false,
                });
                continue;
            }
            Next::Step => {}
            Next::Stop => return,
        }
        running.iter_mut().for_each(|request| request.start_samples(engine));
        is_idle = match engine.step() {
            Ok(has_computed) => !has_computed,
            Err(error) => {
                tracing::error!(%error, "a step failed");
                running.retain_mut(|request| request.fails_with(&error));
                true
            }
        };
        running.retain_mut(Running::pass_on);
    }
}

enum Next {
    Start(Box<Submission>),
    Step,
    Stop,
}

/// What to do next: start what has arrived, before a step.
fn next_message(incoming: &Receiver<Message>, has_nothing_to_do: bool, is_idle: bool) -> Next {
    let received = match (has_nothing_to_do, is_idle) {
        (true, _) => incoming.recv().map_err(|_| TryRecvError::Disconnected),
        (false, false) => incoming.try_recv(),
        (false, true) => incoming.recv_timeout(PAUSE).map_err(|error| match error {
            RecvTimeoutError::Timeout => TryRecvError::Empty,
            RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
        }),
    };
    match received {
        Ok(Message::Start(submission)) => Next::Start(submission),
        Err(TryRecvError::Empty) => Next::Step,
        Ok(Message::Stop) | Err(TryRecvError::Disconnected) => Next::Stop,
    }
}

impl Running {
    /// Starts the samples. Those after the first start once that one has computed the prompt, which they find in the prefix
    /// cache.
    fn start_samples(&mut self, engine: &Engine) {
        let request = &self.submission.request;
        let of_all = if self.has_cached_prompt { request.samples() } else { 1 };
        for sample in self.started..of_all {
            self.jobs.push((sample, engine.start_sample(request, sample)));
        }
        self.started = self.started.max(of_all);
    }

    /// Passes its chunks on; `false` once it has ended, or nobody waits for it.
    fn pass_on(&mut self) -> bool {
        let Submission { chunks, first_sample, .. } = &self.submission;
        if chunks.is_closed() {
            return false;
        }
        let mut has_cached_prompt = self.has_cached_prompt;
        self.jobs.retain_mut(|(sample, job)| {
            let is_running = pass_on_chunks(first_sample + *sample, job, chunks);
            has_cached_prompt |= job.has_cached_prompt();
            is_running
        });
        self.has_cached_prompt = has_cached_prompt;
        !self.jobs.is_empty() || self.started < self.submission.request.samples()
    }

    /// Ends it where no step will ever be computed again; `false` then.
    fn fails_with(&mut self, error: &Error) -> bool {
        // A panic of the scheduler ends its requests by itself.
        if error.code() == ErrorCode::Internal {
            return true;
        }
        let _ = self.submission.chunks.send((self.submission.first_sample, Err(error.clone())));
        false
    }
}

/// Sends the chunks that are ready; `false` after the last. Where nobody receives them, the next look finds that out.
fn pass_on_chunks(sample: usize, job: &mut Job, chunks: &UnboundedSender<SampleChunk>) -> bool {
    loop {
        match job.poll_chunk() {
            Ok(Some(chunk)) => {
                let is_last = chunk.finish.is_some();
                let _ = chunks.send((sample, Ok(chunk)));
                if is_last {
                    return false;
                }
            }
            Ok(None) => return !job.is_finished(),
            Err(error) => {
                let _ = chunks.send((sample, Err(error)));
                return false;
            }
        }
    }
}
