//! Paths: `~` is the home folder wherever a path is written, also where no shell expands it (`--adapter sql=~/sql`).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::{OsStringValueParser, TypedValueParser};

/// Parses a path in an argument.
pub(in crate::cli) fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(|text: OsString| expand_home(Path::new(&text)))
}

/// Replaces a leading `~` by the home folder, if that is known.
pub(in crate::cli) fn expand_home(path: &Path) -> PathBuf {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    expand(path, home.map(PathBuf::from))
}

fn expand(path: &Path, home: Option<PathBuf>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        // Joining nothing would append a slash.
        (Ok(rest), Some(home)) if rest.as_os_str().is_empty() => home,
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leading_tilde_is_the_home_folder() {
        let expanded = |path: &str| expand(Path::new(path), Some("/home/a".into())).display().to_string();
        assert_eq!(expanded("~"), "/home/a");
        assert_eq!(expanded("~/models/qwen"), "/home/a/models/qwen");
        for other in ["~other/x", "a/~/b", "./~", "~x", ""] {
            assert_eq!(expanded(other), other);
        }
        assert_eq!(expand(Path::new("~/a"), None), Path::new("~/a"));
    }
}
