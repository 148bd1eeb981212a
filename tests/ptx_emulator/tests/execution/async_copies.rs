//! `cp.async`
use exlora_ptx_emulator::execution::AsyncCopies;

use super::support::Device;

const COPY: &str = "
    cp.async.ca.shared.global [%r3], [%rd2], 4;
    cp.async.commit_group;
    cp.async.wait_group 0;
    ld.shared.u32 %r4, [%r3];
    add.u64 %rd3, %rd2, 128;
    st.global.u32 [%rd3], %r4;";

fn words() -> Vec<u32> {
    (100..164).collect()
}

#[test]
fn a_copy_arrives_at_the_wait() {
    for copies in [AsyncCopies::Lazy, AsyncCopies::Eager] {
        let mut device = Device::with(|settings| settings.async_copies = copies);
        let a = device.words(&words());
        device.run(COPY, 1, 32, [a, 0]);
        assert_eq!(device.read(a + 128, 32), words()[..32]);
        let parts = ["shared read of 4 bytes", "while a cp.async into byte 0 of s[1024] is in flight", "test.cu:4"];
        device.fail(&COPY.replacen("cp.async.wait_group 0;", "", 1), 1, 32, [a, 0], &parts);
    }
}

#[test]
fn a_wait_leaves_as_many_groups_as_it_says() {
    let body = "
        cp.async.ca.shared.global [%r3], [%rd2], 4;
        cp.async.commit_group;
        cp.async.ca.shared.global [%r3+128], [%rd2+128], 4;
        cp.async.commit_group;
        cp.async.wait_group 1;
        ld.shared.u32 %r4, [%r3+OFFSET];";
    let mut device = Device::new();
    let a = device.words(&words());
    device.run(&body.replace("OFFSET", "0"), 1, 32, [a, 0]);
    device.fail(&body.replace("OFFSET", "128"), 1, 32, [a, 0], &["is in flight", "test.cu:6"]);
    // A copy that has not been committed is in no group.
    let uncommitted = COPY.replacen("cp.async.commit_group;", "", 1);
    device.fail(&uncommitted, 1, 32, [a, 0], &["is in flight"]);
    device.run(&uncommitted.replace("wait_group 0", "wait_all"), 1, 32, [a, 0]);
}

#[test]
fn other_warps_see_a_copy_only_after_a_barrier() {
    let body = "
        cp.async.ca.shared.global [%r3], [%rd2], 4;
        cp.async.wait_all;
        bar.sync 0;
        xor.b32 %r4, %r0, 32;
        shl.b32 %r4, %r4, 2;
        add.u32 %r4, %r2, %r4;
        ld.shared.u32 %r5, [%r4];";
    let mut device = Device::new();
    let a = device.words(&words());
    device.run(body, 1, 64, [a, 0]);
    device.fail(&body.replacen("bar.sync 0;", "", 1), 1, 64, [a, 0], &["shared"]);
    // The barrier must come after the wait.
    let early =
        body.replacen("cp.async.wait_all;", "", 1).replacen("bar.sync 0;", "bar.sync 0;\ncp.async.wait_all;", 1);
    device.fail(&early, 1, 64, [a, 0], &["shared"]);
}

#[test]
fn bytes_beyond_the_source_become_zero_and_are_not_read() {
    let body = "
        cp.async.cg.shared.global [%r2], [%rd0], 16, SOURCE;
        cp.async.wait_all;
        ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r2];
        st.global.v4.u32 [%rd1], {%r4, %r5, %r6, %r7};";
    let mut device = Device::new();
    let (a, b) = (device.words(&[1, 2]), device.words(&[9; 4]));
    device.run(&body.replace("SOURCE", "8"), 1, 1, [a, b]);
    assert_eq!(device.read(b, 4), [1, 2, 0, 0]);
    // An address is allowed to be anything where nothing is read.
    device.run(&body.replace("SOURCE", "0"), 1, 1, [1 << 20, b]);
    assert_eq!(device.read(b, 4), [0; 4]);
    device.fail(&body.replace("SOURCE", "12"), 1, 1, [a, b], &["out-of-bounds global read", "0 byte(s) past the end"]);
    device.fail(&body.replace("SOURCE", "17"), 1, 1, [a, b], &["17 source bytes are more than the 16"]);
}

#[test]
fn both_ends_of_a_copy_are_aligned() {
    let body = "cp.async.cg.shared.global [%r2+TO], [%rd0+FROM], 16;\ncp.async.wait_all;";
    let copy = |to: &str, from: &str| body.replace("TO", to).replace("FROM", from);
    let mut device = Device::new();
    let a = device.words(&[0; 16]);
    device.run(&copy("16", "32"), 1, 1, [a, 0]);
    device.fail(&copy("8", "32"), 1, 1, [a, 0], &["misaligned shared write of 16 bytes"]);
    device.fail(&copy("16", "8"), 1, 1, [a, 0], &["misaligned global read of 16 bytes"]);
}

#[test]
fn a_copy_in_flight_at_the_exit_is_a_warning() {
    let mut device = Device::new();
    let a = device.words(&words());
    let without_wait = "cp.async.ca.shared.global [%r3], [%rd2], 4;";
    let warnings = device.outcome(without_wait, 1, 32, [a, 0]).warnings;
    assert_eq!(warnings, ["kernel k, block (0,0,0): warp 0 exits with 32 cp.async copies in flight"]);
    assert!(device.outcome(COPY, 1, 32, [a, 0]).warnings.is_empty());
}
