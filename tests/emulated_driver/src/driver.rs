//! The state of the driver, which all functions share. Devices share nothing, so each has a state of its own.
use std::alloc::Layout;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;
use std::sync::{Mutex, MutexGuard, PoisonError};

use exlora_ptx_emulator::counters::Counters;
use exlora_ptx_emulator::memory::DeviceMemory;

use crate::cubin::CubinKernel;
use crate::errors::{
    CUDA_ERROR_INVALID_CONTEXT, CUDA_ERROR_INVALID_DEVICE, CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_NOT_INITIALIZED,
    CUDA_SUCCESS, CUresult, name, text,
};
use crate::event::Event;
use crate::function::Function;
use crate::module::Module;
use crate::settings::Settings;
use crate::stream::Stream;

/// A handle of a context, stream, event, module or function.
pub(crate) type Handle = usize;
/// An address in device memory.
pub(crate) type CUdeviceptr = u64;
/// What functions of this crate return; the error is the code for the caller.
pub(crate) type Result<T = ()> = std::result::Result<T, CUresult>;
/// Where a C caller wants a result; `None` is a null pointer.
pub type Out<'a, T> = Option<&'a mut MaybeUninit<T>>;

/// A C string that a caller passes.
#[repr(transparent)]
pub struct Text(*const c_char);

impl Text {
    /// Text for calls from Rust.
    pub fn new(text: &CStr) -> Text {
        Text(text.as_ptr())
    }

