//! Which folders a client may name: those below `--adapters-dir`, after all links are resolved. And what it sees of others.

use std::collections::HashSet;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, ErrorCode, Result};
use crate::request_settings::closest;
use crate::server::client_paths::folder_name;

/// Longest path that a client may send, in bytes: Linux's own limit.
const MAX_PATH_BYTES: usize = 4096;

/// Most entries of a folder that are looked at.
const MAX_ENTRIES: usize = 10_000;

/// The file that makes a folder an adapter's.
const CONFIG: &str = "adapter_config.json";

/// The folder in an adapter's folder from which files are read too.
const CHAT_TEMPLATES: &str = "additional_chat_templates";

/// The folder of `--adapters-dir`.
#[derive(Clone, Debug)]
pub(super) struct AdaptersDir {
    /// As it was given, made absolute: clients may begin their paths with it.
    given: PathBuf,
    /// Its links resolved.
    root: PathBuf,
}

/// Where an adapter's folder lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FolderPlace {
    /// Below `--adapters-dir`: its path from there.
    Below(String),
    /// Elsewhere on the machine, as `--adapter` or the program named it.
    Elsewhere(PathBuf),
}

impl FolderPlace {
    /// Its path. Where on the machine a folder lies is for who has the admin key; others see the folder's name.
    pub fn shown(&self, to_admin: bool) -> String {
        match self {
            Self::Below(path) => path.clone(),
            Self::Elsewhere(folder) if to_admin => folder.to_string_lossy().into_owned(),
            Self::Elsewhere(folder) => folder_name(folder),
        }
    }
}

impl AdaptersDir {
    /// # Errors
    /// `io_failed`: there is no such folder.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let failed = |what: String| {
            Error::new(ErrorCode::IoFailed, what).with_path(dir).with_hint("give --adapters-dir a folder of adapters")
        };
        let root = dir.canonicalize().map_err(|e| failed(format!("the adapters' folder cannot be opened: {e}")))?;
        if !root.is_dir() {
            return Err(failed("the adapters' folder is not a folder".to_owned()));
        }
        let given = std::path::absolute(dir).unwrap_or_else(|_| root.clone());
        Ok(Self { given, root })
    }

    /// The folder of the adapter that is called `name`, its path below this folder; `None` if there is none.
    ///
    /// # Errors
    /// `adapter_path_refused`: a link leads out of this folder.
    pub(super) fn find(&self, name: &str) -> Result<Option<PathBuf>> {
        // An adapter has one name: not also `./name`, `name/` or `other/../name`.
        let path = Path::new(name);
        let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)))
            && path.components().collect::<PathBuf>().as_os_str() == path.as_os_str();
        if !is_plain || name.is_empty() || name.len() > MAX_PATH_BYTES {
            return Ok(None);
        }
        match self.root.join(path).canonicalize() {
            Ok(folder) if folder.is_dir() => self.checked(name, folder).map(Some),
            _ => Ok(None),
        }
    }

    /// The folder that a client's path names: relative to this folder, or absolute and inside.
    ///
    /// # Errors
    /// `adapter_path_refused`, `adapter_not_found`.
    pub(super) fn resolve(&self, path: &str) -> Result<PathBuf> {
        if path.is_empty() || path.len() > MAX_PATH_BYTES || path.contains('\0') {
            return Err(refused("the path is empty, too long or contains a NUL", path));
        }
        let asked = Path::new(path);
        if asked.components().any(|part| part == Component::ParentDir) {
            return Err(refused("the path contains '..'", path));
        }
        // Before anything is looked at: whether a file outside exists is no client's business.
        let is_inside = asked.is_relative() || asked.starts_with(&self.root) || asked.starts_with(&self.given);
        if !is_inside {
            return Err(refused("the path does not lie in the adapters' folder", path));
        }
        let folder = self.root.join(asked).canonicalize().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => not_found(path),
            _ => refused(&format!("the path cannot be opened: {error}"), path),
        })?;
        let folder = self.checked(path, folder)?;
        if folder.is_dir() { Ok(folder) } else { Err(refused("the path is not that of a folder", path)) }
    }

    /// Checks that a folder, and what the links in it lead to, lies below this folder. `asked` is for messages.
    fn checked(&self, asked: &str, folder: PathBuf) -> Result<PathBuf> {
        if !self.contains(&folder) {
            return Err(refused("the path does not lead to a folder below the adapters' folder", asked));
        }
        for folder in [&folder, &folder.join(CHAT_TEMPLATES)] {
            let Ok(entries) = std::fs::read_dir(folder) else { continue };
            for (index, entry) in entries.flatten().enumerate() {
                if index == MAX_ENTRIES {
                    return Err(refused("the folder has too many entries", asked));
                }
                // A link to nothing is no way out; the reader reports it.
                let target = || entry.path().canonicalize().ok();
                let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
                if is_link && target().is_some_and(|target| !self.contains(&target)) {
                    let name = entry.file_name();
                    let what = format!("'{}' in it is a link out of the adapters' folder", name.to_string_lossy());
                    return Err(refused(&what, asked));
                }
            }
        }
        Ok(folder)
    }

    fn contains(&self, path: &Path) -> bool {
        path.starts_with(&self.root) && path != self.root
    }

    /// A path below this folder as clients name it.
    pub(super) fn relative(&self, path: &Path) -> Option<String> {
        Some(path.strip_prefix(&self.root).ok()?.to_string_lossy().into_owned())
    }

    /// An error with paths as clients name them.
    pub(super) fn as_seen_by_clients(&self, error: Error) -> Error {
        error.with_folder_called(&self.root, "")
    }

    /// The one name of the adapter in a folder that [`find`](Self::find) returned, whatever links led there: its path below
    /// this folder. `None` where that is no UTF-8.
    pub(super) fn name_of(&self, folder: &Path) -> Option<String> {
        folder.strip_prefix(&self.root).ok()?.to_str().map(str::to_owned)
    }

    /// The name of the adapter that is found under a name; `None` if there is none, or it is refused.
    pub(super) fn adapter_at(&self, name: &str) -> Option<String> {
        let folder = self.find(name).ok().flatten()?;
        if folder.join(CONFIG).is_file() { self.name_of(&folder) } else { None }
    }

    /// The names of the adapters whose folders lie directly in this one, or that links in it lead to, each once, by the order of
    /// those entries. Each is looked at when it is taken.
    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        let mut seen = HashSet::new();
        let names = self.entries().into_iter().filter_map(|entry| self.adapter_at(&entry));
        names.filter(move |name| seen.insert(name.clone()))
    }

    /// The names that are closest to one that no adapter has, at most `most`.
    pub(super) fn close_names(&self, name: &str, most: usize) -> Vec<String> {
        let entries = self.entries();
        closest(name, entries.iter().map(String::as_str))
            .into_iter()
            .filter_map(|name| self.adapter_at(name))
            .take(most)
            .collect()
    }

    /// The names of all that lies directly in this folder, sorted.
    fn entries(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.root).into_iter().flatten().flatten().take(MAX_ENTRIES);
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

