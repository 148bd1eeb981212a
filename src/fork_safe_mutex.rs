//! A mutex that a forked child can fail to lock.
//!
//! A fork copies memory, not threads. A lock that another thread held at that moment stays locked in the child for ever, and
//! what it protects is half changed. So the child gets an error there. A lock that was free is as usable as before.

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::error::{Error, ErrorCode, Result};

/// How long a child tries a lock before it takes its holder for lost: more than the time between locking and telling who did.
const PATIENCE: Duration = Duration::from_millis(500);

/// See the [module](self).
pub(crate) struct ForkSafeMutex<T> {
    mutex: Mutex<T>,
    created_in: u32,
    /// The process of the thread that locked it last.
    locked_in: AtomicU32,
}

impl<T> ForkSafeMutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { mutex: Mutex::new(value), created_in: process::id(), locked_in: AtomicU32::new(0) }
    }

    /// Waits for the lock.
    ///
    /// # Errors
    /// `forked_while_in_use`: this is a forked child, and the thread that held the lock is not in it.
    pub(crate) fn lock(&self) -> Result<MutexGuard<'_, T>> {
        if let Some(guard) = self.try_lock() {
            return Ok(guard);
        }
        let here = process::id();
        let guard = if here == self.created_in {
            self.mutex.lock()
        } else {
            loop {
                match self.mutex.try_lock_for(PATIENCE) {
                    Some(guard) => break guard,
                    None if self.locked_in.load(Ordering::Relaxed) == here => {}
                    None => return Err(forked()),
                }
            }
        };
        self.locked_in.store(here, Ordering::Relaxed);
        Ok(guard)
    }

    /// Whether this process was forked from the one that created it.
    pub(crate) fn is_forked(&self) -> bool {
        process::id() != self.created_in
    }

    /// Whether somebody holds the lock.
    pub(crate) fn is_locked(&self) -> bool {
        self.mutex.is_locked()
    }

    /// The lock, if it is free.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let guard = self.mutex.try_lock()?;
        self.locked_in.store(process::id(), Ordering::Relaxed);
        Some(guard)
    }
}

fn forked() -> Error {
    let what = "the process was forked while another thread used the engine or the model";
    Error::new(ErrorCode::ForkedWhileInUse, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_another_process_holds_is_an_error() {
        let mutex = ForkSafeMutex::new(1);
        *mutex.lock().expect("free") += 1;
        let held = mutex.lock().expect("free");
        assert!(mutex.try_lock().is_none());
        // As a child finds it that was forked now.
        let child = ForkSafeMutex {
            created_in: process::id() + 1,
            locked_in: (process::id() + 1).into(),
            mutex: Mutex::new(0),
        };
        let lost = child.mutex.lock();
        assert_eq!(child.lock().expect_err("nobody releases it").code(), ErrorCode::ForkedWhileInUse);
        drop(lost);
        assert_eq!(*child.lock().expect("it was free"), 0);
        assert_eq!(*held, 2);
    }
}
