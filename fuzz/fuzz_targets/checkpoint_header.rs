//! Any bytes as a safetensors file: refused, or every tensor it names can be looked up.

#![no_main]

use std::path::Path;

use exlora::checkpoint::Checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(checkpoint) = Checkpoint::from_bytes(bytes.to_vec(), Path::new("fuzz")) else { return };
    for name in checkpoint.names() {
        assert!(checkpoint.contains(name) && checkpoint.path_of(name).is_some());
        if let Ok(view) = checkpoint.tensor(name) {
            assert_eq!(view.shape().iter().product::<usize>() * view.dtype().bytes(), view.bytes().len());
        }
    }
});
