//! What bounds every other kernel, as it is measured.

use exlora::backend::cuda::ops::ceilings::CeilingKernels;
use exlora::doctor::measure_ceilings;

use crate::support::device;

#[test]
fn memory_of_any_size_is_read_and_launches_are_timed() {
    for bytes in [1, 16, 4 << 10, (100 << 10) + 48] {
        let kernels = CeilingKernels::load(&device(), bytes).expect("the memory is filled");
        assert_eq!(kernels.bytes(), (bytes / 16 * 16).max(16));
        kernels.read().expect("launched");
        device().synchronize().expect("it is all read");
    }
    let ceilings = measure_ceilings(0, 64 << 10).expect("the card is measured");
    assert_eq!(ceilings.bytes, 64 << 10);
    assert!(ceilings.read_gb_s > 0.0 && ceilings.launch_us > 0.0, "{ceilings:?}");
    assert!(ceilings.round_trip_us.is_finite(), "{ceilings:?}");
}
