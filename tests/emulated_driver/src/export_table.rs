//! Private function tables of the driver.
use std::ffi::c_void;

use crate::driver::{Out, put_if_wanted};
use crate::errors::{CUDA_ERROR_NOT_FOUND, CUresult};

/// There are none. NVRTC opens the driver by itself and asks for one: without this function it crashes, with the error it goes on.
#[unsafe(no_mangle)]
pub extern "C" fn cuGetExportTable(table: Out<*const c_void>, _id: *const c_void) -> CUresult {
    put_if_wanted(table, std::ptr::null());
    CUDA_ERROR_NOT_FOUND
}
