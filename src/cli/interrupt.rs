//! Ctrl-C as a flag that is asked between steps, so that what is finished can be kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::SIGINT;
use signal_hook::flag;

use crate::error::{Error, ErrorCode, Result};

/// Whether Ctrl-C was pressed. Pressed again before the first was noticed, it ends the process at once.
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on, Ctrl-C sets the flag instead of ending the process.
    ///
    /// # Errors
    /// `io_failed` if the operating system refuses the handler.
    pub(super) fn catch() -> Result<Self> {
        let is_set = Arc::new(AtomicBool::new(false));
        // Handlers run in this order: the first acts only if the flag was set before.
        flag::register_conditional_default(SIGINT, Arc::clone(&is_set))
            .and_then(|_| flag::register(SIGINT, Arc::clone(&is_set)))
            .map_err(|e| Error::new(ErrorCode::IoFailed, format!("cannot catch Ctrl-C: {e}")))?;
        Ok(Self(is_set))
    }

    /// Ctrl-C ends the process, as it does without this.
    pub(super) fn not_caught() -> Self {
        Self(Arc::default())
    }

    /// # Errors
    /// `interrupted` once Ctrl-C was pressed.
    pub(super) fn check(&self) -> Result<()> {
        if self.is_set() { Err(Error::new(ErrorCode::Interrupted, "Ctrl-C was pressed")) } else { Ok(()) }
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Forgets a Ctrl-C.
    pub(super) fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
