//! Settings: environment variables `EMULATED_CUDA_*`, some of which can be changed while the driver runs.
//!
//! | name | values | meaning |
//! | --- | --- | --- |
//! | `ORDER` | `forward` (`fwd`), `reverse` (`rev`), `random:SEED` (`rnd:`) | order of blocks, warps and lanes of atomics |
//! | `ASYNC` | `lazy`, `eager` | `cp.async` arrives at the wait, or at once |
//! | `RACE` | `on`, `shared`, `off` | where races are looked for |
//! | `INIT` | `on`, `off` | reading memory that nobody has written is an error |
//! | `EXIT_BARRIER` | `error`, `allow` | a thread exits while others use barriers |
//! | `SAME_BARRIER` | `on`, `off` | all warps must arrive at a barrier by the same instruction |
//! | `STATS` | `off`, `on` | count bytes and bank conflicts |
//! | `MMA` | `exact`, `truncate8`, `truncate16` | one rounding, or as tensor cores do in blocks of so many products |
//! | `MAX_INSTRUCTIONS` | number | instructions of warps after which a launch fails |
//! | `STREAMS` | `now`, `lazy` | work runs when it is submitted, or when it is waited for |
//! | `FAIL_ALLOCATION` | number, `off` | so many allocations of device memory from now on succeed, the next one fails |
//! | `FAIL_LAUNCH` | number, `off` | the same of launches |
//! | `QUIET` | `off`, `on` | print neither errors nor warnings |
//! | `MEM_MB` | number | MiB of device memory |
//! | `CC` | `8.0` .. | compute capability; at the start only, as is the following |
//! | `SMS` | number | streaming multiprocessors |
//! | `DEVICES` | 1 to 8 | devices, all alike |
use exlora_ptx_emulator::execution::{AsyncCopies, MatrixSum, Order, RaceChecks, Settings as Execution};

/// The settings that can be changed at any time.
const CHANGEABLE: [&str; 14] = [
    "order",
    "async",
    "race",
    "init",
    "exit_barrier",
    "same_barrier",
    "stats",
    "mma",
    "max_instructions",
    "streams",
    "fail_allocation",
    "fail_launch",
    "mem_mb",
    "quiet",
];

/// All settings.
pub(crate) struct Settings {
    /// How kernels run.
    pub(crate) execution: Execution,
    /// Work runs when it is waited for.
    pub(crate) lazy_streams: bool,
    /// Calls that are made to fail.
    pub(crate) fail_allocation: Countdown,
    pub(crate) fail_launch: Countdown,
    /// Print nothing.
    pub(crate) quiet: bool,
    pub(crate) compute_capability: (u32, u32),
    pub(crate) multiprocessors: u32,
    /// Bytes of device memory.
    pub(crate) memory_bytes: u64,
}

/// Most devices, each of which reserves address space.
const MAX_DEVICES: usize = 8;

impl Settings {
    /// Number of devices, as the environment says; 1 by default.
    pub(crate) fn devices() -> usize {
        let Ok(value) = std::env::var("EMULATED_CUDA_DEVICES") else { return 1 };
        value.parse().ok().filter(|count| (1..=MAX_DEVICES).contains(count)).unwrap_or_else(|| {
            report("DEVICES", &value);
            1
        })
    }

    /// The defaults, changed as the environment says. A value that is not known is reported and left out.
    pub(crate) fn from_environment() -> Settings {
        let mut settings = Settings {
            execution: Execution::default(),
            lazy_streams: false,
            fail_allocation: Countdown::default(),
            fail_launch: Countdown::default(),
            quiet: false,
            compute_capability: (8, 0),
            multiprocessors: 108,
            memory_bytes: 8 << 30,
        };
        let variable = |name: &str| std::env::var(format!("EMULATED_CUDA_{}", name.to_uppercase())).ok();
        for name in CHANGEABLE {
            if let Some(value) = variable(name).filter(|value| !settings.set(name, value)) {
                report(name, &value);
            }
        }
        let number = |name: &str| {
            let value = variable(name)?;
            value.parse::<u64>().map_err(|_| report(name, &value)).ok()
        };
        if let Some(count) = number("SMS") {
            settings.multiprocessors = count as u32;
        }
        if let Some(value) = variable("CC") {
            let parts =
                value.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
            match parts {
                Some(capability) => settings.compute_capability = capability,
                None => report("CC", &value),
            }
        }
        settings
    }

