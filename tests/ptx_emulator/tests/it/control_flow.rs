//! Branches, loops, tables, calls and scopes, with lanes that go different ways.
use super::{evaluate_warp, load};
use exlora_ptx_emulator::arithmetic::InstructionSet;

#[test]
fn lanes_meet_again_after_loops_that_end_apart() {
    // blocks are written backwards; the ballot needs all lanes
    let results = evaluate_warp(
        "mov.u32 %r0, 0; bra HEAD;
        OUT: vote.sync.ballot.b32 %r1, %p1, 0xffffffff; bra END;
        BODY: add.u32 %r0, %r0, 1; bra HEAD;
        HEAD: setp.ge.u32 %p1, %r0, %lane; @%p1 bra OUT; bra BODY;
        END: xor.b32 %r1, %r1, 0xffffffff; or.b32 %result, %r0, %r1;",
    );
    assert_eq!(results, (0..32).collect::<Vec<u32>>());
}

#[test]
fn both_sides_of_a_branch_run_for_their_lanes() {
    let results = evaluate_warp(
        "and.b32 %r0, %lane, 1; setp.eq.u32 %p1, %r0, 0; @%p1 bra EVEN;
        mul.lo.u32 %result, %lane, 3; bra JOIN;
        EVEN: add.u32 %result, %lane, 100;
        JOIN: shfl.sync.bfly.b32 %result, %result, 1, 0x1f, 0xffffffff;",
    );
    let own = |lane: u32| if lane.is_multiple_of(2) { lane + 100 } else { lane * 3 };
    assert_eq!(results, (0..32).map(|lane| own(lane ^ 1)).collect::<Vec<_>>());
}

#[test]
fn nested_loops_count_for_each_lane() {
    let results = evaluate_warp(
        "mov.u32 %result, 0; mov.u32 %r0, 0;
        OUTER: setp.gt.u32 %p1, %r0, %lane; @%p1 bra DONE; mov.u32 %r1, 0;
        INNER: setp.ge.u32 %p2, %r1, %r0; @%p2 bra NEXT; add.u32 %result, %result, %r1; add.u32 %r1, %r1, 1; bra INNER;
        NEXT: add.u32 %r0, %r0, 1; bra OUTER;
        DONE: ",
    );
    let sum = |lane: u32| (0..=lane).map(|outer| (0..outer).sum::<u32>()).sum::<u32>();
    assert_eq!(results, (0..32).map(sum).collect::<Vec<_>>());
}

#[test]
fn indexed_branches_take_the_label_of_their_index() {
    let results = evaluate_warp(
        "and.b32 %r0, %lane, 3;
        TABLE: .branchtargets ZERO, ONE, TWO, THREE;
        brx.idx %r0, TABLE;
        ZERO: mov.u32 %result, 10; bra JOIN;
        THREE: mov.u32 %result, 13; bra JOIN;
        ONE: mov.u32 %result, 11; bra JOIN;
        TWO: mov.u32 %result, 12;
        JOIN: ",
    );
    assert_eq!(results, (0..32).map(|lane| 10 + lane % 4).collect::<Vec<u32>>());
}

#[test]
fn names_of_inner_scopes_hide_outer_ones() {
    let results = evaluate_warp(
        "mov.u32 %r0, 1;
        { .reg .b32 %r0; mov.u32 %r0, 50; add.u32 %result, %r0, %lane; { bra SKIP; mov.u32 %result, 0; SKIP: } }
        { .reg .b32 %r0; mov.u32 %r0, 7; SKIP: add.u32 %result, %result, %r0; }
        add.u32 %result, %result, %r0;",
    );
    assert_eq!(results, (0..32).map(|lane| lane + 58).collect::<Vec<u32>>());
}

const CALLED: &str = ".func (.param .b32 result) triangle(.param .b32 limit)
{
.reg .b32 %r<4>; .reg .pred %p;
ld.param.u32 %r0, [limit]; mov.u32 %r1, 0; setp.eq.u32 %p, %r0, 0; @%p bra ZERO;
LOOP: add.u32 %r1, %r1, %r0; sub.u32 %r0, %r0, 1; setp.ne.u32 %p, %r0, 0; @%p bra LOOP;
st.param.b32 [result], %r1; ret;
ZERO: st.param.b32 [result], 77; ret;
}";

