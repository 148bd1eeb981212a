//! Any bytes as a safetensors file: refused, or every tensor it names can be looked up, in memory that the bytes justify.

#![no_main]

use std::path::Path;

use exlora::checkpoint::Checkpoint;
use libfuzzer_sys::fuzz_target;
use support::allocator::{self, CountingAllocator};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fuzz_target!(|bytes: &[u8]| {
    let (opened, peak) = allocator::with_peak(|| Checkpoint::from_bytes(bytes.to_vec(), Path::new("fuzz")));
    assert!(peak <= 32 * bytes.len() + (16 << 10), "{peak} bytes for {}", bytes.len());
    let Ok(checkpoint) = opened else { return };
    for name in checkpoint.names() {
        assert!(checkpoint.contains(name) && checkpoint.path_of(name).is_some());
        if let Ok(view) = checkpoint.tensor(name) {
            assert_eq!(view.shape().iter().product::<usize>() * view.dtype().bytes(), view.bytes().len());
        }
    }
});
