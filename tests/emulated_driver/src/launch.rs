//! Launches of kernels.
use std::ffi::c_void;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use exlora_ptx_emulator::execution::{Configuration, run};
use exlora_ptx_emulator::kernel::Kernel;

use crate::driver::{Driver, Handle, Result, call_in_context};
use crate::errors::{
    CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_LAUNCH_FAILED, CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, CUresult, code_of,
};
use crate::function::DEFAULT_SHARED_BYTES;
use crate::stream::Operation;

/// A launch whose parameters have been read.
pub(crate) struct KernelLaunch {
    kernel: Arc<Kernel>,
    configuration: Configuration,
    parameters: Vec<u8>,
}

impl Driver {
    pub(crate) fn run_kernel(&mut self, launch: &KernelLaunch) -> Result {
        let KernelLaunch { kernel, configuration, parameters } = launch;
        if self.settings.fail_launch.is_over() {
            self.fault = Some(CUDA_ERROR_LAUNCH_FAILED);
            return Err(self.error(CUDA_ERROR_LAUNCH_FAILED, format!("{}: this launch was to fail", kernel.name)));
        }
        let outcome = run(kernel, &mut self.memory, &self.settings.execution, *configuration, parameters);
        self.counters.entry(kernel.name.clone()).or_default().add(&outcome.counters);
        outcome.warnings.into_iter().for_each(|warning| self.warn(warning));
        outcome.result.map_err(|fault| {
            let code = code_of(fault.kind);
            self.fault = Some(code);
            self.error(code, fault.message)
        })
    }

    /// Whether a launch keeps within the limits of the device and of the kernel.
    fn check_configuration(&mut self, function: Handle, configuration: &Configuration) -> Result {
        let function = self.function(function)?;
        let kernel = &function.kernel;
        let Configuration { grid, block, dynamic_shared_bytes } = *configuration;
        let threads: u64 = block.iter().map(|&threads| u64::from(threads)).product();
        let allowed = kernel.maxntid.map(|threads| threads.iter().product::<u32>());
        let (static_bytes, most_bytes) = (kernel.static_shared_bytes, function.max_dynamic_shared_bytes);
        let needs_permission =
            u64::from(dynamic_shared_bytes) + u64::from(static_bytes) > u64::from(DEFAULT_SHARED_BYTES);
        let (code, message) = if grid.contains(&0)
            || block.contains(&0)
            || threads > 1024
            || block[2] > 64
            || grid[0] > i32::MAX as u32
            || grid[1..].iter().any(|&blocks| blocks > 65_535)
        {
            (CUDA_ERROR_INVALID_VALUE, format!("grid {grid:?} or block {block:?} is outside the limits"))
        } else if let Some(allowed) = allowed.filter(|&allowed| threads > u64::from(allowed)) {
            let message = format!("{threads} threads, __launch_bounds__ allows {allowed}");
            (CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, message)
        } else if let Some(required) = kernel.reqntid.filter(|&required| required != block) {
            (CUDA_ERROR_INVALID_VALUE, format!("block {block:?}, the kernel requires {required:?}"))
        } else if needs_permission && dynamic_shared_bytes > most_bytes {
            let message = format!(
                "{dynamic_shared_bytes} bytes of dynamic shared memory beside {static_bytes} static ones, the attribute allows {most_bytes}"
            );
            (CUDA_ERROR_INVALID_VALUE, message)
        } else {
            return Ok(());
        };
        let message = format!("launch of {}: {message}", kernel.name);
        Err(self.error(code, message))
    }
}

/// The parameter space from an array with a pointer to each parameter. The driver API does not tell how many there are: what can
/// be checked is that each pointer can be read.
fn read_parameters(kernel: &Kernel, pointers: usize) -> std::result::Result<Vec<u8>, String> {
    let mut space = vec![0; kernel.parameter_bytes as usize];
    let count = kernel.parameters.len();
    if pointers == 0 && count > 0 {
        return Err(format!("no parameters, the kernel takes {count}"));
    }
    for (index, parameter) in kernel.parameters.iter().enumerate() {
        let mut pointer = [0; size_of::<usize>()];
        let target = &mut space[parameter.offset as usize..][..parameter.bytes as usize];
        if !read_memory(pointers + index * size_of::<usize>(), &mut pointer)
            || !read_memory(usize::from_ne_bytes(pointer), target)
        {
            let bytes = parameter.bytes;
            return Err(format!("parameter {index} of {count} ({bytes} bytes) cannot be read: too few parameters?"));
        }
    }
    Ok(space)
}

/// Reads memory of this process that may not be there; false if it is not.
fn read_memory(address: usize, bytes: &mut [u8]) -> bool {
    static MEMORY: OnceLock<Option<File>> = OnceLock::new();
    let memory = MEMORY.get_or_init(|| File::open("/proc/self/mem").ok());
    memory.as_ref().is_some_and(|memory| memory.read_exact_at(bytes, address as u64).is_ok())
}

/// The parameter space from a list of keys and values, which ends with the key 0.
///
/// # Safety
/// `extra` is such a list, with a buffer as long as it says.
unsafe fn copy_parameters(kernel: &Kernel, extra: *const *const c_void) -> std::result::Result<Vec<u8>, String> {
    const BUFFER_POINTER: usize = 1;
    const BUFFER_SIZE: usize = 2;
    let (mut buffer, mut len, mut at) = (std::ptr::null::<u8>(), 0, 0);
    loop {
        // SAFETY: the list has not ended.
        let (key, value) = unsafe { ((*extra.add(at)).addr(), *extra.add(at + 1)) };
        match key {
            BUFFER_POINTER => buffer = value.cast(),
            // SAFETY: the value of this key points to a size.
            BUFFER_SIZE => len = unsafe { *value.cast::<usize>() },
            _ => break,
        }
        at += 2;
    }
    if buffer.is_null() || len != kernel.parameter_bytes as usize {
        return Err(format!("{len} bytes of parameters, the kernel takes {}", kernel.parameter_bytes));
    }
    // SAFETY: the caller has so many bytes there.
    Ok(unsafe { std::slice::from_raw_parts(buffer, len) }.to_vec())
}

/// Launches a kernel in a stream.
///
/// # Safety
/// `parameters` points to as many pointers as the kernel has parameters, each to as many bytes as it has, or is null and `extra`
/// is a list of keys and values as cuda.h describes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    dynamic_shared_bytes: u32,
    stream: Handle,
    parameters: *const *const c_void,
    extra: *const *const c_void,
) -> CUresult {
    call_in_context(|driver| {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let configuration = Configuration { grid, block, dynamic_shared_bytes };
        driver.check_configuration(function, &configuration)?;
        let kernel = driver.function(function)?.kernel.clone();
        let parameters = if extra.is_null() {
            read_parameters(&kernel, parameters.expose_provenance())
        } else {
            // SAFETY: the caller's contract.
            unsafe { copy_parameters(&kernel, extra) }
        };
        let parameters = parameters.map_err(|message| {
            driver.error(CUDA_ERROR_INVALID_VALUE, format!("launch of {}: {message}", kernel.name))
        })?;
        driver.submit(stream, Operation::Launch(KernelLaunch { kernel, configuration, parameters }))
    })
}
