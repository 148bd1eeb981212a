//! The layers of DESIGN.md section 3, and no circles: read from the sources, where each file imports from which.

mod circles;
mod imports;
mod reader;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use imports::Crate;

/// Modules, lowest layer first. A module uses modules of lower layers only, and itself.
const LAYERS: &[&[&str]] = &[
    &["error"],
    &["tensor", "sites"],
    &["checkpoint"],
    &["quant", "adapter"],
    &["backend"],
    &["kv_cache"],
    &["model"],
    &["engine"],
    &["inspect", "doctor"],
    &["cli"],
    &["python"],
];

fn root() -> PathBuf {
    // Cargo sets it where tests run, so a test that was built in one checkout can read another.
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
}

fn sources() -> Crate {
    Crate::read(&root().join("src/lib.rs"))
}

/// The part of a file's path that names its module in a table of layers, and the layer.
fn layer_of<'t>(file: &Path, layers: &[&[&'t str]]) -> Option<(&'t str, usize)> {
    let path = file.with_extension("");
    let mut named =
        layers.iter().enumerate().flat_map(|(layer, modules)| modules.iter().map(move |&name| (name, layer)));
    named.find(|(name, _)| path.starts_with(name))
}

/// Imports that a table of layers does not allow, among the files that it names.
fn violations(imports: &imports::Imports, layers: &[&[&str]]) -> Vec<String> {
    let mut found = Vec::new();
    for ((importer, imported), paths) in imports {
        let (Some((user, upper)), Some((used, lower))) = (layer_of(importer, layers), layer_of(imported, layers))
        else {
            continue;
        };
        if user != used && lower >= upper {
            found.push(format!("{} uses {}: {paths:?}", importer.display(), imported.display()));
        }
    }
    found
}

#[test]
fn modules_use_only_lower_layers() {
    let imports = sources().imports();
    assert!(imports.len() > 200, "only {} imports were found: the reader is broken", imports.len());
    let wrong = violations(&imports, LAYERS);
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_module_has_a_layer_and_every_layer_its_modules() {
    let sources = sources();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for file in sources.files().into_iter().filter(|file| *file != Path::new("lib.rs")) {
        let Some((module, _)) = layer_of(file, LAYERS) else { panic!("{} has no layer", file.display()) };
        *seen.entry(module).or_default() += 1;
    }
    for module in LAYERS.iter().copied().flatten() {
        assert!(seen.contains_key(module), "`{module}` has a layer and no file");
    }
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
