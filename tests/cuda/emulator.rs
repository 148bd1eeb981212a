//! Functions that only the emulated driver has: settings and counts. On a card there are none, and tests that count pass.
#![allow(unsafe_code, reason = "calls functions that only the emulated driver has")]

use std::ffi::{CString, c_char};

use libloading::os::unix::Library;

/// The driver, which is loaded already, so nothing is initialized again.
fn driver() -> Option<Library> {
    // SAFETY: see above.
    unsafe { Library::new("libcuda.so.1").ok() }
}

fn text(value: &str) -> CString {
    CString::new(value).expect("it has no zeros")
}

/// A count of the launches of a kernel so far, of all kernels if `kernel` is empty; nextest gives each test a process of its
/// own. `None` on a card.
pub fn counter(kernel: &str, name: &str) -> Option<u64> {
    type Counter = unsafe extern "C" fn(*const c_char, *const c_char, *mut u64) -> u32;
    let (kernel, name, mut count) = (text(kernel), text(name), 0);
    let driver = driver()?;
    // SAFETY: the function takes two texts and a place for a number.
    let status = unsafe {
        let counter = driver.get::<Counter>(b"emulated_cuda_counter\0").ok()?;
        counter(kernel.as_ptr(), name.as_ptr(), &raw mut count)
    };
    assert_eq!(status, 0, "the driver counts {name:?}");
    Some(count)
}

/// Changes a setting, named as in `EMULATED_CUDA_*` but in lower case. `None` on a card.
pub fn set(name: &str, value: &str) -> Option<()> {
    type Set = unsafe extern "C" fn(*const c_char, *const c_char) -> u32;
    let (name, value) = (text(name), text(value));
    let driver = driver()?;
    // SAFETY: the function takes two texts.
    let status = unsafe {
        let set = driver.get::<Set>(b"emulated_cuda_set\0").ok()?;
        set(name.as_ptr(), value.as_ptr())
    };
    assert_eq!(status, 0, "the driver has the setting {name:?}");
    Some(())
}
