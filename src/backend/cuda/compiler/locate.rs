//! Where NVRTC may be: pip wheels, torch's copy, a CUDA toolkit, the loader's path.
//!
//! The first that loads is used. Libraries of a later major version than the driver's come last: their code would not load.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// Names NVRTC's library, or the folder that holds it; nothing else is tried then.
pub const NVRTC_VARIABLE: &str = "EXLORA_NVRTC";

/// Major versions of NVRTC that the loader is asked for by name, newest first.
const KNOWN_MAJORS: [u32; 2] = [13, 12];

/// Folders below Python's `site-packages` where wheels have the library: CUDA 13's, CUDA 12's, torch's own copy.
const WHEEL_FOLDERS: [(&str, &str); 3] =
    [("nvidia/cu13/lib", "pip wheel"), ("nvidia/cuda_nvrtc/lib", "pip wheel"), ("torch/lib", "torch")];

/// The running Python's `sys.path`.
static PYTHON_PATHS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Tells where the running Python finds packages, its `sys.path`.
pub fn set_python_paths(paths: Vec<PathBuf>) {
    *PYTHON_PATHS.lock() = paths;
}

/// Where to look.
#[derive(Clone, Debug, Default)]
pub struct SearchPaths {
    /// A library or folder that excludes all others.
    pub only: Option<PathBuf>,
    /// Folders that contain Python packages.
    pub packages: Vec<PathBuf>,
    /// CUDA toolkits.
    pub toolkits: Vec<PathBuf>,
}

impl SearchPaths {
    /// Those of the environment and of the running Python.
    pub fn of_this_process() -> Self {
        let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let mut packages = PYTHON_PATHS.lock().clone();
        for prefix in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable) {
            packages.extend(packages_of(&prefix));
        }
        let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable);
        Self {
            only: variable(NVRTC_VARIABLE),
            packages,
            toolkits: toolkits.chain([PathBuf::from("/usr/local/cuda")]).collect(),
        }
    }
}

/// The `site-packages` of a Python environment.
pub fn packages_of(prefix: &Path) -> Vec<PathBuf> {
    let is_python = |path: &PathBuf| file_name(path).starts_with("python3");
    let versions = list(&prefix.join("lib")).into_iter().filter(is_python);
    versions.map(|version| version.join("site-packages")).filter(|path| path.is_dir()).collect()
}

/// A library that may be NVRTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// A file, or a name for the loader.
    pub library: PathBuf,
    /// Its library of builtins, to be loaded first.
    pub builtins: Option<PathBuf>,
    /// Whose it is, for reports.
    pub origin: &'static str,
    /// Its major version, if the name says it.
    major: Option<u32>,
}

/// What to try, best first, with a driver of this major version.
pub fn candidates(paths: &SearchPaths, driver_major: u32) -> Vec<Candidate> {
    if let Some(only) = &paths.only {
        if only.is_dir() {
            return libraries_in(only, NVRTC_VARIABLE);
        }
        let major = major_of(only);
        let builtins = only.parent().and_then(|folder| builtins_in(folder, major));
        return vec![Candidate { library: only.clone(), builtins, origin: NVRTC_VARIABLE, major }];
    }
    let mut found = Vec::new();
    for (folder, origin) in WHEEL_FOLDERS {
        found.extend(paths.packages.iter().flat_map(|packages| libraries_in(&packages.join(folder), origin)));
    }
    for toolkit in &paths.toolkits {
        for folder in ["lib64", "lib", "targets/x86_64-linux/lib"] {
            found.extend(libraries_in(&toolkit.join(folder), "CUDA toolkit"));
        }
    }
    found.extend(KNOWN_MAJORS.map(|major| Candidate {
        library: PathBuf::from(format!("libnvrtc.so.{major}")),
        builtins: None,
        origin: "the loader's path",
        major: Some(major),
    }));
    found.sort_by_key(|candidate| candidate.major.is_some_and(|major| major > driver_major));
    found
}

/// The copies of NVRTC in one folder, newest first.
fn libraries_in(folder: &Path, origin: &'static str) -> Vec<Candidate> {
    let is_nvrtc = |path: &PathBuf| {
        let name = file_name(path);
        name.starts_with("libnvrtc") && !name.starts_with("libnvrtc-builtins") && !name.contains(".alt.")
    };
    let mut found: Vec<Candidate> = list(folder)
        .into_iter()
        .filter(is_nvrtc)
        .filter_map(|library| {
            let major = major_of(&library).filter(|major| KNOWN_MAJORS.contains(major))?;
            Some(Candidate { builtins: builtins_in(folder, Some(major)), library, origin, major: Some(major) })
        })
        .collect();
    found.sort_by_key(|candidate| std::cmp::Reverse(candidate.major));
    found
}

