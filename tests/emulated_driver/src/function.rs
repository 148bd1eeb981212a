//! Functions: the kernels of modules.
use std::ffi::c_char;
use std::sync::Arc;

use exlora_ptx_emulator::kernel::Kernel;

use crate::driver::{Driver, Handle, Out, Result, call_in_context, put, put_if_wanted};
use crate::errors::{CUDA_ERROR_INVALID_HANDLE, CUDA_ERROR_INVALID_VALUE, CUresult, permanent};

/// Bytes of shared memory that a block has without asking for more.
pub(crate) const DEFAULT_SHARED_BYTES: u32 = 48 << 10;

/// Numbers of attributes in cuda.h.
mod attribute {
    pub const MAX_THREADS_PER_BLOCK: u32 = 0;
    pub const SHARED_SIZE_BYTES: u32 = 1;
    pub const LOCAL_SIZE_BYTES: u32 = 3;
    pub const NUM_REGS: u32 = 4;
    pub const MAX_DYNAMIC_SHARED_SIZE_BYTES: u32 = 8;
    pub const PREFERRED_SHARED_MEMORY_CARVEOUT: u32 = 9;
}

/// A kernel with its attributes.
pub(crate) struct Function {
    pub(crate) kernel: Arc<Kernel>,
    /// Most bytes of dynamic shared memory.
    pub(crate) max_dynamic_shared_bytes: u32,
}

impl Function {
    pub(crate) fn new(kernel: Arc<Kernel>) -> Function {
        let max_dynamic_shared_bytes = DEFAULT_SHARED_BYTES.saturating_sub(kernel.static_shared_bytes);
        Function { kernel, max_dynamic_shared_bytes }
    }
}

impl Driver {
    pub(crate) fn function(&self, function: Handle) -> Result<&Function> {
        self.functions.get(&function).ok_or(CUDA_ERROR_INVALID_HANDLE)
    }
}

/// An attribute of a kernel. The number of registers is that of the emulator, not of a card.
#[unsafe(no_mangle)]
pub extern "C" fn cuFuncGetAttribute(value: Out<i32>, attribute: u32, function: Handle) -> CUresult {
    call_in_context(|driver| {
        let Function { kernel, max_dynamic_shared_bytes } = driver.function(function)?;
        let found = match attribute {
            attribute::MAX_THREADS_PER_BLOCK => kernel.maxntid.map_or(1024, |threads| threads.iter().product()),
            attribute::SHARED_SIZE_BYTES => kernel.static_shared_bytes,
            attribute::LOCAL_SIZE_BYTES => kernel.local_bytes,
            attribute::NUM_REGS => kernel.register_slots.min(255),
            attribute::MAX_DYNAMIC_SHARED_SIZE_BYTES => *max_dynamic_shared_bytes,
            _ => 0,
        };
        put(value, found as i32)
    })
}

/// Sets an attribute of a kernel: how much dynamic shared memory it may have.
#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(function: Handle, attribute: u32, value: i32) -> CUresult {
    call_in_context(|driver| {
        let limit = driver.settings.shared_bytes_of_block();
        let static_bytes = driver.function(function)?.kernel.static_shared_bytes;
        match (attribute, u32::try_from(value)) {
            (attribute::MAX_DYNAMIC_SHARED_SIZE_BYTES, Ok(bytes)) if bytes + static_bytes <= limit => {
                if let Some(function) = driver.functions.get_mut(&function) {
                    function.max_dynamic_shared_bytes = bytes;
                }
                Ok(())
            }
            (attribute::MAX_DYNAMIC_SHARED_SIZE_BYTES, _) => {
                let message = format!(
                    "{value} bytes of dynamic and {static_bytes} of static shared memory are more than the {limit} of a block"
                );
                Err(driver.error(CUDA_ERROR_INVALID_VALUE, message))
            }
            (attribute::PREFERRED_SHARED_MEMORY_CARVEOUT, _) => Ok(()),
            _ => Err(CUDA_ERROR_INVALID_VALUE),
        }
    })
}

/// Has no effect.
#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetCacheConfig(function: Handle, _config: u32) -> CUresult {
    call_in_context(|driver| driver.function(function).map(|_| ()))
}

/// Offset and size of a kernel's parameter in bytes.
#[unsafe(no_mangle)]
pub extern "C" fn cuFuncGetParamInfo(
    function: Handle,
    index: usize,
    offset: Out<usize>,
    bytes: Out<usize>,
) -> CUresult {
    call_in_context(|driver| {
        let parameter = driver.function(function)?.kernel.parameters.get(index).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        put_if_wanted(offset, parameter.offset as usize);
        put_if_wanted(bytes, parameter.bytes as usize);
        Ok(())
    })
}

/// A kernel's name.
#[unsafe(no_mangle)]
pub extern "C" fn cuFuncGetName(name: Out<*const c_char>, function: Handle) -> CUresult {
    call_in_context(|driver| put(name, permanent(&driver.function(function)?.kernel.name)))
}

/// How many blocks a multiprocessor can run at a time, by threads and shared memory. Registers are the real compiler's business.
#[unsafe(no_mangle)]
pub extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: Out<i32>,
    function: Handle,
    threads: i32,
    dynamic_bytes: usize,
) -> CUresult {
    call_in_context(|driver| {
        let kernel = &driver.function(function)?.kernel;
        let settings = &driver.settings;
        let threads = u32::try_from(threads).ok().filter(|threads| (1..=1024).contains(threads));
        let threads = threads.ok_or(CUDA_ERROR_INVALID_VALUE)?;
        let shared_bytes = dynamic_bytes as u64 + u64::from(kernel.static_shared_bytes) + 1024;
        let by_memory = u64::from(settings.shared_bytes_of_multiprocessor()) / shared_bytes;
        let by_threads = settings.threads_of_multiprocessor() / threads.next_multiple_of(32);
        put(blocks, by_memory.min(u64::from(by_threads)).min(32) as i32)
    })
}
