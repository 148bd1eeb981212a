//! Whether the files of a folder have changed, without reading them.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Most entries that are looked at.
const MAX_ENTRIES: usize = 10_000;

/// Names, sizes, times and identities of the files of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint(Vec<(std::ffi::OsString, FileState)>);

/// What changes when a file is written, replaced by another, or gets back the time of modification that it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct FileState {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    /// That of the files, and the targets of links to files, in a folder. Folders in it don't count: an adapter's folder is also
    /// where training leaves its checkpoints.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(super) fn of(folder: &Path) -> io::Result<Self> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder)?.take(MAX_ENTRIES) {
            let entry = entry?;
            // A file may vanish in between.
            if let Ok(metadata) = std::fs::metadata(entry.path())
                && metadata.is_file()
            {
                files.push((entry.file_name(), FileState::of(&metadata)));
            }
        }
        files.sort();
        Ok(Self(files))
    }
}

impl FileState {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn it_changes_with_any_file_and_not_otherwise() {
        let dir = TempDir::new().expect("a folder");
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        fs::write(&a, "one").expect("written");
        let mut known = vec![Fingerprint::of(dir.path()).expect("readable")];
        let mut assert_new = |what: &str| {
            let found = Fingerprint::of(dir.path()).expect("readable");
            assert!(!known.contains(&found), "{what}");
            assert_eq!(found, Fingerprint::of(dir.path()).expect("readable"), "{what}");
            known.push(found);
        };
        fs::write(&a, "longer").expect("written");
        assert_new("another size");
        fs::write(&b, "longer").expect("written");
        assert_new("a file more");
        // The same size and time of modification, as of a copy that keeps times.
        let modified = fs::metadata(&a).expect("exists").modified().expect("known");
        File::open(&b).expect("opens").set_modified(modified).expect("set");
        assert_new("another time");
        fs::rename(&b, &a).expect("renamed");
        assert_new("replaced by renaming");
        fs::create_dir(dir.path().join("checkpoint-500")).expect("created");
        let found = Fingerprint::of(dir.path()).expect("readable");
        assert_eq!(found, known[known.len() - 1], "folders don't count");
    }
}
