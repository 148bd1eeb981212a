//! Error codes, their names and texts.
use std::collections::HashSet;
use std::ffi::{CString, c_char};
use std::sync::Mutex;

use exlora_ptx_emulator::report::FaultKind;

use crate::driver::{self, Out, put};

/// What a function answers, as `CUresult` of cuda.h.
pub type CUresult = u32;

macro_rules! error_codes {
    ($($name:ident = $code:literal, $text:literal;)*) => {
        $(#[doc = $text] pub const $name: CUresult = $code;)*

        /// The name of a code in cuda.h, and what it means.
        fn name_and_text(code: CUresult) -> (&'static str, &'static str) {
            match code {
                $($code => (stringify!($name), $text),)*
                _ => ("CUDA_ERROR_UNKNOWN", "unknown error"),
            }
        }
    };
}

error_codes! {
    CUDA_SUCCESS = 0, "no error";
    CUDA_ERROR_INVALID_VALUE = 1, "invalid argument";
    CUDA_ERROR_OUT_OF_MEMORY = 2, "out of memory";
    CUDA_ERROR_NOT_INITIALIZED = 3, "initialization error";
    CUDA_ERROR_INVALID_DEVICE = 101, "invalid device ordinal";
    CUDA_ERROR_INVALID_IMAGE = 200, "device kernel image is invalid";
    CUDA_ERROR_INVALID_CONTEXT = 201, "invalid device context";
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209, "no kernel image is available for execution on the device";
    CUDA_ERROR_INVALID_PTX = 218, "a PTX JIT compilation failed";
    CUDA_ERROR_INVALID_HANDLE = 400, "invalid resource handle";
    CUDA_ERROR_NOT_FOUND = 500, "named symbol not found";
    CUDA_ERROR_NOT_READY = 600, "device not ready";
    CUDA_ERROR_ILLEGAL_ADDRESS = 700, "an illegal memory access was encountered";
    CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES = 701, "too many resources requested for launch";
    CUDA_ERROR_LAUNCH_TIMEOUT = 702, "the launch timed out and was terminated";
    CUDA_ERROR_ASSERT = 710, "device-side assert triggered";
    CUDA_ERROR_ILLEGAL_INSTRUCTION = 715, "an illegal instruction was encountered";
    CUDA_ERROR_MISALIGNED_ADDRESS = 716, "misaligned address";
    CUDA_ERROR_LAUNCH_FAILED = 719, "unspecified launch failure";
    CUDA_ERROR_NOT_SUPPORTED = 801, "operation not supported";
}

/// The code that the real driver answers with.
pub(crate) fn code_of(kind: FaultKind) -> CUresult {
    match kind {
        FaultKind::IllegalAddress => CUDA_ERROR_ILLEGAL_ADDRESS,
        FaultKind::MisalignedAddress => CUDA_ERROR_MISALIGNED_ADDRESS,
        FaultKind::IllegalInstruction => CUDA_ERROR_ILLEGAL_INSTRUCTION,
        FaultKind::Assert => CUDA_ERROR_ASSERT,
        FaultKind::Timeout => CUDA_ERROR_LAUNCH_TIMEOUT,
        FaultKind::LaunchFailed => CUDA_ERROR_LAUNCH_FAILED,
    }
}

/// The name of a code.
pub(crate) fn name(code: CUresult) -> &'static str {
    name_and_text(code).0
}

/// What a code means.
pub(crate) fn text(code: CUresult) -> &'static str {
    name_and_text(code).1
}

/// A C string that lives as long as the process. Equal texts share one.
pub(crate) fn permanent(text: &str) -> *const c_char {
    static TEXTS: Mutex<Option<HashSet<&'static CString>>> = Mutex::new(None);
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    let mut guard = TEXTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let texts = guard.get_or_insert_default();
    if !texts.contains(&text) {
        texts.insert(Box::leak(Box::new(text.clone())));
    }
    texts.get(&text).map_or(std::ptr::null(), |text| text.as_ptr())
}

/// The name of a code.
#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorName(code: CUresult, text: Out<*const c_char>) -> CUresult {
    driver::code(put(text, permanent(name(code))))
}

/// What a code means; if an error with that code has occurred, all that is known about the last one.
#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorString(code: CUresult, out: Out<*const c_char>) -> CUresult {
    let message = driver::last_message(code).unwrap_or_else(|| text(code).to_string());
    driver::code(put(out, permanent(&message)))
}
