//! Functions beyond the CUDA API, found by name in the library: settings of all devices; errors and counters of the one whose
//! context is current in the calling thread, or of the first one.
use std::ffi::c_char;

use exlora_ptx_emulator::counters::Counters;

use crate::driver::{Driver, Out, Result, Text, call, call_on_each, put};
use crate::errors::{CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_NOT_FOUND, CUresult, permanent};

/// Changes a setting, by its name in lower case: see [`crate::settings`].
#[unsafe(no_mangle)]
pub extern "C" fn emulated_cuda_set(name: Text, value: Text) -> CUresult {
    call_on_each(|driver| {
        let (name, value) = (name.read()?, value.read()?);
        // Work that has been submitted runs under the settings of then.
        let result = driver.run_all_streams();
        if !driver.settings.set(&name, &value) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        driver.memory.set_total_bytes(driver.settings.memory_bytes);
        result
    })
}

/// Forgets errors, warnings and counts, and mends the context. Memory keeps its contents.
#[unsafe(no_mangle)]
pub extern "C" fn emulated_cuda_clear() -> CUresult {
    call_on_each(Driver::clear)
}

/// The last error in full, or an empty text.
#[unsafe(no_mangle)]
pub extern "C" fn emulated_cuda_last_error(text: Out<*const c_char>) -> CUresult {
    call(|driver| put(text, permanent(&driver.last_error)))
}

/// All warnings, a line each.
#[unsafe(no_mangle)]
pub extern "C" fn emulated_cuda_warnings(text: Out<*const c_char>) -> CUresult {
    call(|driver| put(text, permanent(&driver.warnings.join("\n"))))
}

/// A count by its name, over all launches of a kernel, or of all kernels if `kernel` is empty: see [`Counters::named`]. Besides,
/// `used_bytes` and `peak_bytes` of device memory, `pinned_bytes` of the host's, and `allocations`, `frees` and
/// `synchronizations`: calls that allocate or free device memory, or wait; `uploads`, copies to the device; and `downloaded_bytes`, which were
/// copied to the host.
#[unsafe(no_mangle)]
pub extern "C" fn emulated_cuda_counter(kernel: Text, name: Text, count: Out<u64>) -> CUresult {
    call(|driver| {
        let name = name.read()?;
        let counters = driver.counters_of(&kernel.read()?)?;
        let others = [
            ("used_bytes", driver.memory.used_bytes()),
            ("peak_bytes", driver.memory.peak_bytes()),
            ("pinned_bytes", driver.pinned.values().map(|layout| layout.size() as u64).sum()),
            ("allocations", driver.calls.allocations),
            ("frees", driver.calls.frees),
            ("synchronizations", driver.calls.synchronizations),
            ("uploads", driver.calls.uploads),
            ("downloaded_bytes", driver.calls.downloaded_bytes),
        ];
        let mut all = counters.named().chain(others.map(|(name, count)| (name.to_string(), count)));
        put(count, all.find(|(known, _)| *known == name).ok_or(CUDA_ERROR_NOT_FOUND)?.1)
    })
}

/// All counts of all kernels as a text: a line `KERNEL NAME COUNT` for each that is not 0.
#[unsafe(no_mangle)]
pub extern "C" fn emulated_cuda_counters(text: Out<*const c_char>) -> CUresult {
    call(|driver| {
        let mut lines = String::new();
        for (kernel, counters) in &driver.counters {
            for (name, count) in counters.named().filter(|&(_, count)| count > 0) {
                lines += &format!("{kernel} {name} {count}\n");
            }
        }
        put(text, permanent(&lines))
    })
}

impl Driver {
    fn counters_of(&self, kernel: &str) -> Result<Counters> {
        if kernel.is_empty() {
            let mut sum = Counters::default();
            self.counters.values().for_each(|counters| sum.add(counters));
            return Ok(sum);
        }
        Ok(self.counters.get(kernel).cloned().unwrap_or_default())
    }
}
