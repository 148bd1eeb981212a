//! Shuffles, votes and reductions of a warp.
use super::evaluate_warp;

/// Values of the lanes, mixed.
fn value(lane: u32) -> u32 {
    lane.wrapping_mul(0x9e37_79b1) ^ 0x1234
}

const VALUE: &str = "mul.lo.u32 %r0, %lane, 0x9e3779b1; xor.b32 %r0, %r0, 0x1234;";

#[test]
fn shuffles_follow_the_pseudocode_of_the_ptx_isa() {
    for mode in ["up", "down", "bfly", "idx"] {
        for (b, c) in [(1, 0x1f), (5, 0x1f), (0, 0x1f), (3, 0x181f), (9, 0x101f), (31, 0x1f), (2, 0), (7, 0x1c03)] {
            let c = if mode == "up" { c & 0x1f00 } else { c };
            let results = evaluate_warp(&format!(
                "{VALUE} shfl.sync.{mode}.b32 %r1|%p1, %r0, {b}, {c:#x}, 0xffffffff; selp.b32 %r2, 1, 0, %p1;
                shfl.sync.{mode}.b32 %r3, %r0, {b}, {c:#x}, 0xffffffff; xor.b32 %r3, %r3, %r1;
                shl.b32 %r2, %r2, 31; and.b32 %r1, %r1, 0x7fffffff; or.b32 %result, %r1, %r2; or.b32 %result, %result, %r3;"
            ));
            let segment = c >> 8 & 0x1f;
            for (lane, result) in results.into_iter().enumerate() {
                let lane = lane as i32;
                let max_lane = (lane & segment) | (c & 0x1f & !segment);
                let min_lane = lane & segment;
                let (source, in_range) = match mode {
                    "up" => (lane - b, lane - b >= max_lane),
                    "down" => (lane + b, lane + b <= max_lane),
                    "bfly" => (lane ^ b, lane ^ b <= max_lane),
                    _ => (min_lane | (b & !segment), (min_lane | (b & !segment)) <= max_lane),
                };
                let source = if in_range { source } else { lane };
                let want = value(source as u32) & 0x7fff_ffff | u32::from(in_range) << 31;
                assert_eq!(result, want, "shfl.{mode} {b} {c:#x} lane {lane}");
            }
        }
    }
}

#[test]
fn votes_count_the_lanes_of_the_mask() {
    let condition = "and.b32 %r1, %lane, 3; setp.eq.u32 %p1, %r1, 0; setp.lt.u32 %p2, %lane, 16;";
    let results = evaluate_warp(&format!(
        "{condition} vote.sync.ballot.b32 %r2, %p1, 0xffffffff; @%p2 vote.sync.ballot.b32 %r2, !%p1, 0x0000ffff; mov.u32 %result, %r2;"
    ));
    assert_eq!(results, (0..32).map(|lane| if lane < 16 { 0xeeee } else { 0x1111_1111 }).collect::<Vec<u32>>());
    for (mode, of_some, of_none, of_all) in [("all", 0, 0, 1), ("any", 1, 0, 1), ("uni", 0, 1, 1)] {
        for (condition, want) in [
            ("setp.eq.u32 %p1, %r1, 0;", of_some),
            ("setp.eq.u32 %p1, %r1, 9;", of_none),
            ("setp.ne.u32 %p1, %r1, 9;", of_all),
        ] {
            let results = evaluate_warp(&format!(
                "and.b32 %r1, %lane, 3; {condition} vote.sync.{mode}.pred %p2, %p1, 0xffffffff; selp.b32 %result, 1, 0, %p2;"
            ));
            assert_eq!(results, vec![want; 32], "{mode} {condition}");
        }
    }
}

#[test]
fn reductions_run_over_the_lanes_of_the_mask() {
    let values = || (0..32).map(value);
    let reductions: [(&str, u32); 8] = [
        ("add.u32", values().fold(0, u32::wrapping_add)),
        ("min.u32", values().min().unwrap()),
        ("max.u32", values().max().unwrap()),
        ("min.s32", values().map(|value| value as i32).min().unwrap() as u32),
        ("max.s32", values().map(|value| value as i32).max().unwrap() as u32),
        ("and.b32", values().fold(!0, |all, value| all & value)),
        ("or.b32", values().fold(0, |all, value| all | value)),
        ("xor.b32", values().fold(0, |all, value| all ^ value)),
    ];
    for (reduction, want) in reductions {
        let results = evaluate_warp(&format!("{VALUE} redux.sync.{reduction} %result, %r0, 0xffffffff;"));
        assert_eq!(results, vec![want; 32], "{reduction}");
    }
}

#[test]
fn the_active_mask_names_who_is_here() {
    let results = evaluate_warp("mov.u32 %result, 0; setp.lt.u32 %p1, %lane, 5; @%p1 activemask.b32 %result;");
    assert_eq!(results, (0..32).map(|lane| if lane < 5 { 31 } else { 0 }).collect::<Vec<u32>>());
}

#[test]
fn barriers_reduce_predicates() {
    let results = evaluate_warp(
        "setp.lt.u32 %p1, %lane, 7; barrier.sync.aligned 0; bar.cta.red.popc.u32 %r0, 0, %p1; barrier.red.and.pred %p2, 0, %p1;
        bar.red.or.pred %p3, 1, !%p1; selp.u32 %r1, 256, 0, %p2; selp.u32 %r2, 512, 0, %p3;
        add.u32 %result, %r0, %r1; add.u32 %result, %result, %r2;",
    );
    assert_eq!(results, vec![7 + 512; 32]);
}
