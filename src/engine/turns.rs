//! Threads that wait for output of their requests, and take turns at computing steps.
//!
//! A thread that waits is woken for one of two reasons: there is output for it, or nobody computes steps and it has waited
//! longest. So the output of a step reaches its thread at once, however many other threads wait for a turn.

use std::collections::VecDeque;
use std::process;
use std::sync::Arc;
use std::thread::{self, Thread};
use std::time::Instant;

use parking_lot::Mutex;

/// Wakes the thread that waits for output of certain requests: those of one job, or of one batch.
#[derive(Default)]
pub(super) struct Waiter(Mutex<Option<Thread>>);

impl Waiter {
    /// Lets the thread look again at what it waits for, if one waits.
    pub(super) fn wake(&self) {
        if let Some(thread) = &*self.0.lock() {
            thread.unpark();
        }
    }
}

/// The threads that wait for a turn, in their order.
#[derive(Default)]
pub(super) struct TurnQueue(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    waiters: VecDeque<Arc<Waiter>>,
    /// The process whose threads these are. A fork copies the queue, but not the threads.
    process: u32,
}

impl TurnQueue {
    /// Adds the calling thread, which `waiter` wakes from now on.
    pub(super) fn enter<'a>(&'a self, waiter: &'a Arc<Waiter>) -> Place<'a> {
        *waiter.0.lock() = Some(thread::current());
        self.with(|waiters| waiters.push_back(Arc::clone(waiter)));
        Place { queue: self, waiter }
    }

    /// Wakes the thread that has waited longest, if any.
    pub(super) fn wake_first(&self) {
        let first = self.with(|waiters| waiters.front().cloned());
        if let Some(waiter) = first {
            waiter.wake();
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut VecDeque<Arc<Waiter>>) -> T) -> T {
        let (mut queue, here) = (self.0.lock(), process::id());
        if queue.process != here {
            *queue = Queue { waiters: VecDeque::new(), process: here };
        }
        change(&mut queue.waiters)
    }

    /// Number of threads that wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.with(|waiters| waiters.len())
    }
}

/// The calling thread's place in the queue, which it leaves when this is dropped.
pub(super) struct Place<'a> {
    queue: &'a TurnQueue,
    waiter: &'a Arc<Waiter>,
}

impl Place<'_> {
    /// Waits to be woken; `false` once it is `deadline`. May return early: what was waited for must be looked at again.
    pub(super) fn wait_until(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        thread::park_timeout(left);
        true
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.queue.with(|waiters| waiters.retain(|waiter| !Arc::ptr_eq(waiter, self.waiter)));
        *self.waiter.0.lock() = None;
    }
}
