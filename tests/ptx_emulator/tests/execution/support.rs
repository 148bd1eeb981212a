//! A device to run small kernels on.
use exlora_ptx_emulator::counters::Counters;
use exlora_ptx_emulator::execution::{Configuration, Outcome, Settings, run};
use exlora_ptx_emulator::kernel::Kernel;
use exlora_ptx_emulator::lowering::{VariableAddresses, lower};
use exlora_ptx_emulator::memory::DeviceMemory;
use exlora_ptx_emulator::parser::parse;

/// What every kernel begins with: `%rd0` and `%rd1` are the parameters a and b, `%r0` the thread, `%r1` the block, `%rd2` is
/// `a + 4 thread`; `%r2` is the shared variable s of 1024 bytes, `%r3` is `s + 4 thread`.
const PROLOGUE: &str = "
    .reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<32>; .reg .b64 %rd<32>;
    .shared .align 16 .b8 s[1024];
    ld.param.u64 %rd0, [a]; ld.param.u64 %rd1, [b];
    mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x;
    mul.wide.u32 %rd2, %r0, 4; add.u64 %rd2, %rd0, %rd2;
    mov.u32 %r2, s; shl.b32 %r3, %r0, 2; add.u32 %r3, %r2, %r3;
";

/// Kernel `k` with the prologue and the body. Line `n` of the body, from 1 on, is line `n` of test.cu.
pub fn kernel(body: &str) -> Kernel {
    let mut text = String::from(".version 8.0\n.target sm_80\n.address_size 64\n.file 1 \"test.cu\"\n");
    text += ".extern .shared .align 16 .b8 dynamic[];\n";
    text += &format!(".visible .entry k(.param .u64 a, .param .u64 b)\n{{{PROLOGUE}");
    for (index, line) in body.trim().lines().enumerate() {
        text += &format!(".loc 1 {} 0\n{line}\n", index + 1);
    }
    text += "ret; }";
    let module = parse(&text).unwrap_or_else(|message| panic!("{message}\n{text}"));
    lower(&module, &module.functions[0], &VariableAddresses::new())
        .unwrap_or_else(|message| panic!("{message}\n{text}"))
}

pub struct Device {
    pub memory: DeviceMemory,
    pub settings: Settings,
    pub dynamic_shared_bytes: u32,
}

impl Device {
    pub fn new() -> Device {
        let memory = DeviceMemory::new(1 << 30).unwrap();
        Device { memory, settings: Settings::default(), dynamic_shared_bytes: 0 }
    }

    pub fn with(change: impl FnOnce(&mut Settings)) -> Device {
        let mut device = Device::new();
        change(&mut device.settings);
        device
    }

    /// A buffer that holds these words.
    pub fn words(&mut self, words: &[u32]) -> u64 {
        let address = self.unwritten(words.len() * 4);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.memory.write(address, &bytes);
        address
    }

    /// A buffer that nobody has written.
    pub fn unwritten(&mut self, bytes: usize) -> u64 {
        self.memory.allocate(bytes as u64, "buffer").unwrap()
    }

    pub fn read(&mut self, address: u64, words: usize) -> Vec<u32> {
        let mut bytes = vec![0; words * 4];
        self.memory.read(address, &mut bytes);
        bytes.as_chunks::<4>().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect()
    }

    pub fn outcome(&mut self, body: &str, blocks: u32, threads: u32, [a, b]: [u64; 2]) -> Outcome {
        let kernel = kernel(body);
        let parameters: Vec<u8> = [a, b].iter().flat_map(|value| value.to_le_bytes()).collect();
        let configuration = Configuration {
            grid: [blocks, 1, 1],
            block: [threads, 1, 1],
            dynamic_shared_bytes: self.dynamic_shared_bytes,
        };
        run(&kernel, &mut self.memory, &self.settings, configuration, &parameters)
    }

    /// Runs a kernel that must finish.
    pub fn run(&mut self, body: &str, blocks: u32, threads: u32, parameters: [u64; 2]) -> Counters {
        let outcome = self.outcome(body, blocks, threads, parameters);
        if let Err(fault) = outcome.result {
            panic!("{}", fault.message);
        }
        outcome.counters
    }

    /// Runs a kernel that must fail, with a message that has all of `parts`.
    pub fn fail(&mut self, body: &str, blocks: u32, threads: u32, parameters: [u64; 2], parts: &[&str]) {
        let outcome = self.outcome(body, blocks, threads, parameters);
        let message = outcome.result.expect_err("the kernel finished").message;
        for part in parts {
            assert!(message.contains(part), "no '{part}' in: {message}");
        }
    }
}
