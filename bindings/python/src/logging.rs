//! Log events of the crate as records of Python's `logging`, under loggers named after the modules: `exlora.engine.scheduler`.
//!
//! An event may come from any thread, while any lock of the crate is held, and never waits for the interpreter's lock: it is
//! put in a queue. The records are delivered by the next thread that holds the interpreter's lock and none of the crate's: when
//! a call returns to Python, and between steps.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Records that wait for delivery; further ones push out the oldest.
const MAX_RECORDS: usize = 1024;

static RECORDS: Mutex<VecDeque<LogRecord>> = Mutex::new(VecDeque::new());
/// Whether `RECORDS` has any, readable without its lock.
static HAS_RECORDS: AtomicBool = AtomicBool::new(false);

struct LogRecord {
    metadata: &'static Metadata<'static>,
    message: String,
}

/// Begins to queue events. A subscriber that exists already, as in the command, is kept.
pub(crate) fn install() {
    let subscriber = tracing_subscriber::registry().with(QueueLayer);
    // Fails if there is a subscriber.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Hands the queued records to Python's loggers, which decide what becomes of them.
pub(crate) fn deliver(py: Python<'_>) {
    if !HAS_RECORDS.swap(false, Ordering::AcqRel) {
        return;
    }
    // A handler may call exlora again, so the lock is released first.
    let records = std::mem::take(&mut *RECORDS.lock());
    for record in records {
        if let Err(error) = record.handle(py) {
            error.write_unraisable(py, None);
        }
    }
}

impl LogRecord {
    fn handle(&self, py: Python<'_>) -> PyResult<()> {
        let name = self.metadata.target().replace("::", ".");
        let level = level_number(self.metadata.level());
        let logger = py.import("logging")?.call_method1("getLogger", (&name,))?;
        if !logger.call_method1("isEnabledFor", (level,))?.extract::<bool>()? {
            return Ok(());
        }
        let (file, line) = (self.metadata.file().unwrap_or_default(), self.metadata.line().unwrap_or_default());
        // The message is complete: no arguments, no exception.
        let arguments = (&name, level, file, line, &self.message, PyTuple::empty(py), py.None());
        logger.call_method1("handle", (logger.call_method1("makeRecord", arguments)?,)).map(drop)
    }
}

/// The number that `logging` has for a level.
fn level_number(level: &Level) -> u8 {
    match *level {
        Level::ERROR => 40,
        Level::WARN => 30,
        Level::INFO => 20,
        Level::DEBUG => 10,
        Level::TRACE => 5,
    }
}

/// Queues the crate's events down to `DEBUG`. Those are rare: none occurs in a usual step.
struct QueueLayer;

impl<S: Subscriber> Layer<S> for QueueLayer {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let target = metadata.target();
        *metadata.level() <= Level::DEBUG && (target == "exlora" || target.starts_with("exlora::"))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::DEBUG)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message::default();
        event.record(&mut message);
        let mut records = RECORDS.lock();
        if records.len() == MAX_RECORDS {
            records.pop_front();
        }
        records.push_back(LogRecord { metadata: event.metadata(), message: message.0 });
        HAS_RECORDS.store(true, Ordering::Release);
    }
}

/// An event's message, with its fields after it.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail. The message is the first field.
        let _ = if field.name() == "message" {
            write!(self.0, "{value:?}")
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
    }
}
