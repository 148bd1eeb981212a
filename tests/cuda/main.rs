//! Tests of the CUDA backend, on whatever `libcuda.so.1` the loader finds: `make test-cuda` runs them on the emulated driver.

mod attention;
mod bytes;
mod compile_gate;
mod compiler;
mod compute;
mod decoder;
mod disassembly;
mod doctor;
mod driver;
mod embed;
mod emulator;
mod expand;
mod launches;
mod linear;
mod packed;
mod repack;
mod step;
mod support;
