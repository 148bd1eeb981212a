//! The layers of DESIGN.md section 3: which module may use which.

use std::collections::BTreeMap;
use std::path::Path;

use super::imports::Imports;
use super::{LIBRARY, root, sources};

/// Modules, lowest layer first. A module uses modules of lower layers only, and itself.
const LAYERS: &[&[&str]] = &[
    &["error"],
    &["files", "fork_safe_mutex", "guard", "jinja", "prompt_embeds", "tensor", "sites", "text_prefix", "unique_value"],
    &["checkpoint"],
    &["quant", "adapter"],
    &["backend"],
    &["kv_cache"],
    &["model"],
    &["engine"],
    &["request_settings"],
    &["inspect", "doctor", "server"],
    &["cli"],
];

/// The same for what lies below `backend`: backends do not know each other, and have layers of their own.
const BACKENDS: &[&[&str]] = &[&["backend/reference", "backend/cpu", "backend/cuda"]];
const CPU_BACKEND: &[&[&str]] = &[
    &["backend/cpu/kernels"],
    &["backend/cpu/runtime"],
    &["backend/cpu/weights"],
    &["backend/cpu/adapter"],
    &["backend/cpu/ops"],
];

const CUDA_BACKEND: &[&[&str]] = &[
    &["backend/cuda/compiler"],
    &["backend/cuda/driver"],
    &["backend/cuda/ops"],
    &["backend/cuda/weights"],
    &["backend/cuda/adapter"],
    &["backend/cuda/compute"],
];

/// The part of a file's path that names its module in a table of layers, and the layer.
fn layer_of<'t>(file: &Path, layers: &[&[&'t str]]) -> Option<(&'t str, usize)> {
    let path = file.with_extension("");
    let mut named =
        layers.iter().enumerate().flat_map(|(layer, modules)| modules.iter().map(move |&name| (name, layer)));
    named.find(|(name, _)| path.starts_with(name))
}

/// Imports that a table of layers does not allow, among the files that it names.
fn violations(imports: &Imports, layers: &[&[&str]]) -> Vec<String> {
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
    let imports = sources(LIBRARY).imports();
    assert!(imports.len() > 200, "only {} imports were found: the reader is broken", imports.len());
    let wrong: Vec<String> =
        [LAYERS, BACKENDS, CPU_BACKEND, CUDA_BACKEND].iter().flat_map(|layers| violations(&imports, layers)).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_module_has_a_layer_and_every_layer_its_modules() {
    let sources = sources(LIBRARY);
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for file in sources.files().into_iter().filter(|file| *file != Path::new("lib.rs")) {
        let Some((module, _)) = layer_of(file, LAYERS) else { panic!("{} has no layer", file.display()) };
        *seen.entry(module).or_default() += 1;
    }
    for module in LAYERS.iter().copied().flatten() {
        assert!(seen.contains_key(module), "`{module}` has a layer and no file");
    }
    for module in BACKENDS.iter().chain(CPU_BACKEND).chain(CUDA_BACKEND).copied().flatten() {
        assert!(root().join(LIBRARY).join(module).is_dir(), "`{module}` has a layer and no files");
    }
}
