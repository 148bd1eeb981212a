//! Logic, shifts, bit fields and permutations of bytes, bit by bit.
use super::values::integers;
use super::{check, checked_body, evaluate};

fn mask(width: u32) -> u64 {
    u64::MAX >> (64 - width)
}

/// A number made of bits.
fn collect(width: u32, bit: impl Fn(u32) -> bool) -> u64 {
    (0..width).fold(0, |bits, index| bits | u64::from(bit(index)) << index)
}

fn bit(bits: u64, index: u32) -> bool {
    bits >> index & 1 != 0
}

#[test]
fn logic_works_bit_by_bit() {
    for width in [16, 32, 64] {
        let inputs = integers([width; 2]);
        check(&format!("and.b{width}"), [width; 2], width, &inputs, |[a, b]| {
            collect(width, |i| bit(a, i) && bit(b, i))
        });
        check(&format!("or.b{width}"), [width; 2], width, &inputs, |[a, b]| collect(width, |i| bit(a, i) || bit(b, i)));
        check(&format!("xor.b{width}"), [width; 2], width, &inputs, |[a, b]| {
            collect(width, |i| bit(a, i) != bit(b, i))
        });
        let inputs = integers([width]);
        check(&format!("not.b{width}"), [width], width, &inputs, |[a]| collect(width, |i| !bit(a, i)));
        check(&format!("cnot.b{width}"), [width], width, &inputs, |[a]| u64::from(a == 0));
    }
}

#[test]
fn lop3_follows_each_of_the_256_tables() {
    // the three sources enumerate the rows of the table, and random words
    let inputs = integers([32; 3]);
    for table in 0..256 {
        let results = evaluate(&checked_body("lop3.b32", &[32; 3], 32, &format!(", {table}")), &inputs[..256]);
        for ([a, b, c], result) in inputs.iter().zip(results) {
            let expected = collect(32, |index| {
                let row = u32::from(bit(*a, index)) * 4 + u32::from(bit(*b, index)) * 2 + u32::from(bit(*c, index));
                bit(table, row)
            });
            assert_eq!(result, expected, "table {table:#x} of {a:#x}, {b:#x}, {c:#x}");
        }
    }
}

#[test]
fn shift_amounts_are_clamped() {
    for width in [16, 32, 64] {
        let mut inputs = integers([width, 32]);
        inputs.extend((0..512).map(|amount| [0x9234_5678_9abc_def1 & mask(width), amount % 130]));
        let sources = [width, 32];
        check(&format!("shl.b{width}"), sources, width, &inputs, |[a, n]| {
            collect(width, |index| u64::from(index) >= n && bit(a, index - n as u32))
        });
        check(&format!("shr.u{width}"), sources, width, &inputs, |[a, n]| {
            collect(width, |index| u64::from(index) + n < u64::from(width) && bit(a, index + n as u32))
        });
        check(&format!("shr.s{width}"), sources, width, &inputs, |[a, n]| {
            collect(width, |index| bit(a, (u64::from(index) + n).min(u64::from(width) - 1) as u32))
        });
    }
}

#[test]
fn funnel_shifts_wrap_or_clamp() {
    let mut inputs = integers([32; 3]);
    inputs.extend((0..256).map(|amount| [0x8765_4321, 0xfedc_ba98, amount % 70]));
    for (mode, limited) in [("wrap", (|n| n % 32) as fn(u64) -> u64), ("clamp", |n| n.min(32))] {
        check(&format!("shf.l.{mode}.b32"), [32; 3], 32, &inputs, |[a, b, n]| {
            let joined = u128::from(b) << 32 | u128::from(a);
            (joined << limited(n) >> 32) as u64 & mask(32)
        });
        check(&format!("shf.r.{mode}.b32"), [32; 3], 32, &inputs, |[a, b, n]| {
            let joined = u128::from(b) << 32 | u128::from(a);
            (joined >> limited(n)) as u64 & mask(32)
        });
    }
}

#[test]
fn bits_are_counted_and_reversed() {
    for width in [32, 64] {
        let inputs = integers([width]);
        check(&format!("popc.b{width}"), [width], 32, &inputs, |[a]| (0..width).filter(|i| bit(a, *i)).count() as u64);
        check(&format!("clz.b{width}"), [width], 32, &inputs, |[a]| {
            (0..width).rev().take_while(|index| !bit(a, *index)).count() as u64
        });
        check(&format!("brev.b{width}"), [width], width, &inputs, |[a]| collect(width, |i| bit(a, width - 1 - i)));
    }
}

