//! The driver's library: whether it is there, and new enough.
#![allow(unsafe_code, reason = "a library of C functions, looked up by name")]

use std::ffi::c_int;
use std::fmt;

use cudarc::driver::sys::{self, CUfunction, CUresult};
use cudarc::driver::{DriverError, result};

use super::error::describe;
use crate::error::{Error, ErrorCode, Result};

/// The oldest version of CUDA whose drivers are supported, that of cudarc's bindings.
const OLDEST: DriverVersion = DriverVersion { major: 12, minor: 0 };

/// Every function of the driver that is called, also within cudarc, which panics where one is missing.
const FUNCTIONS: &[&[u8]] = &[
    b"cuCtxGetCurrent\0",
    b"cuCtxSetCurrent\0",
    b"cuCtxSynchronize\0",
    b"cuDeviceGet\0",
    b"cuDeviceGetAttribute\0",
    b"cuDeviceGetCount\0",
    b"cuDeviceGetName\0",
    b"cuDevicePrimaryCtxRelease_v2\0",
    b"cuDevicePrimaryCtxRetain\0",
    b"cuDeviceTotalMem_v2\0",
    b"cuDriverGetVersion\0",
    b"cuEventCreate\0",
    b"cuEventDestroy_v2\0",
    b"cuEventRecord\0",
    b"cuEventSynchronize\0",
    b"cuFuncGetAttribute\0",
    b"cuFuncSetAttribute\0",
    b"cuGetErrorName\0",
    b"cuGetErrorString\0",
    b"cuInit\0",
    b"cuLaunchKernel\0",
    b"cuMemAlloc_v2\0",
    b"cuMemFreeHost\0",
    b"cuMemFree_v2\0",
    b"cuMemGetInfo_v2\0",
    b"cuMemHostAlloc\0",
    b"cuMemcpyDtoDAsync_v2\0",
    b"cuMemcpyDtoHAsync_v2\0",
    b"cuMemcpyHtoDAsync_v2\0",
    b"cuMemsetD8Async\0",
    b"cuModuleGetFunction\0",
    b"cuModuleLoadData\0",
    b"cuModuleUnload\0",
    b"cuStreamCreate\0",
    b"cuStreamDestroy_v2\0",
    b"cuStreamSynchronize\0",
];

/// The version of CUDA that the driver supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DriverVersion {
    /// 13 of 13.0.
    pub major: u32,
    /// 0 of 13.0.
    pub minor: u32,
}

impl fmt::Display for DriverVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Initializes the driver, and returns its version.
///
/// # Errors
/// `cuda_unavailable`: there is no driver, it is too old, or it finds no card.
pub fn probe() -> Result<DriverVersion> {
    // SAFETY: loading the driver's library runs no code of it but its own initialization.
    if !unsafe { sys::is_culib_present() } {
        return Err(unavailable("libcuda.so.1, the library of the NVIDIA driver, was not found"));
    }
    if let Some(missing) = FUNCTIONS.iter().find(|name| !has_function(name)) {
        let name = String::from_utf8_lossy(missing);
        let name = name.trim_end_matches('\0');
        return Err(unavailable(format!("the NVIDIA driver is too old: it has no function {name}")));
    }
    let version = version().map_err(|error| unavailable(format!("the NVIDIA driver fails: {}", describe(error))))?;
    if version < OLDEST {
        return Err(unavailable("the NVIDIA driver is too old")
            .with_expected(format!("CUDA {OLDEST} or newer"))
            .with_found(format!("CUDA {version}"))
            .with_hint("update the NVIDIA driver, or use device=\"cpu\""));
    }
    result::init().map_err(|error| match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => unavailable("the NVIDIA driver finds no card"),
        _ => unavailable(format!("the NVIDIA driver does not start: {}", describe(error))),
    })?;
    Ok(version)
}

/// Number of visible cards.
///
/// # Errors
/// As of [`probe`].
pub fn count() -> Result<usize> {
    probe()?;
    let count = result::device::get_count()
        .map_err(|error| unavailable(format!("counting the cards failed: {}", describe(error))))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// The sizes in bytes of a kernel's parameters, as the driver knows them; `None` before CUDA 12.4.
pub(super) fn parameter_sizes(function: CUfunction) -> Option<Vec<usize>> {
    type GetParameterInfo = unsafe extern "C" fn(CUfunction, usize, *mut usize, *mut usize) -> c_int;
    // SAFETY: the type is that of cuda.h. The library has been loaded, for there is a function.
    let get = *unsafe { sys::culib().get::<GetParameterInfo>(b"cuFuncGetParamInfo\0") }.ok()?;
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is that of a loaded module; both integers are written.
        match unsafe { get(function, sizes.len(), &mut offset, &mut size) } {
            0 => sizes.push(size),
            // There is no such parameter.
            _ => return Some(sizes),
        }
    }
}

fn unavailable(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::CudaUnavailable, message)
}

fn has_function(name: &[u8]) -> bool {
    // SAFETY: the library is there, so looking up does not panic; what is found is not called.
    unsafe { sys::culib().get::<*const ()>(name) }.is_ok()
}

fn version() -> std::result::Result<DriverVersion, DriverError> {
    let mut version: c_int = 0;
    // SAFETY: the function is there; it writes the integer, and needs no initialization.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    let version = version.unsigned_abs();
    Ok(DriverVersion { major: version / 1000, minor: version % 1000 / 10 })
}
