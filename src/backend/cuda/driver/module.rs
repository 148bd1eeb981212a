//! Modules of compiled kernels, loaded onto a card.
#![allow(unsafe_code, reason = "calls of the CUDA driver")]

use std::ffi::{CString, c_void};
use std::fmt;
use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute as Attribute;
use cudarc::driver::{result, sys};

use super::super::compiler::sources::KernelSource;
use super::super::compiler::{Image, Target, compiler};
use super::device::{Device, Stream};
use super::error::{During, failed};
use super::library::parameter_sizes;
use crate::error::{Error, ErrorCode, Result};

/// The kernels of one source, on one card. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Module(Arc<Loaded>);

struct Loaded {
    device: Arc<Device>,
    handle: sys::CUmodule,
    source: &'static KernelSource,
}

// SAFETY: the driver's handles may be used from any thread that has bound the context, and every use binds it.
unsafe impl Send for Loaded {}
// SAFETY: as above; the driver locks what it needs.
unsafe impl Sync for Loaded {}

impl Device {
    /// Compiles a source with these names defined, or takes it from the cache, and loads it.
    ///
    /// # Errors
    /// `cuda_unavailable`: NVRTC is missing or does not know the card; `cuda_compile_failed`; `cuda_driver_failed`; `internal`
    /// for defines that are none of the source's variants.
    pub fn module(self: &Arc<Self>, source: &'static KernelSource, defines: &[(&str, &str)]) -> Result<Module> {
        if !source.variants.contains(&defines) {
            let message = format!("kernel source '{}' has no variant {defines:?}", source.name);
            return Err(Error::new(ErrorCode::Internal, message));
        }
        let compiler = compiler(self.properties().driver_version.major)?;
        let (capability, known) = (self.properties().compute_capability, compiler.nvrtc().architectures());
        if let Some(target) = Target::cubin(capability, known)
            && let Some(module) = Module::load(self, source, &compiler.compile(source, defines, target)?)?
        {
            return Ok(module);
        }
        // The driver compiles PTX itself: for a card that is newer than the compiler, or a driver that takes no cubin.
        let unsupported = || {
            let (major, minor) = compiler.nvrtc().version();
            Error::new(ErrorCode::CudaUnavailable, format!("NVRTC {major}.{minor} makes no code for this card"))
                .with_path(&compiler.found().library)
                .with_expected(format!("NVRTC of CUDA {}.x", self.properties().driver_version.major))
                .with_found(format!("driver for CUDA {}", self.properties().driver_version))
                .with_hint("install the NVRTC that matches the driver: pip install nvidia-cuda-nvrtc-cu12 for CUDA 12")
        };
        let target = Target::ptx(capability, known).ok_or_else(unsupported)?;
        Module::load(self, source, &compiler.compile(source, defines, target)?)?.ok_or_else(unsupported)
    }
}

impl Module {
    /// Loads compiled code; `None` if the driver has no use for this kind of code.
    fn load(device: &Arc<Device>, source: &'static KernelSource, image: &Image) -> Result<Option<Self>> {
        device.bind(Stream::Compute)?;
        // SAFETY: the image is a whole cubin, or PTX that ends with zero, and is borrowed until the call returns.
        match unsafe { result::module::load_data(image.bytes.as_ptr().cast::<c_void>()) } {
            Ok(handle) => Ok(Some(Self(Arc::new(Loaded { device: device.clone(), handle, source })))),
            Err(error)
                if matches!(
                    error.0,
                    sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU | sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(failed(format_args!("loading the kernels of '{}'", source.name), error)),
        }
    }

    /// A kernel by its name (`extern "C"`).
    ///
    /// # Errors
    /// `cuda_driver_failed`: the module has no such kernel.
    pub fn kernel(&self, name: &str) -> Result<Kernel> {
        let what = || format!("looking up kernel '{name}' of '{}'", self.0.source.name);
        let c_name =
            CString::new(name).map_err(|_| Error::new(ErrorCode::Internal, "a kernel's name has a zero byte"))?;
        self.0.device.bind(Stream::Compute)?;
        // SAFETY: the module is loaded.
        let handle = unsafe { result::module::get_function(self.0.handle, c_name) }.during(what())?;
        // SAFETY: the function is that of the module, which is loaded.
        let attribute = |attribute| unsafe { result::function::get_function_attribute(handle, attribute) };
        let static_bytes = attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES).during(what())?.unsigned_abs();
        let max_threads = attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK).during(what())?.unsigned_abs();
        let max_shared_bytes = self.0.device.properties().shared_memory_per_block.saturating_sub(static_bytes);
        // More than 48 KiB must be asked for. A launch that needs less is not affected.
        let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is that of the module, which is loaded.
        unsafe { result::function::set_function_attribute(handle, attribute, max_shared_bytes as i32) }
            .during(what())?;
        Ok(Kernel {
            module: self.clone(),
            name: name.to_owned(),
            handle,
            parameter_sizes: parameter_sizes(handle),
            max_threads,
            max_shared_bytes,
        })
    }
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module").field("source", &self.source.name).finish_non_exhaustive()
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: the module was loaded and is unloaded once; its kernels keep it alive.
        let unloaded = self
            .device
            .bind(Stream::Compute)
            .and_then(|_| unsafe { result::module::unload(self.handle) }.during("unloading a module"));
        if let Err(error) = unloaded {
            tracing::debug!(%error, source = self.source.name, "a module is not unloaded");
        }
    }
}

/// A kernel of a loaded module.
#[derive(Clone, Debug)]
pub struct Kernel {
    module: Module,
    name: String,
    handle: sys::CUfunction,
    parameter_sizes: Option<Vec<usize>>,
    max_threads: u32,
    max_shared_bytes: u32,
}

// SAFETY: as for the module.
unsafe impl Send for Kernel {}
// SAFETY: as for the module.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// Its name in the source.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The sizes in bytes of its parameters, if the driver tells (from CUDA 12.4 on).
    pub fn parameter_sizes(&self) -> Option<&[usize]> {
        self.parameter_sizes.as_deref()
    }

    /// Most threads that a block of it can have.
    pub fn max_threads(&self) -> u32 {
        self.max_threads
    }

    /// Most bytes of dynamic shared memory that a block of it can have.
    pub fn max_shared_bytes(&self) -> u32 {
        self.max_shared_bytes
    }

    pub(super) fn device(&self) -> &Device {
        &self.module.0.device
    }

    pub(super) fn handle(&self) -> sys::CUfunction {
        self.handle
    }
}
