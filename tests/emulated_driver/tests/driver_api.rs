//! The driver API, called as C programs do. The driver is one for the process: tests take turns.
#![allow(
    unsafe_code,
    missing_docs,
    clippy::unwrap_used,
    reason = "a test of a C interface; one that cannot set up has failed"
)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::MaybeUninit;
use std::sync::{Mutex, MutexGuard, PoisonError};

use exlora_emulated_driver::context::*;
use exlora_emulated_driver::control::*;
use exlora_emulated_driver::device::*;
use exlora_emulated_driver::errors::*;
use exlora_emulated_driver::event::*;
use exlora_emulated_driver::export_table::cuGetExportTable;
use exlora_emulated_driver::function::*;
use exlora_emulated_driver::launch::cuLaunchKernel;
use exlora_emulated_driver::memory::*;
use exlora_emulated_driver::module::*;
use exlora_emulated_driver::stream::*;
use exlora_emulated_driver::unsupported::*;
use exlora_emulated_driver::{Out, Text};

static TURN: Mutex<()> = Mutex::new(());

/// The context, made current; the default settings.
fn context() -> MutexGuard<'static, ()> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(cuInit(0), CUDA_SUCCESS);
    let context = out(|context| cuDevicePrimaryCtxRetain(context, 0));
    assert_eq!(cuCtxSetCurrent(context), CUDA_SUCCESS);
    assert_eq!(emulated_cuda_clear(), CUDA_SUCCESS);
    for (name, value) in [("quiet", "on"), ("streams", "now"), ("order", "forward"), ("stats", "off")] {
        set(name, value);
    }
    turn
}

/// The result of a function that succeeds.
fn out<T>(function: impl FnOnce(Out<T>) -> CUresult) -> T {
    let mut value = MaybeUninit::uninit();
    let code = function(Some(&mut value));
    assert_eq!(code, CUDA_SUCCESS, "{}", last_error());
    // SAFETY: the function has succeeded.
    unsafe { value.assume_init() }
}

fn text(pointer: *const c_char) -> String {
    // SAFETY: the driver's texts live as long as the process.
    unsafe { CStr::from_ptr(pointer) }.to_str().unwrap().into()
}

fn last_error() -> String {
    let mut message = MaybeUninit::uninit();
    assert_eq!(emulated_cuda_last_error(Some(&mut message)), CUDA_SUCCESS);
    // SAFETY: as for `out`.
    text(unsafe { message.assume_init() })
}

fn set(name: &str, value: &str) {
    let [name, value] = [name, value].map(|text| CString::new(text).unwrap());
    assert_eq!(emulated_cuda_set(Text::new(&name), Text::new(&value)), CUDA_SUCCESS, "{name:?} {value:?}");
}

fn counter(kernel: &CStr, name: &CStr) -> u64 {
    out(|count| emulated_cuda_counter(Text::new(kernel), Text::new(name), count))
}

/// Loads an image that ends with a zero, or whose header tells its length.
fn load(image: &[u8], module: Out<usize>) -> CUresult {
    // SAFETY: the callers' images are whole.
    unsafe { cuModuleLoadData(module, image.as_ptr()) }
}

fn module(body: &str) -> usize {
    let text = CString::new(format!(".version 8.0\n.target sm_80\n.address_size 64\n{body}")).unwrap();
    out(|module| load(text.as_bytes_with_nul(), module))
}

fn function(module: usize, name: &CStr) -> usize {
    out(|function| cuModuleGetFunction(function, module, Text::new(name)))
}

/// Launches with a grid and a block along x.
fn launch(function: usize, [grid, block, shared]: [u32; 3], stream: usize, parameters: &[u64]) -> CUresult {
    let mut pointers: Vec<*const c_void> = parameters.iter().map(|value| std::ptr::from_ref(value).cast()).collect();
    pointers.push(std::ptr::null());
    // SAFETY: a null pointer ends the parameters, so that a missing one is found.
    unsafe { cuLaunchKernel(function, grid, 1, 1, block, 1, 1, shared, stream, pointers.as_ptr(), std::ptr::null()) }
}

