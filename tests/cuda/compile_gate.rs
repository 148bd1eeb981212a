//! The compile gate: every kernel, compiled for each architecture, keeps its values in registers, and the main loop of the linear
//! kernel stays short.
//!
//! It needs no card. Of each kernel, the assembler says registers, stack and spills, and the disassembler shows whether local
//! memory is used all the same, and the instructions that a warp executes for each unit of weights. The ceilings are those of
//! `registers.csv` and `instructions.csv`; `make cuda-registers` writes both again, for a reader to judge the difference.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::{env, fs};

use exlora::backend::cuda::compiler::locate::SearchPaths;
use exlora::backend::cuda::compiler::sources::{Define, KernelSource, SOURCES};
use exlora::backend::cuda::compiler::{Code, Compiler, Target};
use exlora::backend::cuda::ops::linear::{VARIANT_TOKENS, widest_variant};

use crate::disassembly::{Disassembly, Instruction};
use crate::support::find_compiler;

/// The architectures of `make test`; the slow profile has the others too.
const ARCHITECTURES: [u32; 2] = [80, 90];

/// Each architecture's sources are compiled in this many tests, which run in parallel.
const PARTS: usize = 4;

/// What the assembler says about one kernel.
#[derive(Debug, PartialEq, Eq)]
struct Usage {
    kernel: String,
    registers: u32,
    /// Bytes of stack and of spills.
    local_bytes: u32,
}

/// Registers by architecture, source, defines and kernel.
type Registers = BTreeMap<[String; 4], u32>;

/// Instructions of the linear kernel's main loop for a unit of weights, by architecture, defines, width and which inputs a row of
/// scales spans: a unit's or a half's.
type Instructions = BTreeMap<[String; 4], u32>;

/// Weights of a unit that each lane of a warp multiplies: 2 strips of 16 outputs, 64 inputs, 32 lanes.
const WEIGHTS_OF_LANE: u32 = 64;
/// Most instructions for a 4-bit weight of at most 8 rows: what an H200 can issue while it reads 4-bit weights at full speed.
const CEILING_OF_FOUR_BITS: u32 = 4 * WEIGHTS_OF_LANE;

static COMPILER: LazyLock<Compiler> = LazyLock::new(|| {
    find_compiler();
    Compiler::open(&SearchPaths::of_this_process(), 13, None).expect("the compiler is found")
});

/// Every source with each of its variants.
fn variants() -> impl Iterator<Item = (&'static KernelSource, &'static [Define])> {
    SOURCES.iter().flat_map(|source| source.variants.iter().map(move |&defines| (*source, defines)))
}

/// The defines, as `MAX_HEAD_DIM=64 HEADS=4`.
fn name_of(defines: &[Define]) -> String {
    defines.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

/// The cubin of a variant for an architecture (`sm_90`), and the assembler's report.
fn compile(source: &KernelSource, defines: &[Define], architecture: &str) -> (Vec<u8>, String) {
    let mut options = Target { code: Code::Cubin, architecture: 80 }.options(defines);
    options[0] = format!("--gpu-architecture={architecture}");
    options.push("--ptxas-options=-v".to_owned());
    if source.name == "linear.cu" {
        // The lines name the widths of its loops.
        options.push("-lineinfo".to_owned());
    }
    COMPILER.compile_with(source, Code::Cubin, &options).unwrap_or_else(|error| panic!("{architecture}: {error}"))
}

/// The kernels of an assembler's report: a line that names the function, then its stack and spills, then its registers.
fn usages(log: &str) -> Vec<Usage> {
    let number_before = |line: &str, unit: &str| -> u32 {
        let words: Vec<&str> = line[..line.find(unit).unwrap_or(0)].split_whitespace().collect();
        words.last().and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no number before '{unit}': {line}"))
    };
    let mut found = Vec::new();
    let (mut kernel, mut local_bytes): (_, Option<u32>) = (None, None);
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split('\'').next().map(str::to_owned);
            local_bytes = None;
        } else if line.contains(" bytes stack frame") {
            let units = [" bytes stack frame", " bytes spill stores", " bytes spill loads"];
            // Functions that are not inlined have a line of their own.
            let bytes: u32 = units.iter().map(|unit| number_before(line, unit)).sum();
            local_bytes = Some(local_bytes.unwrap_or(0) + bytes);
        } else if let (Some(kernel), Some(local_bytes), true) = (&kernel, local_bytes, line.contains(": Used ")) {
            found.push(Usage { kernel: kernel.clone(), registers: number_before(line, " registers"), local_bytes });
        }
    }
    found
}

/// The instructions that access local memory.
fn local_memory_instructions(code: &Disassembly) -> Vec<&str> {
    let is_local =
        |text: &str| text.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == "LDL" || word == "STL");
    code.instructions.iter().map(|instruction| instruction.text.as_str()).filter(|text| is_local(text)).collect()
}

