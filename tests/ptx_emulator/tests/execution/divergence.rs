//! Divergence, and what lanes may do while others are elsewhere.
use super::support::Device;

#[test]
fn lanes_meet_again_after_a_loop_with_breaks() {
    // Every lane loops as often as its index, in basic blocks that are laid out backwards.
    let body = "
        mov.u32 %r4, 0;
        bra HEAD;
        OUT: bar.sync 0;
        st.global.u32 [%rd2], %r4;
        ret;
        BODY: add.u32 %r4, %r4, 1;
        bra HEAD;
        HEAD: setp.ge.u32 %p0, %r4, %r0;
        @%p0 bra OUT;
        bra BODY;";
    let mut device = Device::new();
    let a = device.words(&[0; 32]);
    device.run(body, 1, 32, [a, 0]);
    assert_eq!(device.read(a, 32), (0..32).collect::<Vec<_>>());
}

#[test]
fn an_indexed_branch_sends_each_lane_to_its_target() {
    let body = "
        and.b32 %r4, %r0, 3;
        mov.u32 %r5, 0;
        TARGETS: .branchtargets ZERO, ONE, TWO;
        brx.idx %r4, TARGETS;
        ZERO: add.u32 %r5, %r5, 100;
        ONE: add.u32 %r5, %r5, 10;
        TWO: add.u32 %r5, %r5, 1;
        bar.sync 0;
        st.global.u32 [%rd2], %r5;";
    let mut device = Device::new();
    let a = device.words(&[0; 3]);
    device.run(body, 1, 3, [a, 0]);
    assert_eq!(device.read(a, 3), [111, 11, 1]);
    device.fail(body, 1, 4, [a, 0], &["brx.idx: index 3 into a table of 3", "thread (3,0,0)"]);
}

#[test]
fn collectives_need_the_lanes_of_their_mask() {
    let body = "setp.gt.u32 %p0, %r0, 15;\n@%p0 bra END;\nvote.sync.ballot.b32 %r4, %p0, MASK;\nEND: ret;";
    Device::new().run(&body.replace("MASK", "0xffff"), 1, 32, [0; 2]);
    let parts = ["divergent vote.sync: the mask 0xffffffff names lanes 0xffff0000", "test.cu:3"];
    Device::new().fail(&body.replace("MASK", "0xffffffff"), 1, 32, [0; 2], &parts);
    let parts = ["the executing lane is not in its member mask 0x0000fffe", "thread (0,0,0)"];
    Device::new().fail(&body.replace("MASK", "0xfffe"), 1, 32, [0; 2], &parts);
}

#[test]
fn a_shuffle_reads_only_from_lanes_that_take_part() {
    let body = "setp.gt.u32 %p0, %r0, 15;\n@%p0 bra END;\nshfl.sync.idx.b32 %r4, %r0, LANE, 31, 0xffff;\nEND: ret;";
    Device::new().run(&body.replace("LANE", "15"), 1, 32, [0; 2]);
    Device::new().fail(&body.replace("LANE", "16"), 1, 32, [0; 2], &["reads from lane 16, which does not take part"]);
}

#[test]
fn matrix_instructions_need_the_whole_warp() {
    let body = "st.shared.u32 [%r3], %r0;\nbar.sync 0;\nldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r4}, [%r2];";
    Device::new().run(body, 1, 32, [0; 2]);
    Device::new().fail(
        body,
        1,
        31,
        [0; 2],
        &["divergent ldmatrix: all 32 lanes must execute it, active are 0x7fffffff"],
    );
}
