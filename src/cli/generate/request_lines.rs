//! The lines of a requests file, read ahead by a thread of its own: waiting for a line from a slow pipe must not keep the
//! requests before it from running.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

use crate::error::{Error, ErrorCode, Result};

/// A longer line is refused and skipped.
pub(super) const MAX_LINE_BYTES: usize = 16 << 20;

/// Lines that are read ahead.
const LINES_AHEAD: usize = 8;

/// A line that is not empty.
pub(super) struct RequestLine {
    /// Its number in the file, from 1.
    pub number: usize,
    /// Its text, or why it is no request.
    pub text: Result<String>,
}

/// The next lines of a file, as they come.
pub(super) struct RequestLines {
    lines: Receiver<Result<RequestLine>>,
    next: Option<Result<RequestLine>>,
    is_at_end: bool,
}

impl RequestLines {
    /// Opens a file; `-` is stdin.
    ///
    /// # Errors
    /// `io_failed`.
    pub(super) fn open(source: &Path) -> Result<Self> {
        let source = source.to_owned();
        let input: Box<dyn Read + Send> = match source.to_str() {
            Some("-") => Box::new(std::io::stdin()),
            _ => Box::new(File::open(&source).map_err(|e| cannot_read(&source, &e))?),
        };
        Self::read(input, source)
    }

    fn read(input: impl Read + Send + 'static, source: PathBuf) -> Result<Self> {
        let (sender, lines) = sync_channel(LINES_AHEAD);
        // It ends with the file, or when a line is sent that nobody receives any more.
        std::thread::Builder::new()
            .name("exlora-requests".to_owned())
            .spawn(move || send_lines(&mut BufReader::new(input), &sender, &source))
            .map_err(|e| Error::new(ErrorCode::IoFailed, format!("cannot start a thread: {e}")))?;
        Ok(Self { lines, next: None, is_at_end: false })
    }

    /// Whether a line, or an error, can be taken now.
    pub(super) fn is_ready(&mut self) -> bool {
        if self.next.is_none() && !self.is_at_end {
            match self.lines.try_recv() {
                Ok(line) => self.next = Some(line),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => self.is_at_end = true,
            }
        }
        self.next.is_some()
    }

    /// The next line, if there is one by now.
    ///
    /// # Errors
    /// `io_failed`.
    pub(super) fn take(&mut self) -> Result<Option<RequestLine>> {
        self.is_ready();
        self.next.take().transpose()
    }

    /// Waits a moment for a line; `false` after the last one.
    pub(super) fn wait(&mut self) -> bool {
        if self.next.is_none() && !self.is_at_end {
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => self.next = Some(line),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.is_at_end = true,
            }
        }
        !self.is_at_end
    }
}

fn cannot_read(source: &Path, error: &std::io::Error) -> Error {
    Error::new(ErrorCode::IoFailed, format!("cannot read the requests: {error}")).with_path(source)
}

fn send_lines(input: &mut impl BufRead, sender: &SyncSender<Result<RequestLine>>, source: &Path) {
    let mut bytes = Vec::new();
    for number in 1.. {
        let text = match read_line(input, &mut bytes, MAX_LINE_BYTES) {
            Ok(LineRead::End) => return,
            Ok(LineRead::TooLong) => Err(Error::new(ErrorCode::RequestInvalid, "the line is too long")
                .with_expected(format!("at most {MAX_LINE_BYTES} bytes"))),
            Ok(LineRead::Whole | LineRead::WithoutNewline) => {
                if bytes.trim_ascii().is_empty() {
                    continue;
                }
                String::from_utf8(std::mem::take(&mut bytes))
                    .map_err(|e| Error::new(ErrorCode::RequestInvalid, format!("the line is not UTF-8: {e}")))
            }
            Err(e) => {
                let _ = sender.send(Err(cannot_read(source, &e)));
                return;
            }
        };
        if sender.send(Ok(RequestLine { number, text })).is_err() {
            return;
        }
    }
}

/// What [`read_line`] found.
#[derive(Debug, PartialEq)]
pub(super) enum LineRead {
    Whole,
    /// The file ended before a newline.
    WithoutNewline,
    /// It was skipped.
    TooLong,
    End,
}