/// The width that an instruction of the main loop belongs to: a call names it in the line that it is inlined at.
fn width_of(instruction: &Instruction, source: &[&str]) -> Option<u32> {
    let of_line = |line: usize| {
        let text = source.get(line - 1)?;
        let name = ["WIDTH(", "multiply_units<"].into_iter().find_map(|name| text.split_once(name))?;
        name.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let in_source = instruction.lines.iter().filter(|(file, _)| file == "linear_multiply.cuh");
    in_source.filter_map(|&(_, line)| of_line(line)).next()
}

/// Instructions for a unit of weights of each width, once for a row of scales that spans more than half a unit, and once for one
/// that does not: the shortest way from where a warp waits for a step to where it does again. That leaves out what happens once
/// for a chunk of units that cannot be copied (staging x) or a section, and zeros.
fn main_loops(code: &Disassembly) -> BTreeMap<u32, Vec<u32>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/linear_multiply.cuh");
    let source = fs::read_to_string(path).expect("the source is readable");
    let source: Vec<&str> = source.lines().collect();
    let mut loops: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (index, instruction) in code.instructions.iter().enumerate() {
        if instruction.operation() == "DEPBAR.LE"
            && let Some(bits) = width_of(instruction, &source)
        {
            let cycle = code.shortest_cycle(index).expect("a warp waits in a loop");
            loops.entry(bits).or_default().push(cycle as u32);
        }
    }
    for cycles in loops.values_mut() {
        // A unit of 8 bits has two steps, one of floats four, on one way.
        cycles.sort_unstable();
        cycles.dedup();
    }
    loops
}

/// Whether an architecture never launches a variant of the linear kernel.
fn is_never_launched(architecture: &str, defines: &[Define]) -> bool {
    let version: u32 = architecture.chars().filter(char::is_ascii_digit).collect::<String>().parse().expect("sm_NN");
    let widest = VARIANT_TOKENS[widest_variant(version / 10)];
    defines.iter().any(|(name, value)| *name == "TOKENS" && value.parse::<usize>().is_ok_and(|tokens| tokens > widest))
}

/// Compiles part `part` of all variants, checks each kernel for local memory, and returns the registers and the instructions.
fn examine(architecture: &str, part: usize, parts: usize) -> (Registers, Instructions) {
    let (mut registers, mut instructions) = (Registers::new(), Instructions::new());
    for (source, defines) in variants().skip(part).step_by(parts) {
        if is_never_launched(architecture, defines) {
            continue;
        }
        let name = format!("{architecture}: {} {}", source.name, name_of(defines));
        let (cubin, log) = compile(source, defines, architecture);
        let usages = usages(&log);
        assert!(!usages.is_empty(), "{name} has no kernels:\n{log}");
        for usage in usages {
            assert_eq!(usage.local_bytes, 0, "{name}: {} has a stack or spills:\n{log}", usage.kernel);
            let key = [architecture.to_owned(), source.name.to_owned(), name_of(defines), usage.kernel];
            registers.insert(key, usage.registers);
        }
        let code = Disassembly::of(&cubin);
        let local = local_memory_instructions(&code);
        assert!(local.is_empty(), "{name} uses local memory:\n{}", local.join("\n"));
        if source.name == "linear.cu" {
            let loops = main_loops(&code);
            assert!(loops.keys().eq(&[2, 3, 4, 5, 6, 8, 16]), "{name}: {loops:?}");
            for (bits, cycles) in loops {
                // The compiler may repeat a loop. Scaling by halves takes more than scaling by units.
                let (least, most) = (cycles[0], cycles[cycles.len() - 1]);
                let counts = if bits <= 6 { &[("unit", least), ("half", most)][..] } else { &[("any", most)] };
                for &(scales, count) in counts {
                    let key = [architecture.to_owned(), name_of(defines), format!("{bits:2}"), scales.to_owned()];
                    instructions.insert(key, count);
                }
            }
        }
    }
    (registers, instructions)
}

/// A table of this folder.
fn table(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda").join(name)
}

/// The stored ceilings: four columns of text, then a number; what follows is for readers.
fn ceilings(name: &str) -> BTreeMap<[String; 4], u32> {
    let text = fs::read_to_string(table(name)).expect("the table is readable");
    let row = |line: &str| {
        let columns: Vec<&str> = line.split(',').collect();
        let [a, b, c, d, number, ..] = columns[..] else { panic!("not five columns: {line}") };
        ([a, b, c, d].map(str::to_owned), number.parse().expect("a number"))
    };
    text.lines().skip(1).map(row).collect()
}

/// Fails unless each number is at most its ceiling.
fn assert_below(found: BTreeMap<[String; 4], u32>, name: &str) {
    let ceilings = ceilings(name);
    for (key, number) in found {
        let ceiling = ceilings.get(&key);
        assert!(
            ceiling.is_some_and(|ceiling| number <= *ceiling),
            "{key:?} has {number}, its ceiling in {name} is {ceiling:?}; if that is right: make cuda-registers"
        );
    }
}

