//! What can be wrong with data: which file, which line, which column, what was there and what was
//! expected. It does not decide what a process does about it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A [`std::result::Result`] with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why data could not be read, made or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument written as text is not one of the accepted forms.
    #[error("{what} {found:?}: expected {expected}")]
    Argument {
        /// What the text was to name.
        what: &'static str,
        /// The text.
        found: String,
        /// What would have been accepted.
        expected: String,
    },
    /// A file can't be opened, read or written.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: PathBuf,
        /// What the operating system or the decoder said.
        source: std::io::Error,
    },
    /// A gzip stream ends before its own end mark.
    #[error(
        "{file}: truncated: the gzip stream ends after line {line} without its end mark; \
         the file is incomplete"
    )]
    Truncated {
        /// The file.
        file: PathBuf,
        /// The last line read before the end.
        line: u64,
    },
    /// A file without a single row.
    #[error("{file}: empty: expected {expected}")]
    Empty {
        /// The file.
        file: PathBuf,
        /// What should have been there.
        expected: &'static str,
    },
    /// The columns of a file are not those that were asked for.
    #[error("{file}: {problem}; the file's columns are: {columns}")]
    Header {
        /// The file.
        file: PathBuf,
        /// What is missing, doubled or undecided.
        problem: String,
        /// The columns that the file has.
        columns: String,
    },
    /// A line has too few or too many columns.
    #[error("{file}, line {line}: {found} columns, expected {expected} separated by tabs")]
    ColumnCount {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// How many columns it has.
        found: usize,
        /// How many it should have.
        expected: usize,
    },
    /// A line is longer than any real row.
    #[error("{file}, line {line}: longer than {limit_bytes} bytes")]
    LineTooLong {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// The longest line that is read.
        limit_bytes: usize,
    },
    /// A value is not what its column holds.
    #[error("{file}, {place}, column {column} ({name}): found {found}, expected {expected}")]
    Value {
        /// The file.
        file: PathBuf,
        /// The line or row.
        place: Place,
        /// The column's place in the file, counted from 1.
        column: usize,
        /// The column's name.
        name: String,
        /// What was there.
        found: String,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// More bad rows than were allowed to be skipped.
    #[error("{file}: more than {rows_max} bad rows; the latest: {latest}")]
    TooManyBadRows {
        /// The file.
        file: PathBuf,
        /// How many were allowed.
        rows_max: u64,
        /// What was wrong with the row that was one too many.
        latest: Box<Error>,
    },
    /// The Parquet decoder or encoder refused.
    #[error("{file}: {source}")]
    Parquet {
        /// The file.
        file: PathBuf,
        /// What it said.
        source: parquet::errors::ParquetError,
    },
    /// A cache is not what it must be.
    #[error("{file}, byte {byte}: found {found}, expected {expected}")]
    Cache {
        /// The file.
        file: PathBuf,
        /// Where in it.
        byte: u64,
        /// What was there.
        found: String,
        /// What would have been accepted.
        expected: String,
    },
    /// A dense value does not fit an `f32` after its transform.
    #[error("{data}: dense column {name}: {found} is not a finite number after {transform}")]
    Transform {
        /// The source.
        data: String,
        /// The column.
        name: String,
        /// The value before the transform.
        found: f64,
        /// The transform.
        transform: String,
    },
    /// A standardisation was fitted on other columns than those it is to be used on.
    #[error("the standardisation has {found} columns, the data has {expected} dense columns")]
    StandardisationWidth {
        /// Columns of the standardisation.
        found: usize,
        /// Dense columns of the data.
        expected: usize,
    },
    /// No row was there to fit a standardisation on.
    #[error("{data}: no row to fit a standardisation on")]
    NothingToFit {
        /// The source.
        data: String,
    },
    /// The features of a batch and the tables named for them differ in number.
    #[error("{features} features, {tables} tables named: expected one table for each feature")]
    TablesDisagree {
        /// Features of the batch.
        features: usize,
        /// Tables named.
        tables: usize,
    },
    /// A batch names more values than an index of 32 bits can.
    #[error("a batch of {values} values, expected at most {}", u32::MAX)]
    TooManyValues {
        /// Values in the batch.
        values: u64,
    },
}

/// Where in a file: text has lines, Parquet has rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A line, counted from 1, the header included.
    Line(u64),
    /// A row, counted from 0.
    Row(u64),
}

impl Error {
    /// Whether the input is at fault rather than the world: such a process exits with 2.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Error::Io { source, .. } => matches!(
                source.kind(),
                ErrorKind::NotFound
                    | ErrorKind::IsADirectory
                    | ErrorKind::InvalidData
                    | ErrorKind::InvalidInput
            ),
            Error::TablesDisagree { .. } => false,
            Error::Argument { .. }
            | Error::Truncated { .. }
            | Error::Empty { .. }
            | Error::Header { .. }
            | Error::ColumnCount { .. }
            | Error::LineTooLong { .. }
            | Error::Value { .. }
            | Error::TooManyBadRows { .. }
            | Error::Parquet { .. }
            | Error::Cache { .. }
            | Error::Transform { .. }
            | Error::StandardisationWidth { .. }
            | Error::NothingToFit { .. }
            | Error::TooManyValues { .. } => true,
        }
    }

    /// Whether a single row is at fault, so that a reader may go on with the next one.
    pub(crate) fn is_bad_row(&self) -> bool {
        matches!(self, Error::ColumnCount { .. } | Error::LineTooLong { .. } | Error::Value { .. })
    }

    pub(crate) fn io(file: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |source| Error::Io { file: file.to_owned(), source }
    }

    pub(crate) fn parquet(file: &Path) -> impl FnOnce(parquet::errors::ParquetError) -> Error + '_ {
        move |source| Error::Parquet { file: file.to_owned(), source }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Line(line) => write!(f, "line {line}"),
            Place::Row(row) => write!(f, "row {row}"),
        }
    }
}

/// Bytes of a file as a message shows them: quoted, escaped, cut to a readable length.
pub(crate) fn shown(bytes: &[u8]) -> String {
    const BYTES_MAX: usize = 40;
    if bytes.is_empty() {
        return "nothing".to_owned();
    }
    let cut = &bytes[..bytes.len().min(BYTES_MAX)];
    let more = if bytes.len() > BYTES_MAX { "..." } else { "" };
    format!("\"{}{more}\"", cut.escape_ascii())
}
