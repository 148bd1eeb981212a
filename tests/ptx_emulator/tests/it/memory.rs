//! Loads, stores, atomics and asynchronous copies: what is moved where.
use super::evaluate_warp;

#[test]
fn narrow_loads_extend_and_narrow_stores_cut() {
    let results = evaluate_warp(
        ".shared .align 8 .b8 bytes[512];
        mul.wide.u32 %l0, %lane, 8; mov.u64 %l1, bytes; add.u64 %l0, %l0, %l1;
        add.u32 %r0, %lane, 0x81828380; st.shared.b32 [%l0], %r0; mov.u32 %r1, -1; st.shared.u8 [%l0+4], %r1; st.shared.u8 [%l0+5], 7;
        ld.shared.s8 %r2, [%l0+1]; ld.shared.u8 %r3, [%l0+1]; ld.shared.s16 %r4, [%l0+2]; ld.shared.u16 %r5, [%l0+4];
        ld.shared.s8 %l2, [%l0+2]; ld.shared.s32 %l3, [%l0]; shr.u64 %l3, %l3, 32; cvt.u32.u64 %r6, %l2; cvt.u32.u64 %r7, %l3;
        add.u32 %result, %r2, %r3; add.u32 %result, %result, %r4; add.u32 %result, %result, %r5; add.u32 %result, %result, %r6;
        add.u32 %result, %result, %r7;",
    );
    let word = |lane: u32| (0x8182_8380 + lane).to_le_bytes();
    let expected = (0..32u32).map(|lane| {
        let bytes = word(lane);
        let terms = [
            i32::from(bytes[1] as i8),
            i32::from(bytes[1]),
            i32::from(i16::from_le_bytes([bytes[2], bytes[3]])),
            0x7ff,
            i32::from(bytes[2] as i8),
            -1,
        ];
        terms.into_iter().fold(0i32, i32::wrapping_add) as u32
    });
    assert_eq!(results, expected.collect::<Vec<_>>());
}

#[test]
fn vectors_are_consecutive_in_memory() {
    for (suffix, combine) in [("", "%r0"), (".v2", "{%r0, %r1}"), (".v4", "{%r0, %r1, %r2, %r3}")] {
        let results = evaluate_warp(&format!(
            ".shared .align 16 .b32 words[128];
            mul.wide.u32 %l0, %lane, 16; mov.u64 %l1, words; add.u64 %l0, %l0, %l1;
            mul.lo.u32 %r0, %lane, 4; add.u32 %r1, %r0, 1; add.u32 %r2, %r0, 2; add.u32 %r3, %r0, 3;
            st.shared.v4.b32 [%l0], {{%r0, %r1, %r2, %r3}};
            mov.u32 %r1, 0; mov.u32 %r2, 0; mov.u32 %r3, 0;
            ld.shared{suffix}.b32 {combine}, [%l0];
            shl.b32 %r1, %r1, 8; shl.b32 %r2, %r2, 16; shl.b32 %r3, %r3, 24;
            or.b32 %r0, %r0, %r1; or.b32 %r2, %r2, %r3; or.b32 %result, %r0, %r2;"
        ));
        let count = combine.matches('%').count() as u32;
        let expected = (0..32u32).map(|lane| (0..count).map(|index| (4 * lane + index) << (8 * index)).sum::<u32>());
        assert_eq!(results, expected.collect::<Vec<_>>(), "{suffix}");
    }
}

/// The word that all 32 lanes have worked on with an atomic, in their order, and what lane 31 saw.
fn after_atomics(first: u32, atomic: &str) -> (u32, u32) {
    let results = evaluate_warp(&format!(
        ".shared .align 4 .b32 word; setp.eq.u32 %p1, %lane, 0; @%p1 st.shared.u32 [word], {first}; bar.warp.sync 0xffffffff;
        {atomic}
        bar.warp.sync 0xffffffff; ld.shared.u32 %r1, [word]; setp.eq.u32 %p2, %lane, 31; selp.b32 %result, %r0, %r1, %p2;"
    ));
    (results[0], results[31])
}

