//! Device memory, pinned host memory, copies between them.
use std::alloc::{Layout, alloc_zeroed, dealloc};

use crate::driver::{CUdeviceptr, Driver, Handle, Out, Result, call_in_context, put, put_if_wanted};
use crate::errors::{CUDA_ERROR_INVALID_HANDLE, CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_OUT_OF_MEMORY, CUresult};
use crate::stream::{HostBytes, Operation};

/// Alignment of pinned host memory.
const PAGE: usize = 4096;
const DEFAULT_STREAM: Handle = 0;

impl Driver {
    /// Fails unless the whole range is inside one allocation.
    pub(crate) fn check_range(&mut self, address: CUdeviceptr, len: usize, what: &str) -> Result {
        if len == 0 || self.memory.contains(address, len as u64) {
            return Ok(());
        }
        let [start, end] = [address, address.saturating_add(len as u64 - 1)].map(|at| self.memory.describe(at));
        let message =
            format!("{what}: {len} bytes at {address:#x} are not inside one allocation: from {start}, to {end}");
        Err(self.error(CUDA_ERROR_INVALID_VALUE, message))
    }

    fn allocate(&mut self, bytes: usize, label: &str) -> Result<CUdeviceptr> {
        self.check_fault()?;
        if bytes == 0 {
            return Err(self.error(CUDA_ERROR_INVALID_VALUE, "allocation of 0 bytes"));
        }
        if self.settings.fail_allocation.is_over() {
            return Err(self.error(CUDA_ERROR_OUT_OF_MEMORY, format!("{bytes} bytes: this allocation was to fail")));
        }
        if let Some(address) = self.memory.allocate(bytes as u64, label) {
            self.calls.allocations += 1;
            return Ok(address);
        }
        let (used, total) = (self.memory.used_bytes(), self.memory.total_bytes());
        Err(self.error(CUDA_ERROR_OUT_OF_MEMORY, format!("{bytes} bytes asked for, {used} of {total} in use")))
    }

    pub(crate) fn free(&mut self, address: CUdeviceptr) -> Result {
        if self.memory.free(address) {
            self.calls.frees += 1;
            return Ok(());
        }
        let place = self.memory.describe(address);
        let message = format!("free of {address:#x}, which is not the start of an allocation: {place}");
        Err(self.error(CUDA_ERROR_INVALID_VALUE, message))
    }

    pub(crate) fn upload(&mut self, to: CUdeviceptr, from: &HostBytes) -> Result {
        let bytes = match from {
            HostBytes::Copied(bytes) => bytes,
            HostBytes::At { len: 0, .. } => &[][..],
            &HostBytes::At { address, len } => {
                // SAFETY: the caller has so many bytes there, until the copy has run.
                unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(address), len) }
            }
        };
        self.check_range(to, bytes.len(), "copy to the device")?;
        if !bytes.is_empty() {
            self.memory.write(to, bytes);
            self.calls.uploads += 1;
        }
        Ok(())
    }

    pub(crate) fn download(&mut self, to: usize, from: CUdeviceptr, len: usize) -> Result {
        self.check_range(from, len, "copy to the host")?;
        if len == 0 {
            return Ok(());
        }
        let unwritten = self.memory.first_unwritten(from, len as u64);
        if let Some(address) = unwritten.filter(|_| self.settings.execution.check_unwritten) {
            let place = self.memory.describe(address);
            self.warn(format!("a copy to the host reads what nobody has written: {place}"));
        }
        // SAFETY: the caller has so many bytes there, until the copy has run.
        let target = unsafe { std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(to), len) };
        self.memory.read(from, target);
        self.calls.downloaded_bytes += len as u64;
        Ok(())
    }

    fn is_pinned(&self, address: usize, len: usize) -> bool {
        let below = self.pinned.range(..=address).next_back();
        below.is_some_and(|(start, layout)| address + len <= start + layout.size())
    }

    /// Runs an operation after the default stream's work, as synchronous functions do.
    fn execute_synchronously(&mut self, operation: Operation) -> Result {
        self.run_stream(DEFAULT_STREAM)?;
        self.execute(operation)
    }
}

/// Allocates device memory.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemAlloc_v2(address: Out<CUdeviceptr>, bytes: usize) -> CUresult {
    call_in_context(|driver| put(address, driver.allocate(bytes, "cuMemAlloc")?))
}

/// Allocates device memory, at once.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocAsync(address: Out<CUdeviceptr>, bytes: usize, stream: Handle) -> CUresult {
    call_in_context(|driver| {
        if !driver.streams.contains_key(&stream) {
            return Err(CUDA_ERROR_INVALID_HANDLE);
        }
        put(address, driver.allocate(bytes, "cuMemAllocAsync")?)
    })
}

