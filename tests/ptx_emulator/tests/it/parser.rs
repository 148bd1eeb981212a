//! What the parser takes, and with which message it refuses the rest.
use exlora_ptx_emulator::data_type::DataType;
use exlora_ptx_emulator::parser::parse;
use exlora_ptx_emulator::parser::syntax::{InitialValue, Opcode};

use super::{HEADER, load, refusal};
use exlora_ptx_emulator::arithmetic::InstructionSet;

#[test]
fn modules_tell_version_target_and_functions() {
    let text = format!(
        "// a comment
{HEADER}
/* another
comment */
.extern .func (.param .b32 status) external(.param .b64 text, .param .b64 arguments);
.visible .entry kernel(.param .u64 .ptr .global .align 16 data, .param .align 8 .b8 record[24]) .maxntid 128, 1, 1 .minnctapersm 2
{{ ret; }}
.section .debug_str {{ .b8 0 }}"
    );
    let module = parse(&text).unwrap();
    assert_eq!((module.version.as_str(), module.target.as_str()), ("8.0", "sm_80"));
    assert_eq!(module.functions.len(), 2);
    let kernel = &module.functions[1];
    assert!(kernel.is_entry && kernel.maxntid == Some([128, 1, 1]));
    assert_eq!(kernel.parameters.iter().map(|p| (p.bytes, p.alignment)).collect::<Vec<_>>(), [(8, 8), (24, 8)]);
    assert!(module.functions[0].body.is_none());
}

#[test]
fn variables_have_contents() {
    let text = format!(
        "{HEADER}.global .align 4 .u32 numbers[3] = {{1, -2, 0x10}}; .global .f32 one = 0f3F800000;
        .global .u64 pointers[2] = {{numbers+4, generic(one)}}; .const .align 8 .b8 table[2][3] = {{{{1, 2, 3}}, {{4, 5, 6}}}};"
    );
    let module = parse(&text).unwrap();
    let bits = |index: usize| {
        let initializers = module.variables[index].initializers.iter();
        let bits = initializers.map(|initializer| match initializer.value {
            InitialValue::Bits(bits) => (initializer.offset, bits),
            InitialValue::Address { .. } => panic!("an address"),
        });
        bits.collect::<Vec<_>>()
    };
    assert_eq!(bits(0), [(0, 1), (4, -2i64 as u64), (8, 16)]);
    assert_eq!(bits(1), [(0, 0x3f80_0000)]);
    assert_eq!(bits(3), [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]);
    let addresses = module.variables[2].initializers.iter().map(|initializer| match &initializer.value {
        InitialValue::Address { symbol, offset } => (symbol.as_str(), *offset),
        InitialValue::Bits(_) => panic!("no address"),
    });
    assert_eq!(addresses.collect::<Vec<_>>(), [("numbers", 4), ("one", 0)]);
    assert_eq!(module.variables[3].bytes, 6);
}

#[test]
fn opcodes_have_modifiers_and_types() {
    let opcode = Opcode::new("cvt.rn.f16.f32");
    assert!(opcode.has("rn") && !opcode.has("rz"));
    assert_eq!(opcode.data_types(), Some((DataType::F16, DataType::F32)));
    assert_eq!(opcode.to_string(), "cvt.rn.f16.f32");
}

#[test]
fn errors_name_the_line() {
    for (statements, parts) in [
        ("\n\nfrobnicate.u32 %r1, %r2;", &["line 8", "unsupported instruction 'frobnicate.u32'"][..]),
        ("bra NOWHERE;", &["line 6", "unknown label 'NOWHERE'"]),
        ("mov.u32 %r1, %tid.x;", &["line 6", "'%r1' is not a register"]),
        (".reg .b32 %r<2>;\nmov.u32 %r1, %frob;", &["line 7", "unknown special register '%frob'"]),
        (".reg .b32 %r1; .reg .pred %p;\nadd.u32 %r1, %p, 1;", &["line 7", "predicate '%p'"]),
        (".reg .b128 %r1;", &["line 6", ".b128"]),
        ("mov.u32 %r1, 1", &["expected ','"]),
        ("mov.u32 %r1, 0z12;", &["bad number '0z12'"]),
        (".frob 3;", &["unknown directive .frob"]),
    ] {
        let message = refusal(statements);
        assert!(parts.iter().all(|part| message.contains(part)), "{statements}: {message}");
    }
}

#[test]
fn unknown_modifiers_are_refused_like_unknown_opcodes() {
    for instruction in [
        "add.frob.u32 %r0, %r1, %r2;",
        "add.rz.s32 %r0, %r1, %r2;",
        "add.rna.f32 %r0, %r1, %r2;",
        "mul.u32 %r0, %r1, %r2;",
        "add.sat.bf16 %r0, %r1, %r2;",
        "sqrt.rz.f32 %r0, %r1;",
        "cvt.rna.f16.f32 %r0, %r1;",
        "cvt.f32.e4m3x2 %r0, %r1;",
        "cvt.s32.f32 %r0, %r1;",
        "setp.lt.frob.f32 %p, %r0, %r1;",
        "ld.global.v8.b32 %r0, [%l0];",
        "ld.global.frob.b32 %r0, [%l0];",
        "st.async.b32 [%l0], %r0;",
        "atom.global.add.noftz.f16 %r0, [%l0], %r1;",
        "atom.global.min.f32 %r0, [%l0], %r1;",
        "red.global.v2.add.f32 [%l0], %r0;",
        "shfl.down.b32 %r0, %r1, 1, 31;",
        "vote.all.pred %p, %p;",
        "fence.proxy.async;",
        "cp.async.bulk.commit_group;",
        "mbarrier.init.shared.b64 [%l0], 1;",
        "barrier.cluster.arrive;",
        "ldmatrix.sync.aligned.m16n16.x1.b8 {%r0}, [%l0];",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r0}, {%r0}, {%r0}, {%r0};",
        "wgmma.fence.sync.aligned;",
        "lop3.and.b32 %r0, %r0, %r0, %r0, 1, %p;",
        "prmt.b32.frob %r0, %r0, %r0, %r0;",
        "match.any.sync.b32 %r0, %r0, -1;",
    ] {
        let message = refusal(&format!(".reg .b32 %r<3>; .reg .b64 %l<1>; .reg .pred %p;\n{instruction}"));
        assert!(message.contains("line 7") && message.contains("unsupported instruction"), "{instruction} {message}");
    }
}

#[test]
fn source_lines_reach_the_kernel() {
    let text = ".file 1 \"/some/where/linear.cu\"
.visible .entry kernel()
{
.loc 1 12 3
bar.sync 0;
.loc 1 7 1, function_name $L__info_string0, inlined_at 1 40 5
trap;
ret;
}";
    let kernel = load(InstructionSet::Baseline, text).unwrap();
    assert_eq!(kernel.describe(0), "`bar.sync` at PTX line 8, linear.cu:12");
    assert_eq!(kernel.describe(1), "`trap` at PTX line 10, linear.cu:7 (inlined at line 40)");
}

#[test]
fn texts_that_are_not_ptx_are_refused() {
    assert!(parse("hello").is_err());
    assert!(parse("").unwrap_err().contains("not PTX"));
    assert!(parse(".version 8.0\n.target sm_80\n.address_size 32\n").unwrap_err().contains("64-bit"));
    assert!(parse(&format!("{HEADER}.visible .entry kernel() {{ ret;")).is_err());
    assert!(parse(&format!("{HEADER}.pragma \"nounroll\"")).unwrap_err().contains("ends before"));
}
