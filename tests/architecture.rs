//! The floors of the house: a module uses only modules of lower floors, or its own.
//!
//! Read from the sources as text: every `crate::name` in `src`, outside comments and unit tests, against one table. A name
//! at the crate's root counts as the module that `lib.rs` re-exports it from. `adapter` never sees `model`, no kernel sees
//! a file format, and nothing below the faces sees Python, because the table says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const FLOORS: &[(&str, u32)] = &[
    ("error", 0),
    ("tensor", 0),
    ("sites", 0),
    ("checkpoint", 1),
    ("quant", 2),
    ("adapter", 2),
    ("backend", 3),
    ("kv_cache", 4),
    ("model", 5),
    ("engine", 6),
    ("inspect", 6),
    ("doctor", 6),
    ("cli", 7),
    ("python", 7),
];

/// Uses within a floor that are meant: everything speaks in errors; a report of a model opens its tokenizer; the Python
/// package's command is the command.
const BESIDE: &[(&str, &str)] = &[("tensor", "error"), ("sites", "error"), ("inspect", "engine"), ("python", "cli")];

fn sources() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a source folder is readable") {
            let path = entry.expect("a source folder is readable").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join("src"), &mut found);
    found.sort();
    found
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The top module a file belongs to: `src/adapter/keys.rs` is of `adapter`, `src/kv_cache.rs` of `kv_cache`.
fn module_of(file: &Path) -> String {
    let inside = file.strip_prefix(root().join("src")).expect("sources lie below src");
    let first = inside.components().next().expect("a file has a name").as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// A file's code without comments and without its unit tests, which stand last.
fn code_of(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("a source is readable");
    let product = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    product.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The names that follow `crate::`, those of `crate::{…}` included.
fn uses(code: &str) -> BTreeSet<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        if let Some(list) = after.strip_prefix('{') {
            let (mut depth, mut start) = (0, 0);
            for (at, c) in list.char_indices() {
                match c {
                    '{' => depth += 1,
                    ',' | '}' if depth == 0 => {
                        found.insert(name(list[start..at].trim_start()));
                        start = at + 1;
                        if c == '}' {
                            break;
                        }
                    }
                    '}' => depth -= 1,
                    _ => {}
                }
            }
        } else {
            found.insert(name(after));
        }
    }
    found.remove("");
    found
}

/// Names at the crate's root and the module each comes from, as `lib.rs` says.
fn re_exports() -> BTreeMap<String, String> {
    let lib = code_of(&root().join("src/lib.rs"));
    let mut found = BTreeMap::new();
    for statement in lib.split(';').filter_map(|s| s.trim().strip_prefix("pub use ")) {
        let module = statement.split("::").next().unwrap_or_default();
        let names = statement.rsplit("::").next().unwrap_or_default().trim_matches(['{', '}']);
        for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            found.insert(name.to_owned(), module.to_owned());
        }
    }
    found
}

#[test]
fn modules_use_only_lower_floors() {
    let floors: BTreeMap<&str, u32> = FLOORS.iter().copied().collect();
    let re_exports = re_exports();
    assert_eq!(re_exports.get("Error").map(String::as_str), Some("error"), "lib.rs is read wrongly");
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in sources() {
        let module = module_of(&file);
        if module == "lib" || module == "main" {
            continue;
        }
        let Some(&floor) = floors.get(module.as_str()) else {
            wrong.push(format!("{}: module `{module}` has no floor", file.display()));
            continue;
        };
        for name in uses(&code_of(&file)) {
            let used = re_exports.get(&name).unwrap_or(&name);
            seen += 1;
            let allowed = *used == module
                || BESIDE.contains(&(module.as_str(), used))
                || floors.get(used.as_str()).is_some_and(|&below| below < floor);
            if !allowed {
                wrong.push(format!("{}: `{module}` uses `crate::{name}`", file.display()));
            }
        }
    }
    assert!(seen > 50, "only {seen} uses were found; the reader is broken");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_floor_names_a_module_that_exists() {
    let modules: BTreeSet<String> = sources().iter().map(|file| module_of(file)).collect();
    for (module, _) in FLOORS {
        assert!(modules.contains(*module), "`{module}` has a floor and no file");
    }
}

#[test]
fn no_file_grows_past_a_sitting() {
    for file in sources() {
        let lines = fs::read_to_string(&file).expect("a source is readable").lines().count();
        assert!(lines <= 800, "{} has {lines} lines", file.display());
    }
}

#[test]
fn unsafe_code_stays_in_the_rooms_that_need_it() {
    for file in sources() {
        let inside = file.strip_prefix(root().join("src")).expect("sources lie below src").to_owned();
        let may = inside.starts_with("backend/cpu")
            || inside.starts_with("checkpoint")
            || inside == Path::new("checkpoint.rs");
        let does = code_of(&file).lines().any(|line| line.contains("unsafe ") && !line.contains("unsafe_"));
        assert!(may || !does, "{} holds unsafe code", file.display());
    }
}

#[test]
fn the_reader_of_uses_finds_nested_and_listed_names() {
    let code = "use crate::{Error, adapter::{batch, pool::AdapterLease}, kv};\nlet x = crate::model::Device::Cpu;";
    let names: Vec<_> = uses(code).into_iter().collect();
    assert_eq!(names, ["Error", "adapter", "kv", "model"]);
}