/// Frees device memory after all work. It is freed even where a fault has broken the context.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: CUdeviceptr) -> CUresult {
    call_in_context(|driver| {
        if address == 0 {
            return Ok(());
        }
        let result = driver.run_all_streams();
        let freed = driver.free(address);
        result.and(freed)
    })
}

/// Frees device memory after a stream's work so far.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(address: CUdeviceptr, stream: Handle) -> CUresult {
    call_in_context(|driver| driver.submit(stream, Operation::Free(address)))
}

/// Free and total bytes of device memory.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) -> CUresult {
    call_in_context(|driver| {
        put_if_wanted(free, driver.memory.total_bytes().saturating_sub(driver.memory.used_bytes()) as usize);
        put_if_wanted(total, driver.memory.total_bytes() as usize);
        Ok(())
    })
}

/// Allocates pinned host memory.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostAlloc(address: Out<usize>, bytes: usize, _flags: u32) -> CUresult {
    call_in_context(|driver| {
        let layout = Layout::from_size_align(bytes.max(1), PAGE).map_err(|_| CUDA_ERROR_INVALID_VALUE)?;
        // SAFETY: the layout has at least one byte.
        let memory = unsafe { alloc_zeroed(layout) };
        if memory.is_null() {
            return Err(CUDA_ERROR_OUT_OF_MEMORY);
        }
        let memory = memory.expose_provenance();
        driver.pinned.insert(memory, layout);
        put(address, memory)
    })
}

/// Frees pinned host memory after all work.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(address: usize) -> CUresult {
    call_in_context(|driver| {
        let result = driver.run_all_streams();
        let layout = driver.pinned.remove(&address).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        // SAFETY: `cuMemHostAlloc` has allocated it with that layout, and nobody has freed it.
        unsafe { dealloc(std::ptr::with_exposed_provenance_mut(address), layout) };
        result
    })
}

/// Copies to the device, at once.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoD_v2(to: CUdeviceptr, from: usize, len: usize) -> CUresult {
    let from = HostBytes::At { address: from, len };
    call_in_context(|driver| driver.execute_synchronously(Operation::Upload { to, from }))
}

/// Copies to the host, at once.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoH_v2(to: usize, from: CUdeviceptr, len: usize) -> CUresult {
    call_in_context(|driver| driver.execute_synchronously(Operation::Download { to, from, len }))
}

/// Copies within the device, at once.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoD_v2(to: CUdeviceptr, from: CUdeviceptr, len: usize) -> CUresult {
    call_in_context(|driver| driver.execute_synchronously(Operation::Copy { to, from, len }))
}

/// Copies to the device in a stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: usize, len: usize, stream: Handle) -> CUresult {
    call_in_context(|driver| {
        let is_read_later = driver.settings.lazy_streams && driver.is_pinned(from, len);
        let from = if is_read_later || len == 0 || !driver.settings.lazy_streams {
            HostBytes::At { address: from, len }
        } else {
            // SAFETY: the caller has so many bytes there.
            HostBytes::Copied(
                unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(from), len) }.to_vec(),
            )
        };
        driver.submit(stream, Operation::Upload { to, from })
    })
}

/// Copies to the host in a stream. Memory that is not pinned has the bytes when the function returns.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoHAsync_v2(to: usize, from: CUdeviceptr, len: usize, stream: Handle) -> CUresult {
    call_in_context(|driver| {
        driver.submit(stream, Operation::Download { to, from, len })?;
        if driver.is_pinned(to, len) { Ok(()) } else { driver.run_stream(stream) }
    })
}

/// Copies within the device in a stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, len: usize, stream: Handle) -> CUresult {
    call_in_context(|driver| driver.submit(stream, Operation::Copy { to, from, len }))
}

/// Fills bytes, at once.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8_v2(to: CUdeviceptr, value: u8, count: usize) -> CUresult {
    call_in_context(|driver| driver.execute_synchronously(Operation::Fill { to, pattern: vec![value], count }))
}

/// Fills 32-bit words, at once.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD32_v2(to: CUdeviceptr, value: u32, count: usize) -> CUresult {
    let pattern = value.to_le_bytes().to_vec();
    call_in_context(|driver| driver.execute_synchronously(Operation::Fill { to, pattern, count }))
}

/// Fills bytes in a stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(to: CUdeviceptr, value: u8, count: usize, stream: Handle) -> CUresult {
    call_in_context(|driver| driver.submit(stream, Operation::Fill { to, pattern: vec![value], count }))
}

/// Fills 32-bit words in a stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD32Async(to: CUdeviceptr, value: u32, count: usize, stream: Handle) -> CUresult {
    let pattern = value.to_le_bytes().to_vec();
    call_in_context(|driver| driver.submit(stream, Operation::Fill { to, pattern, count }))
}
