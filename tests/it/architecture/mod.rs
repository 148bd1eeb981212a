//! The layers of DESIGN.md section 3, and no circles: read from the sources, where each file imports from which. The bindings
//! are a crate of their own, and cargo itself makes them the top layer.

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

/// The folders of the crates' sources: the library, and its bindings to Python.
const LIBRARY: &str = "src";
const BINDINGS: &str = "bindings/python/src";

fn sources(folder: &str) -> Crate {
    Crate::read(&root().join(folder).join("lib.rs"))
}

#[test]
fn no_two_files_import_each_other_in_a_circle() {
    for folder in [LIBRARY, BINDINGS] {
        let report = circles::report(&sources(folder).imports());
        assert!(report.is_empty(), "{folder}:{report}");
    }
}

#[test]
fn no_file_has_more_than_800_lines() {
    for folder in [LIBRARY, BINDINGS] {
        let sources = sources(folder);
        assert!(sources.files().len() > 20, "only {} files were found in {folder}", sources.files().len());
        for file in sources.files() {
            let path = root().join(folder).join(file);
            let lines = fs::read_to_string(&path).expect("a source is readable").lines().count();
            assert!(lines <= 800, "{} has {lines} lines", path.display());
        }
    }
}
