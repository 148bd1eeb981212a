//! Preparing and installing adapters: beside running steps, into slots, between backends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use exlora::ErrorCode;
use exlora::adapter::batch::SlotId;
use exlora::backend::Write;
use exlora::tensor::DType;

use support::Rng;
use support::deltas::{Change, Low, random_low};
use support::harness::{Device, Harness, Member, Tensor, Weight, bits, fast, isas, oracle, route};

const WIDTH: usize = 96;

fn linear(rng: &mut Rng) -> Member {
    let values = rng.normals(WIDTH * WIDTH, 0.1);
    Member { weight: Weight::Dense(Tensor::new(DType::F16, &[WIDTH, WIDTH], &values)), bias: None }
}

fn dora(rng: &mut Rng) -> Change {
    let magnitude = Some(Tensor::new(DType::F32, &[WIDTH], &rng.normals(WIDTH, 1.0)));
    Change::low(0, Low { magnitude, ..random_low(rng, DType::F32, 8, WIDTH, WIDTH) })
}

#[test]
fn an_adapter_prepared_while_steps_run_has_the_same_bits() {
    for device in isas().map(|isa| fast(isa, 2)).chain([oracle()]) {
        let mut rng = Rng(11);
        let mut harness = Harness::open(device);
        let (group, sites) = harness.group(&[linear(&mut rng)]);
        let (running, loading) = ([dora(&mut rng)], dora(&mut rng));
        harness.upload(SlotId(0), &sites, &running).expect("the adapter uploads");
        harness.upload(SlotId(1), &sites, std::slice::from_ref(&loading)).expect("the adapter uploads");
        let x = harness.put(WIDTH, &rng.normals(2 * WIDTH, 1.0));
        let y = harness.buffer(WIDTH, 2);
        let batch = route(&[vec![(SlotId(0), 1.0)], vec![(SlotId(1), 0.5)]]);
        harness.compute().linear(group, x, 2, &batch, y, Write::Replace).expect("the linear runs");
        let expected = bits(&harness.get(y, WIDTH, 2));

        let preparer = Arc::clone(&harness.backend().adapters);
        let is_done = AtomicBool::new(false);
        let prepared = std::thread::scope(|scope| {
            let loader = scope.spawn(|| {
                let mut prepared = preparer.prepare(&[loading.delta(&sites)], &mut || Ok(()));
                for _ in 1..20 {
                    prepared = preparer.prepare(&[loading.delta(&sites)], &mut || Ok(()));
                }
                is_done.store(true, Ordering::Release);
                prepared.expect("the adapter is prepared")
            });
            while !is_done.load(Ordering::Acquire) {
                harness.compute().linear(group, x, 2, &batch, y, Write::Replace).expect("the linear runs");
                assert_eq!(bits(&harness.get(y, WIDTH, 2)), expected);
            }
            loader.join().expect("the loader does not panic")
        });
        harness.compute().drop_adapter(SlotId(1));
        harness.compute().install_adapter(SlotId(1), prepared).expect("the slot is free");
        harness.compute().linear(group, x, 2, &batch, y, Write::Replace).expect("the linear runs");
        assert_eq!(bits(&harness.get(y, WIDTH, 2)), expected);
    }
}

#[test]
fn a_slot_takes_one_adapter_and_only_of_its_own_backend() {
    let mut rng = Rng(12);
    let (member, change) = (linear(&mut rng), dora(&mut rng));
    let [mut cpu, mut reference] = [Device::CPU, oracle()].map(|device| {
        let mut harness = Harness::open(device);
        let (_, sites) = harness.group(std::slice::from_ref(&member));
        harness.upload(SlotId(0), &sites, std::slice::from_ref(&change)).expect("the adapter uploads");
        (harness, sites)
    });
    for harness in [&mut cpu, &mut reference] {
        let before = harness.0.memory();
        let prepared =
            harness.0.backend().adapters.prepare(&[change.delta(&harness.1)], &mut || Ok(())).expect("is prepared");
        let error = harness.0.compute().install_adapter(SlotId(0), prepared).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Internal);
        assert_eq!(harness.0.memory(), before);
    }
    let foreign = cpu.0.backend().adapters.prepare(&[change.delta(&cpu.1)], &mut || Ok(())).expect("is prepared");
    let before = reference.0.memory();
    let error = reference.0.compute().install_adapter(SlotId(1), foreign).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Internal);
    assert_eq!(reference.0.memory(), before);
}

#[test]
fn rows_beyond_a_buffer_are_neither_written_nor_read() {
    for device in [Device::CPU, oracle()] {
        let mut harness = Harness::open(device);
        let buffer = harness.put(3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(harness.compute().write_rows(buffer, 0, &[0.0; 9]).unwrap_err().code(), ErrorCode::Internal);
        assert_eq!(harness.compute().read_rows(buffer, &mut [0.0; 9]).unwrap_err().code(), ErrorCode::Internal);
        assert_eq!(harness.get(buffer, 3, 2), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }
}
