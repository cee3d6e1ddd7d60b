//! The worker's one error. It does not print; the binary does, once.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// A [`std::result::Result`] with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a command of the worker ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What was asked for does not fit together, or not with what is there.
    #[error("{0}")]
    Input(String),
    /// The data could not be read.
    #[error(transparent)]
    Data(#[from] dataset::Error),
    /// The parameter server refused, or went away.
    #[error("{doing}: {source}")]
    Session {
        /// What the worker was doing, as a bare verb phrase.
        doing: String,
        /// What the session said.
        source: wire::Error,
    },
    /// The model refused its shapes or weights.
    #[error(transparent)]
    Model(#[from] dlrm::Error),
    /// A file of the worker's own could not be read or written.
    #[error("{doing} {path}: {source}")]
    File {
        /// What was being done, as a bare verb phrase.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A safetensors file is not what it must be.
    #[error("{path}: {message}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong and what was expected.
        message: String,
    },
    /// The system gave no thread.
    #[error("start thread {name}: {source}")]
    Thread {
        /// What it was to do.
        name: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The loss is not finite: the learning rate is too high, or the data is broken.
    #[error("step {step}: the loss is {loss}; lower --learning-rate, or look at the dense values")]
    Diverged {
        /// The step.
        step: u64,
        /// Its loss.
        loss: f32,
    },
}

impl Error {
    /// Whether the caller's input is at fault rather than the world: the process then exits with 2.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Error::Model(error) => !error.is_device_failure(),
            Error::Input(_) | Error::Weights { .. } => true,
            Error::Data(error) => error.is_bad_input(),
            Error::Session { source, .. } => source.code().is_bad_input(),
            Error::File { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::AlreadyExists
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::IsADirectory
            ),
            Error::Diverged { .. } => true,
            Error::Thread { .. } => false,
        }
    }

    pub(crate) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::File { doing, path, source }
    }

    /// `doing` is put into words where there is an error.
    pub(crate) fn session(doing: impl Display) -> impl FnOnce(wire::Error) -> Error {
        move |source| Error::Session { doing: doing.to_string(), source }
    }
}
