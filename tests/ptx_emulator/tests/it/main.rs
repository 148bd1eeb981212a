//! The emulator's instructions against independent results: exact integers, f64 and the crate `half`.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up its kernel has failed")]
mod bits;
mod collectives;
mod compare;
mod control_flow;
mod convert;
mod fixed;
mod float;
mod half_precision;
mod integer;
mod matrices;
mod memory;
mod moves;
mod parser;
mod values;

use exlora_ptx_emulator::arithmetic::InstructionSet;
use exlora_ptx_emulator::execution::{Configuration, Settings, run};
use exlora_ptx_emulator::kernel::Kernel;
use exlora_ptx_emulator::lowering::{VariableAddresses, lower_for};
use exlora_ptx_emulator::memory::DeviceMemory;
use exlora_ptx_emulator::parser::parse;

const HEADER: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";
const THREADS_PER_BLOCK: usize = 128;

/// The first entry function of a module without its header.
fn load(instruction_set: InstructionSet, text: &str) -> Result<Kernel, String> {
    let module = parse(&format!("{HEADER}{text}"))?;
    let entry = module.functions.iter().find(|function| function.is_entry).ok_or("no entry function")?;
    lower_for(instruction_set, &module, entry, &VariableAddresses::new())
}

/// What stands in the way of loading the statements of a kernel.
fn refusal(statements: &str) -> String {
    match load(InstructionSet::Baseline, &format!(".visible .entry kernel()\n{{\n{statements}\n}}")) {
        Ok(_) => panic!("accepted: {statements}"),
        Err(message) => message,
    }
}

/// Runs one thread for each element of `inputs`. The registers `%a`, `%b`, `%c` and `%d`, of 64 bits, hold its values;
/// `%r0` to `%r9`, `%h0` to `%h9`, `%l0` to `%l9` and `%p0` to `%p9` are free, and the thread's result is `%result`.
fn evaluate_on<const N: usize>(instruction_set: InstructionSet, body: &str, inputs: &[[u64; N]]) -> Vec<u64> {
    let loads = ["%a", "%b", "%c", "%d"].iter().take(N).enumerate();
    let loads =
        loads.map(|(index, name)| format!("ld.global.b64 {name}, [%address+{}];", 8 * index)).collect::<String>();
    let bytes = 8 * N;
    let text = format!(
        ".visible .entry kernel(.param .u64 inputs, .param .u64 results, .param .u32 count)
{{
.reg .pred %p<10>; .reg .b16 %h<10>; .reg .b32 %r<10>, %thread, %count; .reg .b64 %l<10>, %a, %b, %c, %d, %address, %result;
mov.u32 %thread, %tid.x;
mad.lo.u32 %thread, %ctaid.x, {THREADS_PER_BLOCK}, %thread;
ld.param.u32 %count, [count];
setp.ge.u32 %p0, %thread, %count;
@%p0 bra DONE;
ld.param.u64 %address, [inputs];
mad.wide.u32 %address, %thread, {bytes}, %address;
{loads}
{{
{body}
}}
ld.param.u64 %address, [results];
mad.wide.u32 %address, %thread, 8, %address;
st.global.b64 [%address], %result;
DONE: ret;
}}"
    );
    let kernel = load(instruction_set, &text).unwrap_or_else(|message| panic!("{message}\n{text}"));
    let mut memory = DeviceMemory::new(1 << 30).unwrap();
    let bytes = inputs.iter().flatten().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    let input_address = memory.allocate(bytes.len() as u64, "inputs").unwrap();
    memory.write(input_address, &bytes);
    let result_address = memory.allocate(8 * inputs.len() as u64, "results").unwrap();
    let mut parameters = vec![];
    parameters.extend(input_address.to_le_bytes());
    parameters.extend(result_address.to_le_bytes());
    parameters.extend((inputs.len() as u32).to_le_bytes());
    let blocks = inputs.len().div_ceil(THREADS_PER_BLOCK) as u32;
    launch(&kernel, &mut memory, [blocks, 1, 1], THREADS_PER_BLOCK as u32, &parameters);
    let mut results = vec![0; 8 * inputs.len()];
    memory.read(result_address, &mut results);
    words(&results)
}

