//! What the tests of the CUDA backend share.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytemuck::Pod;
use exlora::backend::cuda::compiler::locate::{packages_of, set_python_paths};
use exlora::backend::cuda::driver::{Device, DeviceMemory};

/// The folder into which the Makefile installs the run-time compiler and the disassembler.
pub fn cuda_tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/cuda")
}

/// Lets the compiler be found that the Makefile installed, else that of `.venv`, whether that is active or not.
pub fn find_compiler() {
    let mut paths = vec![cuda_tools()];
    paths.extend(packages_of(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv")));
    set_python_paths(paths);
}

/// The card that the tests run on.
pub fn device() -> Arc<Device> {
    find_compiler();
    Device::open(0).unwrap_or_else(|error| panic!("{error}\n`make test-cuda` runs these tests on the emulated driver"))
}

/// Whether the tests run on the emulated driver.
pub fn is_emulated() -> bool {
    device().properties().name.starts_with("Emulated")
}

/// Device memory with these values.
pub fn upload<T: Pod>(device: &Arc<Device>, values: &[T]) -> DeviceMemory {
    let bytes = bytemuck::cast_slice(values);
    let memory = device.allocate(bytes.len()).expect("the memory is allocated");
    memory.upload(0, bytes).expect("the values are uploaded");
    memory
}

/// All values of device memory.
pub fn download<T: Pod>(memory: &DeviceMemory) -> Vec<T> {
    let mut values = vec![T::zeroed(); memory.len() / size_of::<T>()];
    memory.download(0, bytemuck::cast_slice_mut(&mut values)).expect("the values are downloaded");
    values
}
