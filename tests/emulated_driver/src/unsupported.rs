//! Functions that a program may look up, but that the emulated driver does not support.
use crate::errors::{CUDA_ERROR_NOT_SUPPORTED, CUresult};

macro_rules! unsupported {
    ($($name:ident)*) => { $(
        /// Not supported.
        #[unsafe(no_mangle)]
        pub extern "C" fn $name() -> CUresult {
            CUDA_ERROR_NOT_SUPPORTED
        }
    )* };
}

unsupported! {
    cuDeviceGetDefaultMemPool cuDeviceGetMemPool cuDeviceSetMemPool
    cuGraphDestroy cuGraphExecDestroy cuGraphInstantiateWithFlags cuGraphLaunch cuGraphUpload
    cuLaunchCooperativeKernel cuLaunchHostFunc cuLaunchKernelEx
    cuMemAllocFromPoolAsync cuMemAllocManaged cuMemHostGetDevicePointer_v2
    cuMemPoolCreate cuMemPoolDestroy cuMemPoolGetAttribute cuMemPoolSetAttribute cuMemPoolTrimTo
    cuStreamAttachMemAsync cuStreamBeginCapture_v2 cuStreamEndCapture
}
