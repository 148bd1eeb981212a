//! What clients see of the files of the machine: their place in the model's folder.

use std::path::PathBuf;

use crate::error::Error;

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
