//! Launching kernels.
#![allow(unsafe_code, reason = "calls of the CUDA driver")]

use std::ffi::c_void;

use bytemuck::Pod;
use cudarc::driver::result;

use super::device::Stream;
use super::error::During;
use super::module::Kernel;
use crate::error::{Error, ErrorCode, Result};

/// The argument of a kernel: one struct, by value. Device pointers in it are `u64`.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a> {
    bytes: &'a [u8],
}

impl<'a> Arguments<'a> {
    /// The `#[repr(C)]` twin of the kernel's parameter.
    pub fn of<T: Pod>(value: &'a T) -> Self {
        Self { bytes: bytemuck::bytes_of(value) }
    }
}

impl Kernel {
    /// Launches `grid` blocks of `block` threads, each block with `shared_bytes` of dynamic shared memory, behind the steps that
    /// were launched before. Returns at once; what goes wrong on the card is reported by a later call. In a dry run nothing is
    /// launched.
    ///
    /// The kernels and their arguments are this crate's own: one that gets the address of something else than its parameter
    /// expects is a bug that the driver reports at best.
    ///
    /// # Errors
    /// `internal`: the argument has another size than the kernel's parameter, or the launch exceeds what the kernel or the card
    /// can have; `cuda_driver_failed`, also where work launched before failed.
    pub fn launch(&self, grid: [u32; 3], block: u32, shared_bytes: u32, arguments: &Arguments<'_>) -> Result<()> {
        self.check(grid, block, shared_bytes, arguments)?;
        if self.device().is_dry_run() {
            return Ok(());
        }
        let stream = self.device().bind(Stream::Compute)?;
        let mut parameters = [arguments.bytes.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the module is loaded; the parameter is as large as the kernel's and is copied before the call returns.
        unsafe {
            result::launch_kernel(
                self.handle(),
                (grid[0], grid[1], grid[2]),
                (block, 1, 1),
                shared_bytes,
                stream,
                &mut parameters,
            )
        }
        .during(format_args!("launching kernel '{}'", self.name()))
    }

    fn check(&self, grid: [u32; 3], block: u32, shared_bytes: u32, arguments: &Arguments<'_>) -> Result<()> {
        let wrong = |what: &str| Error::new(ErrorCode::Internal, format!("kernel '{}': {what}", self.name()));
        if let Some(sizes) = self.parameter_sizes()
            && sizes != [arguments.bytes.len()]
        {
            return Err(wrong("its parameters have other sizes than its argument")
                .with_expected(format!("{sizes:?} bytes"))
                .with_found(format!("{} bytes", arguments.bytes.len())));
        }
        if grid.contains(&0) || grid[1] > 65535 || grid[2] > 65535 || i32::try_from(grid[0]).is_err() {
            return Err(wrong("its grid cannot be launched").with_found(format!("{grid:?} blocks")));
        }
        if block == 0 || block > self.max_threads() {
            return Err(wrong("its blocks have too many threads or none")
                .with_expected(format!("1 to {}", self.max_threads()))
                .with_found(block));
        }
        if shared_bytes > self.max_shared_bytes() {
            return Err(wrong("its blocks need too much shared memory")
                .with_expected(format!("at most {} bytes", self.max_shared_bytes()))
                .with_found(format!("{shared_bytes} bytes")));
        }
        Ok(())
    }
}
