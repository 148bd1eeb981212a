//! Barriers, deadlocks, endless loops.
use exlora_ptx_emulator::report::FaultKind;

use super::support::Device;

#[test]
fn warps_that_wait_for_one_that_has_exited_are_a_deadlock() {
    let body = "setp.gt.u32 %p0, %r0, LAST;\n@%p0 bra END;\nbar.sync 0;\nEND: ret;";
    let parts = [
        "deadlock: warps 0 wait at barrier 0 (1 of 2 have arrived)",
        "test.cu:3",
        "1 warp(s) have exited",
        "kernel k, block (0,0,0)",
    ];
    Device::new().fail(&body.replace("LAST", "31"), 1, 64, [0; 2], &parts);
    Device::new().run(&body.replace("LAST", "63"), 1, 64, [0; 2]);
    let mut lenient = Device::with(|settings| settings.allow_exit_before_barrier = true);
    lenient.run(&body.replace("LAST", "31"), 1, 64, [0; 2]);
}

#[test]
fn all_lanes_of_a_warp_must_reach_a_barrier_together() {
    let body = "setp.gt.u32 %p0, %r0, LAST;\n@%p0 bra END;\nbar.sync 0;\nEND: bar.sync 0;";
    let parts = ["divergent barrier: of the warp's lanes 0xffffffff, only 0x0000ffff reach it", "test.cu:3"];
    Device::new().fail(&body.replace("LAST", "15"), 1, 32, [0; 2], &parts);
    Device::new().run(&body.replace("LAST", "31"), 1, 32, [0; 2]);
}

#[test]
fn lanes_must_not_exit_before_a_barrier() {
    let body = "setp.gt.u32 %p0, %r0, 15;\n@%p0 exit;\nbar.sync 0;";
    Device::new().fail(body, 1, 32, [0; 2], &["exit before a barrier: lanes 0xffff0000", "test.cu:3"]);
    Device::new().run(&body.replace("15", "31"), 1, 32, [0; 2]);
    // A block's last warp may have fewer lanes.
    Device::new().run("bar.sync 0;", 1, 40, [0; 2]);
}

#[test]
fn warps_must_wait_at_the_same_barrier() {
    let body = "setp.gt.u32 %p0, %r0, 31;\n@%p0 bra OTHER;\nbar.sync 0;\nbra END;\nOTHER: bar.sync 0;\nEND: ret;";
    let parts = ["divergent barrier 0: another warp of this block waits at another one", "test.cu:3", "test.cu:5"];
    Device::new().fail(body, 1, 64, [0; 2], &parts);
    Device::with(|settings| settings.require_same_barrier = false).run(body, 1, 64, [0; 2]);
}

#[test]
fn counts_of_threads_must_fit() {
    Device::new().run("bar.sync 3, 64;", 1, 64, [0; 2]);
    Device::new().fail("bar.sync 3, 48;", 1, 64, [0; 2], &["48 threads are no multiple of 32"]);
    Device::new().fail("bar.sync 3, 96;", 1, 64, [0; 2], &["barrier 3 waits for 96 threads, the block has 64"]);
    Device::new().fail("bar.sync %r4, 64;".replace("%r4", "16").as_str(), 1, 64, [0; 2], &["only 0 to 15 exist"]);
}

#[test]
fn barriers_reduce_predicates() {
    let mut device = Device::new();
    let a = device.words(&[9; 192]);
    let body = "
        setp.lt.u32 %p0, %r0, 40;
        setp.lt.u32 %p1, %r0, 64;
        bar.red.popc.u32 %r4, 0, %p0;
        bar.red.and.pred %p2, 0, %p1;
        bar.red.or.pred %p3, 0, %p0;
        selp.u32 %r5, 1, 0, %p2;
        selp.u32 %r6, 1, 0, %p3;
        st.global.u32 [%rd2], %r4;
        st.global.u32 [%rd2+256], %r5;
        st.global.u32 [%rd2+512], %r6;";
    device.run(body, 1, 64, [a, 0]);
    assert_eq!(device.read(a, 192), [[40; 64], [1; 64], [1; 64]].concat());
}

#[test]
fn a_producer_arrives_and_a_consumer_waits() {
    let body = "
        setp.ge.u32 %p0, %r0, 32;
        @%p0 bra CONSUMER;
        st.shared.u32 [%r3], %r0;
        bar.arrive 1, 64;
        LATE
        bra END;
        CONSUMER: bar.sync 1, 64;
        ld.shared.u32 %r4, [%r3+-128];
        END: bar.sync 0;";
    Device::new().run(&body.replace("LATE", ""), 1, 64, [0; 2]);
    // What the producer does after its arrival is not covered by it.
    let late = body.replace("LATE", "st.shared.u32 [%r3], 99;");
    Device::new().fail(&late, 1, 64, [0; 2], &["race on shared memory"]);
}

#[test]
fn an_endless_loop_ends_with_the_limit_of_instructions() {
    let body = "LOOP: add.u32 %r4, %r0, 1;\nsetp.ge.u32 %p0, %r4, LIMIT;\n@%p0 bra LOOP;";
    let mut device = Device::with(|settings| settings.instruction_limit = 1_000_000);
    let outcome = device.outcome(&body.replace("LIMIT", "0"), 1, 32, [0; 2]);
    let fault = outcome.result.expect_err("the loop ended");
    assert_eq!(fault.kind, FaultKind::Timeout);
    assert!(fault.message.contains("endless loop: more than 1000000 instructions"), "{}", fault.message);
    device.run(&body.replace("LIMIT", "99"), 1, 32, [0; 2]);
}

#[test]
fn a_trap_is_a_fault() {
    let body = "setp.eq.u32 %p0, %r0, 7;\n@%p0 trap;";
    Device::new().fail(body, 1, 32, [0; 2], &["trap executed", "thread (7,0,0)", "test.cu:2"]);
    Device::new().run(body, 1, 7, [0; 2]);
}
