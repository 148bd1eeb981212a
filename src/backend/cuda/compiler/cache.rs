//! Compiled kernels, kept in the user's cache folder.
//!
//! An entry's name is a hash of all that decides what is compiled; its content begins with a checksum. An entry is written to
//! a file of its own and renamed, so processes that compile the same at once cannot disturb each other, and one that is
//! damaged counts as absent. What is loaded from here runs on the card, so the folder has to be the user's own.

use std::env;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::sources::{Header, KernelSource};
use super::target::Target;
use crate::files::read_bounded;

/// Names the folder of exlora's caches, in place of `$XDG_CACHE_HOME/exlora`.
pub const CACHE_VARIABLE: &str = "EXLORA_CACHE";

/// The folder of compiled kernels within that of exlora's caches.
const SUBFOLDER: &str = "cubins";

const CHECKSUM_BYTES: usize = 32;

/// No compiled file of kernels is larger.
const MAX_ENTRY_BYTES: u64 = 64 << 20;

/// What an entry is the result of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// The key of one compilation: the source, the headers that it includes, the options and the compiler's version.
    pub fn new(
        source: &KernelSource,
        headers: &[&Header],
        target: Target,
        options: &[String],
        version: (u32, u32),
    ) -> Self {
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        add(&format!("{}.{}", version.0, version.1));
        add(&target.name());
        add(source.name);
        add(source.text);
        for header in headers {
            add(header.name);
            add(header.text);
        }
        add("options");
        options.iter().for_each(|option| add(option));
        let stem = source.name.trim_end_matches(".cu");
        Self(format!("{stem}-{:x}.{}", hash.finalize(), target.code.extension()))
    }
}

/// A folder of compiled kernels.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Opens the folder, or makes it, readable for this user alone.
    ///
    /// # Errors
    /// It can't be made, or others may write to it.
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let metadata = fs::metadata(&folder)?;
        let user = rustix::process::geteuid().as_raw();
        if metadata.uid() != user || metadata.mode() & 0o022 != 0 {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the folder is writable for other users"));
        }
        Ok(Self { folder })
    }

    /// Where the entries are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The compiled code of an earlier compilation, if it is there and undamaged.
    pub fn get(&self, key: &Key) -> Option<Vec<u8>> {
        let path = self.folder.join(&key.0);
        let mut entry = read_bounded(&path, MAX_ENTRY_BYTES).ok()?;
        let is_whole =
            entry.len() > CHECKSUM_BYTES && entry[..CHECKSUM_BYTES] == checksum(key, &entry[CHECKSUM_BYTES..]);
        if !is_whole {
            tracing::warn!(path = %path.display(), "a compiled kernel in the cache is damaged, and is compiled again");
            return None;
        }
        Some(entry.split_off(CHECKSUM_BYTES))
    }

    /// Keeps the code of a compilation.
    ///
    /// # Errors
    /// It can't be written.
    pub fn put(&self, key: &Key, image: &[u8]) -> io::Result<()> {
        static WRITTEN: AtomicU64 = AtomicU64::new(0);
        let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
        let temporary = self.folder.join(format!("{}.{}.{number}.tmp", key.0, std::process::id()));
        let written = (|| {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(&checksum(key, image))?;
            file.write_all(image)?;
            drop(file);
            fs::rename(&temporary, self.folder.join(&key.0))
        })();
        if written.is_err() {
            // The first error is the one to report.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Number of entries, and their bytes.
    pub fn usage(&self) -> (usize, u64) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let sizes = entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension != "tmp"));
        sizes
            .filter_map(|entry| entry.metadata().ok())
            .fold((0, 0), |(count, bytes), file| (count + 1, bytes + file.len()))
    }
}

/// The folder of this user's compiled kernels: `$EXLORA_CACHE/cubins`, else `exlora/cubins` in `$XDG_CACHE_HOME` or
/// `~/.cache`. `None` if none of them is set.
pub fn user_folder() -> Option<PathBuf> {
    let variable = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = variable(CACHE_VARIABLE)
        .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("exlora")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/exlora")))?;
    Some(base.join(SUBFOLDER))
}

