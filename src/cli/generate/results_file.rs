//! The file that a batch's results are written to, line by line, so that an interrupted batch can be resumed.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::request_lines::{LineRead, read_line};
use crate::cli::result_line::RequestKeys;
use crate::error::{Error, ErrorCode, Result};

/// No result is longer: it is the text of a context, with log-probabilities.
const MAX_LINE_BYTES: usize = 1 << 30;

/// The results that a file already has: for each request's sample, a hash of the request's ids.
#[derive(Default)]
pub(super) struct FinishedResults(HashMap<(usize, usize), u64>);

impl FinishedResults {
    /// Whether the file has all `samples` of a request.
    ///
    /// # Errors
    /// `request_invalid` if it has results of another request in that place.
    pub(super) fn has_all(&self, keys: &RequestKeys, samples: usize) -> Result<bool> {
        for sample in 0..samples {
            match self.0.get(&(keys.index, sample)) {
                None => return Ok(false),
                Some(hash) if *hash == hash_of(&keys.id, &keys.custom_id) => {}
                Some(_) => {
                    let what = format!("the results of request {} have another id than the request", keys.index);
                    return Err(Error::new(ErrorCode::RequestInvalid, what)
                        .with_hint("a batch is resumed with the requests and the output that it began with"));
                }
            }
        }
        Ok(true)
    }

    pub(super) fn has(&self, index: usize, sample: usize) -> bool {
        self.0.contains_key(&(index, sample))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// What resuming reads of a line.
#[derive(Deserialize)]
struct Line {
    index: usize,
    #[serde(default)]
    sample: usize,
    id: Option<Value>,
    custom_id: Option<Value>,
    error: Option<IgnoredAny>,
}

fn hash_of(id: &Option<Value>, custom_id: &Option<Value>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for value in [id, custom_id] {
        value.as_ref().map(Value::to_string).hash(&mut hasher);
    }
    hasher.finish()
}

/// Creates a file that does not exist yet.
///
/// # Errors
/// `io_failed`.
pub(super) fn create(path: &Path) -> Result<File> {
    File::create_new(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => Error::new(ErrorCode::IoFailed, "the output file exists")
            .with_path(path)
            .with_hint("continue it with --resume, or remove it"),
        _ => failed(path, &e),
    })
}

/// Opens a file to append the results that it lacks; creates it if it does not exist. Errors in it are removed, because their
/// requests run again, and so is the part of a line at its end.
///
/// # Errors
/// `io_failed`; `request_invalid` if it has other lines than results.
pub(super) fn resume(path: &Path) -> Result<(File, FinishedResults)> {
    let file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(|e| failed(path, &e))?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(Error::new(ErrorCode::RequestInvalid, "only a regular file can be resumed").with_path(path));
    }
    let mut finished = FinishedResults::default();
    let mut whole_bytes = 0;
    let mut has_errors = false;
    for_each_line(&file, path, |bytes, line| {
        whole_bytes += bytes.len() as u64 + 1;
        has_errors |= line.error.is_some();
        if line.error.is_none() {
            finished.0.insert((line.index, line.sample), hash_of(&line.id, &line.custom_id));
        }
        Ok(())
    })?;
    if has_errors {
        return Ok((without_errors(file, path)?, finished));
    }
    file.set_len(whole_bytes).map_err(|e| failed(path, &e))?;
    Ok((file, finished))
}

/// Calls `f` with each whole line.
fn for_each_line(file: &File, path: &Path, mut f: impl FnMut(&[u8], Line) -> std::io::Result<()>) -> Result<()> {
    let mut input = BufReader::new(file);
    let mut bytes = Vec::new();
    for number in 1.. {
        let invalid = |what: String| {
            Error::new(ErrorCode::RequestInvalid, what).with_path(path).with_hint("is this the output of the batch?")
        };
        match read_line(&mut input, &mut bytes, MAX_LINE_BYTES).map_err(|e| failed(path, &e))? {
            LineRead::Whole => {
                let line = serde_json::from_slice(&bytes)
                    .map_err(|e| invalid(format!("line {number} is not a result of a batch: {e}")))?;
                f(&bytes, line).map_err(|e| failed(path, &e))?;
            }
            LineRead::TooLong => return Err(invalid(format!("line {number} is too long"))),
            LineRead::WithoutNewline | LineRead::End => break,
        }
    }
    Ok(())
}

