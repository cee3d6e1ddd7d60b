//! Lines of a text file, plain or gzip, through one buffer of fixed size. It does not look into a
//! line.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, LINE_BYTES_MAX, Result};

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const COMPRESSED_BUFFER_BYTES: usize = 256 << 10;
const BUFFER_BYTES: usize = 2 << 20;
// a whole line, its end and what was read behind it must fit while the next read finds room
const _: () = assert!(BUFFER_BYTES >= LINE_BYTES_MAX + 2 + (64 << 10));

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// Its bytes, without `\n` or `\r\n`.
    Text(&'a [u8]),
    /// Longer than [`LINE_BYTES_MAX`]; its bytes are gone.
    TooLong,
}

/// The lines of one file in their order.
pub(crate) struct Lines {
    path: PathBuf,
    input: Box<dyn Read + Send>,
    gzip: bool,
    buffer: Vec<u8>, // [BUFFER_BYTES]
    start: usize,    // of what is not given out yet
    searched: usize, // no line ends before it
    end: usize,      // of what was read
    input_ended: bool,
    number: u64,
    file_bytes: u64,
    file_bytes_read: Arc<AtomicU64>,
}

impl Lines {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::io(path))?;
        let file_bytes = file.metadata().map_err(Error::io(path))?.len();
        let mut magic = [0; 2];
        let magic_bytes = read_up_to(&mut file, &mut magic).map_err(Error::io(path))?;
        let gzip = magic_bytes == 2 && magic == GZIP_MAGIC;
        let file_bytes_read = Arc::new(AtomicU64::new(0));
        let whole = std::io::Cursor::new(magic).take(magic_bytes as u64).chain(file);
        let counted = Counted { inner: whole, bytes: Arc::clone(&file_bytes_read) };
        let input: Box<dyn Read + Send> = if gzip {
            let buffered = BufReader::with_capacity(COMPRESSED_BUFFER_BYTES, counted);
            Box::new(flate2::bufread::MultiGzDecoder::new(buffered))
        } else {
            Box::new(counted)
        };
        let path = path.to_owned();
        let buffer = vec![0; BUFFER_BYTES];
        let (start, searched, end, input_ended, number) = (0, 0, 0, false, 0);
        Ok(Self {
            path,
            input,
            gzip,
            buffer,
            start,
            searched,
            end,
            input_ended,
            number,
            file_bytes,
            file_bytes_read,
        })
    }

    /// The next line, or none at the end of the file.
    pub(crate) fn next(&mut self) -> Result<Option<Line<'_>>> {
        let mut too_long = false;
        let range = loop {
            let fresh = &self.buffer[self.searched..self.end];
            if let Some(at) = memchr::memchr(b'\n', fresh) {
                let line = self.start..self.searched + at;
                self.start = line.end + 1;
                self.searched = self.start;
                break line;
            }
            self.searched = self.end;
            // one more than the limit: the line may yet end with \r\n
            if self.end - self.start > LINE_BYTES_MAX + 1 {
                too_long = true;
                self.start = self.end;
            }
            if self.input_ended {
                if self.start == self.end && !too_long {
                    return Ok(None);
                }
                let line = self.start..self.end;
                self.start = self.end;
                break line;
            }
            self.refill()?;
        };
        self.number += 1;
        let line = trim_carriage_return(&self.buffer, range);
        if too_long || line.len() > LINE_BYTES_MAX {
            return Ok(Some(Line::TooLong));
        }
        Ok(Some(Line::Text(line)))
    }

    /// The beginning of the next line, which is not given out: all of it, unless it is too long.
    /// Nothing at the end of the file.
    pub(crate) fn peek(&mut self) -> Result<&[u8]> {
        loop {
            let fresh = &self.buffer[self.start..self.end];
            let end = memchr::memchr(b'\n', fresh);
            if end.is_some() || self.input_ended || fresh.len() > LINE_BYTES_MAX + 1 {
                let line = self.start..end.map_or(self.end, |at| self.start + at);
                return Ok(&self.buffer[line]);
            }
            self.refill()?;
        }
    }

    /// Whether no line is left.
    pub(crate) fn at_end(&mut self) -> Result<bool> {
        while self.start == self.end && !self.input_ended {
            self.refill()?;
        }
        Ok(self.start == self.end)
    }

    /// The number of the line given out last, counted from 1; 0 before the first.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How much of the file has been read, 0 to 1.
    pub(crate) fn progress(&self) -> f64 {
        if self.file_bytes == 0 {
            return 1.0;
        }
        (self.file_bytes_read.load(Ordering::Relaxed) as f64 / self.file_bytes as f64).min(1.0)
    }

    fn refill(&mut self) -> Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.searched -= self.start;
        self.start = 0;
        loop {
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(0) => {
                    self.input_ended = true;
                    return Ok(());
                }
                Ok(bytes) => {
                    self.end += bytes;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if self.gzip && error.kind() == ErrorKind::UnexpectedEof => {
                    return Err(Error::Truncated { file: self.path.clone(), line: self.number });
                }
                Err(source) => return Err(Error::Io { file: self.path.clone(), source }),
            }
        }
    }
}

