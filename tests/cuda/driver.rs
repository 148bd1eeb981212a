//! The driver layer and the compiler: memory, modules, launches, and the errors of each.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use exlora::ErrorCode;
use exlora::backend::cuda::compiler::sources::{KernelSource, ONE_VARIANT};
use exlora::backend::cuda::driver::{Arguments, Device, Kernel};

use crate::support::{device, download, upload};

/// `y = factor * x + y` over `length` floats.
static SAXPY: KernelSource = KernelSource {
    name: "saxpy.cu",
    text: r#"
        struct Saxpy { const float* x; float* y; unsigned length; float factor; };
        extern "C" __global__ void saxpy(const __grid_constant__ Saxpy a) {
            for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < a.length; i += gridDim.x * blockDim.x)
                a.y[i] = a.factor * a.x[i] + a.y[i];
        }
    "#,
    variants: ONE_VARIANT,
};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Saxpy {
    x: u64,
    y: u64,
    length: u32,
    factor: f32,
}

/// Its launches are in the order of the device's copies.
fn saxpy(device: &Arc<Device>) -> Kernel {
    device.module(&SAXPY, &[]).expect("it compiles").kernel("saxpy").expect("it is there")
}

#[test]
fn a_kernel_computes_on_uploaded_memory() {
    let device = device();
    let x: Vec<f32> = (0..1000u16).map(f32::from).collect();
    let (on_device, y) = (upload(&device, &x), device.allocate(4000).expect("allocated"));
    y.fill_zero().expect("zeroed");
    let arguments = Saxpy { x: on_device.address(), y: y.address(), length: 1000, factor: 0.5 };
    for _ in 0..2 {
        saxpy(&device).launch([3, 1, 1], 128, 0, &Arguments::of(&arguments)).expect("launched");
    }
    assert_eq!(download::<f32>(&y), x);
}

#[test]
fn a_device_tells_what_it_is() {
    let device = device();
    let properties = device.properties();
    assert!(!properties.name.is_empty());
    assert!(properties.compute_capability >= (8, 0));
    assert!(properties.driver_version.major >= 12);
    assert!(properties.multiprocessors > 0);
    assert!(properties.shared_memory_per_block > 48 << 10);
    let before = device.free_bytes().expect("known");
    assert!(before > 0 && before <= properties.total_bytes);
    let memory = device.allocate(64 << 20).expect("allocated");
    let held = before - device.free_bytes().expect("known");
    assert!((64 << 20..80 << 20).contains(&held), "{held} bytes are held");
    drop(memory);
    assert_eq!(device.free_bytes().expect("known"), before);
}

#[test]
fn parts_of_memory_are_copied_and_nothing_beyond_its_end() {
    let device = device();
    let memory = upload(&device, &[1u8, 2, 3, 4]);
    memory.upload(2, &[9]).expect("inside");
    let mut part = [0; 2];
    memory.download(1, &mut part).expect("inside");
    assert_eq!(part, [2, 9]);
    for (offset, length) in [(4, 1), (2, 3), (usize::MAX, 1)] {
        let error = memory.upload(offset, &vec![0; length]).expect_err("outside");
        assert_eq!(error.code(), ErrorCode::Internal, "{error}");
        memory.download(offset, &mut vec![0; length]).expect_err("outside");
    }
    memory.upload(4, &[]).expect("nothing is copied");
}

#[test]
fn empty_memory_is_no_allocation() {
    let memory = device().allocate(0).expect("nothing to allocate");
    assert!(memory.is_empty());
    memory.fill_zero().expect("nothing to do");
    assert!(download::<f32>(&memory).is_empty());
}

#[test]
fn exhausted_memory_says_what_is_needed_and_free() {
    let device = device();
    let free = device.free_bytes().expect("known");
    let error = device.allocate(free + (1 << 30)).expect_err("there is not that much");
    assert_eq!(error.code(), ErrorCode::MemoryExhausted);
    assert!(error.expected().is_some_and(|needed| needed.contains(&(free + (1 << 30)).to_string())), "{error}");
    assert!(error.found().is_some_and(|found| found.starts_with(&free.to_string())), "{error}");
    device.allocate(1 << 20).expect("the device is still usable");
}

