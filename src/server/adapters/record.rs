//! What the server knows of an adapter's name, beside what the engine's pool knows of its versions.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use super::fingerprint::Fingerprint;

/// What the server knows of a name.
pub(super) struct Record {
    /// The number by which llama.cpp's clients name it.
    pub id: usize,
    /// Where it was loaded from, and is again when it is named after it was evicted or its files changed. `None` for an adapter
    /// that the server did not load.
    pub source: Option<Source>,
    /// Whether it stays when the budget is full.
    pub is_pinned: bool,
    /// Larger than that of all names that were used before it.
    pub last_use: u64,
    pub counts: Counts,
}

/// What to load under a name.
#[derive(Clone)]
pub(super) enum Wanted {
    /// The folder that the name stands for.
    Name,
    /// A client's path.
    Path(String),
}

/// Where an adapter was loaded from.
pub(super) struct Source {
    /// It may lead to another folder by now, where links are involved.
    pub wanted: Wanted,
    pub folder: PathBuf,
    /// Of the version that is loaded. `None` if the folder could not be looked at.
    pub fingerprint: Option<Fingerprint>,
    /// Of files that could not be loaded in its place.
    pub failed: Option<Fingerprint>,
    /// When the files were last looked at.
    pub looked_at: Instant,
}

/// What has happened to a name since the server started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    /// Requests that named it.
    pub hits: u64,
    /// When the last of them did.
    pub last_used: Option<SystemTime>,
    /// Times it was loaded.
    pub loads: u64,
    /// Times its files could not be loaded, for another reason than want of room.
    pub failed_loads: u64,
    /// The time that loads took together.
    pub load_time: Duration,
    /// Times it was unloaded because others needed the room.
    pub evictions: u64,
}

impl Record {
    pub(super) fn new(id: usize) -> Self {
        Self { id, source: None, is_pinned: false, last_use: 0, counts: Counts::default() }
    }
}

impl Source {
    /// Whether files that look like `found` have not been tried.
    pub(super) fn is_new(&self, found: &Fingerprint) -> bool {
        self.fingerprint.as_ref() != Some(found) && self.failed.as_ref() != Some(found)
    }
}
