//! NVRTC, NVIDIA's run-time compiler: the few functions that are needed, bound by hand.
//!
//! cudarc's own binding returns PTX only, looks in none of the folders where pip installs the library, and panics where it
//! finds none.
#![allow(unsafe_code, reason = "a library of C functions, loaded by name")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};

use super::sources::{Header, KernelSource};
use super::target::Code;
use crate::error::{Error, ErrorCode, Result};

/// `nvrtcProgram`.
type Program = *mut c_void;
/// `nvrtcResult`; 0 is success.
type Status = c_int;
type GetSize = unsafe extern "C" fn(Program, *mut usize) -> Status;
type GetBytes = unsafe extern "C" fn(Program, *mut c_char) -> Status;

macro_rules! functions {
    ($($field:ident: $type:ty = $symbol:literal,)+) => {
        struct Functions {
            $($field: $type,)+
        }

        impl Functions {
            /// # Safety
            /// `library` is NVRTC, and stays loaded as long as the functions are called.
            unsafe fn load(library: &Library) -> Result<Self, libloading::Error> {
                // SAFETY: the types are those of nvrtc.h; none of the functions changed since CUDA 11.2.
                Ok(Self { $($field: unsafe { *library.get::<$type>($symbol)? },)+ })
            }
        }
    };
}

functions! {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status = b"nvrtcVersion\0",
    architecture_count: unsafe extern "C" fn(*mut c_int) -> Status = b"nvrtcGetNumSupportedArchs\0",
    architectures: unsafe extern "C" fn(*mut c_int) -> Status = b"nvrtcGetSupportedArchs\0",
    error_string: unsafe extern "C" fn(Status) -> *const c_char = b"nvrtcGetErrorString\0",
    create_program: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status = b"nvrtcCreateProgram\0",
    compile_program: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status = b"nvrtcCompileProgram\0",
    destroy_program: unsafe extern "C" fn(*mut Program) -> Status = b"nvrtcDestroyProgram\0",
    log_size: GetSize = b"nvrtcGetProgramLogSize\0",
    log: GetBytes = b"nvrtcGetProgramLog\0",
    cubin_size: GetSize = b"nvrtcGetCUBINSize\0",
    cubin: GetBytes = b"nvrtcGetCUBIN\0",
    ptx_size: GetSize = b"nvrtcGetPTXSize\0",
    ptx: GetBytes = b"nvrtcGetPTX\0",
}

/// The loaded compiler.
pub struct Nvrtc {
    functions: Functions,
    version: (u32, u32),
    architectures: Vec<u32>,
    /// Unloaded last, after whatever its functions need.
    _library: Library,
    _builtins: Option<Library>,
}