/// Reads a line into `bytes`, without its newline, but never more than `max_bytes` of it.
pub(super) fn read_line(input: &mut impl BufRead, bytes: &mut Vec<u8>, max_bytes: usize) -> std::io::Result<LineRead> {
    bytes.clear();
    if input.by_ref().take(max_bytes as u64 + 1).read_until(b'\n', bytes)? == 0 {
        return Ok(LineRead::End);
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        return Ok(LineRead::Whole);
    }
    if bytes.len() <= max_bytes {
        return Ok(LineRead::WithoutNewline);
    }
    *bytes = Vec::new();
    input.skip_until(b'\n')?;
    Ok(LineRead::TooLong)
}

/// Number of lines of a regular file that are not empty; `None` for a pipe, which cannot be read twice.
pub(super) fn count(source: &Path) -> Option<u64> {
    let file = File::open(source).ok().filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file()))?;
    let (mut input, mut lines, mut is_empty) = (BufReader::with_capacity(1 << 16, file), 0, true);
    loop {
        let part = input.fill_buf().ok()?;
        if part.is_empty() {
            return Some(lines + u64::from(!is_empty));
        }
        for byte in part {
            if *byte == b'\n' {
                lines += u64::from(!std::mem::replace(&mut is_empty, true));
            } else {
                is_empty &= byte.is_ascii_whitespace();
            }
        }
        let len = part.len();
        input.consume(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str, max_bytes: usize) -> Vec<(LineRead, String)> {
        let (mut input, mut bytes) = (text.as_bytes(), Vec::new());
        let mut read = || match read_line(&mut input, &mut bytes, max_bytes).expect("reads") {
            LineRead::End => None,
            other => Some((other, String::from_utf8(bytes.clone()).expect("UTF-8"))),
        };
        std::iter::from_fn(&mut read).collect()
    }

    #[test]
    fn a_line_is_never_longer_than_allowed() {
        let long = "x".repeat(1000);
        let text = format!("ab\n{long}\n\nabc\nabcd\n{long}");
        let line = |kind, text: &str| (kind, text.to_owned());
        assert_eq!(
            all(&text, 3),
            [
                line(LineRead::Whole, "ab"),
                line(LineRead::TooLong, ""),
                line(LineRead::Whole, ""),
                line(LineRead::Whole, "abc"),
                line(LineRead::TooLong, ""),
                line(LineRead::TooLong, ""),
            ]
        );
        assert_eq!(all("abc", 3), [line(LineRead::WithoutNewline, "abc")]);
    }

    #[test]
    fn only_a_few_lines_are_read_ahead() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicUsize, Ordering};

        /// Lines without end, of 1 KiB each.
        struct Endless(Arc<AtomicUsize>);

        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                let len = buffer.len().min(1024);
                buffer[..len].fill(b'x');
                buffer[len - 1] = b'\n';
                self.0.fetch_add(len, Ordering::SeqCst);
                Ok(len)
            }
        }

        let read = Arc::new(AtomicUsize::new(0));
        let mut lines = RequestLines::read(Endless(Arc::clone(&read)), PathBuf::new()).expect("starts");
        for taken in 0..50 {
            while !lines.is_ready() {
                assert!(lines.wait());
            }
            assert!(lines.take().expect("reads").is_some());
            let ahead = read.load(Ordering::SeqCst) - taken * 1024;
            assert!(ahead < (LINES_AHEAD + 20) * 1024, "{ahead} bytes");
        }
    }

    #[test]
    fn lines_are_counted_and_sent_without_the_empty_ones() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), b"a\n\n  \nb\n\xff\nc").expect("written");
        assert_eq!(count(file.path()), Some(4));
        let mut lines = RequestLines::open(file.path()).expect("opens");
        let mut found = Vec::new();
        while lines.wait() {
            found.extend(lines.take().expect("reads").map(|line| (line.number, line.text.ok())));
        }
        assert!(!lines.is_ready());
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(found, [(1, text("a")), (4, text("b")), (5, None), (6, text("c"))]);
        assert_eq!(count(Path::new("/dev/null")), None);
        assert!(RequestLines::open(Path::new("no/such/file")).is_err());
    }
}
