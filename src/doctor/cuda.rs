//! What this machine has of CUDA: driver, cards, run-time compiler, compiled kernels.

use std::path::PathBuf;

use serde::Serialize;

/// What this build and this machine have of CUDA.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Cuda {
    /// Whether this build supports it.
    pub built: bool,
    /// What keeps it from being used, if something does: one line.
    pub missing: Option<String>,
    /// The version of CUDA that the driver supports: `13.0`.
    pub driver: Option<String>,
    /// The visible cards.
    pub cards: Vec<Card>,
    /// NVRTC, the run-time compiler.
    pub nvrtc: Option<Nvrtc>,
    /// Compiled kernels.
    pub cache: Option<KernelCache>,
}

/// A card.
#[derive(Clone, Debug, Serialize)]
pub struct Card {
    /// `cuda:0`
    pub device: String,
    /// `NVIDIA H200`
    pub name: String,
    /// `9.0`
    pub compute_capability: String,
    /// Number of streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of device memory.
    pub total_bytes: usize,
    /// Those that nobody uses.
    pub free_bytes: usize,
}

/// NVRTC, the run-time compiler.
#[derive(Clone, Debug, Serialize)]
pub struct Nvrtc {
    /// `13.0`
    pub version: String,
    /// The library: a path, or a name that the loader knows.
    pub library: PathBuf,
    /// Whose it is: `pip wheel`, `torch`, `CUDA toolkit`, `the loader's path`, `EXLORA_NVRTC`.
    pub origin: &'static str,
}

/// The folder of compiled kernels.
#[derive(Clone, Debug, Serialize)]
pub struct KernelCache {
    /// Where it is.
    pub folder: PathBuf,
    /// Number of compiled kernel files.
    pub entries: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Looks for the driver, then for cards and compiler.
#[cfg(not(feature = "cuda"))]
pub(super) fn examine() -> Cuda {
    Cuda::default()
}

/// Looks for the driver, then for cards and compiler.
#[cfg(feature = "cuda")]
pub(super) fn examine() -> Cuda {
    use crate::backend::cuda::driver;

    let mut found = Cuda { built: true, ..Cuda::default() };
    let version = match driver::probe() {
        Ok(version) => version,
        Err(error) => return Cuda { missing: Some(error.message().to_owned()), ..found },
    };
    found.driver = Some(version.to_string());
    let mut missing = None;
    match cards() {
        Ok(cards) => found.cards = cards,
        Err(error) => missing = Some(error),
    }
    match compiler(version.major) {
        Ok((nvrtc, cache)) => (found.nvrtc, found.cache) = (Some(nvrtc), cache),
        Err(error) => missing = missing.or(Some(error)),
    }
    Cuda { missing: missing.map(|error| error.to_string()), ..found }
}

#[cfg(feature = "cuda")]
fn cards() -> crate::error::Result<Vec<Card>> {
    use crate::backend::cuda::driver::{Device, count};

    let open = |ordinal| {
        let device = Device::open(ordinal)?;
        let properties = device.properties();
        let (major, minor) = properties.compute_capability;
        Ok(Card {
            device: format!("cuda:{ordinal}"),
            name: properties.name.clone(),
            compute_capability: format!("{major}.{minor}"),
            multiprocessors: properties.multiprocessors,
            total_bytes: properties.total_bytes,
            free_bytes: device.free_bytes()?,
        })
    };
    (0..count()?).map(open).collect()
}

#[cfg(feature = "cuda")]
fn compiler(driver_major: u32) -> crate::error::Result<(Nvrtc, Option<KernelCache>)> {
    use crate::backend::cuda::compiler::compiler;

    let compiler = compiler(driver_major)?;
    let (major, minor) = compiler.nvrtc().version();
    let found = compiler.found();
    let nvrtc = Nvrtc { version: format!("{major}.{minor}"), library: found.library.clone(), origin: found.origin };
    let cache = compiler.cache().map(|cache| {
        let (entries, bytes) = cache.usage();
        KernelCache { folder: cache.folder().to_path_buf(), entries, bytes }
    });
    Ok((nvrtc, cache))
}