/// Like [`evaluate_on`], with the same results for every instruction set of the CPU.
fn evaluate<const N: usize>(body: &str, inputs: &[[u64; N]]) -> Vec<u64> {
    let baseline = evaluate_on(InstructionSet::Baseline, body, inputs);
    let widest = InstructionSet::detect();
    if widest != InstructionSet::Baseline {
        assert!(evaluate_on(widest, body, inputs) == baseline, "{widest:?} differs from the baseline: {body}");
    }
    baseline
}

fn launch(kernel: &Kernel, memory: &mut DeviceMemory, grid: [u32; 3], threads: u32, parameters: &[u8]) {
    let configuration = Configuration { grid, block: [threads, 1, 1], dynamic_shared_bytes: 0 };
    let outcome = run(kernel, memory, &Settings::default(), configuration, parameters);
    if let Err(fault) = outcome.result {
        panic!("{}", fault.message);
    }
}

/// Runs a single warp whose threads know their number as `%lane` and store `%result`, of 32 bits.
fn evaluate_warp(statements: &str) -> Vec<u32> {
    let text = format!(
        ".visible .entry kernel(.param .u64 results)
{{
.reg .pred %p<10>; .reg .b32 %r<10>, %lane, %result; .reg .b64 %l<10>, %address;
mov.u32 %lane, %laneid;
{statements}
ld.param.u64 %address, [results];
mad.wide.u32 %address, %lane, 4, %address;
st.global.b32 [%address], %result;
ret;
}}"
    );
    let kernel = load(InstructionSet::detect(), &text).unwrap_or_else(|message| panic!("{message}\n{text}"));
    let mut memory = DeviceMemory::new(1 << 30).unwrap();
    let address = memory.allocate(128, "results").unwrap();
    launch(&kernel, &mut memory, [1; 3], 32, &address.to_le_bytes());
    let mut bytes = [0; 128];
    memory.read(address, &mut bytes);
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

/// The register that an instruction gives its source or result, by width in bits, and how it is moved from or to 64 bits.
fn checked_body(opcode: &str, sources: &[u32], result: u32, extra: &str) -> String {
    let names = ["%a", "%b", "%c", "%d"];
    let mut body = String::new();
    let mut operands = vec![];
    for (index, (bits, name)) in sources.iter().zip(names).enumerate() {
        let register = match bits {
            16 => format!("%h{index}"),
            32 => format!("%r{index}"),
            _ => format!("%l{index}"),
        };
        let bits = if *bits == 16 { 16 } else { *bits };
        body += &format!("cvt.u{bits}.u64 {register}, {name};\n");
        operands.push(register);
    }
    let register = match result {
        16 => "%h9",
        32 => "%r9",
        _ => "%l9",
    };
    body += &format!("{opcode} {register}, {}{extra};\n", operands.join(", "));
    body + &format!("cvt.u64.u{result} %result, {register};")
}

/// Checks an instruction with sources and a result of these widths in bits on every input.
fn check<const N: usize>(
    opcode: &str,
    sources: [u32; N],
    result: u32,
    inputs: &[[u64; N]],
    expected: impl Fn([u64; N]) -> u64,
) {
    check_matching(opcode, sources, result, inputs, expected, |got, want| got == want);
}

/// Like [`check`], where a NaN is as good as any other.
fn check_float<const N: usize>(
    opcode: &str,
    sources: [u32; N],
    result: u32,
    inputs: &[[u64; N]],
    expected: impl Fn([u64; N]) -> u64,
) {
    let is_nan = |bits: u64| match result {
        16 => panic!("halves have one NaN"),
        32 => f32::from_bits(bits as u32).is_nan(),
        _ => f64::from_bits(bits).is_nan(),
    };
    let matches = |got, want| got == want || is_nan(got) && is_nan(want);
    check_matching(opcode, sources, result, inputs, expected, matches);
}

fn check_matching<const N: usize>(
    opcode: &str,
    sources: [u32; N],
    result: u32,
    inputs: &[[u64; N]],
    expected: impl Fn([u64; N]) -> u64,
    matches: impl Fn(u64, u64) -> bool,
) {
    assert!(inputs.len() >= 256, "{opcode}: too few inputs");
    let body = checked_body(opcode, &sources, result, "");
    for instruction_set in [InstructionSet::Baseline, InstructionSet::detect()] {
        let results = evaluate_on(instruction_set, &body, inputs);
        for (input, got) in inputs.iter().zip(results) {
            let want = expected(*input);
            assert!(matches(got, want), "{instruction_set:?} {opcode} {input:#x?}: {got:#x}, want {want:#x}");
        }
    }
}