/// Replaces a file by its results without errors, at once, so that nothing is lost if that fails.
fn without_errors(mut file: File, path: &Path) -> Result<File> {
    use std::io::Seek;
    let failed = |e: std::io::Error| failed(path, &e);
    // The file itself, not a link to it, is replaced.
    let path = path.canonicalize().map_err(failed)?;
    let mut name = path.clone().into_os_string();
    name.push(".tmp");
    let temporary = PathBuf::from(name);
    file.rewind().map_err(failed)?;
    let mut copy = BufWriter::new(File::create(&temporary).map_err(failed)?);
    for_each_line(&file, &path, |bytes, line| match line.error {
        None => copy.write_all(bytes).and_then(|()| copy.write_all(b"\n")),
        Some(_) => Ok(()),
    })?;
    let copy = copy.into_inner().map_err(|e| failed(e.into_error()))?;
    copy.sync_all().map_err(failed)?;
    std::fs::rename(&temporary, &path).map_err(failed)?;
    Ok(copy)
}

fn failed(path: &Path, error: &std::io::Error) -> Error {
    Error::new(ErrorCode::IoFailed, format!("cannot write the results: {error}")).with_path(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "{\"index\":1,\"id\":\"b\",\"text\":\"x\"}\n{\"index\":0,\"sample\":1,\"text\":\"y\"}\n";

    fn keys(index: usize, id: Option<&str>) -> RequestKeys {
        RequestKeys { index, id: id.map(Value::from), custom_id: None }
    }

    fn resumed(content: &str) -> Result<(String, FinishedResults)> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("out.jsonl");
        std::fs::write(&path, content).expect("written");
        let (mut file, finished) = resume(&path)?;
        file.write_all(b"{\"index\":9}\n").expect("appends");
        assert_eq!(std::fs::read_dir(dir.path()).expect("reads").count(), 1);
        Ok((std::fs::read_to_string(&path).expect("reads"), finished))
    }

    #[test]
    fn a_file_is_continued_after_its_last_whole_line() {
        for partial in ["", "{\"index\":2", "{\"index\":2,\"text\":\"whole but no newline\"}", "\0"] {
            let (text, finished) = resumed(&format!("{LINES}{partial}")).expect("resumes");
            assert_eq!(text, format!("{LINES}{{\"index\":9}}\n"));
            assert_eq!(finished.len(), 2);
            assert!(finished.has_all(&keys(1, Some("b")), 1).expect("is right"));
            assert!(!finished.has_all(&keys(0, None), 2).expect("is right") && finished.has(0, 1));
            assert!(!finished.has_all(&keys(2, None), 1).expect("is right"));
        }
    }

    #[test]
    fn errors_are_removed_because_their_requests_run_again() {
        let error = "{\"index\":4,\"error\":{\"code\":\"adapter_not_found\"}}\n";
        let (text, finished) = resumed(&format!("{error}{LINES}{error}{{\"ind")).expect("resumes");
        assert_eq!((text, finished.len()), (format!("{LINES}{{\"index\":9}}\n"), 2));
    }

    #[test]
    fn results_of_other_requests_are_refused() {
        let (_, finished) = resumed(LINES).expect("resumes");
        let error = finished.has_all(&keys(1, Some("c")), 1).expect_err("another id");
        assert!(error.to_string().contains("request 1"), "{error}");
        for content in ["hello\n", "[1]\n", "{\"text\":\"x\"}\n", "\n"] {
            assert_eq!(resumed(content).err().expect("refused").code(), ErrorCode::RequestInvalid, "{content}");
        }
        assert!(resume(Path::new("/dev/null")).is_err());
    }

    #[test]
    fn an_existing_file_is_not_overwritten() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        assert!(create(file.path()).expect_err("refused").to_string().contains("--resume"));
    }
}
