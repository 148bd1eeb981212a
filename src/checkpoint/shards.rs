//! Which files of a model folder form its checkpoint: one file, the shards of an index, or all `*.safetensors`.
//!
//! Folders hold leftovers: converters copy the index of shards they replaced, downloads stop halfway. The rules, in order:
//!
//! 1. `model.safetensors`, unless the index names it among its shards (`transformers` looks in this order too);
//! 2. the shards that `model.safetensors.index.json` names, if all exist; if only some exist, the checkpoint is incomplete; if
//!    none exists but other files do, the index is stale and is ignored with a warning;
//! 3. all other `*.safetensors` (`output.safetensors`, or shards without an index).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fmt, io};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::header::{MAX_HEADER_BYTES, MAX_TENSORS, too_many_tensors};
use crate::error::{Error, ErrorCode, Result, printable};
use crate::files::read_bounded;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The files of a checkpoint, and where its index expects each tensor.
#[derive(Debug)]
pub(super) struct Shards {
    /// The files, sorted by name.
    pub files: Vec<PathBuf>,
    /// Each tensor in the index and the name of the file it should be in; empty without an index.
    pub expected: BTreeMap<String, String>,
    /// The path of the index, whether or not it is used.
    pub index: PathBuf,
}

#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// `weight_map`. A tensor listed twice is an error, since either file could be meant.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = BTreeMap<String, String>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensor and file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((tensor, file)) = entries.next_entry::<String, String>()? {
                    if map.contains_key(&tensor) {
                        return Err(A::Error::custom(format!("the tensor {tensor:?} is listed twice")));
                    }
                    map.insert(tensor, file);
                }
                Ok(map)
            }
        }

        deserializer.deserialize_map(Entries).map(WeightMap)
    }
}

/// Finds the checkpoint of a model folder.
///
/// # Errors
/// `checkpoint_not_found`, `checkpoint_unreadable`, `checkpoint_index_invalid`, `checkpoint_too_large`.
pub(super) fn find(dir: &Path) -> Result<Shards> {
    let names = file_names(dir)?;
    let stored: Vec<&String> = names.iter().filter(|n| n.ends_with(".safetensors") && !n.starts_with('.')).collect();
    let index = dir.join(INDEX);
    let whole = |files: &[&String]| Shards {
        files: files.iter().map(|name| dir.join(name)).collect(),
        expected: BTreeMap::new(),
        index: index.clone(),
    };
    let single = names.get(SINGLE);

    if names.contains(INDEX) {
        let expected = read_index(&index)?;
        let shards: BTreeSet<&String> = expected.values().collect();
        match single {
            Some(single) if !shards.contains(single) => {
                tracing::warn!(index = %printable(&index.to_string_lossy()), "ignored: it does not name {SINGLE}, which exists");
                return Ok(whole(&[single]));
            }
            _ => {}
        }
        // `exists` follows links: a dangling link into a cache counts as a missing file.
        let missing: Vec<&&String> = shards.iter().filter(|name| !dir.join(name).exists()).collect();
        if missing.is_empty() {
            let files = shards.iter().map(|name| dir.join(name)).collect();
            return Ok(Shards { files, expected, index });
        }
        if missing.len() < shards.len() || stored.is_empty() {
            return Err(Error::new(ErrorCode::CheckpointNotFound, "a shard that the index names is missing")
                .with_path(dir.join(missing[0]))
                .with_expected(format!("{} shards", shards.len()))
                .with_found(format!("{} of them", shards.len() - missing.len()))
                .with_hint("finish the download, or remove a stale index"));
        }
        tracing::warn!(index = %printable(&index.to_string_lossy()), "ignored: none of the files it names exists");
    }
    if let Some(single) = single {
        return Ok(whole(&[single]));
    }
    if stored.is_empty() {
        return Err(nothing_stored(dir, &names));
    }
    Ok(whole(&stored))
}

fn file_names(dir: &Path) -> Result<BTreeSet<String>> {
    let failed = |error: io::Error| {
        let code = match error.kind() {
            io::ErrorKind::NotFound => ErrorCode::CheckpointNotFound,
            _ => ErrorCode::CheckpointUnreadable,
        };
        Error::new(code, format!("the model folder cannot be read: {error}")).with_path(dir)
    };
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        // A name that is not UTF-8 cannot be a checkpoint's.
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.insert(name);
        }
    }
    Ok(names)
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let invalid = |what: String| Error::new(ErrorCode::CheckpointIndexInvalid, what).with_path(path);
    let bytes = read_bounded(path, MAX_HEADER_BYTES)?;
    let Index { weight_map: WeightMap(weight_map) } =
        serde_json::from_slice(&bytes).map_err(|error| invalid(format!("the index is not valid: {error}")))?;
    if weight_map.is_empty() {
        return Err(invalid("the index names no tensor".into()));
    }
    if weight_map.len() > MAX_TENSORS {
        return Err(too_many_tensors().with_path(path));
    }
    for (tensor, file) in &weight_map {
        if !is_plain_name(file) {
            return Err(invalid("the index points outside its folder".into())
                .with_tensor(tensor)
                .with_expected("the name of a file in the same folder")
                .with_found(format!("'{file}'")));
        }
    }
    Ok(weight_map)
}

/// Whether a name stays inside its folder on every operating system.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', ':', '\0'])
}

fn nothing_stored(dir: &Path, names: &BTreeSet<String>) -> Error {
    let error = Error::new(ErrorCode::CheckpointNotFound, "the folder contains no weights")
        .with_path(dir)
        .with_expected("*.safetensors");
    let other =
        names.iter().find(|n| n.ends_with(".bin") || n.ends_with(".gguf") || n.ends_with(".pt") || n.ends_with(".pth"));
    match other {
        Some(name) => error.with_found(name).with_hint("convert it to safetensors"),
        None => error,
    }
}
