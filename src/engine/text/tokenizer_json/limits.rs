//! Limits on one call into a tokenizer: the processor time it takes, and the bytes of text that its components make.
//!
//! The components run deep inside the `tokenizers` crate, which has no parameter for limits and ignores a normalizer's error.
//! So both are kept per thread for the length of the call, and a failure is reported when the call returns.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::fault::Fault;

/// Time that any call may take, and the time more for each byte of its input. Real tokenizers need a microsecond for a byte.
const BASE_TIME: Duration = Duration::from_secs(1);
const TIME_PER_BYTE: Duration = Duration::from_micros(5);

#[derive(Clone, Copy)]
struct Limits {
    started: Instant,
    /// The thread's processor time at the start: a machine that is busy elsewhere makes no call fail.
    cpu_started: Duration,
    allowed: Duration,
    max_bytes: usize,
}

thread_local! {
    static LIMITS: Cell<Option<Limits>> = const { Cell::new(None) };
    static FAULT: RefCell<Option<Fault>> = const { RefCell::new(None) };
}

/// Ends the limits of a call, also when it panics.
struct Reset(Option<Limits>);

impl Drop for Reset {
    fn drop(&mut self) {
        LIMITS.set(self.0);
    }
}

/// Runs `f` with limits for an input of so many bytes; the texts that components make of it may have `max_bytes`.
pub(super) fn with_limits<T>(
    input_bytes: usize,
    max_bytes: usize,
    f: impl FnOnce() -> Result<T, Fault>,
) -> Result<T, Fault> {
    let allowed = BASE_TIME + TIME_PER_BYTE.saturating_mul(u32::try_from(input_bytes).unwrap_or(u32::MAX));
    let limits = Limits { started: Instant::now(), cpu_started: cpu_time(), allowed, max_bytes };
    FAULT.take();
    let _reset = Reset(LIMITS.replace(Some(limits)));
    let outcome = f();
    match FAULT.take() {
        Some(fault) => Err(fault),
        None => outcome,
    }
}

/// Fails the call if it has taken too long.
pub(super) fn check_time() -> Result<(), Fault> {
    exceeded_time().map_or(Ok(()), |allowed| fail(format!("it takes more than {allowed:?}")))
}

/// The time that the call may take, if it has taken more.
pub(super) fn exceeded_time() -> Option<Duration> {
    let limits = LIMITS.get()?;
    let is_late = limits.started.elapsed() > limits.allowed && cpu_time() > limits.cpu_started + limits.allowed;
    is_late.then_some(limits.allowed)
}

/// Fails the call if a component makes a text of more bytes than its input justifies.
pub(super) fn check_bytes(bytes: usize) -> Result<(), Fault> {
    match LIMITS.get() {
        Some(limits) if bytes > limits.max_bytes => {
            fail(format!("it makes a text of {bytes} bytes, more than {}", limits.max_bytes))
        }
        _ => Ok(()),
    }
}

/// Whether the call has failed, so that further components need not run.
pub(super) fn failed() -> bool {
    FAULT.with_borrow(Option::is_some)
}

/// Fails the call; the first fault is kept.
pub(super) fn fail<T>(fault: impl Into<Fault>) -> Result<T, Fault> {
    let fault = fault.into();
    FAULT.with_borrow_mut(|kept| _ = kept.get_or_insert_with(|| fault.clone()));
    Err(fault)
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.max(0).unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
