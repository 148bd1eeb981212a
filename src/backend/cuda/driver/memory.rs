//! Device memory: allocations, and parts of them.
#![allow(unsafe_code, reason = "calls of the CUDA driver")]

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::device::{Device, Stream};
use super::error::{During, failed};
use crate::error::{Error, ErrorCode, Result};

/// A range of device memory: an allocation or a part of one, which is freed when its last part is dropped.
#[derive(Debug)]
pub struct DeviceMemory {
    /// `None` if it is empty.
    allocation: Option<Arc<Allocation>>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

#[derive(Debug)]
struct Allocation {
    device: Arc<Device>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl Device {
    /// Allocates device memory, whose content is undefined.
    ///
    /// # Errors
    /// `memory_exhausted`, with the bytes that are needed and free; `cuda_driver_failed`.
    pub fn allocate(self: &Arc<Self>, bytes: usize) -> Result<DeviceMemory> {
        self.bind(Stream::Compute)?;
        if bytes == 0 {
            return Ok(DeviceMemory { allocation: None, address: 0, bytes });
        }
        // SAFETY: the context is bound; kernels write the memory before they read it.
        let address = unsafe { result::malloc_sync(bytes) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => exhausted(self, bytes),
            _ => failed(format_args!("allocating {bytes} bytes"), error),
        })?;
        self.count_allocated(bytes);
        let allocation = Some(Arc::new(Allocation { device: self.clone(), address, bytes }));
        Ok(DeviceMemory { allocation, address, bytes })
    }
}

impl DeviceMemory {
    /// The address of its first byte, for kernels; that of an allocation is aligned to 256 bytes.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// A part of it, which keeps the allocation.
    ///
    /// # Errors
    /// `internal` if it does not lie within this memory.
    pub fn part(&self, offset: usize, bytes: usize) -> Result<Self> {
        Ok(match self.range(offset, bytes)? {
            Some((allocation, address)) => Self { allocation: Some(Arc::clone(allocation)), address, bytes },
            None => Self { allocation: None, address: 0, bytes },
        })
    }

    /// Copies bytes to the card, behind the steps that were launched before, and waits until they are there.
    ///
    /// # Errors
    /// `internal` if they exceed the memory; `cuda_driver_failed`, also where work launched before failed.
    pub fn upload(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let Some((allocation, address)) = self.range(offset, bytes.len())? else { return Ok(()) };
        let stream = allocation.device.bind(Stream::Compute)?;
        // SAFETY: the range is inside this memory, and the bytes are borrowed until the copy is done.
        unsafe { result::memcpy_htod_async(address, bytes, stream) }.during("copying to the card")?;
        allocation.device.synchronize()
    }

    /// Copies bytes from the card when the steps that were launched before are done, and waits for that.
    ///
    /// # Errors
    /// `internal` if they exceed the memory; `cuda_driver_failed`, also where work launched before failed.
    pub fn download(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.download_in(Stream::Compute, offset, bytes)
    }

    /// Copies bytes from the card that no step changes, without waiting for the steps that were launched before.
    ///
    /// # Errors
    /// As [`DeviceMemory::download`].
    pub fn download_beside_steps(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.download_in(Stream::Copy, offset, bytes)
    }

    fn download_in(&self, stream: Stream, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let Some((allocation, address)) = self.range(offset, bytes.len())? else { return Ok(()) };
        let handle = allocation.device.bind(stream)?;
        // SAFETY: the range is inside this memory, and the bytes are borrowed until the copy is done.
        unsafe { result::memcpy_dtoh_async(bytes, address, handle) }.during("copying from the card")?;
        allocation.device.wait_for(stream)
    }

    /// Copies bytes of other memory of the same card into this, from byte `offset` on, in the order of the steps.
    ///
    /// # Errors
    /// `internal` if they exceed either memory; `cuda_driver_failed`.
    pub fn copy_from(&self, offset: usize, source: &Self, source_offset: usize, bytes: usize) -> Result<()> {
        let (target, source) = (self.range(offset, bytes)?, source.range(source_offset, bytes)?);
        let (Some((allocation, target)), Some((_, source))) = (target, source) else { return Ok(()) };
        let stream = allocation.device.bind(Stream::Compute)?;
        // SAFETY: each range is inside its memory, and memory is freed only behind the work that uses it.
        unsafe { result::memcpy_dtod_async(target, source, bytes, stream) }.during("copying on the card")
    }

    /// Sets every byte to zero, in the order of the steps.
    ///
    /// # Errors
    /// `cuda_driver_failed`.
    pub fn fill_zero(&self) -> Result<()> {
        let Some((allocation, address)) = self.range(0, self.bytes)? else { return Ok(()) };
        let stream = allocation.device.bind(Stream::Compute)?;
        // SAFETY: this is the whole memory.
        unsafe { result::memset_d8_async(address, 0, self.bytes, stream) }.during("zeroing memory")
    }

    /// Copies bytes of host memory to the card in the order of a stream, and returns at once.
    ///
    /// # Safety
    /// The bytes stay as they are until the copy is done.
    pub(super) unsafe fn start_upload(&self, stream: Stream, offset: usize, bytes: &[u8]) -> Result<()> {
        let Some((allocation, address)) = self.range(offset, bytes.len())? else { return Ok(()) };
        let stream = allocation.device.bind(stream)?;
        // SAFETY: the range is inside this memory; the caller keeps the bytes.
        unsafe { result::memcpy_htod_async(address, bytes, stream) }.during("copying to the card")
    }

    /// The allocation and the address of a range; `None` if the range is empty.
    fn range(&self, offset: usize, length: usize) -> Result<Option<(&Arc<Allocation>, sys::CUdeviceptr)>> {
        if offset.checked_add(length).is_none_or(|end| end > self.bytes) {
            let message = format!("{length} bytes at {offset} are outside of memory of {} bytes", self.bytes);
            return Err(Error::new(ErrorCode::Internal, message));
        }
        let allocation = self.allocation.as_ref().filter(|_| length > 0);
        Ok(allocation.map(|allocation| (allocation, self.address + offset as u64)))
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: it was allocated and is freed once; the driver waits for the work that may still use it.
        let freed = self
            .device
            .bind(Stream::Compute)
            .and_then(|_| unsafe { result::free_sync(self.address) }.during("freeing memory"));
        self.device.count_freed(self.bytes);
        if let Err(error) = freed {
            tracing::debug!(%error, bytes = self.bytes, "device memory is not freed");
        }
    }
}

fn exhausted(device: &Device, bytes: usize) -> Error {
    let error = Error::new(
        ErrorCode::MemoryExhausted,
        format!("the memory of cuda:{} is exhausted", device.properties().ordinal),
    )
    .with_expected(format!("{bytes} bytes free"));
    match device.free_bytes() {
        Ok(free) => error.with_found(format!("{free} of {} bytes", device.properties().total_bytes)),
        Err(_) => error,
    }
}
