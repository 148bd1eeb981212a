//! Log events on stderr, as text or as JSON lines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::error::{Error, ErrorCode, Result};

/// Which events are shown: a level, or `tracing`'s directives.
const LEVEL: &str = "EXLORA_LOG";

/// How they are written: `text` or `json`.
const FORMAT: &str = "EXLORA_LOG_FORMAT";

/// Logs at the level in `EXLORA_LOG`, warnings by default, in the form of `EXLORA_LOG_FORMAT`. Lines of text have times where
/// `has_times`, JSON lines always.
///
/// # Errors
/// `request_invalid`: there is no such form.
pub(super) fn start(has_times: bool) -> Result<()> {
    let format = std::env::var(FORMAT).unwrap_or_default();
    let filter =
        EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).with_env_var(LEVEL).from_env_lossy();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // Each fails if the process already has a subscriber, which it then keeps.
    let _ = match format.as_str() {
        "json" => subscriber.json().flatten_event(true).with_span_list(false).try_init(),
        "" | "text" if has_times => subscriber.try_init(),
        "" | "text" => subscriber.without_time().try_init(),
        other => {
            let error = Error::new(ErrorCode::RequestInvalid, format!("{FORMAT} names no form of the logs"));
            return Err(error.with_expected("text or json").with_found(other));
        }
    };
    Ok(())
}
