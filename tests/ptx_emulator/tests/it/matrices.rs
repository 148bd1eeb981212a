//! `ldmatrix` and `mma` against the tables of the PTX ISA, as formulas.
use std::fmt::Write;

use exlora_ptx_emulator::arithmetic::InstructionSet;
use exlora_ptx_emulator::memory::DeviceMemory;
use half::{bf16, f16};

use super::values::Random;
use super::{evaluate_warp, launch, load};

#[test]
fn ldmatrix_gives_each_lane_two_elements_of_a_row() {
    for matrices in [1, 2, 4] {
        for transposed in [false, true] {
            for destination in 0..matrices {
                // element [matrix, row, column] is 64 matrix + 8 row + column; rows of 16 bytes stand in reverse order
                let registers = ["%r2", "%r3", "%r4", "%r5"][..matrices].join(", ");
                let modifier = if transposed { ".trans" } else { "" };
                let results = evaluate_warp(&format!(
                    ".shared .align 16 .b16 rows[256];
                    mov.u64 %l0, rows; sub.u32 %r6, 31, %lane; mad.wide.u32 %l0, %r6, 16, %l0;
                    shl.b32 %r0, %lane, 3; mov.u32 %r1, 0;
                    FILL: add.u32 %r7, %r0, %r1; cvt.u64.u32 %l1, %r1; shl.b64 %l1, %l1, 1; add.u64 %l1, %l0, %l1;
                    st.shared.u16 [%l1], %r7; add.u32 %r1, %r1, 1; setp.lt.u32 %p1, %r1, 8; @%p1 bra FILL;
                    bar.warp.sync 0xffffffff;
                    ldmatrix.sync.aligned.m8n8.x{matrices}{modifier}.shared.b16 {{{registers}}}, [%l0];
                    mov.u32 %result, %r{};",
                    2 + destination
                ));
                for (lane, result) in results.into_iter().enumerate() {
                    let element = |column: usize| {
                        let (row, column) = if transposed { (column, lane / 4) } else { (lane / 4, column) };
                        (64 * destination + 8 * row + column) as u32
                    };
                    let want = element(2 * (lane % 4)) | element(2 * (lane % 4) + 1) << 16;
                    assert_eq!(result, want, "x{matrices}{modifier} register {destination} lane {lane}");
                }
            }
        }
    }
}

/// The shape and types of an `mma`.
#[derive(Clone, Copy, Debug)]
struct Mma {
    k: usize,
    element: &'static str,
    addend: &'static str,
    result: &'static str,
}

impl Mma {
    fn value(self, bits: u16) -> f64 {
        if self.element == "f16" { f16::from_bits(bits).to_f64() } else { bf16::from_bits(bits).to_f64() }
    }

    fn encode(self, value: f64) -> u16 {
        if self.element == "f16" { f16::from_f64(value).to_bits() } else { bf16::from_f64(value).to_bits() }
    }

    /// D of A `[16, k]`, B `[k, 8]` and C `[16, 8]`, by one warp on the registers that the PTX ISA's tables say.
    fn run(self, a: &[f64], b: &[f64], c: &[f64]) -> Vec<f64> {
        // group and thread of the group, as the tables call them
        let pack = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        let mut registers = vec![];
        for lane in 0..32 {
            let (group, thread) = (lane / 4, lane % 4);
            for register in 0..self.k / 4 {
                // a_i: row is group for i in 0..2 and 4..6, else group + 8; column is 2 thread + i % 2, + 8 from i = 4 on
                let element = |i: usize| {
                    let row = if i % 4 < 2 { group } else { group + 8 };
                    let column = thread * 2 + (i & 1) + if i >= 4 { 8 } else { 0 };
                    self.encode(a[row * self.k + column])
                };
                registers.push(pack(element(2 * register), element(2 * register + 1)));
            }
            for register in 0..self.k / 8 {
                // b_i: row is 2 thread + i % 2, + 8 from i = 2 on; column is group
                let element = |i: usize| {
                    let row = thread * 2 + (i & 1) + if i >= 2 { 8 } else { 0 };
                    self.encode(b[row * 8 + group])
                };
                registers.push(pack(element(2 * register), element(2 * register + 1)));
            }
            // c_i: row is group for i < 2, else group + 8; column is 2 thread + i % 2
            let element = |i: usize| c[(if i < 2 { group } else { group + 8 }) * 8 + thread * 2 + (i & 1)];
            if self.addend == "f16" {
                let half = |i| f16::from_f64(element(i)).to_bits();
                registers.extend([pack(half(0), half(1)), pack(half(2), half(3))]);
            } else {
                registers.extend((0..4).map(|i| (element(i) as f32).to_bits()));
            }
        }
        let outputs = self.execute(&registers);
        let mut d = vec![f64::NAN; 128];
        for lane in 0..32 {
            let (group, thread) = (lane / 4, lane % 4);
            for i in 0..4 {
                let row = if i < 2 { group } else { group + 8 };
                let value = if self.result == "f16" {
                    f16::from_bits((outputs[4 * lane + i / 2] >> (16 * (i & 1))) as u16).to_f64()
                } else {
                    f64::from(f32::from_bits(outputs[4 * lane + i]))
                };
                d[row * 8 + thread * 2 + (i & 1)] = value;
            }
        }
        d
    }

