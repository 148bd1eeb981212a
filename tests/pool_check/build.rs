//! Writes variants of `gate.rs` with one mistake each, which the model checker must find.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// The name of a mistake, and what it replaces by what.
const MISTAKES: [(&str, &str, &str); 5] = [
    ("closes_without_waiting", "while state.load(Ordering::Acquire) & INSIDE != 0 {", "while false {"),
    (
        "opens_without_release",
        "OPEN | invited << INVITED_SHIFT, Ordering::Release",
        "OPEN | invited << INVITED_SHIFT, Ordering::Relaxed",
    ),
    ("leaves_without_release", "state.fetch_sub(1, Ordering::Release)", "state.fetch_sub(1, Ordering::Relaxed)"),
    ("wakes_without_fence", "fence(Ordering::SeqCst);\n        for (worker", "for (worker"),
    ("parks_without_looking", "if !is_open(state.load(Ordering::Acquire), seen, worker) &&", "if"),
];

fn main() {
    let gate = Path::new("../../src/backend/cpu/runtime/gate.rs");
    println!("cargo::rerun-if-changed={}", gate.display());
    let source = fs::read_to_string(gate).expect("gate.rs is readable");
    // A file that is included cannot have inner attributes.
    let body: String = source
        .lines()
        .filter(|line| !line.starts_with("//!") && !line.starts_with("#!["))
        .map(|line| format!("{line}\n"))
        .collect();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for (name, right, wrong) in MISTAKES {
        assert_eq!(body.matches(right).count(), 1, "{name}: gate.rs no longer has the line `{right}` once");
        fs::write(out.join(format!("{name}.rs")), body.replace(right, wrong)).expect("OUT_DIR is writable");
    }
}
