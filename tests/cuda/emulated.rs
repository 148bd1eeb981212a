//! What only the emulated driver has: counters, and settings that change while it runs. On a card there are none.
#![allow(unsafe_code, reason = "calls functions that only the emulated driver has")]

use std::ffi::{CString, c_char};

use libloading::os::unix::Library;

/// The emulated driver's count of that name so far in this process; nextest gives each test a process of its own. `None` on a
/// card.
pub fn counter(name: &str) -> Option<u64> {
    type Counter = unsafe extern "C" fn(*const c_char, *const c_char, *mut u64) -> u32;
    let (every_kernel, name) = (c"", text(name));
    let mut count = 0;
    // SAFETY: the driver is loaded already, so nothing is initialized again; the function, which only the emulated driver has,
    // takes two texts and a place for a number.
    let status = unsafe {
        let driver = Library::new("libcuda.so.1").ok()?;
        let counter = driver.get::<Counter>(b"emulated_cuda_counter\0").ok()?;
        counter(every_kernel.as_ptr(), name.as_ptr(), &raw mut count)
    };
    assert_eq!(status, 0, "the driver counts {name:?}");
    Some(count)
}

/// Changes a setting of the emulated driver, which must have been opened; `None` on a card.
pub fn set(name: &str, value: &str) -> Option<()> {
    type Set = unsafe extern "C" fn(*const c_char, *const c_char) -> u32;
    let (name, value) = (text(name), text(value));
    // SAFETY: as for `counter`; the function takes two texts.
    let status = unsafe {
        let driver = Library::new("libcuda.so.1").ok()?;
        let set = driver.get::<Set>(b"emulated_cuda_set\0").ok()?;
        set(name.as_ptr(), value.as_ptr())
    };
    assert_eq!(status, 0, "the driver has the setting {name:?} = {value:?}");
    Some(())
}

fn text(text: &str) -> CString {
    CString::new(text).expect("no zero byte")
}