#[test]
fn atomics_take_their_turn_and_return_the_old_value() {
    assert_eq!(after_atomics(5, "atom.shared.add.u32 %r0, [word], %lane;"), (5 + 496, 5 + 465));
    assert_eq!(after_atomics(7, "atom.shared.min.u32 %r0, [word], %lane;"), (0, 0));
    assert_eq!(after_atomics(7, "sub.u32 %r2, %lane, 9; atom.shared.max.s32 %r0, [word], %r2;"), (22, 21));
    assert_eq!(after_atomics(0, "atom.shared.max.u32 %r0, [word], %lane;"), (31, 30));
    assert_eq!(
        after_atomics(0, "mov.u32 %r2, 1; shl.b32 %r2, %r2, %lane; atom.shared.or.b32 %r0, [word], %r2;"),
        (!0, !0 >> 1)
    );
    assert_eq!(after_atomics(0xff, "not.b32 %r2, %lane; atom.shared.and.b32 %r0, [word], %r2;"), (0xe0, 0xe0));
    assert_eq!(after_atomics(3, "atom.shared.xor.b32 %r0, [word], %lane;"), (3, 3 ^ 31));
    assert_eq!(after_atomics(3, "atom.shared.exch.b32 %r0, [word], %lane;"), (31, 30));
    assert_eq!(after_atomics(0, "add.u32 %r2, %lane, 1; atom.shared.cas.b32 %r0, [word], %lane, %r2;"), (32, 31));
    assert_eq!(after_atomics(0, "atom.shared.inc.u32 %r0, [word], 9;"), (2, 1));
    assert_eq!(after_atomics(0, "atom.shared.dec.u32 %r0, [word], 9;"), (8, 9));
    assert_eq!(after_atomics(5, "mov.u32 %r0, 0; red.shared.add.u32 [word], %lane;"), (5 + 496, 0));
    assert_eq!(
        after_atomics(0x3f80_0000, "mov.f32 %r2, 0f40000000; atom.shared.add.f32 %r0, [word], %r2;"),
        (65f32.to_bits(), 63f32.to_bits())
    );
}

#[test]
fn asynchronous_copies_fill_up_with_zeros() {
    // lane l copies 16 bytes of which l / 2 are read
    let results = evaluate_warp(
        ".shared .align 16 .b32 source[128]; .shared .align 16 .b32 copy[128];
        ld.param.u64 %l0, [results]; mul.wide.u32 %l1, %lane, 4; add.u64 %l0, %l0, %l1; mov.u32 %r0, 0x01010101; st.global.u32 [%l0], %r0;
        bar.warp.sync 0xffffffff;
        ld.param.u64 %l0, [results]; mul.wide.u32 %l2, %lane, 16; mov.u64 %l3, copy; add.u64 %l3, %l3, %l2;
        shr.u32 %r1, %lane, 1;
        cp.async.ca.shared.global.L2::128B [%l3], [%l0], 16, %r1; cp.async.commit_group; cp.async.wait_group 0;
        ld.shared.v4.u32 {%r2, %r3, %r4, %r5}, [%l3];
        add.u32 %r2, %r2, %r3; add.u32 %r4, %r4, %r5; add.u32 %r2, %r2, %r4;
        dp4a.u32.u32 %result, %r2, 0x01010101, 0; bar.warp.sync 0xffffffff;",
    );
    assert_eq!(results, (0..32).map(|lane| lane / 2).collect::<Vec<u32>>());
}

#[test]
fn asynchronous_copies_complete_in_groups() {
    let results = evaluate_warp(
        ".shared .align 16 .b32 copy[256];
        ld.param.u64 %l0, [results]; mul.wide.u32 %l1, %lane, 4; add.u64 %l0, %l0, %l1; st.global.u32 [%l0], %lane;
        mov.u64 %l2, copy; add.u64 %l2, %l2, %l1;
        cp.async.ca.shared.global [%l2], [%l0], 4; cp.async.commit_group;
        cp.async.ca.shared.global [%l2+512], [%l0], 4; cp.async.commit_group;
        cp.async.wait_group 1; ld.shared.u32 %r0, [%l2];
        cp.async.wait_all; ld.shared.u32 %r1, [%l2+512];
        add.u32 %result, %r0, %r1;",
    );
    assert_eq!(results, (0..32).map(|lane| 2 * lane).collect::<Vec<u32>>());
}
