//! Orders of blocks and warps.
use exlora_ptx_emulator::execution::{AsyncCopies, Order};

use super::support::Device;

/// The order in which blocks and, within them, warps took a ticket.
fn tickets(order: Order) -> Vec<u32> {
    let body = "
        and.b32 %r4, %r0, 31;
        setp.ne.u32 %p0, %r4, 0;
        shr.u32 %r5, %r0, 5;
        mad.lo.u32 %r5, %r1, 4, %r5;
        @!%p0 atom.global.add.u32 %r6, [%rd0], 1;
        mul.wide.u32 %rd4, %r6, 4;
        add.u64 %rd4, %rd1, %rd4;
        @!%p0 st.global.u32 [%rd4], %r5;";
    let mut device = Device::with(|settings| settings.order = order);
    let (counter, order) = (device.words(&[0]), device.words(&[0; 32]));
    device.run(body, 8, 128, [counter, order]);
    device.read(order, 32)
}

#[test]
fn blocks_and_warps_run_in_the_order_that_is_asked_for() {
    let forward: Vec<u32> = (0..32).collect();
    assert_eq!(tickets(Order::Forward), forward);
    assert_eq!(tickets(Order::Reverse), forward.iter().rev().copied().collect::<Vec<_>>());
}

#[test]
fn random_orders_are_permutations_that_depend_on_the_seed() {
    let orders: Vec<Vec<u32>> = (0..4).map(|seed| tickets(Order::Random { seed })).collect();
    for (seed, order) in orders.iter().enumerate() {
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..32).collect::<Vec<_>>());
        assert_ne!(*order, sorted);
        assert!(orders[..seed].iter().all(|other| other != order));
        assert_eq!(*order, tickets(Order::Random { seed: seed as u64 }));
    }
}

#[test]
fn a_correct_kernel_gives_the_same_in_every_schedule() {
    // A sum over the block by halves, of words that are copied asynchronously.
    let mut body = String::from(
        "mad.lo.u32 %r4, %r1, 128, %r0;\nmul.wide.u32 %rd4, %r4, 4;\nadd.u64 %rd4, %rd0, %rd4;
        cp.async.ca.shared.global [%r3], [%rd4], 4;\ncp.async.wait_all;\nbar.sync 0;\n",
    );
    for half in [64, 32, 16, 8, 4, 2, 1] {
        body += &format!(
            "setp.lt.u32 %p0, %r0, {half};\n@%p0 ld.shared.u32 %r5, [%r3];\n@%p0 ld.shared.u32 %r6, [%r3+{}];
            add.u32 %r5, %r5, %r6;\n@%p0 st.shared.u32 [%r3], %r5;\nbar.sync 0;\n",
            4 * half
        );
    }
    body += "setp.eq.u32 %p1, %r0, 0;\nmul.wide.u32 %rd5, %r1, 4;\nadd.u64 %rd5, %rd1, %rd5;\n@%p1 st.global.u32 [%rd5], %r5;";
    let words: Vec<u32> = (0..5 * 128).map(|index: u32| index.wrapping_mul(2_654_435_761)).collect();
    let sums: Vec<u32> =
        words.chunks(128).map(|chunk| chunk.iter().fold(0u32, |sum, word| sum.wrapping_add(*word))).collect();
    for order in [Order::Forward, Order::Reverse, Order::Random { seed: 1 }, Order::Random { seed: 9 }] {
        for copies in [AsyncCopies::Lazy, AsyncCopies::Eager] {
            let mut device = Device::new();
            (device.settings.order, device.settings.async_copies) = (order, copies);
            let (a, b) = (device.words(&words), device.unwritten(20));
            device.run(&body, 5, 128, [a, b]);
            assert_eq!(device.read(b, 5), sums);
        }
    }
}
