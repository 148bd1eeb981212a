//! A slot and budget, held while an adapter is prepared and installed.

use std::fmt;
use std::sync::Arc;

use crate::adapter::batch::SlotId;
use crate::adapter::pool::state::{Attachment, Shared, State};
use crate::error::{Error, ErrorCode, Result};

/// A slot and budget, held while an adapter is prepared and installed. If it is dropped before the adapter is published, both
/// are returned: at once, or by way of `AdapterPool::reap` if something was installed.
pub(crate) struct Reservation {
    shared: Arc<Shared>,
    slot: SlotId,
    bytes: usize,
    is_installed: bool,
    is_published: bool,
    attachment: Option<Attachment>,
}

impl Reservation {
    /// Takes a slot and that many bytes.
    pub(super) fn new(shared: &Arc<Shared>, bytes: usize) -> Result<Self> {
        let mut state = shared.state.lock();
        check_room(shared, &state, bytes)?;
        let max_adapters = shared.limits.max_adapters;
        let slot = match state.free.pop() {
            Some(slot) => slot,
            None if state.slots.len() < max_adapters.min(u32::MAX as usize) => {
                state.slots.push(Default::default());
                SlotId((state.slots.len() - 1) as u32)
            }
            None => {
                return Err(Error::new(ErrorCode::AdapterBudgetExceeded, "every slot is taken")
                    .with_expected(format!("at most {max_adapters} resident adapters, including those still in use")));
            }
        };
        state.bytes += bytes;
        state.slot(slot).bytes = bytes;
        drop(state);
        Ok(Self { shared: shared.clone(), slot, bytes, is_installed: false, is_published: false, attachment: None })
    }

    /// The slot to install into.
    pub fn slot(&self) -> SlotId {
        self.slot
    }

    /// Changes the bytes to those that the prepared adapter occupies.
    ///
    /// # Errors
    /// `adapter_budget_exceeded`; nothing changed then.
    pub fn resize(&mut self, bytes: usize) -> Result<()> {
        let mut state = self.shared.state.lock();
        if let Some(more) = bytes.checked_sub(self.bytes) {
            check_room(&self.shared, &state, more)?;
        }
        state.bytes = state.bytes - self.bytes + bytes;
        state.slot(self.slot).bytes = bytes;
        drop(state);
        self.bytes = bytes;
        Ok(())
    }

    /// Keeps something with the adapter version that is published.
    pub fn attach(&mut self, attachment: Option<Attachment>) {
        self.attachment = attachment;
    }

    pub(super) fn take_attachment(&mut self) -> Option<Attachment> {
        self.attachment.take()
    }

    /// Notes that the slot may hold an adapter from now on, which the backend must drop before the slot is free again.
    pub fn mark_installed(&mut self) {
        self.is_installed = true;
    }

    pub(super) fn mark_published(&mut self) {
        self.is_published = true;
    }

    /// Whether it is of the pool with this state.
    pub(super) fn is_of(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }
}

fn check_room(shared: &Shared, state: &State, bytes: usize) -> Result<()> {
    let max_bytes = shared.limits.max_bytes;
    let room = max_bytes.saturating_sub(state.bytes);
    match bytes <= room {
        true => Ok(()),
        false => Err(Error::new(ErrorCode::AdapterBudgetExceeded, "the adapter does not fit the byte budget")
            .with_expected(format!("at most {room} of {max_bytes} bytes"))
            .with_found(format!("{bytes} bytes"))),
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.is_published {
            return;
        }
        let mut state = self.shared.state.lock();
        match self.is_installed {
            true => state.retire_if_unused(self.slot),
            false => state.free(self.slot),
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("slot", &self.slot).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