/// It covers the key too: an entry under another's name is damaged.
fn checksum(key: &Key, image: &[u8]) -> [u8; CHECKSUM_BYTES] {
    Sha256::new().chain_update(&key.0).chain_update(image).finalize().into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::target::Code;
    use super::*;

    const SOURCE: KernelSource = KernelSource { name: "a.cu", text: "kernel", variants: &[&[]] };
    const TARGET: Target = Target { code: Code::Cubin, architecture: 90 };

    fn key() -> Key {
        Key::new(&SOURCE, &[], TARGET, &[], (13, 0))
    }

    fn cache() -> (tempfile::TempDir, Cache) {
        let root = tempfile::tempdir().expect("a temporary folder");
        let cache = Cache::open(root.path().join("a/b")).expect("opens");
        (root, cache)
    }

    #[test]
    fn whatever_decides_the_code_changes_the_key() {
        const OTHER_NAME: KernelSource = KernelSource { name: "b.cu", ..SOURCE };
        const OTHER_TEXT: KernelSource = KernelSource { text: "kernel2", ..SOURCE };
        const HEADER: &[&Header] = &[&Header { name: "h", text: "t" }];
        const OTHER_HEADER: &[&Header] = &[&Header { name: "h", text: "u" }];
        let option = |text: &str| vec![text.to_owned()];
        let keys = [
            key(),
            Key::new(&OTHER_NAME, &[], TARGET, &[], (13, 0)),
            Key::new(&OTHER_TEXT, &[], TARGET, &[], (13, 0)),
            Key::new(&SOURCE, HEADER, TARGET, &[], (13, 0)),
            Key::new(&SOURCE, OTHER_HEADER, TARGET, &[], (13, 0)),
            Key::new(&SOURCE, &[], Target { architecture: 80, ..TARGET }, &[], (13, 0)),
            Key::new(&SOURCE, &[], Target { code: Code::Ptx, ..TARGET }, &[], (13, 0)),
            Key::new(&SOURCE, &[], TARGET, &option("-DA"), (13, 0)),
            Key::new(&SOURCE, &[], TARGET, &[], (12, 9)),
        ];
        for (i, key) in keys.iter().enumerate() {
            assert!(keys[..i].iter().all(|other| other != key), "{key:?} is the key of two compilations");
        }
    }

    #[test]
    fn an_entry_is_read_back_by_its_key_alone() {
        let (_root, cache) = cache();
        let other = Key::new(&SOURCE, &[], TARGET, &[], (12, 9));
        assert_eq!(cache.get(&key()), None);
        cache.put(&key(), b"code").expect("written");
        assert_eq!(cache.get(&key()).as_deref(), Some(&b"code"[..]));
        assert_eq!(cache.get(&other), None);
        assert_eq!(cache.usage(), (1, 36));

        fs::rename(cache.folder().join(key().0), cache.folder().join(&other.0)).expect("renamed");
        assert_eq!(cache.get(&other), None, "an entry under another's name counts as damaged");
    }

    #[test]
    fn a_damaged_entry_is_absent_until_it_is_written_again() {
        let (_root, cache) = cache();
        cache.put(&key(), b"code").expect("written");
        let path = cache.folder().join(key().0);
        let whole = fs::read(&path).expect("read");
        for length in [0, 10, CHECKSUM_BYTES, whole.len() - 1] {
            fs::write(&path, &whole[..length]).expect("truncated");
            assert_eq!(cache.get(&key()), None, "{length} bytes are left");
        }
        for at in [0, whole.len() - 1] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, changed).expect("changed");
            assert_eq!(cache.get(&key()), None, "byte {at} is changed");
        }
        cache.put(&key(), b"code").expect("written");
        assert_eq!(cache.get(&key()).as_deref(), Some(&b"code"[..]));
    }

    #[test]
    fn writers_of_one_entry_do_not_disturb_each_other() {
        let (_root, cache) = cache();
        let image = vec![7; 1 << 16];
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        cache.put(&key(), &image).expect("written");
                        assert_eq!(cache.get(&key()).as_deref(), Some(&image[..]), "a reader sees a whole entry");
                    }
                });
            }
        });
        assert_eq!(cache.usage().0, 1, "no temporary file is left");
        assert_eq!(fs::read_dir(cache.folder()).expect("read").count(), 1);
    }

    #[test]
    fn the_folder_is_the_users_own() {
        let (_root, cache) = cache();
        let mode = fs::metadata(cache.folder()).expect("exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);

        fs::set_permissions(cache.folder(), fs::Permissions::from_mode(0o777)).expect("set");
        let error = Cache::open(cache.folder().to_path_buf()).expect_err("others may write");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        assert!(Cache::open(file.path().join("cubins")).is_err());
    }
}