#[test]
fn the_highest_bit_that_is_not_sign_is_found() {
    for (data_type, width) in [("u32", 32), ("s32", 32), ("u64", 64), ("s64", 64)] {
        let inputs = integers([width]);
        let highest = |a: u64| {
            let sign = data_type.starts_with('s') && bit(a, width - 1);
            (0..width).rev().find(|index| bit(a, *index) != sign)
        };
        let or_none = |position: Option<u32>| position.map_or(mask(32), u64::from);
        check(&format!("bfind.{data_type}"), [width], 32, &inputs, |[a]| or_none(highest(a)));
        check(&format!("bfind.shiftamt.{data_type}"), [width], 32, &inputs, |[a]| {
            or_none(highest(a).map(|index| width - 1 - index))
        });
    }
}

#[test]
fn bit_fields_are_extracted_as_the_ptx_isa_says() {
    for (data_type, width) in [("u32", 32), ("s32", 32), ("u64", 64), ("s64", 64)] {
        let mut inputs = integers([width, 32, 32]);
        inputs.extend((0..4096).map(|n| [0xa5a5_1234_89ab_cdef & mask(width), n % 70, n / 70]));
        check(&format!("bfe.{data_type}"), [width, 32, 32], width, &inputs, |[a, position, length]| {
            // the pseudocode of the PTX ISA
            let (position, length, msb) = (position & 0xff, length & 0xff, u64::from(width) - 1);
            let sign = data_type.starts_with('s') && length != 0 && bit(a, (position + length - 1).min(msb) as u32);
            collect(width, |index| {
                let index = u64::from(index);
                if index < length && position + index <= msb { bit(a, (position + index) as u32) } else { sign }
            })
        });
    }
}

#[test]
fn bit_fields_are_inserted_as_the_ptx_isa_says() {
    for width in [32, 64] {
        let mut inputs = integers([width, width, 32, 32]);
        inputs.extend((0..4096).map(|n| [0x1234_89ab_cdef_5a5a & mask(width), mask(width) / 3, n % 70, n / 70]));
        check(&format!("bfi.b{width}"), [width, width, 32, 32], width, &inputs, |[a, b, position, length]| {
            let (position, length) = (position & 0xff, length & 0xff);
            collect(width, |index| {
                let index = u64::from(index);
                let inside = index >= position && index < position + length;
                if inside { bit(a, (index - position) as u32) } else { bit(b, index as u32) }
            })
        });
    }
}

#[test]
fn bytes_are_permuted() {
    let mut inputs = integers([32; 3]);
    inputs.extend((0..0x1_0000).step_by(7).map(|selector| [0x8899_aabb, 0x0011_22f3, selector]));
    let bytes = |a: u64, b: u64| (b << 32 | a).to_le_bytes();
    check("prmt.b32", [32; 3], 32, &inputs, |[a, b, selector]| {
        let picked = |index: u32| {
            let digit = selector >> (4 * index) & 15;
            let byte = bytes(a, b)[digit as usize & 7];
            u64::from(if digit < 8 {
                byte
            } else if byte & 0x80 != 0 {
                0xff
            } else {
                0
            }) << (8 * index)
        };
        (0..4).map(picked).sum()
    });
    // the byte that each mode puts at each place, by the two lowest bits of the selector
    type Place = fn(u64, u64) -> u64;
    let modes: [(&str, Place); 6] = [
        ("f4e", |n, place| n + place),
        ("b4e", |n, place| (n + 8 - place) % 8),
        ("rc8", |n, _| n),
        ("ecl", |n, place| place.max(n)),
        ("ecr", |n, place| place.min(n)),
        ("rc16", |n, place| n % 2 * 2 + place % 2),
    ];
    for (mode, place) in modes {
        check(&format!("prmt.b32.{mode}"), [32; 3], 32, &inputs, |[a, b, selector]| {
            (0..4).map(|index| u64::from(bytes(a, b)[place(selector & 3, index) as usize]) << (8 * index)).sum()
        });
    }
}

#[test]
fn values_are_selected_by_predicate_or_sign() {
    for width in [32, 64] {
        let inputs = integers([width, width, 32]);
        check(
            &format!("slct.b{width}.s32"),
            [width, width, 32],
            width,
            &inputs,
            |[a, b, c]| {
                if bit(c, 31) { b } else { a }
            },
        );
        check(&format!("slct.b{width}.f32"), [width, width, 32], width, &inputs, |[a, b, c]| {
            if f32::from_bits(c as u32) >= 0.0 { a } else { b }
        });
    }
    let inputs = integers([64, 64, 32]);
    let results = evaluate(
        "cvt.u32.u64 %r0, %c; and.b32 %r0, %r0, 1; setp.ne.u32 %p1, %r0, 0; selp.b64 %result, %a, %b, %p1;",
        &inputs,
    );
    let expected = inputs.iter().map(|[a, b, c]| if bit(*c, 0) { *a } else { *b }).collect::<Vec<_>>();
    assert_eq!(results, expected);
}