    pub(crate) fn read(&self) -> Result<String> {
        if self.0.is_null() {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: the caller passes a string that ends with zero, as cuda.h demands.
        Ok(unsafe { CStr::from_ptr(self.0) }.to_string_lossy().into_owned())
    }
}

/// The primary context of the first device; those of the others follow, one handle after another.
const FIRST_CONTEXT: Handle = 0xc0de_0000;

/// The state of the driver for one device, and for its primary context, the only one of the device.
pub(crate) struct Driver {
    /// The handle of its context.
    pub(crate) context: Handle,
    pub(crate) settings: Settings,
    pub(crate) memory: DeviceMemory,
    /// How often the context has been retained.
    pub(crate) context_references: u32,
    pub(crate) streams: BTreeMap<Handle, Stream>,
    pub(crate) events: HashMap<Handle, Event>,
    pub(crate) modules: HashMap<Handle, Module>,
    pub(crate) functions: HashMap<Handle, Function>,
    /// Pinned host memory by address.
    pub(crate) pinned: BTreeMap<usize, Layout>,
    /// The kernels of the last cubin that was refused, until a PTX module has been compared with them.
    pub(crate) refused_cubin: Option<Vec<CubinKernel>>,
    /// The fault that has broken the context.
    pub(crate) fault: Option<CUresult>,
    /// The last error in full, and the last of each code.
    pub(crate) last_error: String,
    pub(crate) messages: HashMap<CUresult, String>,
    pub(crate) warnings: Vec<String>,
    pub(crate) calls: CallCounts,
    /// By kernel.
    pub(crate) counters: BTreeMap<String, Counters>,
    last_handle: Handle,
}

/// What a program had better not do much of in a hurry.
#[derive(Default)]
pub(crate) struct CallCounts {
    /// Allocations of device memory that succeeded.
    pub(crate) allocations: u64,
    /// Device memory freed.
    pub(crate) frees: u64,
    /// Waits for a stream or for all work; those for an event only where it has not been reached.
    pub(crate) synchronizations: u64,
    /// Copies to the device.
    pub(crate) uploads: u64,
    /// Bytes that were copied to the host.
    pub(crate) downloaded_bytes: u64,
}

/// A driver for each device; none before `cuInit`.
static DRIVERS: Mutex<Vec<Driver>> = Mutex::new(Vec::new());

thread_local! {
    /// The context that is current in this thread, or 0.
    pub(crate) static CURRENT_CONTEXT: Cell<Handle> = const { Cell::new(0) };
}

fn lock() -> MutexGuard<'static, Vec<Driver>> {
    DRIVERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The device whose context is current in this thread, or the first one.
pub(crate) fn current_device() -> usize {
    CURRENT_CONTEXT.get().saturating_sub(FIRST_CONTEXT)
}

/// The code that a C caller gets.
pub(crate) fn code(result: Result) -> CUresult {
    result.err().unwrap_or(CUDA_SUCCESS)
}

/// Calls the driver of the current device, or of the first one. It must have been initialized.
pub(crate) fn call(function: impl FnOnce(&mut Driver) -> Result) -> CUresult {
    code(lock().get_mut(current_device()).ok_or(CUDA_ERROR_NOT_INITIALIZED).and_then(function))
}

/// Calls the driver of a device, by its number.
pub(crate) fn call_on(device: i32, function: impl FnOnce(&mut Driver) -> Result) -> CUresult {
    let mut drivers = lock();
    if drivers.is_empty() {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    let driver = usize::try_from(device).ok().and_then(|device| drivers.get_mut(device));
    code(driver.ok_or(CUDA_ERROR_INVALID_DEVICE).and_then(function))
}

/// Calls the driver of every device.
pub(crate) fn call_on_each(function: impl FnMut(&mut Driver) -> Result) -> CUresult {
    let mut drivers = lock();
    code(if drivers.is_empty() { Err(CUDA_ERROR_NOT_INITIALIZED) } else { drivers.iter_mut().try_for_each(function) })
}

/// Makes a context current in this thread; 0 is none.
pub(crate) fn set_current_context(context: Handle) -> Result {
    let is_retained = |driver: &Driver| driver.context == context && driver.context_references > 0;
    if context != 0 && !lock().iter().any(is_retained) {
        return Err(CUDA_ERROR_INVALID_CONTEXT);
    }
    CURRENT_CONTEXT.set(context);
    Ok(())
}

/// Number of devices.
pub(crate) fn device_count() -> Result<usize> {
    let count = lock().len();
    if count == 0 { Err(CUDA_ERROR_NOT_INITIALIZED) } else { Ok(count) }
}

/// Calls the driver within the context that is current in this thread.
pub(crate) fn call_in_context(function: impl FnOnce(&mut Driver) -> Result) -> CUresult {
    call(|driver| if CURRENT_CONTEXT.get() == 0 { Err(CUDA_ERROR_INVALID_CONTEXT) } else { function(driver) })
}

/// Starts the driver, if it has not been started.
pub(crate) fn initialize() -> Result {
    let mut drivers = lock();
    if drivers.is_empty() {
        *drivers = (0..Settings::devices()).map(Driver::new).collect::<Result<_>>()?;
    }
    Ok(())
}

/// Gives a result to a C caller.
pub(crate) fn put<T>(out: Out<T>, value: T) -> Result {
    out.ok_or(CUDA_ERROR_INVALID_VALUE)?.write(value);
    Ok(())
}

/// Gives a result to a C caller who may not want it.
pub(crate) fn put_if_wanted<T>(out: Out<T>, value: T) {
    if let Some(out) = out {
        out.write(value);
    }
}

/// The last error of a code in full.
pub(crate) fn last_message(code: CUresult) -> Option<String> {
    lock().get(current_device()).and_then(|driver| driver.messages.get(&code).cloned())
}

impl Driver {
    /// That of a device, by its number.
    fn new(device: usize) -> Result<Driver> {
        let settings = Settings::from_environment();
        let memory = DeviceMemory::new(settings.memory_bytes).map_err(|message| {
            eprintln!("emulated CUDA driver: {message}");
            crate::errors::CUDA_ERROR_OUT_OF_MEMORY
        })?;
        Ok(Driver {
            context: FIRST_CONTEXT + device,
            settings,
            memory,
            context_references: 0,
            // The default stream, by its three handles.
            streams: (0..3).map(|handle| (handle, Stream::default())).collect(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            pinned: BTreeMap::new(),
            refused_cubin: None,
            fault: None,
            last_error: String::new(),
            messages: HashMap::new(),
            warnings: vec![],
            calls: CallCounts::default(),
            counters: BTreeMap::new(),
            // No handle of a device is one of another.
            last_handle: 0x1000 + (device << 32),
        })
    }

    pub(crate) fn new_handle(&mut self) -> Handle {
        self.last_handle += 16;
        self.last_handle
    }

    /// An error that somebody should read; returns its code.
    pub(crate) fn error(&mut self, code: CUresult, message: impl AsRef<str>) -> CUresult {
        let message = message.as_ref();
        if !self.settings.quiet {
            eprintln!("emulated CUDA driver: {} ({code}): {message}", name(code));
        }
        self.last_error = format!("{}: {message}", text(code));
        self.messages.insert(code, self.last_error.clone());
        code
    }

    /// Something that is no error, but looks wrong.
    pub(crate) fn warn(&mut self, message: String) {
        if !self.settings.quiet {
            eprintln!("emulated CUDA driver: warning: {message}");
        }
        self.warnings.push(message);
    }

    /// Fails if a kernel has broken the context.
    pub(crate) fn check_fault(&self) -> Result {
        self.fault.map_or(Ok(()), Err)
    }
}
