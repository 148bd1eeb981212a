//! `exlora doctor`: reports what this build and this machine support.

use clap::Args;
use serde::Serialize;

use super::output::{print, print_json};
use crate::doctor::{self, Card, Cuda, KernelCheck, Report};
use crate::error::{Result, printable};
use crate::model::Device;

#[derive(Args)]
pub(super) struct DoctorArgs {
    /// Check the kernels of a device against the reference as well: cpu, cuda or cuda:NUMBER.
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
}

/// The report, with what a device computed.
#[derive(Serialize)]
struct Checked<'a> {
    #[serde(flatten)]
    report: &'a Report,
    kernels: &'a [KernelCheck],
}

/// Returns whether every kernel that was checked passed.
pub(super) fn run(args: &DoctorArgs, json: bool) -> Result<bool> {
    let report = doctor::examine();
    let Some(device) = &args.device else {
        if json { print_json(&report) } else { print(&text(&report)) }?;
        return Ok(true);
    };
    let device: Device = device.parse()?;
    if !json {
        print(&text(&report))?;
    }
    let mut show = |check: &KernelCheck| if json { Ok(()) } else { print(&line(check)) };
    let checks = doctor::check_kernels(device, &mut show)?;
    let passed = checks.iter().filter(|check| check.passed).count();
    if json {
        print_json(&Checked { report: &report, kernels: &checks })?;
    } else {
        print(&format!("{passed} of {} kernel checks passed\n", checks.len()))?;
    }
    Ok(passed == checks.len())
}

/// A check: its case, the error and what is allowed.
fn line(check: &KernelCheck) -> String {
    let KernelCheck { kernel, activations, error, tolerance, passed, failure, .. } = check;
    let verdict = if *passed { "ok" } else { "FAILED" };
    let error = match (error, failure) {
        (_, Some(failure)) => printable(failure),
        (Some(error), None) => format!("error {error:.1e}, at most {tolerance:.0e}"),
        (None, None) => "no numbers".to_owned(),
    };
    format!("{verdict:<7}{kernel:<46} {activations:<5} {error}\n")
}

fn text(report: &Report) -> String {
    let unknown = || "unknown".to_owned();
    let gib = |bytes: Option<u64>| bytes.map_or_else(unknown, gib);
    let cpu = &report.cpu;
    let mut lines = vec![
        ("exlora", format!("{} ({} build, {})", report.version, report.profile, report.platform)),
        ("cpu", format!("{}, {} threads", cpu.name.clone().unwrap_or_else(unknown), cpu.threads)),
        ("features", cpu.features.join(" ")),
        ("device", report.device.clone()),
        ("memory", format!("{}, {} available", gib(report.memory.total_bytes), gib(report.memory.available_bytes))),
        ("huge pages", report.huge_pages.clone().unwrap_or_else(unknown)),
    ];
    lines.extend(cuda(&report.cuda));
    lines.iter().map(|(name, value)| format!("{name:<12} {}\n", printable(value))).collect()
}

/// One line where CUDA is not there; else one each for the driver, each card, compiler and cache, and for what is missing.
fn cuda(cuda: &Cuda) -> Vec<(&str, String)> {
    let mut lines = Vec::new();
    match (&cuda.driver, &cuda.missing) {
        (Some(driver), _) => lines.push(("cuda", format!("driver for CUDA {driver}"))),
        (None, Some(missing)) => return vec![("cuda", missing.clone())],
        (None, None) => return vec![("cuda", "not built in".to_owned())],
    }
    lines.extend(cuda.cards.iter().map(|card| {
        let Card { name, compute_capability, multiprocessors, .. } = card;
        let (total, free) = (gib(card.total_bytes as u64), gib(card.free_bytes as u64));
        let is = format!("compute capability {compute_capability}, {multiprocessors} multiprocessors");
        (card.device.as_str(), format!("{name}, {is}, {total}, {free} free"))
    }));
    if let Some(nvrtc) = &cuda.nvrtc {
        lines.push(("nvrtc", format!("{}, {} ({})", nvrtc.version, nvrtc.library.display(), nvrtc.origin)));
    }
    if let Some(cache) = &cuda.cache {
        let size = format!("{} entries, {} KiB", cache.entries, cache.bytes.div_ceil(1 << 10));
        lines.push(("kernel cache", format!("{}, {size}", cache.folder.display())));
    }
    lines.extend(cuda.missing.iter().map(|missing| ("missing", missing.clone())));
    lines
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{KernelCache, Nvrtc};

    fn lines(report: &Cuda) -> Vec<String> {
        cuda(report).into_iter().map(|(name, value)| format!("{name}: {value}")).collect()
    }

    #[test]
    fn a_machine_without_cuda_gets_one_line_that_says_what_is_missing() {
        let missing = Some("libcuda.so.1 was not found".to_owned());
        assert_eq!(lines(&Cuda { built: true, missing, ..Cuda::default() }), ["cuda: libcuda.so.1 was not found"]);
        assert_eq!(lines(&Cuda::default()), ["cuda: not built in"]);
    }

    #[test]
    fn a_check_gets_a_line_with_its_error_or_what_kept_it_from_computing() {
        let check = KernelCheck {
            kernel: "norm".to_owned(),
            activations: "f16",
            error: Some(0.000_25),
            tolerance: 1e-3,
            passed: true,
            failure: None,
            values: Vec::new(),
        };
        let words = |check: &KernelCheck| line(check).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(&check), "ok norm f16 error 2.5e-4, at most 1e-3");
        let failed = KernelCheck { passed: false, error: None, ..check };
        assert_eq!(words(&failed), "FAILED norm f16 no numbers");
        let failure = Some("the device failed".to_owned());
        assert_eq!(words(&KernelCheck { failure, ..failed }), "FAILED norm f16 the device failed");
    }

    #[test]
    fn driver_cards_compiler_and_cache_get_a_line_each() {
        let report = Cuda {
            built: true,
            missing: Some("something".to_owned()),
            driver: Some("13.0".to_owned()),
            cards: vec![Card {
                device: "cuda:0".to_owned(),
                name: "NVIDIA H200".to_owned(),
                compute_capability: "9.0".to_owned(),
                multiprocessors: 132,
                total_bytes: 141 << 30,
                free_bytes: 3 << 29,
            }],
            nvrtc: Some(Nvrtc { version: "13.0".to_owned(), library: "a/libnvrtc.so.13".into(), origin: "torch" }),
            cache: Some(KernelCache { folder: "b".into(), entries: 3, bytes: 1025 }),
        };
        assert_eq!(
            lines(&report),
            [
                "cuda: driver for CUDA 13.0",
                "cuda:0: NVIDIA H200, compute capability 9.0, 132 multiprocessors, 141.0 GiB, 1.5 GiB free",
                "nvrtc: 13.0, a/libnvrtc.so.13 (torch)",
                "kernel cache: b, 3 entries, 2 KiB",
                "missing: something"
            ]
        );
    }
}