fn check_part(architecture: &str, part: usize) {
    let (registers, instructions) = examine(architecture, part, PARTS);
    assert_below(registers, "registers.csv");
    assert_below(instructions, "instructions.csv");
}

macro_rules! parts {
    ($($test:ident: $architecture:literal $part:literal;)+) => {
        $(#[test]
        fn $test() {
            check_part($architecture, $part);
        })+
    };
}

parts! {
    kernels_keep_their_values_in_registers_on_sm_80_part_1: "sm_80" 0;
    kernels_keep_their_values_in_registers_on_sm_80_part_2: "sm_80" 1;
    kernels_keep_their_values_in_registers_on_sm_80_part_3: "sm_80" 2;
    kernels_keep_their_values_in_registers_on_sm_80_part_4: "sm_80" 3;
    kernels_keep_their_values_in_registers_on_sm_90_part_1: "sm_90" 0;
    kernels_keep_their_values_in_registers_on_sm_90_part_2: "sm_90" 1;
    kernels_keep_their_values_in_registers_on_sm_90_part_3: "sm_90" 2;
    kernels_keep_their_values_in_registers_on_sm_90_part_4: "sm_90" 3;
}

macro_rules! other_architectures {
    ($($test:ident: $architecture:literal;)+) => {
        $(#[test]
        #[ignore = "make test-slow"]
        fn $test() {
            examine($architecture, 0, 1);
        })+
    };
}

other_architectures! {
    kernels_keep_their_values_in_registers_on_sm_86: "sm_86";
    kernels_keep_their_values_in_registers_on_sm_89: "sm_89";
    kernels_keep_their_values_in_registers_on_sm_90a: "sm_90a";
    kernels_keep_their_values_in_registers_on_sm_100: "sm_100";
    kernels_keep_their_values_in_registers_on_sm_120: "sm_120";
}

#[test]
#[ignore = "writes the table: make cuda-registers"]
fn registers_are_written_to_the_table() {
    let mut registers = "architecture,source,defines,kernel,registers\n".to_owned();
    let mut instructions =
        "architecture,defines,bits,scales,instructions_per_unit,instructions_per_weight\n".to_owned();
    for architecture in ARCHITECTURES {
        let (of_kernels, of_loops) = examine(&format!("sm_{architecture}"), 0, 1);
        for (key, count) in of_kernels {
            registers.push_str(&format!("{},{count}\n", key.join(",")));
        }
        for (key, count) in of_loops {
            let per_weight = f64::from(count) / f64::from(WEIGHTS_OF_LANE);
            instructions.push_str(&format!("{},{count},{per_weight:.2}\n", key.join(",")));
        }
    }
    fs::write(table("registers.csv"), registers).expect("the table is written");
    fs::write(table("instructions.csv"), instructions).expect("the table is written");
}

#[test]
fn every_ceiling_is_that_of_a_source() {
    for [architecture, source, defines, kernel] in ceilings("registers.csv").into_keys() {
        let exists = variants().any(|(known, known_defines)| known.name == source && name_of(known_defines) == defines);
        assert!(exists, "{architecture},{source},{defines},{kernel} is stale: make cuda-registers");
    }
}

#[test]
fn four_bit_weights_of_few_rows_take_no_more_instructions_than_their_bytes_take_time() {
    let of_four_bits = |[_, defines, bits, _]: &[String; 4]| defines.starts_with("TOKENS=8") && bits.trim() == "4";
    let ceilings: Vec<_> = ceilings("instructions.csv").into_iter().filter(|(key, _)| of_four_bits(key)).collect();
    assert_eq!(ceilings.len(), 8, "two architectures, two element types, two spans of scales");
    for (key, count) in ceilings {
        assert!(count <= CEILING_OF_FOUR_BITS, "{key:?}: {count}");
    }
}

#[test]
fn spills_are_noticed_in_report_and_code() {
    static SPILLING: KernelSource = KernelSource {
        name: "spilling.cu",
        text: r#"
            extern "C" __global__ void __launch_bounds__(1024) kept(float* x) { x[threadIdx.x] *= 2.0f; }
            extern "C" __global__ void __launch_bounds__(1024, 2) spilled(float* x) {
                float a[128];
                #pragma unroll
                for (int i = 0; i < 128; ++i) a[i] = x[i * 1024 + threadIdx.x];
                __syncthreads();
                #pragma unroll
                for (int i = 0; i < 128; ++i) x[i * 1024 + threadIdx.x] = a[i] * a[127 - i];
            }
        "#,
        variants: &[&[]],
    };
    let (cubin, log) = compile(&SPILLING, &[], "sm_80");
    let mut usages = usages(&log);
    usages.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    assert_eq!(usages.len(), 2, "{log}");
    assert_eq!((usages[0].kernel.as_str(), usages[0].local_bytes), ("kept", 0));
    assert!(usages[0].registers > 0 && usages[1].local_bytes > 0, "{usages:?}");
    assert!(!local_memory_instructions(&Disassembly::of(&cubin)).is_empty());
}
