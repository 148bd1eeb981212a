//! What clients see of the files of the machine: their place in the model's folder.

use std::path::{Path, PathBuf};

use crate::error::Error;

/// A folder of the machine as everyone may see it: its own name, without what lies above; empty for a path that ends in none.
pub fn folder_name(folder: &Path) -> String {
    folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// The folder of the model, and its name.
#[derive(Debug)]
pub struct ClientPaths {
    /// As it was given, and with its links resolved.
    folders: Vec<PathBuf>,
    name: String,
}

impl ClientPaths {
    /// For a model that clients know by the name of its folder.
    pub fn new(folder: PathBuf, name: &str) -> Self {
        let resolved = folder.canonicalize().ok();
        Self { folders: resolved.into_iter().chain([folder]).collect(), name: name.to_owned() }
    }

    /// An error about a request as its client may see it. What that leaves out is logged.
    pub fn error(&self, error: Error) -> Error {
        if error.path().is_some() {
            tracing::info!(%error, "a request is refused");
        }
        self.folders.iter().fold(error, |error, folder| error.with_folder_called(folder, &self.name))
    }
}
