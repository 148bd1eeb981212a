//! Tests of the CUDA backend, on whatever `libcuda.so.1` the loader finds: `make test-cuda` runs them on the emulated driver.

mod adapters;
mod attention;
mod compile_gate;
mod compiler;
mod compute;
mod compute_attention;
mod compute_embeddings;
mod compute_norms;
mod compute_steps;
mod compute_weights;
mod decoder;
mod doctor;
mod driver;
mod embed;
mod embedding_adapters;
mod emulated;
mod expand;
mod launches;
mod linear;
mod linear_loops;
mod memory;
mod packed;
mod repack;
mod step;
mod support;