fn refused(what: &str, path: &str) -> Error {
    Error::new(ErrorCode::AdapterPathRefused, what).with_found(format!("'{path}'"))
}

fn not_found(path: &str) -> Error {
    Error::new(ErrorCode::AdapterNotFound, "the adapters' folder has no such folder")
        .with_found(format!("'{path}'"))
        .with_hint("give a path relative to --adapters-dir")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    /// `adapters/` with adapters, links inside it and links out of it; `outside/` beside it.
    struct Folders {
        dir: TempDir,
        adapters: AdaptersDir,
    }

    fn folders() -> Folders {
        let dir = TempDir::new().expect("a folder");
        let at = |path: &str| dir.path().join(path);
        for folder in ["adapters/sql", "adapters/team/wit", "adapters/stolen", "adapters/many", "outside/secret"] {
            fs::create_dir_all(at(folder)).expect("created");
        }
        for adapter in ["adapters/sql", "adapters/team/wit", "outside/secret"] {
            fs::write(at(adapter).join(CONFIG), "{}").expect("written");
        }
        let links = [
            ("sql", "inside"),
            ("../outside/secret", "out"),
            ("../outside", "out_above"),
            ("/dev", "devices"),
            ("/dev/zero", "zero"),
            ("missing", "dangling"),
            ("circle", "circle"),
            ("..", "above"),
            (".", "itself"),
            ("../../outside/secret/adapter_config.json", "stolen/adapter_config.json"),
        ];
        for (target, link) in links {
            symlink(target, at("adapters").join(link)).expect("linked");
        }
        let adapters = AdaptersDir::open(&at("adapters")).expect("opens");
        Folders { dir, adapters }
    }

    #[test]
    fn a_name_is_the_path_of_a_folder_below() {
        let Folders { dir, adapters } = folders();
        let root = dir.path().canonicalize().expect("exists").join("adapters");
        for (name, folder) in [("sql", "sql"), ("team/wit", "team/wit"), ("inside", "sql")] {
            assert_eq!(adapters.find(name).expect("not refused"), Some(root.join(folder)), "{name}");
            assert_eq!(adapters.resolve(name).expect("resolves"), root.join(folder));
            let absolute = root.join(name);
            assert_eq!(adapters.resolve(absolute.to_str().expect("text")).expect("resolves"), root.join(folder));
        }
        for name in
            ["", ".", "..", "./sql", "sql/", "team//wit", "sql/../sql", "/sql", "nobody", "dangling", "circle", "a\0b"]
        {
            assert_eq!(adapters.find(name).expect("not refused"), None, "{name}");
        }
        assert_eq!(adapters.names().collect::<Vec<_>>(), ["sql"], "a link is no other adapter");
        assert_eq!(adapters.close_names("sqk", 3), ["sql"]);
    }

    #[test]
    fn what_leads_out_is_refused() {
        let Folders { dir, adapters } = folders();
        let outside = dir.path().join("outside/secret");
        let outside = outside.to_str().expect("text");
        let long = "x".repeat(5000);
        let wide = "x".repeat(300);
        let paths = [
            "..",
            "../outside/secret",
            "sql/../../outside/secret",
            outside,
            "/",
            "/etc",
            "/etc/passwd",
            "out",
            "above",
            "itself",
            ".",
            "out_above/secret",
            "devices",
            "zero",
            "stolen",
            "sql/adapter_config.json",
            "a\0b",
            "",
            "circle",
            &long,
            &wide,
        ];
        for path in paths {
            let error = adapters.resolve(path).expect_err(path);
            assert_eq!(error.code(), ErrorCode::AdapterPathRefused, "{path}: {error}");
        }
        for name in ["out", "above", "itself", "devices", "stolen", "out_above/secret"] {
            assert_eq!(adapters.find(name).expect_err(name).code(), ErrorCode::AdapterPathRefused);
        }
        assert_eq!(adapters.resolve("nobody").expect_err("missing").code(), ErrorCode::AdapterNotFound);
        // It is not told whether something exists outside.
        let [there, missing] = ["/etc", "/etc/nothing"].map(|path| adapters.resolve(path).expect_err("outside"));
        assert_eq!(there.message(), missing.message());
    }

    #[test]
    fn the_folder_may_itself_be_a_link() {
        let Folders { dir, .. } = folders();
        let link = dir.path().join("link");
        symlink("adapters", &link).expect("linked");
        let adapters = AdaptersDir::open(&link).expect("opens");
        let asked = link.join("sql");
        let folder = adapters.resolve(asked.to_str().expect("text")).expect("inside");
        assert_eq!(adapters.relative(&folder).as_deref(), Some("sql"));
        assert!(AdaptersDir::open(&dir.path().join("nothing")).is_err());
        assert!(AdaptersDir::open(&dir.path().join("adapters/sql").join(CONFIG)).is_err());
    }

    #[test]
    fn whatever_links_lead_to_a_folder_it_has_one_name() {
        let Folders { dir, adapters } = folders();
        let links = [("..", "adapters/team/up"), ("team/wit", "adapters/prod")];
        for (target, link) in links {
            symlink(target, dir.path().join(link)).expect("linked");
        }
        let folder = adapters.find("sql").expect("not refused").expect("found");
        let mut up = "team/up/sql".to_owned();
        for _ in 0..20 {
            assert_eq!(adapters.find(&up).expect("not refused").as_ref(), Some(&folder));
            assert_eq!(adapters.adapter_at(&up).as_deref(), Some("sql"), "{up}");
            up = format!("team/up/{up}");
        }
        assert_eq!(adapters.adapter_at("team/up/inside").as_deref(), Some("sql"));
        assert_eq!(adapters.adapter_at("many"), None, "it has no config");
        assert_eq!(adapters.names().collect::<Vec<_>>(), ["sql", "team/wit"]);
    }

    fn part() -> impl Strategy<Value = String> {
        let known = [
            "",
            ".",
            "..",
            "sql",
            "team",
            "wit",
            "inside",
            "out",
            "out_above",
            "secret",
            "above",
            "itself",
            "adapters",
            "outside",
            "circle",
            "stolen",
            "\0",
            "~",
            "%2e%2e",
            "..;",
            "\u{2024}\u{2024}",
        ];
        prop_oneof![8 => prop::sample::select(known.to_vec()).prop_map(str::to_owned), 1 => any::<String>()]
    }

    proptest! {
        /// What is opened is judged by the system's own view of it.
        #[test]
        fn no_path_leads_out(parts in prop::collection::vec(part(), 1..7), is_absolute in any::<bool>()) {
            let Folders { dir, adapters } = folders();
            let root = dir.path().canonicalize().expect("exists").join("adapters");
            let mut text = parts.join("/");
            if is_absolute {
                text = format!("{}/{text}", root.display());
            }
            let found = [adapters.resolve(&text).ok(), adapters.find(&text).ok().flatten()];
            for folder in found.into_iter().flatten() {
                let real = folder.canonicalize().expect("exists");
                prop_assert_eq!(&real, &folder);
                prop_assert!(real.is_dir() && real.starts_with(&root) && real != root, "{:?} is {:?}", text, real);
                prop_assert!(!real.ends_with("stolen"));
            }
        }
    }
}
