//! What `exlora doctor` says and checks on a machine with a card.

use exlora::{Device, doctor};

use crate::support::{device, find_compiler};

#[test]
fn the_report_names_driver_card_compiler_and_cache() {
    find_compiler();
    let cuda = doctor::examine().cuda;
    assert_eq!(cuda.missing, None);
    assert!(cuda.built && cuda.driver.is_some_and(|driver| driver.contains('.')));

    let device = device();
    let card = &cuda.cards[0];
    assert_eq!((card.device.as_str(), &card.name), ("cuda:0", &device.properties().name));
    assert_eq!(card.multiprocessors, device.properties().multiprocessors);
    assert!(card.free_bytes > 0 && card.free_bytes <= card.total_bytes);

    let nvrtc = cuda.nvrtc.expect("the compiler is found");
    assert!(nvrtc.library.is_file() && nvrtc.version.starts_with("13."), "{nvrtc:?}");
    assert!(cuda.cache.is_some_and(|cache| cache.folder.is_dir()));
}

#[test]
fn every_family_of_kernels_passes_with_both_types_of_activations() {
    device();
    let mut seen = 0;
    let mut count = |_: &doctor::KernelCheck| {
        seen += 1;
        Ok(())
    };
    let checks = doctor::check_kernels(Device::Cuda(0), &mut count).expect("the card opens");
    assert_eq!(seen, checks.len());
    for check in &checks {
        assert!(check.passed, "{}: {:?} {:?}", check.kernel, check.error, check.failure);
    }
    for activations in ["f16", "bf16"] {
        let of_type = checks.iter().filter(|check| check.activations == activations);
        assert!(of_type.count() > 30, "{activations}");
    }
}
