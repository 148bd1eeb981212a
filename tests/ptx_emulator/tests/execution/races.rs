//! Accesses that nothing orders.
use exlora_ptx_emulator::execution::{Order, RaceChecks};

use super::support::Device;

/// Runs with a line, and without, where a race must be found in every order.
fn needs(line: &str, body: &str, blocks: u32, threads: u32, words: usize, parts: &[&str]) {
    assert!(body.contains(line), "{line} is not part of the kernel");
    for order in [Order::Forward, Order::Reverse, Order::Random { seed: 1 }, Order::Random { seed: 2 }] {
        let mut device = Device::with(|settings| settings.order = order);
        let a = device.words(&vec![0; words]);
        device.run(body, blocks, threads, [a, 0]);
        device.fail(&body.replacen(line, "", 1), blocks, threads, [a, 0], parts);
    }
}

#[test]
fn a_read_of_what_another_warp_wrote_needs_a_barrier() {
    let body = "
        st.shared.u32 [%r3], %r0;
        bar.sync 1;
        add.u32 %r4, %r0, 5;
        st.shared.u32 [%r3], %r4;
        bar.sync 0;
        xor.b32 %r5, %r0, 32;
        shl.b32 %r5, %r5, 2;
        add.u32 %r5, %r2, %r5;
        ld.shared.u32 %r6, [%r5];";
    needs(
        "bar.sync 0;",
        body,
        2,
        64,
        1,
        &["race on shared memory, byte", "of s[1024]", "no barrier in between", "kernel k"],
    );
}

#[test]
fn overwriting_what_another_warp_reads_needs_a_barrier() {
    let body = "
        st.shared.u32 [%r3], %r0;
        bar.sync 0;
        xor.b32 %r4, %r0, 32;
        shl.b32 %r4, %r4, 2;
        add.u32 %r4, %r2, %r4;
        ld.shared.u32 %r5, [%r4];
        bar.sync 0, 64;
        st.shared.u32 [%r3], %r5;";
    needs("bar.sync 0, 64;", body, 1, 64, 1, &["race on shared memory", "touches what was"]);
}

#[test]
fn lanes_of_a_warp_exchange_only_after_bar_warp_sync() {
    let body = "
        st.shared.u32 [%r3], %r0;
        bar.warp.sync 0xffffffff;
        xor.b32 %r4, %r3, 4;
        ld.shared.u32 %r5, [%r4];";
    needs("bar.warp.sync 0xffffffff;", body, 1, 32, 1, &["race on shared memory", "lane"]);
}

#[test]
fn halves_of_a_word_have_writers_of_their_own() {
    // Thread 0 writes the low half, thread 32 the high half; then thread 32 reads the low one.
    let body = "
        st.shared.u32 [%r3], %r0;
        bar.sync 1;
        setp.eq.u32 %p0, %r0, 0;
        setp.eq.u32 %p1, %r0, 32;
        cvt.u16.u32 %h1, 7;
        @%p0 st.shared.u16 [%r2], %h1;
        @%p1 st.shared.u16 [%r2+2], %h1;
        bar.sync 0;
        @%p1 ld.shared.u16 %h2, [%r2];";
    needs("bar.sync 0;", body, 1, 64, 1, &["race on shared memory, byte 0 of s[1024]"]);
    // The halves are no race.
    let mut device = Device::new();
    device.run(&body.replace("@%p1 ld.shared.u16 %h2, [%r2];", ""), 1, 64, [0; 2]);
    device.fail(
        &body.replace("[%r2+2]", "[%r2]").replace("%h1, 7", "%h1, %r0"),
        1,
        64,
        [0; 2],
        &["race on shared memory"],
    );
}

#[test]
fn every_reader_counts_not_only_the_last_one() {
    // Warps 0 to 2 read a word; warp 3 waits for all of them but one, then overwrites it.
    let body = "
        setp.eq.u32 %p0, %r0, 0;
        @%p0 st.shared.u32 [%r2], %r0;
        bar.sync 0;
        setp.lt.u32 %p3, %r0, 96;
        @%p3 ld.shared.u32 %r4, [%r2];
        shr.u32 %r5, %r0, 5;
        setp.ne.u32 %p1, %r5, LEFT_OUT;
        @%p1 bra WAIT;
        bra END;
        WAIT: bar.sync 1, 96;
        setp.eq.u32 %p2, %r0, 127;
        @%p2 st.shared.u32 [%r2], %r0;
        END: bar.sync 2;";
    for left_out in 0..3 {
        let parts = ["race on shared memory", "touches what was read by", &format!("(warp {left_out} lane")];
        Device::new().fail(&body.replace("LEFT_OUT", &left_out.to_string()), 1, 128, [0; 2], &parts);
    }
    let all = body.replace("LEFT_OUT", "9").replace("bar.sync 1, 96", "bar.sync 1, 128");
    Device::new().run(&all, 1, 128, [0; 2]);
}