fn read(address: u64, words: usize) -> Vec<u32> {
    let mut values = vec![0u32; words];
    let to = values.as_mut_ptr().expose_provenance();
    assert_eq!(cuMemcpyDtoH_v2(to, address, words * 4), CUDA_SUCCESS, "{}", last_error());
    values
}

/// `p[i] += i` for the threads below n.
const ADD_INDEX: &str = "
.visible .entry add_index(.param .u64 p, .param .u32 n) {
    .reg .pred %q; .reg .b32 %r<6>; .reg .b64 %d<4>;
    ld.param.u64 %d1, [p]; ld.param.u32 %r1, [n]; cvta.to.global.u64 %d1, %d1;
    mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x; mad.lo.s32 %r4, %r2, %r3, %r4;
    setp.ge.u32 %q, %r4, %r1; @%q bra E;
    mul.wide.u32 %d2, %r4, 4; add.s64 %d1, %d1, %d2;
    ld.global.u32 %r5, [%d1]; add.u32 %r5, %r5, %r4; st.global.u32 [%d1], %r5;
    E: ret; }";

#[test]
fn a_kernel_runs_and_its_fault_breaks_the_context() {
    let _turn = context();
    let add_index = function(module(ADD_INDEX), c"add_index");
    let address = out(|address| cuMemAlloc_v2(address, 400));
    assert_eq!(cuMemsetD32_v2(address, 7, 100), CUDA_SUCCESS);
    assert_eq!(launch(add_index, [4, 32, 0], 0, &[address, 100]), CUDA_SUCCESS);
    assert_eq!(read(address, 100), (7..107).collect::<Vec<_>>());

    // One element too many: every later call fails, and the error's text says all.
    assert_eq!(launch(add_index, [4, 32, 0], 0, &[address, 101]), CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
    let message = text(out(|message| cuGetErrorString(CUDA_ERROR_ILLEGAL_ADDRESS, message)));
    assert!(message.starts_with("an illegal memory access was encountered: out-of-bounds global read"), "{message}");
    for part in ["cuMemAlloc, 400 bytes", "kernel add_index, block (3,0,0), thread (4,0,0)", "PTX line 11"] {
        assert!(message.contains(part), "no '{part}' in {message}");
    }
    assert_eq!(text(out(|name| cuGetErrorName(CUDA_ERROR_ILLEGAL_ADDRESS, name))), "CUDA_ERROR_ILLEGAL_ADDRESS");

    emulated_cuda_clear();
    assert_eq!(cuMemFree_v2(address), CUDA_SUCCESS);
    assert_eq!(cuMemFree_v2(address), CUDA_ERROR_INVALID_VALUE);
    assert!(last_error().contains("which has been freed"), "{}", last_error());
}

#[test]
fn launches_outside_the_limits_are_refused() {
    let _turn = context();
    let module = module(&format!("{ADD_INDEX}\n.visible .entry small() .maxntid 64, 1, 1 {{ ret; }}"));
    let (add_index, small) = (function(module, c"add_index"), function(module, c"small"));
    assert_eq!(launch(small, [1, 64, 0], 0, &[]), CUDA_SUCCESS);
    assert_eq!(launch(small, [1, 65, 0], 0, &[]), CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
    assert!(last_error().contains("launch of small: 65 threads, __launch_bounds__ allows 64"), "{}", last_error());
    for (shape, part) in [([0, 32, 0], "grid [0, 1, 1]"), ([1, 1025, 0], "block [1025, 1, 1]")] {
        assert_eq!(launch(small, shape, 0, &[]), CUDA_ERROR_INVALID_VALUE);
        assert!(last_error().contains(part), "{}", last_error());
    }
    // Nothing of that breaks the context.
    assert_eq!(launch(add_index, [1, 32, 0], 0, &[0, 0]), CUDA_SUCCESS);
    assert_eq!(cuCtxSynchronize(), CUDA_SUCCESS);
    assert_eq!(launch(0xbad, [1, 32, 0], 0, &[]), CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn parameters_are_counted_and_measured() {
    let _turn = context();
    let add_index = function(module(ADD_INDEX), c"add_index");
    let parameter = |index| {
        let (mut offset, mut bytes) = (MaybeUninit::new(0), MaybeUninit::new(0));
        let code = cuFuncGetParamInfo(add_index, index, Some(&mut offset), Some(&mut bytes));
        // SAFETY: both have values.
        (code, unsafe { (offset.assume_init(), bytes.assume_init()) })
    };
    assert_eq!([parameter(0), parameter(1)], [(CUDA_SUCCESS, (0, 8)), (CUDA_SUCCESS, (8, 4))]);
    assert_eq!(parameter(2).0, CUDA_ERROR_INVALID_VALUE);
    assert_eq!(launch(add_index, [1, 32, 0], 0, &[0]), CUDA_ERROR_INVALID_VALUE);
    assert!(last_error().contains("parameter 1 of 2 (4 bytes) cannot be read"), "{}", last_error());

    // A buffer has a size, which must be that of all parameters.
    let with_buffer = |len: usize| {
        let buffer = [0u64; 3];
        let extra: [*const c_void; 5] = [
            std::ptr::without_provenance(1),
            std::ptr::from_ref(&buffer).cast(),
            std::ptr::without_provenance(2),
            std::ptr::from_ref(&len).cast(),
            std::ptr::null(),
        ];
        // SAFETY: the list ends with zero, and the buffer is longer than all lengths below.
        unsafe { cuLaunchKernel(add_index, 1, 1, 1, 32, 1, 1, 0, 0, std::ptr::null(), extra.as_ptr()) }
    };
    assert_eq!(with_buffer(12), CUDA_SUCCESS, "{}", last_error());
    assert_eq!(with_buffer(16), CUDA_ERROR_INVALID_VALUE);
    assert!(last_error().contains("16 bytes of parameters, the kernel takes 12"), "{}", last_error());
}

#[test]
fn much_shared_memory_must_be_asked_for() {
    let _turn = context();
    let kernel = function(module(".visible .entry k() { .shared .align 4 .b8 s[1024]; ret; }"), c"k");
    let limit = out(|value| cuDeviceGetAttribute(value, 97, 0));
    assert_eq!(out(|value| cuFuncGetAttribute(value, 1, kernel)), 1024);
    assert_eq!(launch(kernel, [1, 32, 47 << 10], 0, &[]), CUDA_SUCCESS);
    assert_eq!(launch(kernel, [1, 32, 48 << 10], 0, &[]), CUDA_ERROR_INVALID_VALUE);
    assert!(last_error().contains("49152 bytes of dynamic shared memory beside 1024 static ones"), "{}", last_error());
    assert_eq!(cuFuncSetAttribute(kernel, 8, limit), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(cuFuncSetAttribute(kernel, 8, limit - 1024), CUDA_SUCCESS);
    assert_eq!(launch(kernel, [1, 32, limit as u32 - 1024], 0, &[]), CUDA_SUCCESS);
}

#[test]
fn ptx_that_cannot_run_is_refused_with_its_line() {
    let _turn = context();
    let refused = |ptx: &str| {
        let text = CString::new(ptx).unwrap();
        (load(text.as_bytes_with_nul(), Some(&mut MaybeUninit::uninit())), last_error())
    };
    let header = ".version 8.0\n.target sm_80\n.address_size 64\n";
    let (code, message) =
        refused(&format!("{header}.visible .entry k() {{\n.reg .b32 %r<3>;\nfrobnicate.u32 %r1, %r2;\nret; }}"));
    assert_eq!(code, CUDA_ERROR_INVALID_PTX);
    assert!(message.contains("PTX line 6") && message.contains("frobnicate.u32"), "{message}");
    let (code, message) = refused(".version 8.0\n.target sm_90\n.address_size 64\n");
    assert_eq!(code, CUDA_ERROR_NO_BINARY_FOR_GPU);
    assert!(message.contains("the PTX is for sm_90, the device has compute capability 8.0"), "{message}");
}

/// A cubin as far as the driver reads it: a kernel with parameters of these sizes.
fn cubin(kernel: &str, parameters: &[u32]) -> Vec<u8> {
    let mut file = vec![0; 64];
    file[..4].copy_from_slice(b"\x7fELF");
    let names = file.len();
    file.extend([b"\0.nv.info.", kernel.as_bytes(), b"\0"].concat());
    let info = file.len();
    for (index, bytes) in parameters.iter().enumerate() {
        file.extend([4, 0x17, 12, 0, 0, 0, 0, 0, index as u8, 0, 0, 0]);
        file.extend((bytes << 18).to_le_bytes());
    }
    let sections = file.len();
    for (name, start, end) in [(0, names, info), (1, info, sections)] {
        let mut header = [0u8; 64];
        header[0] = name;
        header[24..32].copy_from_slice(&(start as u64).to_le_bytes());
        header[32..40].copy_from_slice(&((end - start) as u64).to_le_bytes());
        file.extend(header);
    }
    file[40..48].copy_from_slice(&(sections as u64).to_le_bytes());
    // Bytes of a section header, their number, and which one is about names.
    file[58..64].copy_from_slice(&[64, 0, 2, 0, 0, 0]);
    file
}

#[test]
fn a_cubin_is_refused_and_compared_with_the_ptx_that_follows() {
    let _turn = context();
    let load_both = |cubin: Vec<u8>, ptx: &str| {
        assert_eq!(load(&cubin, Some(&mut MaybeUninit::uninit())), CUDA_ERROR_NO_BINARY_FOR_GPU);
        assert!(last_error().starts_with("cubins are not executed"), "{}", last_error());
        let text = CString::new(format!(".version 8.0\n.target sm_80\n.address_size 64\n{ptx}")).unwrap();
        load(text.as_bytes_with_nul(), Some(&mut MaybeUninit::uninit()))
    };
    assert_eq!(load_both(cubin("add_index", &[8, 4]), ADD_INDEX), CUDA_SUCCESS);
    assert_eq!(load_both(cubin("add_index", &[8, 8]), ADD_INDEX), CUDA_ERROR_INVALID_IMAGE);
    assert!(last_error().contains("add_index(8, 8) and add_index(8, 4)"), "{}", last_error());
    // A module without that kernel is another one.
    assert_eq!(load_both(cubin("other", &[8, 8]), ADD_INDEX), CUDA_SUCCESS);
    let mut damaged = cubin("add_index", &[8, 4]);
    damaged[62] = 9;
    assert_eq!(load(&damaged, Some(&mut MaybeUninit::uninit())), CUDA_ERROR_INVALID_IMAGE);
}

#[test]
fn variables_of_a_module_have_their_first_contents() {
    let _turn = context();
    let module = module(".global .align 4 .u32 table[3] = {5, 6, 7};\n.visible .entry k() { ret; }");
    let (mut address, mut bytes) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let code = cuModuleGetGlobal_v2(Some(&mut address), Some(&mut bytes), module, Text::new(c"table"));
    assert_eq!(code, CUDA_SUCCESS);
    // SAFETY: the function has succeeded.
    let (address, bytes) = unsafe { (address.assume_init(), bytes.assume_init()) };
    assert_eq!((bytes, read(address, 3)), (12, vec![5, 6, 7]));
    assert_eq!(cuModuleGetFunction(Some(&mut MaybeUninit::uninit()), module, Text::new(c"x")), CUDA_ERROR_NOT_FOUND);
    assert_eq!(cuModuleUnload(module), CUDA_SUCCESS);
    assert_eq!(cuModuleUnload(module), CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn memory_is_bounded_and_counted() {
    let _turn = context();
    let free = || {
        let mut free = MaybeUninit::uninit();
        assert_eq!(cuMemGetInfo_v2(Some(&mut free), None), CUDA_SUCCESS);
        // SAFETY: the function has succeeded.
        unsafe { free.assume_init() }
    };
    let before = free();
    let address = out(|address| cuMemAlloc_v2(address, 1000));
    assert_eq!(before - free(), 1000);
    let mut none = MaybeUninit::uninit();
    assert_eq!(cuMemAlloc_v2(Some(&mut none), free() + 1), CUDA_ERROR_OUT_OF_MEMORY);
    assert!(last_error().contains("in use"), "{}", last_error());
    assert_eq!(cuMemAlloc_v2(Some(&mut none), 0), CUDA_ERROR_INVALID_VALUE);
    set("mem_mb", "1");
    assert_eq!(cuMemAlloc_v2(Some(&mut none), 1 << 20), CUDA_ERROR_OUT_OF_MEMORY);
    set("mem_mb", "8192");
    assert_eq!(cuMemsetD8_v2(address, 1, 1001), CUDA_ERROR_INVALID_VALUE);
    assert!(last_error().contains("memset: 1001 bytes"), "{}", last_error());
    assert_eq!(cuMemFree_v2(address), CUDA_SUCCESS);
    assert_eq!(free(), before);
    assert_eq!(cuMemFree_v2(0), CUDA_SUCCESS);
}

#[test]
fn copying_what_nobody_has_written_is_a_warning() {
    let _turn = context();
    let address = out(|address| cuMemAlloc_v2(address, 8));
    assert_eq!(cuMemsetD8_v2(address, 1, 5), CUDA_SUCCESS);
    read(address, 1);
    assert_eq!(text(out(|value| emulated_cuda_warnings(value))), "");
    read(address, 2);
    assert!(text(out(|value| emulated_cuda_warnings(value))).contains("nobody has written: byte 5 of"));
    assert_eq!(cuMemFree_v2(address), CUDA_SUCCESS);
}

#[test]
fn lazy_streams_show_a_missing_wait() {
    let _turn = context();
    let add_index = function(module(ADD_INDEX), c"add_index");
    let address = out(|address| cuMemAlloc_v2(address, 128));
    let [first, second] = [0, 1].map(|_| out(|stream| cuStreamCreate(stream, 0)));
    let event = out(|event| cuEventCreate(event, 0));
    for (waits, expected) in [(true, (7..39).collect::<Vec<u32>>()), (false, vec![7; 32])] {
        set("streams", "lazy");
        assert_eq!(cuMemsetD32Async(address, 7, 32, first), CUDA_SUCCESS);
        assert_eq!(cuEventRecord(event, first), CUDA_SUCCESS);
        assert_eq!(cuEventQuery(event), CUDA_ERROR_NOT_READY);
        if waits {
            assert_eq!(cuStreamWaitEvent(second, event, 0), CUDA_SUCCESS);
        }
        assert_eq!(launch(add_index, [1, 32, 0], second, &[address, 32]), CUDA_SUCCESS);
        assert_eq!(cuStreamQuery(second), CUDA_ERROR_NOT_READY);
        // The younger stream runs first, unless it waits. Then the memory has its old contents, of the round before.
        assert_eq!(cuCtxSynchronize(), CUDA_SUCCESS, "{}", last_error());
        assert_eq!(cuEventQuery(event), CUDA_SUCCESS);
        assert_eq!(read(address, 32), expected);
    }
    assert_eq!(cuEventDestroy_v2(event), CUDA_SUCCESS);
    for stream in [first, second] {
        assert_eq!(cuStreamDestroy_v2(stream), CUDA_SUCCESS);
    }
    assert_eq!(cuStreamSynchronize(first), CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(cuMemFree_v2(address), CUDA_SUCCESS);
}

#[test]
fn pinned_memory_is_read_when_the_copy_runs() {
    let _turn = context();
    let (address, stream) = (out(|address| cuMemAlloc_v2(address, 4)), out(|stream| cuStreamCreate(stream, 0)));
    let pinned = out(|pinned| cuMemHostAlloc(pinned, 4, 0));
    let mut pageable = [1u32];
    let store = |value: u32| {
        // SAFETY: four bytes of pinned memory are there.
        unsafe { std::ptr::with_exposed_provenance_mut::<u32>(pinned).write(value) }
    };
    set("streams", "lazy");
    store(1);
    assert_eq!(cuMemcpyHtoDAsync_v2(address, pinned, 4, stream), CUDA_SUCCESS);
    store(2);
    assert_eq!(cuStreamSynchronize(stream), CUDA_SUCCESS);
    assert_eq!(read(address, 1), [2]);
    assert_eq!(cuMemcpyHtoDAsync_v2(address, pageable.as_mut_ptr().expose_provenance(), 4, stream), CUDA_SUCCESS);
    std::hint::black_box(&mut pageable)[0] = 2;
    assert_eq!(cuStreamSynchronize(stream), CUDA_SUCCESS);
    assert_eq!(read(address, 1), [1]);
    set("streams", "now");
    assert_eq!(cuMemFreeHost(pinned), CUDA_SUCCESS);
    assert_eq!(cuStreamDestroy_v2(stream), CUDA_SUCCESS);
    assert_eq!(cuMemFree_v2(address), CUDA_SUCCESS);
}

#[test]
fn waiting_for_an_event_runs_nothing_behind_it() {
    let _turn = context();
    let address = out(|address| cuMemAlloc_v2(address, 4));
    let [stream, event] = [out(|stream| cuStreamCreate(stream, 0)), out(|event| cuEventCreate(event, 0))];
    set("streams", "lazy");
    assert_eq!(cuMemsetD32Async(address, 1, 1, stream), CUDA_SUCCESS);
    assert_eq!(cuEventRecord(event, stream), CUDA_SUCCESS);
    assert_eq!(cuMemsetD32Async(address, 2, 1, stream), CUDA_SUCCESS);
    let before = counter(c"", c"synchronizations");
    for expected in [1, 1, 2] {
        let waited = if expected == 1 { cuEventSynchronize(event) } else { cuStreamSynchronize(stream) };
        assert_eq!((waited, read(address, 1)), (CUDA_SUCCESS, vec![expected]));
    }
    // The second wait for the event found it reached.
    assert_eq!(counter(c"", c"synchronizations") - before, 2);
    set("streams", "now");
    assert_eq!(cuEventDestroy_v2(event), CUDA_SUCCESS);
    assert_eq!(cuStreamDestroy_v2(stream), CUDA_SUCCESS);
    assert_eq!(cuMemFree_v2(address), CUDA_SUCCESS);
}

#[test]
fn allocations_and_launches_fail_on_demand() {
    let _turn = context();
    let (allocations, frees) = (counter(c"", c"allocations"), counter(c"", c"frees"));
    set("fail_allocation", "1");
    let address = out(|address| cuMemAlloc_v2(address, 128));
    assert_eq!(cuMemAlloc_v2(Some(&mut MaybeUninit::uninit()), 4), CUDA_ERROR_OUT_OF_MEMORY);
    assert_eq!(cuMemFree_v2(out(|address| cuMemAlloc_v2(address, 4))), CUDA_SUCCESS);
    assert_eq!((counter(c"", c"allocations") - allocations, counter(c"", c"frees") - frees), (2, 1));

    assert_eq!(cuMemsetD8_v2(address, 0, 128), CUDA_SUCCESS);
    let add_index = function(module(ADD_INDEX), c"add_index");
    set("fail_launch", "1");
    assert_eq!(launch(add_index, [1, 32, 0], 0, &[address, 32]), CUDA_SUCCESS);
    assert_eq!(launch(add_index, [1, 32, 0], 0, &[address, 32]), CUDA_ERROR_LAUNCH_FAILED);
    // As on a card, nothing works from then on.
    assert_eq!(cuCtxSynchronize(), CUDA_ERROR_LAUNCH_FAILED);
    assert_eq!(emulated_cuda_clear(), CUDA_SUCCESS);
    assert_eq!(read(address, 2), [0, 1]);
    assert_eq!(cuMemFree_v2(address), CUDA_SUCCESS);
}

#[test]
fn counters_are_read_by_name() {
    let _turn = context();
    set("stats", "on");
    let add_index = function(module(ADD_INDEX), c"add_index");
    let address = out(|address| cuMemAlloc_v2(address, 256));
    assert_eq!(cuMemsetD32_v2(address, 0, 64), CUDA_SUCCESS);
    for _ in 0..2 {
        assert_eq!(launch(add_index, [2, 32, 0], 0, &[address, 64]), CUDA_SUCCESS);
    }
    assert_eq!(counter(c"add_index", c"launches"), 2);
    assert_eq!(counter(c"add_index", c"unique_load_bytes"), 2 * 256);
    assert_eq!(counter(c"", c"instructions.st.global"), 2 * 64);
    assert_eq!(counter(c"other", c"launches"), 0);
    assert!(counter(c"", c"used_bytes") >= 256);
    assert!(text(out(|value| emulated_cuda_counters(value))).contains("add_index unique_store_bytes 512\n"));
    let mut count = MaybeUninit::uninit();
    assert_eq!(emulated_cuda_counter(Text::new(c""), Text::new(c"x"), Some(&mut count)), CUDA_ERROR_NOT_FOUND);
    emulated_cuda_clear();
    assert_eq!(counter(c"add_index", c"launches"), 0);
    assert_eq!(cuMemFree_v2(address), CUDA_SUCCESS);
}

#[test]
fn settings_have_names_and_values() {
    let _turn = context();
    let values = [
        ("order", ["forward", "reverse", "random:5"].as_slice()),
        ("async", &["eager", "lazy"]),
        ("race", &["off", "shared", "on"]),
        ("init", &["off", "on"]),
        ("exit_barrier", &["allow", "error"]),
        ("same_barrier", &["off", "on"]),
        ("stats", &["on", "off"]),
        ("mma", &["truncate8", "truncate16", "exact"]),
        ("max_instructions", &["1000", "300000000"]),
        ("streams", &["lazy", "now"]),
        ("fail_allocation", &["3", "off"]),
        ("fail_launch", &["3", "off"]),
        ("mem_mb", &["16", "8192"]),
        ("quiet", &["off", "on"]),
    ];
    for (name, values) in values {
        values.iter().for_each(|value| set(name, value));
        let name = CString::new(name).unwrap();
        assert_eq!(emulated_cuda_set(Text::new(&name), Text::new(c"x")), CUDA_ERROR_INVALID_VALUE, "{name:?}");
    }
    assert_eq!(emulated_cuda_set(Text::new(c"x"), Text::new(c"on")), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn the_device_introduces_itself() {
    let _turn = context();
    assert_eq!((out(|value| cuDriverGetVersion(value)), out(|value| cuDeviceGetCount(value))), (13_000, 1));
    assert_eq!(cuDeviceGet(Some(&mut MaybeUninit::uninit()), 1), CUDA_ERROR_INVALID_DEVICE);
    let mut name = [1; 9];
    // SAFETY: the buffer has nine bytes.
    assert_eq!(unsafe { cuDeviceGetName(name.as_mut_ptr(), 9, 0) }, CUDA_SUCCESS);
    assert_eq!(text(name.as_ptr()), "Emulated");
    let attribute = |number| out(|value| cuDeviceGetAttribute(value, number, 0));
    assert_eq!([10, 75, 76, 97].map(attribute), [32, 8, 0, 163 << 10]);
    let kernel = function(module(".visible .entry k() { ret; }"), c"k");
    assert_eq!(out(|blocks| cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, 256, 80 << 10)), 2);
}

#[test]
fn what_is_not_supported_says_so() {
    let _turn = context();
    assert_eq!(
        [cuStreamBeginCapture_v2(), cuGraphLaunch(), cuLaunchCooperativeKernel()],
        [CUDA_ERROR_NOT_SUPPORTED; 3]
    );
    let mut table = MaybeUninit::uninit();
    assert_eq!(cuGetExportTable(Some(&mut table), std::ptr::null()), CUDA_ERROR_NOT_FOUND);
    assert_eq!(out(|status| cuStreamIsCapturing(0, status)), 0);
}

#[test]
fn nothing_works_without_a_context() {
    let _turn = context();
    assert_eq!(cuCtxSetCurrent(0), CUDA_SUCCESS);
    let mut address = MaybeUninit::uninit();
    assert_eq!(cuMemAlloc_v2(Some(&mut address), 4), CUDA_ERROR_INVALID_CONTEXT);
    assert_eq!(out(|value| cuCtxGetCurrent(value)), 0);
    assert_eq!(cuCtxSetCurrent(0xbad), CUDA_ERROR_INVALID_CONTEXT);
}

#[test]
fn there_is_one_device_unless_the_environment_says_so() {
    let _turn = context();
    assert_eq!(out(|count| cuDeviceGetCount(count)), 1);
    let mut device = MaybeUninit::uninit();
    assert_eq!(cuDeviceGet(Some(&mut device), 1), CUDA_ERROR_INVALID_DEVICE);
    let mut context = MaybeUninit::uninit();
    assert_eq!(cuDevicePrimaryCtxRetain(Some(&mut context), -1), CUDA_ERROR_INVALID_DEVICE);
}