impl Nvrtc {
    /// Loads the library from a file, or by name from the loader's path, after its library of builtins if that is given: some
    /// versions open it by name alone and fail unless it is loaded.
    ///
    /// # Errors
    /// `cuda_unavailable`.
    pub fn open(library: &Path, builtins: Option<&Path>) -> Result<Self> {
        let unusable = |error: &dyn std::fmt::Display| {
            Error::new(ErrorCode::CudaUnavailable, format!("NVRTC cannot be loaded: {error}")).with_path(library)
        };
        // SAFETY: loading NVIDIA's libraries runs no code of theirs but their own initialization.
        let builtins = builtins.and_then(|path| unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.ok());
        // SAFETY: as above.
        let opened =
            unsafe { Library::open(Some(library), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| unusable(&error))?;
        // SAFETY: the library is kept beside the functions.
        let functions = unsafe { Functions::load(&opened) }.map_err(|error| unusable(&error))?;

        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: each writes the integers that it is given.
        let status = unsafe {
            match (functions.version)(&mut major, &mut minor) {
                0 => (functions.architecture_count)(&mut count),
                status => status,
            }
        };
        let mut architectures = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: the buffer has as many elements as the library said that it writes.
        let listed = unsafe { (functions.architectures)(architectures.as_mut_ptr()) };
        let status = if status == 0 { listed } else { status };
        if status != 0 {
            return Err(unusable(&format_args!("it failed with status {status}")));
        }
        Ok(Self {
            functions,
            version: (major.unsigned_abs(), minor.unsigned_abs()),
            architectures: architectures.into_iter().map(i32::unsigned_abs).collect(),
            _library: opened,
            _builtins: builtins,
        })
    }

    /// Major and minor version of the CUDA toolkit that it belongs to.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// The architectures that it compiles for, as compute capability times ten.
    pub fn architectures(&self) -> &[u32] {
        &self.architectures
    }

    /// Compiles a source to `code`, and returns it with the compiler's log. PTX ends with a zero byte.
    ///
    /// # Errors
    /// `cuda_compile_failed`, with the compiler's log.
    pub fn compile(
        &self,
        source: &KernelSource,
        headers: &[&Header],
        code: Code,
        options: &[String],
    ) -> Result<(Vec<u8>, String)> {
        let program = self.create_program(source, headers)?;
        let options = c_strings(options.iter().map(String::as_str))?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is alive; `pointers` are that many strings that end with zero.
        let status =
            unsafe { (self.functions.compile_program)(program.handle, length(pointers.len())?, pointers.as_ptr()) };
        let log = self.bytes(&program, "log", self.functions.log_size, self.functions.log)?;
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_owned();
        if status != 0 {
            tracing::error!(source = source.name, %log, "a CUDA kernel does not compile");
            let lines = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
            return Err(self.failed(source, status).with_found(lines));
        }
        let image = match code {
            Code::Cubin => self.bytes(&program, "cubin", self.functions.cubin_size, self.functions.cubin)?,
            Code::Ptx => self.bytes(&program, "PTX", self.functions.ptx_size, self.functions.ptx)?,
        };
        Ok((image, log))
    }

    fn create_program(&self, source: &KernelSource, headers: &[&Header]) -> Result<LiveProgram<'_>> {
        let strings = c_strings([source.text, source.name])?;
        let names = c_strings(headers.iter().map(|header| header.name))?;
        let texts = c_strings(headers.iter().map(|header| header.text))?;
        let pointers = |strings: &[CString]| strings.iter().map(|string| string.as_ptr()).collect::<Vec<_>>();
        let (name_pointers, text_pointers) = (pointers(&names), pointers(&texts));
        let mut handle = ptr::null_mut();
        // SAFETY: all strings end with zero and live until the call returns; the library copies them.
        let status = unsafe {
            (self.functions.create_program)(
                &mut handle,
                strings[0].as_ptr(),
                strings[1].as_ptr(),
                length(headers.len())?,
                text_pointers.as_ptr(),
                name_pointers.as_ptr(),
            )
        };
        if status == 0 { Ok(LiveProgram { of: self, handle }) } else { Err(self.failed(source, status)) }
    }

    /// What one of the pairs of functions, for the size and for the bytes, says about a program.
    fn bytes(&self, program: &LiveProgram<'_>, what: &str, size: GetSize, get: GetBytes) -> Result<Vec<u8>> {
        let mut length = 0;
        // SAFETY: the program is alive.
        let mut status = unsafe { size(program.handle, &mut length) };
        let mut bytes = vec![0u8; length];
        if status == 0 {
            // SAFETY: the buffer has the size that the library asked for.
            status = unsafe { get(program.handle, bytes.as_mut_ptr().cast()) };
        }
        if status == 0 {
            return Ok(bytes);
        }
        Err(Error::new(ErrorCode::CudaCompileFailed, format!("NVRTC gave no {what}: {}", self.text_of(status))))
    }

    fn failed(&self, source: &KernelSource, status: Status) -> Error {
        let text = self.text_of(status);
        Error::new(ErrorCode::CudaCompileFailed, format!("kernel source '{}' does not compile: {text}", source.name))
    }

    fn text_of(&self, status: Status) -> String {
        // SAFETY: the library returns a constant string for any status.
        unsafe { CStr::from_ptr((self.functions.error_string)(status)) }.to_string_lossy().into_owned()
    }
}

/// A program of the library, destroyed when it is dropped.
struct LiveProgram<'n> {
    of: &'n Nvrtc,
    handle: Program,
}

impl Drop for LiveProgram<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle came from the library and is destroyed once.
        unsafe { (self.of.functions.destroy_program)(&mut self.handle) };
    }
}

fn c_strings<'t>(texts: impl IntoIterator<Item = &'t str>) -> Result<Vec<CString>> {
    let zero = |_| Error::new(ErrorCode::Internal, "a text for NVRTC contains a zero byte");
    texts.into_iter().map(|text| CString::new(text).map_err(zero)).collect()
}

fn length(count: usize) -> Result<c_int> {
    c_int::try_from(count).map_err(|_| Error::new(ErrorCode::Internal, "too many texts for NVRTC"))
}
