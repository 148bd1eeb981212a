//! The process's one compiler, and what it makes of a source.

use std::sync::OnceLock;

use parking_lot::Mutex;

use super::cache::{self, Cache, Key};
use super::includes::included;
use super::locate::{Candidate, NVRTC_VARIABLE, SearchPaths, candidates};
use super::nvrtc::Nvrtc;
use super::sources::{HEADERS, KernelSource};
use super::target::{Code, Target};
use crate::error::{Error, ErrorCode, Result};

/// NVRTC, where it was found, and the cache of what it compiled.
pub struct Compiler {
    nvrtc: Nvrtc,
    found: Candidate,
    cache: Option<Cache>,
}

/// Code that the driver loads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Cubin or PTX.
    pub code: Code,
    /// The file's bytes; those of PTX end with zero.
    pub bytes: Vec<u8>,
}

/// The compiler of this process, found and loaded by the first call that succeeds; `driver_major` is the major version of
/// CUDA that the driver supports.
///
/// # Errors
/// `cuda_unavailable`: NVRTC was not found, or cannot be loaded.
pub fn compiler(driver_major: u32) -> Result<&'static Compiler> {
    static COMPILER: OnceLock<Compiler> = OnceLock::new();
    static OPENING: Mutex<()> = Mutex::new(());
    let _opening = OPENING.lock();
    if let Some(compiler) = COMPILER.get() {
        return Ok(compiler);
    }
    let compiler = Compiler::open(&SearchPaths::of_this_process(), driver_major, open_cache())?;
    Ok(COMPILER.get_or_init(|| compiler))
}

/// The user's cache, unless it cannot be used: then each process compiles for itself.
fn open_cache() -> Option<Cache> {
    let folder = cache::user_folder()?;
    let opened = Cache::open(folder.clone());
    opened
        .inspect_err(|error| tracing::warn!(folder = %folder.display(), %error, "compiled kernels are not cached"))
        .ok()
}

impl Compiler {
    /// Loads the first NVRTC of the search paths that can be loaded.
    ///
    /// # Errors
    /// `cuda_unavailable`.
    pub fn open(paths: &SearchPaths, driver_major: u32, cache: Option<Cache>) -> Result<Self> {
        let mut problems = Vec::new();
        for found in candidates(paths, driver_major) {
            match Nvrtc::open(&found.library, found.builtins.as_deref()) {
                Ok(nvrtc) => {
                    let (major, minor) = nvrtc.version();
                    tracing::debug!(library = %found.library.display(), "NVRTC {major}.{minor} is loaded");
                    return Ok(Self { nvrtc, found, cache });
                }
                // That the loader knows no such name says nothing.
                Err(error) if found.library.is_absolute() || paths.only.is_some() => problems.push(error),
                Err(_) => {}
            }
        }
        let message = "NVRTC, CUDA's run-time compiler, was not found";
        let hint = format!("pip install 'exlora[cuda]', or set {NVRTC_VARIABLE} to libnvrtc.so");
        let missing = match &paths.only {
            Some(path) => Error::new(ErrorCode::CudaUnavailable, message).with_path(path),
            None => Error::new(ErrorCode::CudaUnavailable, message),
        };
        Err(problems.into_iter().next().unwrap_or(missing).with_hint(hint))
    }

    /// NVRTC itself.
    pub fn nvrtc(&self) -> &Nvrtc {
        &self.nvrtc
    }

    /// Where NVRTC was found.
    pub fn found(&self) -> &Candidate {
        &self.found
    }

    /// Where compiled code is kept, if it is.
    pub fn cache(&self) -> Option<&Cache> {
        self.cache.as_ref()
    }

    /// The code of a source for a target, from the cache or compiled.
    ///
    /// # Errors
    /// `cuda_compile_failed`.
    pub fn compile(&self, source: &KernelSource, defines: &[(&str, &str)], target: Target) -> Result<Image> {
        let options = target.options(defines);
        let headers = included(source.text, HEADERS);
        let key = Key::new(source, &headers, target, &options, self.nvrtc.version());
        if let Some(bytes) = self.cache.as_ref().and_then(|cache| cache.get(&key)) {
            return Ok(Image { code: target.code, bytes });
        }
        let (bytes, log) = self.nvrtc.compile(source, &headers, target.code, &options)?;
        tracing::debug!(source = source.name, target = %target.name(), bytes = bytes.len(), %log, "compiled a kernel source");
        if let Some(cache) = &self.cache
            && let Err(error) = cache.put(&key, &bytes)
        {
            tracing::warn!(folder = %cache.folder().display(), %error, "a compiled kernel is not cached");
        }
        Ok(Image { code: target.code, bytes })
    }

    /// The code of a source for these options, and the compiler's log; neither is cached.
    ///
    /// # Errors
    /// `cuda_compile_failed`.
    pub fn compile_with(&self, source: &KernelSource, code: Code, options: &[String]) -> Result<(Vec<u8>, String)> {
        self.nvrtc.compile(source, &included(source.text, HEADERS), code, options)
    }
}
