//! Devices and their attributes. A device's handle is its number.
use std::ffi::c_char;

use crate::driver::{Out, call_on, code, device_count, initialize, put};
use crate::errors::{CUDA_ERROR_INVALID_VALUE, CUresult};

/// The version of CUDA that the driver plays: 13.0, whose NVRTC the project pins.
const DRIVER_VERSION: i32 = 13_000;
const NAME: &str = "Emulated CUDA device";

/// Starts the driver.
#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_flags: u32) -> CUresult {
    code(initialize())
}

/// 1000 times the major plus 10 times the minor version of CUDA.
#[unsafe(no_mangle)]
pub extern "C" fn cuDriverGetVersion(version: Out<i32>) -> CUresult {
    code(put(version, DRIVER_VERSION))
}

/// Number of devices.
#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetCount(count: Out<i32>) -> CUresult {
    code(device_count().and_then(|devices| put(count, devices as i32)))
}

/// A device's handle.
#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGet(device: Out<i32>, ordinal: i32) -> CUresult {
    call_on(ordinal, |_| put(device, ordinal))
}

/// The device's name, cut to `len` bytes with the zero at the end.
///
/// # Safety
/// `name` points to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: i32, _device: i32) -> CUresult {
    let Some(most) = usize::try_from(len).ok().and_then(|len| len.checked_sub(1)).filter(|_| !name.is_null()) else {
        return CUDA_ERROR_INVALID_VALUE;
    };
    let count = NAME.len().min(most);
    // SAFETY: the caller has `len` bytes there.
    let target = unsafe { std::slice::from_raw_parts_mut(name.cast::<u8>(), count + 1) };
    target[..count].copy_from_slice(&NAME.as_bytes()[..count]);
    target[count] = 0;
    0
}

/// The device's identity.
#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: i32) -> CUresult {
    let mut bytes = *b"emulated-cuda-00";
    bytes[15] += device as u8;
    call_on(device, |_| put(uuid, bytes))
}

/// Bytes of device memory.
#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) -> CUresult {
    call_on(device, |driver| put(bytes, driver.memory.total_bytes() as usize))
}

/// An attribute by its number in cuda.h; 0 for what the device does not have.
#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetAttribute(value: Out<i32>, attribute: u32, device: i32) -> CUresult {
    call_on(device, |driver| {
        let settings = &driver.settings;
        let (major, minor) = settings.compute_capability;
        let found = match attribute {
            // MAX_THREADS_PER_BLOCK, MAX_BLOCK_DIM_X and _Y, _Z
            1..=3 => 1024,
            4 => 64,
            // MAX_GRID_DIM_X, _Y and _Z
            5 => i32::MAX as u32,
            6 | 7 => 65_535,
            // MAX_SHARED_MEMORY_PER_BLOCK, TOTAL_CONSTANT_MEMORY
            8 => 48 << 10,
            9 => 64 << 10,
            // WARP_SIZE
            10 => 32,
            // MAX_REGISTERS_PER_BLOCK and _MULTIPROCESSOR
            12 | 82 => 65_536,
            // CLOCK_RATE and MEMORY_CLOCK_RATE in kHz, GLOBAL_MEMORY_BUS_WIDTH in bits
            13 => 1_410_000,
            36 => 1_215_000,
            37 => 5120,
            // TEXTURE_ALIGNMENT
            14 => 512,
            16 => settings.multiprocessors,
            // UNIFIED_ADDRESSING
            41 => 1,
            // L2_CACHE_SIZE
            38 => 40 << 20,
            39 => settings.threads_of_multiprocessor(),
            75 => major,
            76 => minor,
            // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, RESERVED_SHARED_MEMORY_PER_BLOCK
            81 => settings.shared_bytes_of_multiprocessor(),
            97 => settings.shared_bytes_of_block(),
            111 => 1024,
            // MAX_BLOCKS_PER_MULTIPROCESSOR
            106 => 32,
            _ => 0,
        };
        put(value, found as i32)
    })
}
