//! `exlora doctor`: reports what this build and this machine support.

use super::output::{print, print_json};
use crate::doctor::{self, Report};
use crate::error::{Result, printable};

pub(super) fn run(json: bool) -> Result<()> {
    let report = doctor::examine();
    if json { print_json(&report) } else { print(&text(&report)) }
}

fn text(report: &Report) -> String {
    let unknown = || "unknown".to_owned();
    let gib = |bytes: Option<u64>| {
        bytes.map_or_else(unknown, |bytes| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)))
    };
    let cpu = &report.cpu;
    let lines = [
        ("exlora", format!("{} ({} build, {})", report.version, report.profile, report.platform)),
        ("cpu", format!("{}, {} threads", cpu.name.clone().unwrap_or_else(unknown), cpu.threads)),
        ("features", cpu.features.join(" ")),
        ("device", report.device.clone()),
        ("memory", format!("{}, {} available", gib(report.memory.total_bytes), gib(report.memory.available_bytes))),
        ("huge pages", report.huge_pages.clone().unwrap_or_else(unknown)),
        ("cuda", if report.cuda.built { "built in" } else { "not built in" }.to_owned()),
    ];
    lines.iter().map(|(name, value)| format!("{name:<12} {}\n", printable(value))).collect()
}
