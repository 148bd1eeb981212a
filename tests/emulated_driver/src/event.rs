//! Events: marks in a stream's work.
use std::time::Instant;

use crate::driver::{Handle, Out, call_in_context, put};
use crate::errors::{CUDA_ERROR_INVALID_HANDLE, CUDA_ERROR_NOT_READY, CUresult};
use crate::stream::Operation;

/// An event.
#[derive(Default)]
pub(crate) struct Event {
    /// How often it has been recorded.
    pub(crate) recorded: u64,
    /// Which of the records has been reached.
    pub(crate) reached: u64,
    /// The stream of the last record.
    pub(crate) stream: Handle,
    /// When the last record was reached.
    pub(crate) time: Option<Instant>,
}

/// Creates an event.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventCreate(event: Out<Handle>, _flags: u32) -> CUresult {
    call_in_context(|driver| {
        let handle = driver.new_handle();
        driver.events.insert(handle, Event::default());
        put(event, handle)
    })
}

/// Destroys an event. Work that waits for it no longer does.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: Handle) -> CUresult {
    call_in_context(|driver| {
        let recorded = driver.events.get(&event).ok_or(CUDA_ERROR_INVALID_HANDLE)?;
        let (stream, is_pending) = (recorded.stream, recorded.reached < recorded.recorded);
        let result = if is_pending { driver.run_stream(stream) } else { Ok(()) };
        driver.events.remove(&event);
        result
    })
}

/// Marks the end of a stream's work so far.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> CUresult {
    call_in_context(|driver| {
        if !driver.streams.contains_key(&stream) {
            return Err(CUDA_ERROR_INVALID_HANDLE);
        }
        let recorded = driver.events.get_mut(&event).ok_or(CUDA_ERROR_INVALID_HANDLE)?;
        recorded.recorded += 1;
        recorded.stream = stream;
        let record = recorded.recorded;
        driver.submit(stream, Operation::Record { event, record })
    })
}

/// Whether the work before the last record is done.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(event: Handle) -> CUresult {
    call_in_context(|driver| {
        let recorded = driver.events.get(&event).ok_or(CUDA_ERROR_INVALID_HANDLE)?;
        if recorded.reached < recorded.recorded { Err(CUDA_ERROR_NOT_READY) } else { driver.check_fault() }
    })
}

/// Waits for the work before the last record.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: Handle) -> CUresult {
    call_in_context(|driver| {
        let recorded = driver.events.get(&event).ok_or(CUDA_ERROR_INVALID_HANDLE)?;
        if recorded.reached == recorded.recorded {
            return driver.check_fault();
        }
        // Only as far as the record: the stream goes on with what is behind it when somebody waits for that.
        let (stream, record) = (recorded.stream, recorded.recorded);
        driver.calls.synchronizations += 1;
        driver.run_until(stream, event, record)
    })
}

/// Milliseconds between two records: the emulator's time, which says nothing about a card's.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventElapsedTime(milliseconds: Out<f32>, start: Handle, end: Handle) -> CUresult {
    call_in_context(|driver| {
        let time = |event| driver.events.get(&event).and_then(|event| event.time).ok_or(CUDA_ERROR_INVALID_HANDLE);
        put(milliseconds, time(end)?.saturating_duration_since(time(start)?).as_secs_f32() * 1e3)
    })
}
