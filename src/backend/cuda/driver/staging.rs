//! Pinned host memory through which bytes go to the card while the caller goes on.
#![allow(unsafe_code, reason = "calls of the CUDA driver")]

use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::device::{Device, Stream};
use super::error::{During, failed};
use super::memory::DeviceMemory;
use crate::error::{Error, ErrorCode, Result};

/// Pinned buffers that are filled in turn. A buffer is filled again only when its last copy is done.
#[derive(Debug)]
pub struct StagingBuffers {
    stream: Stream,
    buffers: Vec<StagingBuffer>,
    /// The buffer that is filled next.
    next: usize,
}

impl StagingBuffers {
    /// Allocates `count` buffers of that many bytes, whose copies are done in the order of a stream.
    ///
    /// # Errors
    /// `memory_exhausted`; `cuda_driver_failed`.
    ///
    /// # Panics
    /// If there are no buffers, or they have no bytes.
    pub fn new(device: &Arc<Device>, stream: Stream, count: usize, bytes: usize) -> Result<Self> {
        assert!(count > 0 && bytes > 0, "copies need a buffer");
        let buffers = (0..count).map(|_| StagingBuffer::new(device, bytes)).collect::<Result<_>>()?;
        Ok(Self { stream, buffers, next: 0 })
    }

    /// Copies bytes to the card in the order of the stream. Returns when they are in pinned memory: it waits only where all
    /// buffers are on their way.
    ///
    /// # Errors
    /// `internal` if they exceed the memory; `cuda_driver_failed`, also where work launched before failed.
    pub fn upload(&mut self, memory: &DeviceMemory, offset: usize, bytes: &[u8]) -> Result<()> {
        let mut at = offset;
        for part in bytes.chunks(self.buffers[0].pinned.bytes) {
            let buffer = &mut self.buffers[self.next];
            buffer.wait()?;
            buffer.copy(self.stream, memory, at, part)?;
            self.next = (self.next + 1) % self.buffers.len();
            at += part.len();
        }
        Ok(())
    }

    /// Waits until all bytes are on the card, whatever the stream does behind them.
    ///
    /// # Errors
    /// `cuda_driver_failed`, also where work launched before failed.
    pub fn wait(&mut self) -> Result<()> {
        self.buffers.iter_mut().try_for_each(StagingBuffer::wait)
    }
}

#[derive(Debug)]
struct StagingBuffer {
    pinned: PinnedMemory,
    /// The end of the last copy.
    copied: Event,
    is_in_flight: bool,
}

impl StagingBuffer {
    fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        Ok(Self { pinned: PinnedMemory::new(device, bytes)?, copied: Event::new(device)?, is_in_flight: false })
    }

    /// Fills the buffer and starts its copy.
    fn copy(&mut self, stream: Stream, memory: &DeviceMemory, offset: usize, bytes: &[u8]) -> Result<()> {
        let filled = &mut self.pinned.bytes_mut()[..bytes.len()];
        filled.copy_from_slice(bytes);
        // Even where the next call fails: whether the copy was begun is not known then.
        self.is_in_flight = true;
        // SAFETY: the buffer is neither changed nor freed until the event behind the copy has been waited for.
        unsafe { memory.start_upload(stream, offset, filled) }?;
        self.copied.record(stream)
    }

    fn wait(&mut self) -> Result<()> {
        if self.is_in_flight {
            self.copied.wait()?;
            self.is_in_flight = false;
        }
        Ok(())
    }
}

impl Drop for StagingBuffer {
    fn drop(&mut self) {
        // The driver would wait before it frees the memory; a copy that failed is nobody's any more.
        if let Err(error) = self.wait() {
            tracing::debug!(%error, "a copy to the card is not awaited");
        }
    }
}

/// Page-locked memory of the host, which the card reads on its own.
#[derive(Debug)]
struct PinnedMemory {
    device: Arc<Device>,
    pointer: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is owned memory, which the driver allows any thread to use and free.
unsafe impl Send for PinnedMemory {}

impl PinnedMemory {
    fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        device.bind(Stream::Compute)?;
        let exhausted =
            || Error::new(ErrorCode::MemoryExhausted, format!("cannot pin {bytes} bytes of the host's memory"));
        // SAFETY: the context is bound; the size is not 0.
        let pointer = unsafe { result::malloc_host(bytes, 0) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => exhausted(),
            _ => failed(format_args!("pinning {bytes} bytes of the host's memory"), error),
        })?;
        let pointer = NonNull::new(pointer.cast::<u8>()).ok_or_else(exhausted)?;
        // SAFETY: the memory was allocated with that size. Its content is undefined until it is written.
        unsafe { pointer.write_bytes(0, bytes) };
        Ok(Self { device: Arc::clone(device), pointer, bytes })
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the memory has that many bytes, which are initialized, and is borrowed as this is.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        let bound = self.device.bind(Stream::Compute);
        // SAFETY: it was allocated and is freed once.
        let freed = bound
            .and_then(|_| unsafe { result::free_host(self.pointer.as_ptr().cast()) }.during("freeing pinned memory"));
        if let Err(error) = freed {
            tracing::debug!(%error, bytes = self.bytes, "pinned memory is not freed");
        }
    }
}

/// A mark in a stream's work.
#[derive(Debug)]
struct Event {
    device: Arc<Device>,
    handle: sys::CUevent,
}

// SAFETY: the driver's handles may be used from any thread that has bound the context, and every use binds it.
unsafe impl Send for Event {}

impl Event {
    fn new(device: &Arc<Device>) -> Result<Self> {
        device.bind(Stream::Compute)?;
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        Ok(Self { device: Arc::clone(device), handle: result::event::create(flags).during("creating an event")? })
    }

    /// Marks the end of a stream's work so far.
    fn record(&self, stream: Stream) -> Result<()> {
        let stream = self.device.bind(stream)?;
        // SAFETY: event and stream are alive and of the same context.
        unsafe { result::event::record(self.handle, stream) }.during("recording an event")
    }

    /// Waits for the work before the last mark.
    fn wait(&self) -> Result<()> {
        self.device.bind(Stream::Compute)?;
        // SAFETY: the event is alive.
        unsafe { result::event::synchronize(self.handle) }.during("waiting for a copy to the card")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let bound = self.device.bind(Stream::Compute);
        // SAFETY: it was created and is destroyed once.
        let destroyed =
            bound.and_then(|_| unsafe { result::event::destroy(self.handle) }.during("destroying an event"));
        if let Err(error) = destroyed {
            tracing::debug!(%error, "an event is not destroyed");
        }
    }
}