#[test]
fn a_launch_with_an_argument_of_another_size_is_refused() {
    let kernel = saxpy(&device());
    assert_eq!(kernel.parameter_sizes(), Some(&[size_of::<Saxpy>()][..]));
    let error = kernel.launch([1, 1, 1], 32, 0, &Arguments::of(&[0u64; 4])).expect_err("8 bytes too many");
    assert_eq!(error.code(), ErrorCode::Internal);
    assert!(error.to_string().contains("'saxpy'"), "{error}");
}

#[test]
fn a_launch_beyond_the_limits_is_refused() {
    let kernel = saxpy(&device());
    let arguments = Saxpy { x: 0, y: 0, length: 0, factor: 0.0 };
    let launch = |grid, block, shared| kernel.launch(grid, block, shared, &Arguments::of(&arguments));
    launch([1, 1, 1], kernel.max_threads(), kernel.max_shared_bytes()).expect("the most that is possible");
    for (grid, block, shared) in [
        ([0, 1, 1], 32, 0),
        ([1, 1, 1 << 16], 32, 0),
        ([1, 1, 1], 0, 0),
        ([1, 1, 1], kernel.max_threads() + 1, 0),
        ([1, 1, 1], 32, kernel.max_shared_bytes() + 1),
    ] {
        let error = launch(grid, block, shared).expect_err("beyond a limit");
        assert_eq!(error.code(), ErrorCode::Internal, "{error}");
    }
}

#[test]
fn a_failing_kernel_is_an_error_that_names_it() {
    let device = device();
    let arguments = Saxpy { x: 0x10, y: 0x10, length: 1, factor: 1.0 };
    let launched = saxpy(&device).launch([1, 1, 1], 32, 0, &Arguments::of(&arguments));
    let error = launched.and_then(|()| device.synchronize()).expect_err("an address that is not allocated");
    assert_eq!(error.code(), ErrorCode::CudaDriverFailed);
    assert!(error.to_string().contains("CUDA_ERROR_"), "{error}");
}

#[test]
fn a_source_that_does_not_compile_is_an_error_with_the_compilers_log() {
    static BROKEN: KernelSource =
        KernelSource { name: "broken.cu", text: "__global__ void f() { undeclared(); }", variants: ONE_VARIANT };
    let error = device().module(&BROKEN, &[]).expect_err("it does not compile");
    assert_eq!(error.code(), ErrorCode::CudaCompileFailed);
    let text = error.to_string();
    assert!(text.contains("broken.cu") && text.contains("\"undeclared\" is undefined"), "{text}");
}

#[test]
fn only_the_variants_of_a_source_are_compiled() {
    let error = device().module(&SAXPY, &[("ELEMENT_BF16", "1")]).expect_err("not a variant");
    assert_eq!(error.code(), ErrorCode::Internal);
}

#[test]
fn a_kernel_that_is_not_in_the_source_is_an_error() {
    let error = device().module(&SAXPY, &[]).expect("compiles").kernel("daxpy").expect_err("no such kernel");
    assert_eq!(error.code(), ErrorCode::CudaDriverFailed);
    assert!(error.to_string().contains("'daxpy' of 'saxpy.cu'"), "{error}");
}

#[test]
fn a_card_that_is_not_there_is_an_error() {
    device();
    let error = Device::open(7).expect_err("there is one card");
    assert_eq!(error.code(), ErrorCode::CudaUnavailable);
    assert!(error.to_string().contains("cuda:7"), "{error}");
}

#[test]
fn memory_and_launches_may_be_used_from_any_thread() {
    let device = device();
    let kernel = saxpy(&device);
    std::thread::scope(|scope| {
        for factor in 1..=4u8 {
            let (device, kernel) = (&device, &kernel);
            scope.spawn(move || {
                let (x, y) = (upload(device, &[1.0f32; 64]), upload(device, &[0.0f32; 64]));
                let arguments = Saxpy { x: x.address(), y: y.address(), length: 64, factor: factor.into() };
                kernel.launch([1, 1, 1], 64, 0, &Arguments::of(&arguments)).expect("launched");
                assert_eq!(download::<f32>(&y), [f32::from(factor); 64]);
            });
        }
    });
}
