//! Counters against counts by hand.
use exlora_ptx_emulator::counters::Counters;
use exlora_ptx_emulator::instruction::Class;

use super::support::Device;

/// Runs a body with 64 words in a and b, with memory counted.
fn count(body: &str, blocks: u32, threads: u32) -> Counters {
    let mut device = Device::with(|settings| settings.count_memory = true);
    let (a, b) = (device.words(&[0; 1024]), device.words(&[0; 1024]));
    device.run(body, blocks, threads, [a, b])
}

#[test]
fn instructions_are_counted_for_warps_threads_and_classes() {
    let nothing = count("", 1, 40);
    let body = "
        add.u32 %r4, %r0, 1;
        setp.lt.u32 %p0, %r0, 33;
        @%p0 mul.lo.u32 %r5, %r4, %r4;
        bar.sync 0;";
    let counters = count(body, 3, 40);
    assert_eq!(counters.launches, 1);
    // Two warps a block, with 32 and 8 lanes.
    assert_eq!(counters.warp_instructions - 3 * nothing.warp_instructions, 3 * 2 * 4);
    assert_eq!(counters.thread_instructions - 3 * nothing.thread_instructions, 3 * (40 + 40 + 33 + 40));
    let class = |class: Class| counters.by_class[class as usize] - 3 * nothing.by_class[class as usize];
    assert_eq!((class(Class::Integer), class(Class::Barrier)), (3 * (40 + 40 + 33), 3 * 40));
    assert_eq!(counters.barriers, 3 * 2);
}

#[test]
fn a_sector_counts_once_a_launch_however_often_it_is_read() {
    let once = count("ld.global.u32 %r4, [%rd2];", 1, 32);
    assert_eq!((once.global_load_bytes, once.requested_load_bytes, once.unique_load_bytes), (128, 128, 128));
    assert_eq!((once.global_store_bytes, once.requested_store_bytes, once.unique_store_bytes), (0, 0, 0));
    let again = count("ld.global.u32 %r4, [%rd2];\nld.global.u32 %r4, [%rd2];", 3, 32);
    assert_eq!((again.global_load_bytes, again.requested_load_bytes, again.unique_load_bytes), (768, 768, 128));
}

#[test]
fn part_of_a_sector_moves_the_whole_sector() {
    // All lanes read one word; every eighth word is a sector of its own.
    let same = count("ld.global.u32 %r4, [%rd0];", 1, 32);
    assert_eq!((same.global_load_bytes, same.requested_load_bytes, same.unique_load_bytes), (128, 32, 32));
    let body = "shl.b32 %r4, %r0, 5;\ncvt.u64.u32 %rd4, %r4;\nadd.u64 %rd4, %rd0, %rd4;\nst.global.u32 [%rd4], %r0;";
    let strided = count(body, 1, 32);
    let stores = (strided.global_store_bytes, strided.requested_store_bytes, strided.unique_store_bytes);
    assert_eq!(stores, (128, 32 * 32, 32 * 32));
}

#[test]
fn reads_and_writes_of_a_sector_count_apart() {
    let body = "ld.global.v2.u32 {%r4, %r5}, [%rd0];\nst.global.u16 [%rd0], 1;\nred.global.add.u32 [%rd1], 1;";
    let counters = count(body, 1, 1);
    assert_eq!((counters.global_load_bytes, counters.global_store_bytes), (8 + 4, 2 + 4));
    assert_eq!((counters.unique_load_bytes, counters.unique_store_bytes), (64, 64));
}

#[test]
fn asynchronous_copies_count_what_they_read() {
    let body = "
        setp.lt.u32 %p0, %r0, 4;
        selp.u32 %r4, 4, 0, %p0;
        cp.async.ca.shared.global [%r3], [%rd2], 4, %r4;
        cp.async.wait_all;";
    let counters = count(body, 1, 32);
    assert_eq!((counters.async_copy_bytes, counters.global_load_bytes, counters.unique_load_bytes), (16, 16, 32));
}

#[test]
fn bank_conflicts_are_passes_beyond_those_needed() {
    let store = |shift: u32, lanes: u32| {
        let body = format!("shl.b32 %r4, %r0, {shift};\nadd.u32 %r4, %r2, %r4;\nst.shared.u32 [%r4], %r0;");
        let counters = count(&body, 1, lanes);
        (counters.shared_accesses, counters.bank_conflicts)
    };
    assert_eq!(store(2, 32), (1, 0));
    assert_eq!(store(3, 32), (1, 1));
    assert_eq!(store(7, 8), (1, 7));
    // 16 bytes a lane take four passes, of which none is a conflict.
    let vector = "shl.b32 %r4, %r0, 4;\nadd.u32 %r4, %r2, %r4;\nst.shared.v4.u32 [%r4], {%r0, %r0, %r0, %r0};";
    let counters = count(vector, 1, 32);
    assert_eq!((counters.shared_accesses, counters.bank_conflicts), (1, 0));
}

#[test]
fn rows_of_ldmatrix_conflict_by_their_addresses() {
    let rows = |stride: u32| {
        let body = format!(
            "st.shared.u32 [%r3], %r0;\nbar.sync 0;\nand.b32 %r4, %r0, 7;\nmad.lo.u32 %r4, %r4, {stride}, %r2;
            ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r5}}, [%r4];"
        );
        count(&body, 1, 256).bank_conflicts / 8
    };
    assert_eq!((rows(16), rows(128), rows(112)), (0, 7, 0));
}

#[test]
fn matrix_products_are_counted_for_warps() {
    let body = "
        mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r4,%r5,%r6,%r7}, {%r0,%r0,%r0,%r0}, {%r0,%r0}, {%r0,%r0,%r0,%r0};";
    assert_eq!(count(body, 2, 64).matrix_instructions, 4);
}

#[test]
fn memory_is_counted_only_on_request() {
    let mut device = Device::new();
    let a = device.words(&[0; 32]);
    let counters = device.run("ld.global.u32 %r4, [%rd2];", 1, 32, [a, 0]);
    assert_eq!((counters.unique_load_bytes, counters.by_class[Class::LoadGlobal as usize]), (0, 32));
}

#[test]
fn counts_add_up_and_have_names() {
    let mut sum = count("ld.global.u32 %r4, [%rd2];", 1, 32);
    let other = count("st.global.u32 [%rd2], %r0;", 2, 32);
    sum.add(&other);
    let named: std::collections::HashMap<String, u64> = sum.named().collect();
    assert_eq!(named["launches"], 2);
    assert_eq!((named["unique_load_bytes"], named["unique_store_bytes"]), (128, 128));
    assert_eq!((named["instructions.ld.global"], named["instructions.st.global"]), (32, 64));
    assert_eq!(named.len(), 15 + Class::COUNT);
}