    /// Changes a setting by its name in lower case. False: there is no such setting or value.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> bool {
        let execution = &mut self.execution;
        let switch = match value {
            "1" | "on" => Some(true),
            "0" | "off" => Some(false),
            _ => None,
        };
        /// Sets what a value stands for, if it stands for anything.
        fn assign<T>(target: &mut T, value: Option<T>) -> bool {
            value.map(|value| *target = value).is_some()
        }
        match name {
            "order" => assign(&mut execution.order, order(value)),
            "async" => {
                let copies = [("lazy", AsyncCopies::Lazy), ("eager", AsyncCopies::Eager)];
                assign(&mut execution.async_copies, find(&copies, value))
            }
            "race" => {
                let shared = (value == "shared").then_some(RaceChecks::Shared);
                let all = switch.map(|on| if on { RaceChecks::SharedAndGlobal } else { RaceChecks::Off });
                assign(&mut execution.race_checks, shared.or(all))
            }
            "init" => assign(&mut execution.check_unwritten, switch),
            "exit_barrier" => {
                assign(&mut execution.allow_exit_before_barrier, find(&[("allow", true), ("error", false)], value))
            }
            "same_barrier" => assign(&mut execution.require_same_barrier, switch),
            "stats" => assign(&mut execution.count_memory, switch),
            "mma" => {
                let sums = [
                    ("exact", MatrixSum::Exact),
                    ("truncate8", MatrixSum::Truncating { products: 8 }),
                    ("truncate16", MatrixSum::Truncating { products: 16 }),
                ];
                assign(&mut execution.matrix_sum, find(&sums, value))
            }
            "max_instructions" => assign(&mut execution.instruction_limit, value.parse().ok()),
            "streams" => assign(&mut self.lazy_streams, find(&[("lazy", true), ("now", false)], value)),
            "fail_allocation" => assign(&mut self.fail_allocation, Countdown::parse(value)),
            "fail_launch" => assign(&mut self.fail_launch, Countdown::parse(value)),
            "mem_mb" => {
                let bytes = value.parse::<u64>().ok().and_then(|mebibytes| mebibytes.checked_mul(1 << 20));
                assign(&mut self.memory_bytes, bytes)
            }
            "quiet" => assign(&mut self.quiet, switch),
            _ => false,
        }
    }

    /// Bytes of shared memory that a multiprocessor has.
    pub(crate) fn shared_bytes_of_multiprocessor(&self) -> u32 {
        self.shared_bytes_of_block() + 1024
    }

    /// Most bytes of shared memory that a block can ask for.
    pub(crate) fn shared_bytes_of_block(&self) -> u32 {
        let kibibytes = match self.compute_capability {
            (8, 6 | 9) | (12, _) => 99,
            (8, _) => 163,
            _ => 227,
        };
        kibibytes << 10
    }

    /// Most threads that a multiprocessor runs at a time.
    pub(crate) fn threads_of_multiprocessor(&self) -> u32 {
        if matches!(self.compute_capability, (8, 6 | 9) | (12, _)) { 1536 } else { 2048 }
    }
}

/// Counts calls down to the one that fails.
#[derive(Default)]
pub(crate) struct Countdown(Option<u64>);

impl Countdown {
    fn parse(value: &str) -> Option<Countdown> {
        match value {
            "off" => Some(Countdown(None)),
            _ => value.parse().ok().map(|count| Countdown(Some(count))),
        }
    }

    /// Counts a call; whether it is the one that fails.
    pub(crate) fn is_over(&mut self) -> bool {
        match self.0 {
            Some(0) => self.0.take().is_some(),
            Some(count) => {
                self.0 = Some(count - 1);
                false
            }
            None => false,
        }
    }
}

fn find<T: Copy>(values: &[(&str, T)], name: &str) -> Option<T> {
    values.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

fn order(value: &str) -> Option<Order> {
    match value {
        "forward" | "fwd" => Some(Order::Forward),
        "reverse" | "rev" => Some(Order::Reverse),
        _ => value
            .strip_prefix("random:")
            .or_else(|| value.strip_prefix("rnd:"))?
            .parse()
            .ok()
            .map(|seed| Order::Random { seed }),
    }
}

fn report(name: &str, value: &str) {
    eprintln!("emulated CUDA driver: EMULATED_CUDA_{} has no value '{value}'", name.to_uppercase());
}
