//! The primary contexts of the devices, the only ones there are.
use crate::driver::{
    CURRENT_CONTEXT, CallCounts, Driver, Handle, Out, Result, call_in_context, call_on, code, current_device, put,
    put_if_wanted, set_current_context,
};
use crate::errors::{CUDA_ERROR_INVALID_CONTEXT, CUDA_ERROR_NOT_SUPPORTED, CUDA_SUCCESS, CUresult};

/// Retains a device's primary context.
#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRetain(context: Out<Handle>, device: i32) -> CUresult {
    call_on(device, |driver| {
        driver.context_references += 1;
        put(context, driver.context)
    })
}

/// Releases a device's primary context. With the last release everything in it goes, its fault too.
#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(device: i32) -> CUresult {
    call_on(device, |driver| {
        driver.context_references = driver.context_references.checked_sub(1).ok_or(CUDA_ERROR_INVALID_CONTEXT)?;
        if driver.context_references == 0 {
            let result = driver.run_all_streams();
            driver.destroy_context();
            result?;
        }
        Ok(())
    })
}

/// Whether a device's primary context is retained.
#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxGetState(device: i32, flags: Out<u32>, active: Out<i32>) -> CUresult {
    call_on(device, |driver| {
        put_if_wanted(flags, 0);
        put(active, i32::from(driver.context_references > 0))
    })
}

/// Makes a context current in this thread.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: Handle) -> CUresult {
    code(set_current_context(context))
}

/// The context that is current in this thread, or null.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetCurrent(context: Out<Handle>) -> CUresult {
    code(put(context, CURRENT_CONTEXT.get()))
}

/// The device of the current context.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetDevice(device: Out<i32>) -> CUresult {
    call_in_context(|_| put(device, current_device() as i32))
}

/// Waits for all work.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> CUresult {
    call_in_context(|driver| {
        driver.calls.synchronizations += 1;
        driver.run_all_streams()
    })
}

/// Contexts besides the primary one are not supported.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxCreate_v2(_context: Out<Handle>, _flags: u32, _device: i32) -> CUresult {
    CUDA_ERROR_NOT_SUPPORTED
}

/// Has no effect.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetFlags(_flags: u32) -> CUresult {
    CUDA_SUCCESS
}

/// The least and the greatest priority of streams, neither of which has an effect.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) -> CUresult {
    put_if_wanted(least, 0);
    put_if_wanted(greatest, -5);
    CUDA_SUCCESS
}

impl Driver {
    fn destroy_context(&mut self) {
        self.fault = None;
        self.memory.free_all();
        self.modules.clear();
        self.functions.clear();
    }

    /// Forgets errors, warnings and counts, and mends the context. A real driver needs a new process for that.
    pub(crate) fn clear(&mut self) -> Result {
        self.streams.values_mut().for_each(|stream| stream.queue.clear());
        self.fault = None;
        self.last_error.clear();
        self.messages.clear();
        self.warnings.clear();
        self.counters.clear();
        self.calls = CallCounts::default();
        Ok(())
    }
}