fn builtins_in(folder: &Path, major: Option<u32>) -> Option<PathBuf> {
    let is_builtins = |path: &PathBuf| {
        let name = file_name(path);
        name.starts_with("libnvrtc-builtins") && !name.contains(".alt.") && major_of(path) == major
    };
    list(folder).into_iter().find(is_builtins)
}

/// The 13 of `libnvrtc.so.13.0.88`.
fn major_of(library: &Path) -> Option<u32> {
    file_name(library).split_once(".so.")?.1.split('.').next()?.parse().ok()
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// What a folder contains, in the order of the names; nothing if it cannot be read.
fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with empty files of these names.
    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary folder");
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().expect("a file has a folder")).expect("created");
            fs::write(path, "").expect("written");
        }
        root
    }

    fn found(root: &Path, paths: &SearchPaths, driver_major: u32) -> Vec<String> {
        let relative = |path: &Path| path.strip_prefix(root).unwrap_or(path).display().to_string();
        candidates(paths, driver_major).iter().map(|candidate| relative(&candidate.library)).collect()
    }

    #[test]
    fn wheels_come_before_torch_toolkits_and_the_loader() {
        let root = tree(&[
            "site/nvidia/cu13/lib/libnvrtc.so.13",
            "site/nvidia/cu13/lib/libnvrtc.alt.so.13",
            "site/nvidia/cu13/lib/libnvrtc-builtins.so.13.0",
            "site/nvidia/cu13/lib/libnvrtc-builtins.alt.so.13.0",
            "site/torch/lib/libnvrtc-672ee683.so.12",
            "cuda/lib64/libnvrtc.so.13",
            "cuda/lib64/libnvrtc.so.11.2",
            "cuda/lib64/libnvrtc.so",
        ]);
        let at = |path: &str| root.path().join(path);
        let paths = SearchPaths { only: None, packages: vec![at("absent"), at("site")], toolkits: vec![at("cuda")] };
        assert_eq!(
            found(root.path(), &paths, 13),
            [
                "site/nvidia/cu13/lib/libnvrtc.so.13",
                "site/torch/lib/libnvrtc-672ee683.so.12",
                "cuda/lib64/libnvrtc.so.13",
                "libnvrtc.so.13",
                "libnvrtc.so.12"
            ]
        );
        let first = &candidates(&paths, 13)[0];
        assert_eq!(first.builtins, Some(at("site/nvidia/cu13/lib/libnvrtc-builtins.so.13.0")));
        assert_eq!(first.origin, "pip wheel");
    }

    #[test]
    fn a_library_that_is_newer_than_the_driver_comes_last() {
        let root = tree(&["nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cuda_nvrtc/lib/libnvrtc.so.12"]);
        let paths = SearchPaths { packages: vec![root.path().to_path_buf()], ..SearchPaths::default() };
        assert_eq!(
            found(root.path(), &paths, 12),
            [
                "nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
                "libnvrtc.so.12",
                "nvidia/cu13/lib/libnvrtc.so.13",
                "libnvrtc.so.13"
            ]
        );
    }

    #[test]
    fn a_named_library_or_folder_is_the_only_one() {
        let root = tree(&["lib/libnvrtc.so.12", "lib/libnvrtc-builtins.so.12.9", "nvidia/cu13/lib/libnvrtc.so.13"]);
        let named = |path: &str| SearchPaths {
            only: Some(root.path().join(path)),
            packages: vec![root.path().to_path_buf()],
            ..SearchPaths::default()
        };
        assert_eq!(found(root.path(), &named("lib"), 13), ["lib/libnvrtc.so.12"]);
        assert_eq!(candidates(&named("lib/libnvrtc.so.12"), 13), candidates(&named("lib"), 13));
        assert_eq!(found(root.path(), &named("absent"), 13), ["absent"]);
        assert!(found(root.path(), &named("nvidia"), 13).is_empty());
    }

    #[test]
    fn the_packages_of_an_environment_are_found() {
        let root = tree(&["lib/python3.11/site-packages/x", "lib/python2/site-packages/x", "lib/other"]);
        assert_eq!(packages_of(root.path()), [root.path().join("lib/python3.11/site-packages")]);
    }
}