    /// The registers of D, four for each lane.
    fn execute(self, registers: &[u32]) -> Vec<u32> {
        let Mma { k, element, addend, result } = self;
        let counts = [k / 4, k / 8, if addend == "f16" { 2 } else { 4 }];
        let sources = counts.iter().sum::<usize>();
        let (mut loads, mut next) = (String::new(), 0);
        let fragments = counts.map(|count| {
            let names = (next..next + count).map(|index| format!("%r{index}")).collect::<Vec<_>>();
            next += count;
            format!("{{{}}}", names.join(", "))
        });
        for index in 0..sources {
            writeln!(loads, "ld.global.b32 %r{index}, [%l0+{}];", 4 * index).unwrap();
        }
        let d = if result == "f16" { "{%d0, %d1}" } else { "{%d0, %d1, %d2, %d3}" };
        let [a, b, c] = fragments;
        let text = format!(
            ".visible .entry kernel(.param .u64 sources, .param .u64 results)
{{
.reg .b32 %r<12>, %d<4>, %lane; .reg .b64 %l<2>;
mov.u32 %lane, %laneid; ld.param.u64 %l0, [sources]; mad.wide.u32 %l0, %lane, {}, %l0;
{loads}
mov.b32 %d2, 0; mov.b32 %d3, 0;
mma.sync.aligned.m16n8k{k}.row.col.{result}.{element}.{element}.{addend} {d}, {a}, {b}, {c};
ld.param.u64 %l1, [results]; mad.wide.u32 %l1, %lane, 16, %l1;
st.global.v4.b32 [%l1], {{%d0, %d1, %d2, %d3}};
ret;
}}",
            4 * sources
        );
        let bytes = registers.iter().flat_map(|register| register.to_le_bytes()).collect::<Vec<_>>();
        let outputs = [InstructionSet::Baseline, InstructionSet::detect()].map(|instruction_set| {
            let kernel = load(instruction_set, &text).unwrap();
            let mut memory = DeviceMemory::new(1 << 20).unwrap();
            let sources = memory.allocate(bytes.len() as u64, "sources").unwrap();
            memory.write(sources, &bytes);
            let results = memory.allocate(512, "results").unwrap();
            let parameters = [sources.to_le_bytes(), results.to_le_bytes()].concat();
            launch(&kernel, &mut memory, [1; 3], 32, &parameters);
            let mut bytes = [0; 512];
            memory.read(results, &mut bytes);
            bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect::<Vec<_>>()
        });
        assert_eq!(outputs[0], outputs[1]);
        outputs[1].clone()
    }
}

const SHAPES: [Mma; 6] = [
    Mma { k: 16, element: "f16", addend: "f32", result: "f32" },
    Mma { k: 16, element: "f16", addend: "f16", result: "f16" },
    Mma { k: 16, element: "bf16", addend: "f32", result: "f32" },
    Mma { k: 8, element: "f16", addend: "f32", result: "f32" },
    Mma { k: 8, element: "f16", addend: "f16", result: "f16" },
    Mma { k: 8, element: "bf16", addend: "f32", result: "f32" },
];

#[test]
fn mma_reads_and_writes_the_elements_of_the_tables() {
    for mma in SHAPES {
        // a single one in A and B: D has it at one place, and small integers of C everywhere
        let c = (0..128).map(f64::from).collect::<Vec<_>>();
        for (row, inner, column) in [(0, 0, 0), (3, 1, 5), (8, 6, 7), (15, 7, 2), (9, 15, 4), (4, 8, 1), (12, 10, 6)] {
            if inner >= mma.k {
                continue;
            }
            let (mut a, mut b) = (vec![0.0; 16 * mma.k], vec![0.0; mma.k * 8]);
            a[row * mma.k + inner] = 2.0;
            b[inner * 8 + column] = 128.0;
            let mut want = c.clone();
            want[row * 8 + column] += 256.0;
            assert_eq!(mma.run(&a, &b, &c), want, "{mma:?} {row} {inner} {column}");
        }
    }
}

#[test]
fn mma_adds_all_products_and_rounds_once() {
    for mma in SHAPES {
        let mut random = Random(5);
        for _ in 0..64 {
            // values of a few bits, so that every sum is exact in f64
            let mut value = || mma.value(mma.encode(((random.next() % 4001) as f64 - 2000.0) / 512.0));
            let a = (0..16 * mma.k).map(|_| value()).collect::<Vec<_>>();
            let b = (0..mma.k * 8).map(|_| value()).collect::<Vec<_>>();
            let c = (0..128).map(|_| f16::from_f64(value()).to_f64()).collect::<Vec<_>>();
            let d = mma.run(&a, &b, &c);
            for row in 0..16 {
                for column in 0..8 {
                    let products = (0..mma.k).map(|inner| a[row * mma.k + inner] * b[inner * 8 + column]);
                    let sum = products.sum::<f64>() + c[row * 8 + column];
                    let want = if mma.result == "f16" { f16::from_f64(sum).to_f64() } else { f64::from(sum as f32) };
                    assert_eq!(d[row * 8 + column], want, "{mma:?} {row} {column}");
                }
            }
        }
    }
}
