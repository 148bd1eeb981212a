//! The layers of DESIGN.md section 3, and no circles: read from the sources, where each file imports from which.

mod circles;
mod imports;
mod layers;
mod reader;

use std::fs;
use std::path::PathBuf;

use imports::Crate;

fn root() -> PathBuf {
    // Cargo sets it where tests run, so a test that was built in one checkout can read another.
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
}

fn sources() -> Crate {
    Crate::read(&root().join("src/lib.rs"))
}

#[test]
fn no_two_files_import_each_other_in_a_circle() {
    let report = circles::report(&sources().imports());
    assert!(report.is_empty(), "{report}");
}

#[test]
fn no_file_has_more_than_800_lines() {
    for file in sources().files() {
        let lines = fs::read_to_string(root().join("src").join(file)).expect("a source is readable").lines().count();
        assert!(lines <= 800, "{} has {lines} lines", file.display());
    }
}
