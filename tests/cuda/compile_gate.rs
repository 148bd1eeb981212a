//! The compile gate: every kernel, compiled for each architecture, keeps its values in registers.
//!
//! It needs no card. Of each kernel, the assembler says registers, stack and spills, and the disassembler shows whether local
//! memory is used all the same. The ceilings of the registers are those of `registers.csv`; `make cuda-registers` writes them
//! again, for a reader to judge the difference.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::{env, fs};

use exlora::backend::cuda::compiler::locate::SearchPaths;
use exlora::backend::cuda::compiler::sources::{Define, KernelSource, SOURCES};
use exlora::backend::cuda::compiler::{Code, Compiler, Target};

use crate::support::{cuda_tools, find_compiler};

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
type Registers = BTreeMap<(String, String, String, String), u32>;

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

/// The instructions of a cubin that access local memory.
fn local_memory_instructions(cubin: &[u8]) -> Vec<String> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), cubin).expect("written");
    let nvdisasm = cuda_tools().join("nvidia/cu13/bin/nvdisasm");
    let output = Command::new(&nvdisasm).arg("-c").arg(file.path()).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}; `make test-cuda` installs it", nvdisasm.display()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("EXIT"), "no instructions:\n{text}");
    let is_local =
        |line: &&str| line.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == "LDL" || word == "STL");
    text.lines().filter(is_local).map(|line| line.trim().to_owned()).collect()
}

/// Compiles part `part` of all variants, checks each kernel for local memory, and returns the registers.
fn examine(architecture: &str, part: usize, parts: usize) -> Registers {
    let mut registers = Registers::new();
    for (source, defines) in variants().skip(part).step_by(parts) {
        let name = format!("{architecture}: {} {}", source.name, name_of(defines));
        let (cubin, log) = compile(source, defines, architecture);
        let usages = usages(&log);
        assert!(!usages.is_empty(), "{name} has no kernels:\n{log}");
        for usage in usages {
            assert_eq!(usage.local_bytes, 0, "{name}: {} has a stack or spills:\n{log}", usage.kernel);
            let key = (architecture.to_owned(), source.name.to_owned(), name_of(defines), usage.kernel);
            registers.insert(key, usage.registers);
        }
        let local = local_memory_instructions(&cubin);
        assert!(local.is_empty(), "{name} uses local memory:\n{}", local.join("\n"));
    }
    registers
}

fn table() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/registers.csv")
}

/// The stored ceilings.
fn ceilings() -> Registers {
    let text = fs::read_to_string(table()).expect("the table is readable");
    let row = |line: &str| {
        let columns: Vec<&str> = line.split(',').collect();
        let [architecture, source, defines, kernel, registers] = columns[..] else {
            panic!("not five columns: {line}")
        };
        let key = [architecture, source, defines, kernel].map(str::to_owned);
        (key.into(), registers.parse().expect("a number"))
    };
    text.lines().skip(1).map(row).collect()
}

fn check_part(architecture: &str, part: usize) {
    let ceilings = ceilings();
    for (kernel, registers) in examine(architecture, part, PARTS) {
        let ceiling = ceilings.get(&kernel);
        assert!(
            ceiling.is_some_and(|ceiling| registers <= *ceiling),
            "{kernel:?} has {registers} registers, its ceiling is {ceiling:?}; if that is right: make cuda-registers"
        );
    }
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
}

#[test]
#[ignore = "writes the table: make cuda-registers"]
fn registers_are_written_to_the_table() {
    let mut text = "architecture,source,defines,kernel,registers\n".to_owned();
    for architecture in ARCHITECTURES {
        for ((architecture, source, defines, kernel), registers) in examine(&format!("sm_{architecture}"), 0, 1) {
            text.push_str(&format!("{architecture},{source},{defines},{kernel},{registers}\n"));
        }
    }
    fs::write(table(), text).expect("the table is written");
}

#[test]
fn every_ceiling_is_that_of_a_source() {
    for (architecture, source, defines, kernel) in ceilings().into_keys() {
        let exists = variants().any(|(known, known_defines)| known.name == source && name_of(known_defines) == defines);
        assert!(exists, "{architecture},{source},{defines},{kernel} is stale: make cuda-registers");
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
    assert!(!local_memory_instructions(&cubin).is_empty());
}