#[test]
fn functions_return_to_each_of_their_callers() {
    use super::{launch, words};
    let text = format!(
        "{CALLED}
.visible .entry kernel(.param .u64 results)
{{
.reg .b32 %r<5>; .reg .b64 %l<3>; .reg .pred %p;
mov.u32 %r0, %tid.x; setp.gt.u32 %p, %r0, 3; mov.u32 %r2, 5;
{{ .param .b32 in; .param .b32 out; st.param.b32 [in], %r0; call.uni (out), triangle, (in); ld.param.b32 %r1, [out]; }}
{{ .param .b32 in; .param .b32 out; st.param.b32 [in], 4; st.param.b32 [out], 0; @%p call (out), triangle, (in); @%p ld.param.b32 %r2, [out]; }}
mov.b64 %l0, {{%r1, %r2}};
ld.param.u64 %l1, [results]; mad.wide.u32 %l1, %r0, 8, %l1; st.global.b64 [%l1], %l0;
}}"
    );
    let kernel = load(InstructionSet::detect(), &text).unwrap();
    let mut memory = exlora_ptx_emulator::memory::DeviceMemory::new(1 << 20).unwrap();
    let address = memory.allocate(256, "results").unwrap();
    launch(&kernel, &mut memory, [1; 3], 32, &address.to_le_bytes());
    let mut bytes = [0; 256];
    memory.read(address, &mut bytes);
    let triangle = |n: u64| if n == 0 { 77 } else { n * (n + 1) / 2 };
    let expected = (0..32).map(|n| triangle(n) | if n > 3 { 10 << 32 } else { 5 << 32 }).collect::<Vec<u64>>();
    assert_eq!(words(&bytes), expected);
}

#[test]
fn recursion_and_unknown_functions_are_refused() {
    let recursive = ".func f() { call f; ret; } .visible .entry kernel() { call f; ret; }";
    assert!(load(InstructionSet::Baseline, recursive).err().unwrap().contains("recursion"));
    let external = ".extern .func g(); .visible .entry kernel() { call g; ret; }";
    assert!(load(InstructionSet::Baseline, external).err().unwrap().contains("external function 'g'"));
}

#[test]
fn registers_that_may_be_read_before_they_are_written_are_warned_of() {
    let text = ".visible .entry kernel() { .reg .b32 %r<3>; .reg .pred %p; mov.u32 %r0, %tid.x; setp.eq.u32 %p, %r0, 0;\n@%p mov.u32 %r1, 1;\nadd.u32 %r2, %r1, 1; ret; }";
    let warnings = load(InstructionSet::Baseline, text).unwrap().warnings;
    assert!(
        warnings.len() == 1 && warnings[0].contains("1 register(s)") && warnings[0].contains("line 6"),
        "{warnings:?}"
    );
}

#[test]
fn a_guarded_instruction_reads_a_narrow_address_without_a_warning() {
    let text = ".visible .entry kernel() { .reg .b32 %r<2>; .reg .pred %p; mov.u32 %r0, %tid.x; setp.eq.u32 %p, %r0, 0;\n@%p ld.shared.u32 %r1, [%r0]; ret; }";
    let warnings = load(InstructionSet::Baseline, text).unwrap().warnings;
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn registers_that_do_not_live_at_a_time_share_slots() {
    let chain = (1..100).map(|n| format!("add.u32 %r{n}, %r{}, 1;", n - 1)).collect::<String>();
    let text = format!(".visible .entry kernel() {{ .reg .b32 %r<100>; mov.u32 %r0, %tid.x; {chain} ret; }}");
    let kernel = load(InstructionSet::Baseline, &text).unwrap();
    assert!(kernel.register_slots <= 3, "{} slots", kernel.register_slots);
}
