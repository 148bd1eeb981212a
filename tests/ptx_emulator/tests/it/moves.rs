//! Moves, packing, special registers, conversions of addresses.
use super::values::integers;
use super::{evaluate, evaluate_warp};

#[test]
fn registers_are_packed_and_unpacked() {
    let inputs = integers([64]);
    let same = |body: &str| {
        let expected = inputs.iter().map(|[a]| *a).collect::<Vec<_>>();
        assert_eq!(evaluate(body, &inputs), expected, "{body}");
    };
    same("mov.b64 {%r0, %r1}, %a; mov.b64 %result, {%r0, %r1};");
    same("mov.b64 {%h0, %h1, %h2, %h3}, %a; mov.b64 %result, {%h0, %h1, %h2, %h3};");
    same("mov.b64 {%r0, %r1}, %a; mov.b32 {%h0, %h1}, %r0; mov.b32 %r2, {%h0, %h1}; mov.b64 %result, {%r2, %r1};");
    // a destination may be the source
    same(
        "mov.b64 {%r0, %r1}, %a; mov.b32 {%r0, %r2}, %r0; shl.b32 %r2, %r2, 16; or.b32 %r0, %r0, %r2; mov.b64 %result, {%r0, %r1};",
    );
    let swapped = evaluate("mov.b64 {%r0, %r1}, %a; mov.b64 %result, {%r1, %r0};", &inputs);
    assert!(inputs.iter().zip(swapped).all(|([a], result)| result == a.rotate_left(32)));
    let upper = evaluate("mov.b64 {_, %r1}, %a; cvt.u64.u32 %result, %r1;", &inputs);
    assert!(inputs.iter().zip(upper).all(|([a], result)| result == a >> 32));
}

#[test]
fn constants_are_integers_and_the_bits_of_floats() {
    let inputs = vec![[0u64]; 256];
    let constants: [(&str, u64); 9] = [
        ("mov.b64 %result, -2;", u64::MAX - 1),
        ("mov.b64 %result, 0x1F;", 31),
        ("mov.b64 %result, 017;", 15),
        ("mov.b64 %result, 0b101;", 5),
        ("mov.b64 %result, 12U;", 12),
        ("mov.f32 %r0, 0f3F800000; cvt.u64.u32 %result, %r0;", 0x3f80_0000),
        ("mov.f32 %r0, -0f3F800000; cvt.u64.u32 %result, %r0;", 0xbf80_0000),
        ("mov.f64 %result, 0d3FF0000000000000;", 0x3ff0_0000_0000_0000),
        ("mov.u64 %result, WARP_SZ;", 32),
    ];
    for (body, expected) in constants {
        assert_eq!(evaluate(body, &inputs), vec![expected; inputs.len()], "{body}");
    }
}

#[test]
fn special_registers_tell_a_thread_where_it_is() {
    let expect = |register: &str, expected: fn(u32) -> u32| {
        let results = evaluate_warp(&format!("mov.u32 %result, {register};"));
        assert_eq!(results, (0..32).map(expected).collect::<Vec<_>>(), "{register}");
    };
    expect("%tid.x", |lane| lane);
    expect("%tid.y", |_| 0);
    expect("%ntid.x", |_| 32);
    expect("%ctaid.x", |_| 0);
    expect("%nctaid.x", |_| 1);
    expect("%laneid", |lane| lane);
    expect("%warpid", |_| 0);
    expect("%nwarpid", |_| 1);
    expect("%lanemask_eq", |lane| 1 << lane);
    expect("%lanemask_lt", |lane| (1 << lane) - 1);
    expect("%lanemask_le", |lane| ((2u64 << lane) - 1) as u32);
    expect("%lanemask_gt", |lane| !((2u64 << lane) - 1) as u32);
    expect("%lanemask_ge", |lane| !((1 << lane) - 1));
}

#[test]
fn generic_addresses_keep_their_state_space() {
    let checks = "selp.u32 %r3, 1, 0, %p1; selp.u32 %r4, 2, 0, %p2; selp.u32 %r5, 4, 0, %p3; selp.u32 %r6, 8, 0, %p4;
        add.u32 %result, %r3, %r4; add.u32 %result, %result, %r5; add.u32 %result, %result, %r6;
        shl.b32 %r2, %r2, 8; add.u32 %result, %result, %r2;";
    let results = evaluate_warp(&format!(
        ".shared .align 4 .b32 word[32]; .local .align 4 .b32 own;
        mov.u64 %l0, word; cvta.shared.u64 %l1, %l0; cvta.to.shared.u64 %l2, %l1;
        setp.eq.u64 %p1, %l0, %l2; isspacep.shared %p2, %l1; isspacep.local %p3, %l1;
        mov.u64 %l3, own; cvta.local.u64 %l4, %l3; isspacep.local %p4, %l4;
        mul.wide.u32 %l5, %lane, 4; add.u64 %l6, %l0, %l5; st.shared.u32 [%l6], %lane; add.u64 %l1, %l1, %l5; ld.u32 %r1, [%l1];
        st.u32 [%l4], %r1; ld.local.u32 %r2, [own]; {checks}"
    ));
    assert_eq!(results, (0..32).map(|lane| 1 + 2 + 8 + 256 * lane).collect::<Vec<u32>>());
}
