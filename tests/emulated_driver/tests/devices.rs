//! Several devices, which share nothing. The number of devices is read when the driver starts, hence a process of its own.
#![allow(
    unsafe_code,
    missing_docs,
    clippy::unwrap_used,
    reason = "a test of a C interface; one that cannot set up has failed"
)]

use std::mem::MaybeUninit;

use exlora_emulated_driver::context::*;
use exlora_emulated_driver::control::emulated_cuda_set;
use exlora_emulated_driver::device::*;
use exlora_emulated_driver::errors::*;
use exlora_emulated_driver::memory::*;
use exlora_emulated_driver::stream::*;
use exlora_emulated_driver::{Out, Text};

/// The result of a function that succeeds.
fn out<T>(function: impl FnOnce(Out<T>) -> CUresult) -> T {
    let mut value = MaybeUninit::uninit();
    assert_eq!(function(Some(&mut value)), CUDA_SUCCESS);
    // SAFETY: the function has succeeded.
    unsafe { value.assume_init() }
}

fn free_bytes() -> usize {
    let mut free = MaybeUninit::uninit();
    assert_eq!(cuMemGetInfo_v2(Some(&mut free), None), CUDA_SUCCESS);
    // SAFETY: as for `out`.
    unsafe { free.assume_init() }
}

#[test]
fn devices_have_contexts_memory_and_streams_of_their_own() {
    // SAFETY: no other thread of this process reads the environment.
    unsafe { std::env::set_var("EMULATED_CUDA_DEVICES", "2") };
    assert_eq!(cuInit(0), CUDA_SUCCESS);
    assert_eq!(emulated_cuda_set(Text::new(c"quiet"), Text::new(c"on")), CUDA_SUCCESS);
    assert_eq!(out(|count| cuDeviceGetCount(count)), 2);
    let contexts = [0, 1].map(|device| out(|context| cuDevicePrimaryCtxRetain(context, device)));
    assert_ne!(contexts[0], contexts[1]);
    assert_ne!(out(|uuid| cuDeviceGetUuid_v2(uuid, 0)), out(|uuid| cuDeviceGetUuid_v2(uuid, 1)));

    assert_eq!(cuCtxSetCurrent(contexts[1]), CUDA_SUCCESS);
    assert_eq!(out(|device| cuCtxGetDevice(device)), 1);
    let before = free_bytes();
    let (address, stream) = (out(|address| cuMemAlloc_v2(address, 64)), out(|stream| cuStreamCreate(stream, 0)));
    assert_eq!(free_bytes(), before - 64);

    assert_eq!(cuCtxSetCurrent(contexts[0]), CUDA_SUCCESS);
    assert_eq!((out(|device| cuCtxGetDevice(device)), free_bytes()), (0, before));
    assert_eq!(cuMemsetD8_v2(address, 1, 64), CUDA_ERROR_INVALID_VALUE, "memory of the other device");
    assert_eq!(cuStreamSynchronize(stream), CUDA_ERROR_INVALID_HANDLE, "a stream of the other device");

    // The other device goes on when one is released.
    assert_eq!(cuDevicePrimaryCtxRelease_v2(0), CUDA_SUCCESS);
    assert_eq!(cuCtxSetCurrent(contexts[0]), CUDA_ERROR_INVALID_CONTEXT);
    assert_eq!(cuCtxSetCurrent(contexts[1]), CUDA_SUCCESS);
    assert_eq!(cuMemsetD8_v2(address, 1, 64), CUDA_SUCCESS);
}
