//! Diagnostics of this build and this machine, as data: for the command `doctor`, for Python, for bug reports.

#[cfg(feature = "cuda")]
mod ceilings;
mod cuda;
mod kernels;
pub mod random;
pub mod random_weights;

use std::fs;

use serde::Serialize;

#[cfg(feature = "cuda")]
pub use self::ceilings::{Ceilings, measure_ceilings};
pub use self::cuda::{Card, Cuda, KernelCache, Nvrtc};
pub use self::kernels::{KernelCheck, check_kernels};
use crate::backend::cpu;
use crate::files::available_memory;

/// The result of [`examine`].
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this crate.
    pub version: &'static str,
    /// `release` or `debug`: a debug build is many times slower.
    pub profile: &'static str,
    /// Operating system and processor family: `linux-x86_64`.
    pub platform: String,
    /// The processor.
    pub cpu: Cpu,
    /// The device that would be used: `cpu (avx512, 2 threads)`, or why there is none.
    pub device: String,
    /// The machine's memory.
    pub memory: Memory,
    /// The kernel's setting of transparent huge pages (`always`, `madvise`, `never`), if it can be read.
    pub huge_pages: Option<String>,
    /// CUDA: driver, cards, compiler.
    pub cuda: Cuda,
}

/// The processor.
#[derive(Clone, Debug, Serialize)]
pub struct Cpu {
    /// Its name, if it can be read.
    pub name: Option<String>,
    /// Logical processors available to this process.
    pub threads: usize,
    /// The relevant instruction sets that it has.
    pub features: Vec<&'static str>,
}

/// The machine's memory, if it can be read.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    /// Total bytes.
    pub total_bytes: Option<u64>,
    /// Bytes available without swapping.
    pub available_bytes: Option<u64>,
}

/// Examines this build and this machine.
pub fn examine() -> Report {
    let device = cpu::open(&cpu::CpuOptions::default()).and_then(|builder| builder.finish());
    let device = device.map_or_else(|e| e.to_string(), |backend| backend.description);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Report {
        version: env!("CARGO_PKG_VERSION"),
        profile: if cfg!(debug_assertions) { "debug" } else { "release" },
        platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
        cpu: Cpu {
            name: fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| value_of(&text, "model name")),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            features: cpu_features(),
        },
        device,
        memory: Memory { total_bytes: bytes_of(&memory, "MemTotal"), available_bytes: available_memory() },
        huge_pages: fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok().and_then(|t| chosen(&t)),
        cuda: cuda::examine(),
    }
}

/// Peak resident memory of this process, in bytes.
pub fn peak_resident_bytes() -> Option<u64> {
    bytes_of(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM")
}

/// The machine's load average over the last minute: measurements on a busy machine mean little.
pub fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// The value of a key in a file of lines such as `model name : AMD EPYC`.
fn value_of(text: &str, key: &str) -> Option<String> {
    let named = |line: &str| Some(line.split_once(':').filter(|(name, _)| name.trim() == key)?.1.trim().to_owned());
    text.lines().find_map(named)
}

/// A value such as `MemTotal: 16 kB`, in bytes.
fn bytes_of(text: &str, key: &str) -> Option<u64> {
    value_of(text, key)?.strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The bracketed choice of `always [madvise] never`.
fn chosen(text: &str) -> Option<String> {
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<&'static str> {
    macro_rules! found {
        ($($name:tt),*) => {
            [$(($name, std::arch::is_x86_feature_detected!($name))),*]
        };
    }
    let all = found!(
        "sse4.2",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "avxvnni",
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512vnni",
        "avx512bf16"
    );
    all.into_iter().filter_map(|(name, is_there)| is_there.then_some(name)).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_files_are_read() {
        let text = "MemTotal:       16 kB\nMemAvailable:    8 kB\nmodel name\t: Some CPU: fast\n";
        assert_eq!(bytes_of(text, "MemTotal"), Some(16 << 10));
        assert_eq!(bytes_of(text, "MemFree"), None);
        assert_eq!(value_of(text, "model name").as_deref(), Some("Some CPU: fast"));
        assert_eq!(chosen("always [madvise] never").as_deref(), Some("madvise"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_had_memory() {
        assert!(peak_resident_bytes().is_some_and(|bytes| bytes > 1 << 20));
        assert!(load_average().is_some());
    }
}
