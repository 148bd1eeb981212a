//! Tests of the CUDA backend, on whatever `libcuda.so.1` the loader finds: `make test-cuda` runs them on the emulated driver.

mod compute;
mod decoder;
mod driver;
mod linear;
mod packed;
mod repack;
mod support;