#[test]
fn blocks_that_write_different_values_to_a_word_race() {
    let mut device = Device::new();
    let a = device.words(&[7]);
    let parts = [
        "race on global memory, byte 0 of allocation #1",
        "this write touches what was written by",
        "of block (0,0,0)",
    ];
    device.fail("add.u32 %r4, %r1, 1;\nst.global.u32 [%rd0], %r4;", 2, 1, [a, 0], &parts);
    device.run("st.global.u32 [%rd0], 5;", 2, 32, [a, 0]);
    device.run("atom.global.add.u32 %r4, [%rd0], 1;", 2, 32, [a, 0]);
    assert_eq!(device.read(a, 1), [5 + 64]);
}

#[test]
fn an_addition_without_an_atomic_races_between_blocks() {
    let mut device = Device::new();
    let a = device.words(&[0; 32]);
    let body = "ld.global.u32 %r4, [%rd2];\nadd.u32 %r4, %r4, 1;\nst.global.u32 [%rd2], %r4;";
    device.run(body, 1, 32, [a, 0]);
    device.fail(body, 2, 32, [a, 0], &["race on global memory", "this read touches what was written", "test.cu:1"]);
    device.settings.race_checks = RaceChecks::Shared;
    device.run(body, 2, 32, [a, 0]);
    assert_eq!(device.read(a, 32), [4; 32]);
}

#[test]
fn launches_are_ordered() {
    let mut device = Device::new();
    let a = device.words(&[0; 32]);
    let body = "ld.global.u32 %r4, [%rd2];\nadd.u32 %r4, %r4, 1;\nst.global.u32 [%rd2], %r4;";
    // More launches than the numbers that tell them apart.
    let kernel = super::support::kernel(body);
    let parameters: Vec<u8> = [a, 0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let configuration =
        exlora_ptx_emulator::execution::Configuration { grid: [1; 3], block: [32, 1, 1], dynamic_shared_bytes: 0 };
    for _ in 0..70_000 {
        let outcome = exlora_ptx_emulator::execution::run(
            &kernel,
            &mut device.memory,
            &device.settings,
            configuration,
            &parameters,
        );
        assert!(outcome.result.is_ok());
    }
    assert_eq!(device.read(a, 32), [70_000; 32]);
}

/// Each block writes a word; the last one to finish adds them up into word 100.
const LAST_BLOCK: &str = "
    setp.ne.u32 %p0, %r0, 0;
    mul.wide.u32 %rd4, %r1, 4;
    add.u64 %rd4, %rd0, %rd4;
    @!%p0 st.global.u32 [%rd4], %r1;
    membar.gl;
    bar.sync 0;
    @!%p0 atom.global.add.u32 %r4, [%rd0+404], 1;
    @!%p0 st.shared.u32 [%r2], %r4;
    fence.acq_rel.gpu;
    bar.sync 1;
    ld.shared.u32 %r4, [%r2];
    setp.ne.u32 %p1, %r4, 7;
    @%p1 bra END;
    setp.ge.u32 %p2, %r0, 8;
    mov.u32 %r5, 0;
    @!%p2 ld.global.u32 %r5, [%rd2];
    @!%p2 red.global.add.u32 [%rd0+400], %r5;
    END: bar.sync 2;";

#[test]
fn the_last_block_needs_a_fence_before_its_atomic() {
    needs_fence("membar.gl;", "no fence and atomic there");
}

#[test]
fn the_last_block_needs_a_fence_after_its_atomic() {
    needs_fence("fence.acq_rel.gpu;", "an atomic has observed that block, but no fence comes after it");
}

fn needs_fence(fence: &str, reason: &str) {
    for order in [Order::Forward, Order::Reverse, Order::Random { seed: 3 }] {
        let mut device = Device::with(|settings| settings.order = order);
        let a = device.words(&[0; 102]);
        device.run(LAST_BLOCK, 8, 64, [a, 0]);
        assert_eq!(device.read(a + 400, 2), [28, 8]);
        let a = device.words(&[0; 102]);
        let parts = ["race on global memory", "this read touches what was written", reason, "ld.global.u32"];
        device.fail(&LAST_BLOCK.replacen(fence, "", 1), 8, 64, [a, 0], &parts);
    }
}

#[test]
fn a_fence_of_the_block_alone_does_not_order_blocks() {
    let mut device = Device::new();
    let a = device.words(&[0; 102]);
    device.fail(&LAST_BLOCK.replacen("membar.gl", "membar.cta", 1), 8, 64, [a, 0], &["race on global memory"]);
}

#[test]
fn release_and_acquire_order_without_fences() {
    let body = "
        setp.ne.u32 %p0, %r1, 0;
        @%p0 bra READ;
        st.global.u32 [%rd0], 5;
        RELEASE.u32 [%rd0+4], 1;
        bra END;
        READ: ACQUIRE.u32 %r4, [%rd0+4];
        ld.global.u32 %r5, [%rd0];
        END: bar.sync 0;";
    let with = |release: &str, acquire: &str| body.replace("RELEASE", release).replace("ACQUIRE", acquire);
    let mut device = Device::new();
    let a = device.words(&[0; 2]);
    device.run(&with("st.release.gpu.global", "ld.acquire.gpu.global"), 2, 1, [a, 0]);
    device.fail(&with("st.relaxed.gpu.global", "ld.acquire.gpu.global"), 2, 1, [a, 0], &["no fence and atomic there"]);
    device.fail(&with("st.release.gpu.global", "ld.relaxed.gpu.global"), 2, 1, [a, 0], &["no fence comes after it"]);
}
