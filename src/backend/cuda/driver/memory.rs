//! Device memory.
#![allow(unsafe_code, reason = "calls of the CUDA driver")]

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::device::Device;
use super::error::{During, failed};
use crate::error::{Error, ErrorCode, Result};

/// An allocation of device memory, freed when it is dropped.
#[derive(Debug)]
pub struct DeviceMemory {
    device: Arc<Device>,
    /// 0 if it is empty.
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl Device {
    /// Allocates device memory, whose content is undefined.
    ///
    /// # Errors
    /// `memory_exhausted`, with the bytes that are needed and free; `cuda_driver_failed`.
    pub fn allocate(self: &Arc<Self>, bytes: usize) -> Result<DeviceMemory> {
        self.bind()?;
        if bytes == 0 {
            return Ok(DeviceMemory { device: self.clone(), address: 0, bytes });
        }
        // SAFETY: the context is bound; kernels write the memory before they read it.
        let address = unsafe { result::malloc_sync(bytes) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => exhausted(self, bytes),
            _ => failed(format_args!("allocating {bytes} bytes"), error),
        })?;
        Ok(DeviceMemory { device: self.clone(), address, bytes })
    }
}

impl DeviceMemory {
    /// The address of its first byte, for kernels; aligned to 256 bytes.
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

    /// Copies bytes to the card, behind the work that was launched before, and waits until they are there.
    ///
    /// # Errors
    /// `internal` if they exceed the allocation; `cuda_driver_failed`, also where work launched before failed.
    pub fn upload(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let Some(address) = self.range(offset, bytes.len())? else { return Ok(()) };
        let stream = self.device.bind()?;
        // SAFETY: the range is inside this allocation, and the bytes are borrowed until the copy is done.
        unsafe { result::memcpy_htod_async(address, bytes, stream) }.during("copying to the card")?;
        self.device.synchronize()
    }

    /// Copies bytes from the card when the work that was launched before is done, and waits for that.
    ///
    /// # Errors
    /// `internal` if they exceed the allocation; `cuda_driver_failed`, also where work launched before failed.
    pub fn download(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let Some(address) = self.range(offset, bytes.len())? else { return Ok(()) };
        let stream = self.device.bind()?;
        // SAFETY: the range is inside this allocation, and the bytes are borrowed until the copy is done.
        unsafe { result::memcpy_dtoh_async(bytes, address, stream) }.during("copying from the card")?;
        self.device.synchronize()
    }

    /// Sets every byte to zero, in the order of the stream.
    ///
    /// # Errors
    /// `cuda_driver_failed`.
    pub fn fill_zero(&self) -> Result<()> {
        let Some(address) = self.range(0, self.bytes)? else { return Ok(()) };
        let stream = self.device.bind()?;
        // SAFETY: this is the whole allocation.
        unsafe { result::memset_d8_async(address, 0, self.bytes, stream) }.during("zeroing memory")
    }

    /// The address of a range; `None` if it is empty.
    fn range(&self, offset: usize, length: usize) -> Result<Option<sys::CUdeviceptr>> {
        if offset.checked_add(length).is_none_or(|end| end > self.bytes) {
            let message = format!("{length} bytes at {offset} are outside an allocation of {} bytes", self.bytes);
            return Err(Error::new(ErrorCode::Internal, message));
        }
        Ok((length > 0).then_some(self.address + offset as u64))
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.address == 0 {
            return;
        }
        // SAFETY: it was allocated and is freed once; the driver waits for the work that may still use it.
        let freed =
            self.device.bind().and_then(|_| unsafe { result::free_sync(self.address) }.during("freeing memory"));
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
