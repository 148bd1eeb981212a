//! Finds circles among files that import each other.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use super::imports::Imports;

/// The groups of files in which each file can be reached from each other one, along imports.
pub fn circles(imports: &Imports) -> Vec<BTreeSet<&Path>> {
    let reachable = |start: &Path| {
        let mut found: BTreeSet<&Path> = BTreeSet::new();
        let mut open = vec![start];
        while let Some(file) = open.pop() {
            for (_, imported) in imports.keys().filter(|(importer, _)| importer == file) {
                if found.insert(imported) {
                    open.push(imported);
                }
            }
        }
        found
    };
    let files: BTreeSet<&Path> = imports.keys().map(|(importer, _)| importer.as_path()).collect();
    let reached: Vec<(&Path, BTreeSet<&Path>)> = files.into_iter().map(|file| (file, reachable(file))).collect();
    let mut circles: Vec<BTreeSet<&Path>> = Vec::new();
    for (file, seen) in &reached {
        if seen.contains(file) && !circles.iter().any(|circle| circle.contains(file)) {
            let back = reached.iter().filter(|(other, theirs)| seen.contains(other) && theirs.contains(file));
            circles.push(back.map(|(other, _)| *other).collect());
        }
    }
    circles
}

/// The circles in words: the files of each, and every import that runs within it.
pub fn report(imports: &Imports) -> String {
    let mut text = String::new();
    for circle in circles(imports) {
        let _ = writeln!(text, "\na circle of {} files:", circle.len());
        for ((importer, imported), paths) in imports {
            if circle.contains(importer.as_path()) && circle.contains(imported.as_path()) {
                let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
                let _ = writeln!(text, "  {} -> {}: {}", importer.display(), imported.display(), paths.join(", "));
            }
        }
    }
    text
}