fn trim_carriage_return(buffer: &[u8], line: Range<usize>) -> &[u8] {
    let line = &buffer[line];
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn read_up_to(file: &mut File, bytes: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Counts the bytes that pass.
struct Counted<R> {
    inner: R,
    bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn all(bytes: &[u8]) -> Result<Vec<Option<Vec<u8>>>> {
        let file = file(bytes);
        let mut lines = Lines::open(file.path())?;
        let mut out = Vec::new();
        while let Some(line) = lines.next()? {
            out.push(match line {
                Line::Text(text) => Some(text.to_vec()),
                Line::TooLong => None,
            });
        }
        assert_eq!(lines.number(), out.len() as u64);
        assert_eq!(lines.progress(), 1.0);
        Ok(out)
    }

    fn texts(lines: &[&str]) -> Vec<Option<Vec<u8>>> {
        lines.iter().map(|line| Some(line.as_bytes().to_vec())).collect()
    }

    #[test]
    fn both_line_ends_and_a_last_line_without_one() {
        assert_eq!(all(b"a\nbc\r\n\nd").unwrap(), texts(&["a", "bc", "", "d"]));
        assert_eq!(all(b"a\n").unwrap(), texts(&["a"]));
        assert_eq!(all(b"a\r").unwrap(), texts(&["a"]));
        assert_eq!(all(b"\r\r\n").unwrap(), texts(&["\r"]));
        assert_eq!(all(b"").unwrap(), texts(&[]));
    }

    #[test]
    fn gzip_is_told_by_its_bytes_and_may_have_several_members() {
        let two = [gzip(b"a\nb"), gzip(b""), gzip(b"c\nd\n")].concat();
        assert_eq!(all(&two).unwrap(), texts(&["a", "bc", "d"]));
        assert_eq!(all(b"\x1f").unwrap().len(), 1, "a byte alone is text");
    }

    #[test]
    fn a_gzip_stream_cut_anywhere_is_an_error_never_a_short_file() {
        let whole = [gzip(b"a\nb\n"), gzip(b"c\n")].concat();
        let boundary = gzip(b"a\nb\n").len();
        for cut in (2..whole.len()).filter(|&cut| cut != boundary) {
            let error = all(&whole[..cut]).unwrap_err();
            assert!(matches!(error, Error::Truncated { .. }), "cut at {cut}: {error}");
            assert!(error.to_string().contains("truncated"), "{error}");
        }
    }

    #[test]
    fn damaged_gzip_is_an_error() {
        let mut damaged = gzip(&b"some text that repeats, some text that repeats\n".repeat(50));
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0x55;
        assert!(matches!(all(&damaged).unwrap_err(), Error::Io { .. } | Error::Truncated { .. }));
    }

    #[test]
    fn lines_across_the_buffer_and_lines_too_long() {
        let long = vec![b'x'; LINE_BYTES_MAX];
        let longer = vec![b'y'; LINE_BYTES_MAX + 1];
        let huge = vec![b'z'; 3 * BUFFER_BYTES];
        let text = [&long[..], b"\r\n", &longer, b"\n", &huge, b"\nshort\n", &long, b"\n", &huge];
        let mut expected = vec![Some(long.clone()), None, None];
        expected.extend(texts(&["short"]));
        expected.extend([Some(long.clone()), None]);
        assert!(all(&text.concat()).unwrap() == expected);
        assert!(all(&gzip(&text.concat())).unwrap() == expected);
    }
}
